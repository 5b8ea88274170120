"""The alert rules: a backend of a cluster or a proxy shows each metric that the rules
name. Each alert says what to do, and names the page that describes it."""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from certificates import certificate
from patience import PATIENT_S
from ports import free_port
from processes import Backend
from prometheus_client.parser import text_string_to_metric_families
from test_backends import until
from test_docs import headings

ROOT = Path(__file__).parent.parent.parent
FILE = ROOT / "docs/prometheus/obox.rules.yml"
RULES: list[dict[str, Any]] = [rule for group in yaml.safe_load(FILE.read_text())["groups"] for rule in group["rules"]]
SELECTOR = r'\b(obox_\w+)(?:\{(\w+)=(~?)"([^"]+)"\})?'


@pytest.fixture
def shown(make: Callable[..., Backend], tmp_path: Path) -> set[tuple[str, str, str]]:
    """Return name, label and value of each sample that a member and a proxy show. The
    tuple ("name", "", "") says that there is a metric of this name."""
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex(32) + "\n")
    secret.chmod(0o600)
    cluster = {"directory": f"lmdb://{tmp_path}/cluster", "secret_file": str(secret)}
    cert, key = certificate(tmp_path, "member", "member.example")
    tls = {"cert": [str(cert)], "key": [str(key)]}
    member = make(sections={"cluster": cluster, "tls": tls, "events": {"audit_file": f"{tmp_path}/audit"}})
    member.spawn()
    member.wait_listening()
    port, config = free_port(), tmp_path / "proxy.toml"
    config.write_text(
        f'state_dir = "{tmp_path}/proxy"\n[auth]\npasswd_file = "{member.home}/users"\n'
        f'[http]\nlisten = ["127.0.0.1:{port}"]\n[cluster]\nbackend = "proxy"\n'
        + "".join(f'{key} = "{value}"\n' for key, value in cluster.items())
    )

    def of_proxy() -> str:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=PATIENT_S) as answer:
            text: str = answer.read().decode()
        assert "\nobox_directory_age_seconds " in text, "the directory has answered"
        return text

    with subprocess.Popen([sys.executable, "-m", "obox.main", "proxy", "-c", str(config)]) as proxy:
        try:
            until(of_proxy)
            texts = [member.get("/metrics")[1], of_proxy()]
        finally:
            proxy.terminate()
    return {
        found
        for text in texts
        for family in text_string_to_metric_families(text)
        for name, labels in [
            (family.name + ("_total" if family.type == "counter" else ""), {}),
            *((sample.name, sample.labels) for sample in family.samples),
        ]
        for found in [(name, "", ""), *((name, label, value) for label, value in labels.items())]
    }


def test_each_metric_of_the_rules_is_shown(shown: set[tuple[str, str, str]]) -> None:
    named = [match for rule in RULES for match in re.findall(SELECTOR, rule["expr"])]
    assert len(named) > len(RULES)
    wanted = set()
    for name, label, pattern, value in named:
        # A counter must be shown before its first increment. Otherwise Prometheus does
        # not see the first increment as growth.
        wanted |= {(name, label, one) for one in (value.split("|") if pattern else [value])}
    assert wanted - shown == set()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule["alert"])
def test_an_alert_says_what_to_do_and_where_that_is_described(rule: dict[str, Any]) -> None:
    assert re.fullmatch(r"Obox[A-Z][A-Za-z]+", rule["alert"])
    assert rule["labels"]["severity"] in ("critical", "warning")
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert set(rule["annotations"]) == {"summary", "description"}
    cited = re.findall(r'docs/(\w+\.md), "([^"]+)"', rule["annotations"]["description"])
    assert cited
    for page, title in cited:
        assert title in headings(ROOT / "docs" / page).values()
    kept = re.findall(r"sum by \(([^)]*)\)", rule["expr"])
    for label in re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]):
        assert label in ("instance", "worker", "op")
        assert all(label in of.replace(" ", "").split(",") for of in kept), "the expression drops this label"


def test_names_are_given_once_and_operators_find_each_metric() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    pages = (ROOT / "docs/operations.md").read_text()
    assert str(FILE.relative_to(ROOT / "docs")) in pages
    table = "".join(line for line in pages.splitlines(keepends=True) if line.startswith("| `"))
    metrics = {match[0] for rule in RULES for match in re.findall(SELECTOR, rule["expr"])}
    missing = {name for name in metrics if name.removesuffix("_bucket") not in table}
    assert missing == set()
