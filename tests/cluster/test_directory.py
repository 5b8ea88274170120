"""What every engine of the directory has to do."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

import pytest
from msgspec import structs

from obox.cluster import (
    KEY_BYTES_MAX,
    VALUE_BYTES_MAX,
    Assigned,
    Directory,
    Kind,
    Orders,
    Row,
    View,
    check,
    dump,
    encode,
    group_key,
    load,
    make_settings,
    next_timestamp,
)
from obox.errors import ConfigError

NOW = 1_800_000_000_000_000


async def test_nothing_is_no_row(directory: Directory) -> None:
    assert await directory.get(Kind.GROUPS, "00001") is None
    assert await directory.all(Kind.GROUPS) == {}


async def test_a_row_is_read_by_both(pair: tuple[Directory, Directory]) -> None:
    one, other = pair
    await one.put(Kind.GROUPS, "00001", b"value", NOW)
    for reader in (one, other):
        assert await reader.get(Kind.GROUPS, "00001") == Row(b"value", NOW)
        assert await reader.all(Kind.GROUPS) == {"00001": Row(b"value", NOW)}


async def test_kinds_are_apart(directory: Directory) -> None:
    for kind in Kind:
        await directory.put(kind, "same", kind.encode(), NOW)
    for kind in Kind:
        assert await directory.all(kind) == {"same": Row(kind.encode(), NOW)}
        assert await directory.get(kind, "same") == Row(kind.encode(), NOW)


ROWS = [Row(b"a", NOW), Row(b"b", NOW), Row(b"", NOW + 1), Row(b"aa", NOW + 1)]


@pytest.mark.parametrize("order", list(itertools.permutations(range(len(ROWS)))))
async def test_the_last_write_wins_in_whatever_order_they_come(directory: Directory, order: tuple[int, ...]) -> None:
    for index in order:
        await directory.put(Kind.PINS, "anna", *ROWS[index])
    assert await directory.get(Kind.PINS, "anna") == ROWS[-1]


async def test_of_equal_timestamps_the_higher_value_stays(directory: Directory) -> None:
    values = [b"", b"\0", b"\x7f", b"\x7f\0", b"\x80", b"\xff"]
    for value in (values[4], values[0], values[5], values[2], values[1], values[3]):
        await directory.put(Kind.GROUPS, "00001", value, NOW)
    assert await directory.get(Kind.GROUPS, "00001") == Row(values[-1], NOW)


async def test_any_bytes_and_any_key(directory: Directory) -> None:
    every = bytes(range(256))
    keys = ["a", "a\x01", "mail-1/20260101T0000", "u:anna%40example.org", "ä€😀", "k" * KEY_BYTES_MAX, "a/b", "'; --"]
    keys += ["k" * 500 + end for end in "ab"]
    for number, key in enumerate(keys):
        await directory.put(Kind.MOVES, key, every + bytes([number]), NOW + number)
    found = await directory.all(Kind.MOVES)
    assert found == {key: Row(every + bytes([number]), NOW + number) for number, key in enumerate(keys)}
    for key in keys:
        assert await directory.get(Kind.MOVES, key) == found[key]


async def test_the_largest_value(directory: Directory) -> None:
    value = bytes(range(256)) * (VALUE_BYTES_MAX // 256)
    await directory.put(Kind.MEMBERS, "a", value, NOW)
    assert await directory.get(Kind.MEMBERS, "a") == Row(value, NOW)


@pytest.mark.parametrize(
    ("key", "value", "timestamp"),
    [
        ("", b"", NOW),
        ("k" * (KEY_BYTES_MAX + 1), b"", NOW),
        ("€" * 214, b"", NOW),
        ("a", bytes(VALUE_BYTES_MAX + 1), NOW),
        *[("a", b"", timestamp) for timestamp in (0, -1, 1 << 63)],
    ],
)
async def test_what_is_too_large_is_refused(directory: Directory, key: str, value: bytes, timestamp: int) -> None:
    with pytest.raises(ValueError, match="of the directory"):
        await directory.put(Kind.MEMBERS, key, value, timestamp)
    assert await directory.all(Kind.MEMBERS) == {}


async def test_more_rows_than_a_page_or_a_transaction(directory: Directory) -> None:
    rows = {f"{number:05}": Row(b"%d" % number, NOW + number) for number in range(1500)}
    for begin in range(0, len(rows), 250):
        some = list(rows.items())[begin : begin + 250]
        await asyncio.gather(*(directory.put(Kind.PINS, key, *row) for key, row in some))
    assert await directory.all(Kind.PINS) == rows


async def test_many_at_once_leave_the_newest(pair: tuple[Directory, Directory]) -> None:
    writes = [(number % 2, Row(b"%d" % number, NOW + number * 7919 % 101)) for number in range(101)]
    await asyncio.gather(*(pair[who].put(Kind.GROUPS, "00001", *row) for who, row in writes))
    newest = max((row for _, row in writes), key=lambda row: row.timestamp)
    assert await pair[0].get(Kind.GROUPS, "00001") == await pair[1].get(Kind.GROUPS, "00001") == newest


async def test_clocks_that_are_five_seconds_apart(pair: tuple[Directory, Directory]) -> None:
    """Two members change one row in turn. The clock of the second is 5 s behind."""
    clocks = (lambda: NOW / 1e6, lambda: NOW / 1e6 - 5)
    for turn in range(6):
        member, clock = pair[turn % 2], clocks[turn % 2]
        found = await member.get(Kind.GROUPS, "00001")
        value = b"%d" % turn
        await member.put(Kind.GROUPS, "00001", value, next_timestamp(clock, found))
        assert (await pair[0].get(Kind.GROUPS, "00001") or Row(b"", 0)).value == value
    blind = await pair[1].all(Kind.PINS)
    assert blind == {}
    await pair[0].put(Kind.PINS, "anna", b"fast", next_timestamp(clocks[0], None))
    await pair[1].put(Kind.PINS, "anna", b"slow", next_timestamp(clocks[1], None))
    assert (await pair[0].get(Kind.PINS, "anna") or Row(b"", 0)).value == b"fast", "it had not read the row"


async def test_the_functions_above_an_engine(pair: tuple[Directory, Directory]) -> None:
    """Call the functions for settings, view, dump, load and check once each, on every
    engine."""
    one, other = pair
    settings = await make_settings(one, 2, now=lambda: NOW / 1e6, sleep=asyncio.sleep, random_bytes=bytes)
    await one.put(Kind.GROUPS, group_key(0), encode(Assigned("a", 1, 2**64 - 1)), NOW)
    await one.put(Kind.ORDERS, "a", encode(Orders()), NOW)
    view = View(other, clock=lambda: 1.0, now=lambda: 1.0, sleep=asyncio.sleep)
    assert await view.poll()
    assert view.settings == settings
    assert view.groups == {0: Assigned("a", 1, 2**64 - 1)}
    # A member that does not know the newest row writes an older assignment.
    await one.put(Kind.GROUPS, group_key(0), encode(Assigned("b", 0, 1)), NOW + 10)
    assert await view.poll()
    assert await view.write_back("a") == 1
    assert await one.get(Kind.GROUPS, group_key(0)) == Row(encode(Assigned("a", 1, 2**64 - 1)), NOW + 11)
    lines = await dump(other)
    assert len(lines) == 3
    assert await load(one, lines, now=lambda: 1.0) == 3
    assert await dump(one) == lines
    assert [finding.what for finding in await check(one, now=1.0)] == ["unassigned", "bad-owner"]


async def test_the_settings_have_a_version_and_newer_versions_are_refused(pair: tuple[Directory, Directory]) -> None:
    """`cluster init` makes them, `cluster upgrade` raises them, and an older obox does
    not start."""
    one, other = pair
    words: dict[str, Any] = {"now": lambda: NOW / 1e6, "sleep": asyncio.sleep, "random_bytes": bytes}
    made = await make_settings(one, 2, **words)
    assert (made.major, made.minor, made.forms) == (1, 0, {})
    assert await make_settings(other, 7, **words) == made, "the number of groups stays"
    newer = [
        (structs.replace(made, forms={"later": 1}), "may write later 1"),
        (structs.replace(made, major=2), "version 2"),
    ]
    for number, (settings, text) in enumerate(newer, 1):
        await one.put(Kind.SETTINGS, "directory", encode(settings), NOW + number)
        with pytest.raises(ConfigError, match=text):
            await View(other, clock=lambda: 1.0, now=lambda: 1.0, sleep=asyncio.sleep).poll()
    with pytest.raises(ConfigError, match="version 2"):
        await make_settings(other, 2, **words)
