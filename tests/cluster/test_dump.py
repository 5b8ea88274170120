"""The directory as text, and what `check` finds in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec
import pytest

from obox.cluster import (
    Assigned,
    Beat,
    BootRow,
    Directory,
    Finding,
    Kind,
    Member,
    MemoryDirectory,
    MemoryReplica,
    Move,
    Orders,
    Row,
    Settings,
    Site,
    State,
    check,
    dump,
    encode,
    group_key,
    load,
    open_directory,
    user_key,
)
from obox.errors import ConfigError

NOW = 1_800_000_000_000_000
SOUND: dict[tuple[Kind, str], msgspec.Struct] = {
    (Kind.SETTINGS, "directory"): Settings(2, "0" * 32, 1.5),
    (Kind.SITES, "default"): Site(comment="Köln"),
    (Kind.MEMBERS, "a"): Member("backend", "default", "10.0.0.1", {"imap": 143}, {"envelope": 2}, "1.0"),
    (Kind.MEMBERS, "b"): Member("backend", "default", "10.0.0.2", {"imap": 143}),
    (Kind.ORDERS, "a"): Orders(load_factor=50),
    (Kind.BEATS, "a"): Beat(5, "boot2"),
    (Kind.BOOTS, "a/boot1"): BootRow(1.0, 2.0, True),
    (Kind.BOOTS, "a/boot2"): BootRow(3.0),
    (Kind.GROUPS, group_key(0)): Assigned("a", 1, 2**63 + 5),
    (Kind.GROUPS, group_key(1)): Assigned("b", 2, 7),
    (Kind.PINS, "anna"): Assigned("b", 1, 1),
    (Kind.PINS, "gone"): Assigned("a", 1, 1, removed=True),
    (Kind.MOVES, user_key("anna")): Move("b", 1.0, "bob", True),
}


def filled(rows: Mapping[tuple[Kind, str], msgspec.Struct | bytes], stamp: int = NOW) -> MemoryDirectory:
    replica = MemoryReplica(lambda: 0.0)
    for (kind, key), record in rows.items():
        replica.write((kind, key), Row(record if isinstance(record, bytes) else encode(record), stamp))
    return MemoryDirectory(replica, sleep=asyncio.sleep)


async def rows_of(directory: Directory) -> dict[tuple[Kind, str], Row]:
    return {(kind, key): row for kind in Kind for key, row in (await directory.all(kind)).items()}


async def test_a_dump_says_everything_but_beats_and_comes_back_the_same() -> None:
    there = filled(SOUND | {(Kind.GROUPS, "odd"): b"\xff\xfe"})
    lines = await dump(there)
    assert not any("\n" in line for line in lines)
    assert json.loads(lines[0]) == {
        "kind": "settings",
        "key": "directory",
        "timestamp": NOW,
        "record": {"groups": 2, "id": "0" * 32, "made": 1.5, "major": 1, "minor": 0, "forms": {}},
    }
    empty = filled({})
    assert await load(empty, lines, now=lambda: 1.0) == len(SOUND)
    expected = await rows_of(there)
    del expected[Kind.BEATS, "a"]
    assert await rows_of(empty) == expected
    assert await dump(empty) == lines


async def test_a_newer_row_stays_unless_it_is_to_be_replaced() -> None:
    key = group_key(0)
    lines = await dump(filled({(Kind.GROUPS, key): Assigned("a", 1, 1)}))
    later = filled({(Kind.GROUPS, key): Assigned("b", 2, 1)}, NOW + 50)
    await load(later, lines, now=lambda: 1.0)
    assert await later.get(Kind.GROUPS, key) == Row(encode(Assigned("b", 2, 1)), NOW + 50)
    await load(later, lines, replace=True, now=lambda: 1.0)
    assert await later.get(Kind.GROUPS, key) == Row(encode(Assigned("a", 1, 1)), NOW + 51)


GOOD = '{"kind":"orders","key":"a","timestamp":5,"record":{}}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "line 3: "),
        ("[]", "line 3: "),
        ('{"kind":"tables","key":"a","timestamp":5,"record":{}}', "line 3: .*tables"),
        ('{"kind":"beats","key":"a","timestamp":5,"record":{"counter":1}}', "line 3: beats are not loaded; allowed: "),
        ('{"kind":"orders","key":"a","timestamp":5,"record":{"state":"lost"}}', "line 3: .*lost"),
        ('{"kind":"orders","key":"a","timestamp":5}', "line 3: a line has either a record or a value"),
        ('{"kind":"orders","key":"","timestamp":5,"record":{}}', "line 3: a key of the directory"),
        ('{"kind":"orders","key":"a","timestamp":0,"record":{}}', "line 3: a timestamp"),
        ('{"kind":"orders","key":"a","timestamp":5,"value":"%%"}', "line 3: "),
        ('{"kind":"orders","key":"a","timestamp":5,"record":{},"more":1}', "line 3: .*more"),
    ],
)
async def test_a_wrong_line_is_named_and_nothing_is_written(line: str, reason: str) -> None:
    empty = filled({})
    with pytest.raises(ValueError, match=reason):
        await load(empty, [GOOD, "", line, GOOD], now=lambda: 1.0)
    assert await rows_of(empty) == {}
    assert await load(empty, [GOOD, "", GOOD], now=lambda: 1.0) == 2


async def found(
    rows: Mapping[tuple[Kind, str], msgspec.Struct | bytes], claims: dict[str, dict[str, Assigned]] | None = None
) -> list[tuple[bool, str, str]]:
    findings = await check(filled(rows), now=100.0, claims=claims)
    assert all(isinstance(finding, Finding) and finding.text for finding in findings)
    return [(finding.error, finding.what, finding.where) for finding in findings]


async def test_a_sound_directory_has_no_findings() -> None:
    assert await found(SOUND) == []


GROUP0, GROUP1 = f"groups {group_key(0)}", f"groups {group_key(1)}"
CHANGES: dict[str, tuple[dict[tuple[Kind, str], msgspec.Struct | bytes], list[tuple[bool, str, str]]]] = {
    "unreadable": (
        {(Kind.GROUPS, group_key(0)): b"\xff"},
        [(True, "unreadable", GROUP0), (False, "unassigned", GROUP0)],
    ),
    "a key that is no group": ({(Kind.GROUPS, "7"): Assigned("a", 1, 1)}, [(True, "unreadable", "groups 7")]),
    "newer": ({(Kind.SETTINGS, "directory"): Settings(2, "0", 1.0, 2)}, [(True, "newer", "settings directory")]),
    "fewer groups": (
        {(Kind.SETTINGS, "directory"): Settings(1, "0", 1.0)},
        [(True, "no-such-group", GROUP1)],
    ),
    "more groups": (
        {(Kind.SETTINGS, "directory"): Settings(5, "0", 1.0)},
        [(False, "unassigned", f"groups {group_key(2)}")],
    ),
    "an owner that was removed": (
        {(Kind.ORDERS, "b"): Orders(State.REMOVED)},
        [(True, "bad-owner", GROUP1), (True, "bad-owner", "pins anna")],
    ),
    "an owner that is offline": (
        {(Kind.ORDERS, "a"): Orders(State.OFFLINE)},
        [(True, "bad-owner", GROUP0), (True, "bad-owner", "pins gone")],
    ),
    "an owner on standby still serves": ({(Kind.ORDERS, "a"): Orders(State.STANDBY)}, []),
    "an owner that nobody knows": ({(Kind.GROUPS, group_key(0)): Assigned("c", 2, 1)}, [(True, "bad-owner", GROUP0)]),
    "a proxy as owner": (
        {(Kind.MEMBERS, "a"): Member("proxy", "default", "10.0.0.1")},
        [(True, "bad-owner", GROUP0), (True, "bad-owner", "pins gone")],
    ),
    "two at one address": (
        {(Kind.MEMBERS, "b"): Member("backend", "default", "10.0.0.1", {"imap": 143})},
        [(True, "same-address", "members b")],
    ),
    "a boot that did not end": ({(Kind.BOOTS, "a/boot1"): BootRow(1.0)}, [(False, "unclosed-boot", "boots a/boot1")]),
    "a boot that is not clean": (
        {(Kind.BOOTS, "b/boot1"): BootRow(1.0, 2.0)},
        [(False, "unclosed-boot", "boots b/boot1")],
    ),
    "a move that is pending": (
        {(Kind.MOVES, group_key(0)): Move("b", 40.0, "bob")},
        [(False, "pending-move", f"moves {group_key(0)}")],
    ),
    "a move to nowhere": (
        {(Kind.MOVES, group_key(0)): Move("z", 40.0)},
        [(True, "bad-move", f"moves {group_key(0)}")],
    ),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_what_check_finds(name: str) -> None:
    rows, expected = CHANGES[name]
    assert await found(SOUND | rows) == expected


async def test_an_empty_directory_has_no_settings() -> None:
    assert await found({}) == [(True, "no-settings", "settings directory")]


async def test_double_owners_are_found_by_what_backends_say() -> None:
    mine, other = Assigned("a", 1, 5), Assigned("b", 1, 6)
    zero, one = group_key(0), group_key(1)
    assert await found(SOUND, {"a": {zero: mine}, "b": {one: other, "anna": other}}) == []
    assert await found(SOUND, {"a": {zero: mine}, "b": {zero: other}}) == [(True, "double-owner", zero)]
    assert await found(SOUND, {"a": {one: mine}}) == [(True, "other-owner", one)]


async def test_pending_moves_say_for_how_long_and_who_asked() -> None:
    (finding,) = await check(filled(SOUND | {(Kind.MOVES, group_key(0)): Move("b", 40.0, "bob")}), now=100.0)
    assert finding.text == "to b, pending for 60 s, asked by bob"


async def test_the_engine_by_url(tmp_path: Path) -> None:
    local = await open_directory("local", tmp_path)
    await local.put(Kind.PINS, "anna", b"a", NOW)
    await local.close()
    assert (tmp_path / "cluster" / "data.mdb").exists()
    same = await open_directory(f"lmdb://{tmp_path}/cluster", tmp_path / "other")
    assert await same.get(Kind.PINS, "anna") == Row(b"a", NOW)
    await same.close()
    spaced = await open_directory(f"lmdb://{tmp_path}/with%20space", tmp_path)
    await spaced.close()
    assert (tmp_path / "with space").exists()
    with pytest.raises(ConfigError, match=r"cluster\.directory: redis; allowed: local, lmdb:///path or cassandra://"):
        await open_directory("redis://x", tmp_path)


async def test_a_cassandra_url_with_a_password_file(tmp_path: Path) -> None:
    pytest.importorskip("cassandra", reason="needs PyPI package cassandra-driver (make install)")
    (tmp_path / "password").write_text("hush\n")
    directory = await open_directory("cassandra://u@127.0.0.1/obox", tmp_path, password_file=tmp_path / "password")
    await directory.close()
    with pytest.raises(ConfigError, match=r"cluster\.password_file"):
        await open_directory("cassandra://u@127.0.0.1/obox", tmp_path, password_file=tmp_path / "none")
