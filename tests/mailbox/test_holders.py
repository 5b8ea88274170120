"""Holders in columns: a join gives the same as a join of dictionaries by maximum. A
holder takes a few bytes, and both encoded forms are read."""

from __future__ import annotations

import gc
import tracemalloc

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from obox.mailbox import Delta, Holders, State, UidArray
from obox.types import Guid

Parts = list[tuple[Guid, list[tuple[int, int]], int]]
GUIDS = [Guid(letter * 32) for letter in "ab"]
PARTS = st.lists(
    st.tuples(
        st.sampled_from(GUIDS),
        st.lists(st.tuples(st.integers(1, 9), st.integers(1, 12)), max_size=30),
        st.sampled_from([0, 5, 7]),
    ),
    max_size=8,
)


def uids(values: list[int]) -> UidArray:
    return np.array(values, dtype=np.uint32)


def by_maximum(parts: Parts) -> dict[tuple[int, Guid, int], int]:
    found: dict[tuple[int, Guid, int], int] = {}
    for guid, pairs, released in parts:
        for home_uid, uid in pairs:
            found[home_uid, guid, uid] = max(found.get((home_uid, guid, uid), 0), released)
    return found


def joined(parts: Parts) -> Holders:
    found = Holders()
    for guid, pairs, released in parts:
        one = Holders()
        one.add(guid, uids([home for home, _ in pairs]), uids([uid for _, uid in pairs]), released)
        found.join(one)
    return found


@given(PARTS, PARTS)
def test_a_join_is_by_maximum(parts: Parts, more: Parts) -> None:
    wanted = by_maximum([*parts, *more])
    found = joined(parts)
    before = found.copy()
    found.join(joined(more))
    assert dict(found.items()) == wanted
    assert dict(before.items()) == by_maximum(parts), "a copy is not changed by a later join"
    assert dict(Holders.of(wanted).items()) == wanted
    assert len(found) == len(wanted)
    assert found.needed().tolist() == sorted({home for (home, _, _), released in wanted.items() if not released})
    at_6 = {home for (home, _, _), released in wanted.items() if not released or released >= 6}
    assert found.needed(6).tolist() == sorted(at_6)
    encoded = Delta(holders=found).encode()
    assert dict(Delta.decode(encoded).holders.items()) == wanted
    assert Delta(holders=Delta.decode(encoded).holders).encode() == encoded


def test_what_was_written_one_by_one_is_read() -> None:
    """Earlier versions wrote each holder by itself, in any order."""
    rows = [[9 - n % 9, bytes.fromhex(GUIDS[n % 2]), n + 1, n % 3 * 4] for n in range(4 * Holders.COLUMNS_MIN)]
    found = Delta.decode(msgspec.msgpack.encode({"holders": rows})).holders
    assert dict(found.items()) == {(home, Guid(raw.hex()), uid): released for home, raw, uid, released in rows}


def test_many_are_columns_and_few_are_not() -> None:
    few, many = Holders(), Holders()
    numbers = np.arange(1, Holders.COLUMNS_MIN + 1, dtype=np.uint32)
    few.add(GUIDS[0], numbers[1:], numbers[1:], 7)
    many.add(GUIDS[0], numbers, numbers, 7)
    raw = bytes.fromhex(GUIDS[0])
    assert few.pack()[0] == [2, raw, 2, 7]
    assert many.pack() == [[numbers.tobytes(), raw, numbers.tobytes(), 7]]
    many.join(Holders.of({(1, GUIDS[0], 1): 8}))
    assert isinstance(many.pack()[0][3], bytes)
    assert dict(Holders.unpack(many.pack()).items())[1, GUIDS[0], 1] == 8


@pytest.mark.parametrize(
    "row",
    [
        [b"\1\0\0\0", b"\xaa" * 16, b"\1\0\0\0\2\0\0\0", 0],
        [b"\1\0\0\0", b"\xaa" * 16, b"\1\0\0\0", b"\0" * 16],
        [b"\2\0\0\0\1\0\0\0", b"\xaa" * 16, b"\2\0\0\0\1\0\0\0", 0],
        [b"\1\0\0", b"\xaa" * 16, b"\1\0\0", 0],
        [1, b"\xaa" * 16, b"\1\0\0\0", 0],
        [1, "guid", 1, 0],
        [1, b"\xaa" * 16, 1],
    ],
)
def test_damaged_columns_are_refused(row: list[object]) -> None:
    with pytest.raises(ValueError, match="not a mailbox delta"):
        Delta.decode(msgspec.msgpack.encode({"holders": [row]}))


def test_a_copied_mail_costs_few_bytes() -> None:
    """The test measures the holders of 100,000 mails of a single COPY, in memory and
    encoded."""
    count = 100_000
    numbers = np.arange(1, count + 1, dtype=np.uint32)
    gc.collect()
    tracemalloc.start()
    try:
        state = State(GUIDS[0])
        held = Holders()
        held.add(GUIDS[1], numbers, numbers, 0)
        encoded = Delta(holders=held).encode()
        state.join(Delta.decode(encoded))
        size = len(encoded)
        del held, encoded
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 20 * count
        released = Holders()
        released.add(GUIDS[1], numbers, numbers, 9)
        state.join(Delta(holders=released))
        state.holders.merge()
        del released
        gc.collect()
        assert tracemalloc.get_traced_memory()[0] < 20 * count
    finally:
        tracemalloc.stop()
    assert size < 9 * count
    assert len(state.holders.needed()) == 0


def test_a_few_more_do_not_copy_all() -> None:
    """A mail is copied beside 100,000 holders. The number of holders that wait to be
    merged is bounded."""
    numbers = np.arange(1, 100_001, dtype=np.uint32)
    found = Holders()
    found.add(GUIDS[0], numbers, numbers, 0)
    (before,) = [keys for keys, _ in found.merge().values()]
    for number in range(1, Holders.LATE_MAX + 1):
        found.add(GUIDS[0], uids([number]), uids([number]), 3)
        assert found.late == number
        assert found.by_home[GUIDS[0]][0] is before
    found.add(GUIDS[0], uids([1]), uids([100_001]), 0)
    assert found.late == 0
    assert len(found) == 100_001
