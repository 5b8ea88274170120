"""The metrics of several processes as one text."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from obox.workers.exposition import merge

ONE = b"""# HELP a_total Of a.
# TYPE a_total counter
a_total{kind="x"} 1.0
a_total{kind="a \\"}b"} 2.0
# HELP lag_seconds Of a loop.
# TYPE lag_seconds histogram
lag_seconds_bucket{le="0.1"} 3.0
lag_seconds_bucket{le="+Inf"} 4.0
lag_seconds_count 4.0
lag_seconds_sum 0.5
"""
TWO = b'# HELP a_total Of a.\n# TYPE a_total counter\na_total{kind="x"} 5.0\n# HELP b Of b.\n# TYPE b gauge\nb 7.0\n'


def test_each_sample_names_its_process_and_those_of_a_metric_are_together() -> None:
    families = list(text_string_to_metric_families(merge({"m": ONE, "m-1": TWO, "m-2": b""}).decode()))
    found = {
        (sample.name, sample.labels["worker"], sample.labels.get("kind") or sample.labels.get("le")): sample.value
        for family in families
        for sample in family.samples
    }
    assert [family.name for family in families] == ["a", "lag_seconds", "b"]
    assert found == {
        ("a_total", "m", "x"): 1.0,
        ("a_total", "m", 'a "}b'): 2.0,
        ("a_total", "m-1", "x"): 5.0,
        ("lag_seconds_bucket", "m", "0.1"): 3.0,
        ("lag_seconds_bucket", "m", "+Inf"): 4.0,
        ("lag_seconds_count", "m", None): 4.0,
        ("lag_seconds_sum", "m", None): 0.5,
        ("b", "m-1", None): 7.0,
    }
