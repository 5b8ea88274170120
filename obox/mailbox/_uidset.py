"""Sets of UIDs as sorted numpy arrays in memory and as ranges of two u32 on disk."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

K = TypeVar("K", bound=np.integer[Any])
UidArray = npt.NDArray[np.uint32]

_RANGE: Final = struct.Struct("<II")
UIDS_MAX: Final = 1 << 26
"""UIDs of a stored set: more than a mailbox ever holds, so that damaged bytes do not
allocate 16 GiB of memory.
"""


def uid_array(uids: object) -> UidArray:
    """Return `uids` (any iterable or array of ints) as a sorted array without
    repeats."""
    array = np.asarray(uids if isinstance(uids, np.ndarray) else list(uids), dtype=np.uint32)  # type: ignore[call-overload]  # numpy checks the elements
    return distinct(array)


def distinct(array: npt.NDArray[K]) -> npt.NDArray[K]:
    """The values of an array, sorted and without repeats.

    `np.unique` and what builds on it put all values into a hash table, which takes
    thirty times as long as a sort that merges ascending runs: arrays here mostly have
    such runs.
    """
    if len(array) < 2 or bool((array[1:] > array[:-1]).all()):
        return array
    array = np.sort(array, kind="stable")
    first = np.ones(len(array), dtype=np.bool_)
    np.not_equal(array[1:], array[:-1], out=first[1:])
    return array[first]


def within(some: npt.NDArray[K], of: npt.NDArray[K]) -> npt.NDArray[np.bool_]:
    """Return which of `some` are in `of`. Both are sorted and without repeats.

    `np.isin` sorts both: this takes a tenth of the time where `some` are few.
    """
    if len(of) == 0:
        return np.zeros(len(some), dtype=np.bool_)
    where = of.searchsorted(some)
    np.minimum(where, len(of) - 1, out=where)
    there: npt.NDArray[np.bool_] = of[where] == some
    return there


def united(*sets: npt.NDArray[K]) -> npt.NDArray[K]:
    """Return the union of sorted arrays."""
    filled = [one for one in sets if len(one)]
    return distinct(np.concatenate(filled)) if filled else sets[0]


def merged(table: Sequence[npt.NDArray[Any]], more: Sequence[npt.NDArray[Any]]) -> list[npt.NDArray[Any]]:
    """Return the rows of two tables whose first columns are sorted and have no common
    values."""
    columns = [np.concatenate(pair) for pair in zip(table, more, strict=True)]
    if len(table[0]) and len(more[0]) and not bool(more[0][0] > table[0][-1]):
        order = np.argsort(columns[0], kind="stable")
        columns = [column[order] for column in columns]
    return columns


def pack_ranges(uids: UidArray) -> bytes:
    """Encode UIDs as little-endian pairs (first, last), 8 bytes for a range: 10,000
    neighbours cost 8 bytes."""
    if len(uids) == 0:
        return b""
    uids = uid_array(uids)
    first, last = uids.item(0), uids.item(-1)
    if last - first + 1 == len(uids):
        return _RANGE.pack(first, last)
    breaks = np.flatnonzero(np.diff(uids) != 1)
    firsts = np.concatenate((uids[:1], uids[breaks + 1]))
    lasts = np.concatenate((uids[breaks], uids[-1:]))
    return np.column_stack((firsts, lasts)).astype("<u4").tobytes()


def unpack_ranges(data: bytes) -> UidArray:
    """Undo `pack_ranges`. Raises ValueError on bytes that are no sorted ranges."""
    pairs = np.frombuffer(data, dtype="<u4").reshape(-1, 2).astype(np.int64)
    if len(pairs) == 0:
        return np.empty(0, dtype=np.uint32)
    lengths = pairs[:, 1] - pairs[:, 0] + 1
    if bool((lengths <= 0).any()) or bool((pairs[1:, 0] <= pairs[:-1, 1]).any()):
        raise ValueError("UID ranges are not sorted")
    if int(lengths.sum()) > UIDS_MAX:
        raise ValueError(f"UID ranges name more than {UIDS_MAX} UIDs")
    if len(pairs) == 1:
        return np.arange(pairs[0, 0], pairs[0, 1] + 1, dtype=np.uint32)
    starts = np.repeat(pairs[:, 0] - np.concatenate(([0], np.cumsum(lengths)[:-1])), lengths)
    return (starts + np.arange(int(lengths.sum()))).astype(np.uint32)
