"""The rules of the directory that say which backend serves which user. They are pure
functions."""

from __future__ import annotations

from collections import Counter

import pytest

from obox.cluster import Assigned, Row, group_key, group_of, newer, next_timestamp, rank

GROUPS = 400


def test_groups_are_even_and_fixed() -> None:
    sizes = Counter(group_of(f"user{n}@example.org", 10) for n in range(10_000))
    assert set(sizes) == set(range(10))
    assert max(sizes.values()) < 1.15 * min(sizes.values())
    assert group_of("anna@example.org", 400) == 397, "the hash is part of the format"


def owners(weights: dict[str, float]) -> dict[int, str]:
    return {group: rank(group_key(group), weights)[0] for group in range(GROUPS)}


def test_shares_follow_the_weights() -> None:
    counts = Counter(owners({"a": 100, "b": 100, "c": 50}).values())
    for name, share in (("a", 0.4), ("b", 0.4), ("c", 0.2)):
        assert counts[name] == pytest.approx(share * GROUPS, rel=0.2)


def test_only_what_a_backend_had_moves_when_it_goes() -> None:
    three, two = owners({"a": 1, "b": 1, "c": 1}), owners({"a": 1, "b": 1})
    assert all(two[group] == owner for group, owner in three.items() if owner != "c")
    heirs = Counter(two[group] for group, owner in three.items() if owner == "c")
    assert min(heirs.values()) > 0.3 * heirs.total()


def test_a_weight_of_zero_never_serves() -> None:
    assert rank("00001", {"a": 0, "b": 5}) == ["b"]
    assert rank("00001", {"a": 0}) == []


def test_the_higher_number_holds_then_the_higher_token() -> None:
    mine = Assigned("a", 3, 500)
    assert newer(mine, Assigned("b", 4, 1))
    assert newer(mine, Assigned("b", 3, 501))
    assert not newer(mine, Assigned("b", 3, 499))
    assert not newer(mine, mine)


def test_a_slow_clock_still_changes_a_row_that_it_has_read() -> None:
    assert next_timestamp(lambda: 10.0, None) == 10_000_000
    assert next_timestamp(lambda: 10.0, Row(b"", 15_000_000)) == 15_000_001
    assert next_timestamp(lambda: 20.0, Row(b"", 15_000_000)) == 20_000_000


def test_of_two_rows_with_one_timestamp_the_higher_value_stays() -> None:
    assert Row(b"b", 1).beats(Row(b"a", 1))
    assert not Row(b"a", 1).beats(Row(b"b", 1))
    assert Row(b"a", 2).beats(Row(b"b", 1))
    assert Row(b"a", 0).beats(None)
