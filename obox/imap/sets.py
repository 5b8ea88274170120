"""Sequence sets: `1:5,7,*:9` as ranges, and sorted numbers as sets.

A set keeps what the client said, bounded in length, and is never expanded here:
`1:4294967295` is one range. `*` depends on the mailbox, so it stays a marker until
`resolve`. Knows nothing of mailboxes, nor whether numbers are UIDs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final

import msgspec

from obox.errors import Invalid

NUMBER_MAX: Final = 2**32 - 1
"""nz-number is an unsigned 32-bit integer. RFC 9051 §4.2."""

_DIGITS: Final = 10
"""The digits of NUMBER_MAX."""

STAR: Final = 2**32
"""Marks `*`: greater than every number, so that ranges stay in order before they are
resolved."""

RANGES_MAX: Final = 32_768
"""Ranges in one set: as many as fit on a line of 64 KiB."""

# sequence-set = (seq-number / seq-range) ["," sequence-set]; seq-range = seq-number ":"
# seq-number. RFC 9051 §9. Possessive, so that a bad set of 64 KiB fails in one pass.
_SET: Final = re.compile(rb"(?:[0-9]++|\*)(?::(?:[0-9]++|\*))?+(?:,(?:[0-9]++|\*)(?::(?:[0-9]++|\*))?+)*+")


class SequenceSet(msgspec.Struct, frozen=True):
    """A set as the client sent it: ranges (low, high), `*` as STAR, in the client's
    order.

    saved: the set was `$`, the result that an earlier SEARCH RETURN (SAVE) left (RFC
    5182); `ranges` is then empty.
    """

    ranges: tuple[tuple[int, int], ...]
    saved: bool = False

    @property
    def has_star(self) -> bool:
        return any(high == STAR for _, high in self.ranges)

    @property
    def is_all(self) -> bool:
        """Return whether the set is `1:*`."""
        return self.ranges == ((1, STAR),)

    @property
    def highest(self) -> int:
        """Return the greatest number of the set, without `*`; 0 if there is none. A
        server checks sequence numbers with it.
        """
        return max((low if high == STAR else high for low, high in self.ranges if low != STAR), default=0)

    def resolve(self, largest: int) -> tuple[tuple[int, int], ...]:
        """Return ascending ranges that neither touch nor overlap, `*` replaced by
        `largest`.

        largest: the highest UID or sequence number of the mailbox, 0 if it is empty;
        `*` then names nothing. `9:*` with a largest of 7 is 7:9, as RFC 9051 §9
        (seq-range) wants. Numbers above `largest` stay.
        """
        fixed: list[tuple[int, int]] = []
        for low, high in self.ranges:
            if high != STAR:
                fixed.append((low, high))
            elif largest:
                first = largest if low == STAR else low
                fixed.append((first, largest) if first <= largest else (largest, first))
        return _merge(fixed)

    def to_bytes(self) -> bytes:
        """Return the set in wire form."""
        if self.saved:
            return b"$"
        return ",".join([_one(low, high) for low, high in self.ranges]).encode()


SAVED: Final = SequenceSet((), saved=True)


def _one(low: int, high: int) -> str:
    left = "*" if low == STAR else str(low)
    if low == high:
        return left
    return f"{left}:*" if high == STAR else f"{left}:{high}"


def _merge(ranges: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    if len(ranges) < 2:
        return tuple(ranges)
    ranges.sort()
    merged = [ranges[0]]
    last_low, last_high = ranges[0]
    for low, high in ranges:
        if low <= last_high + 1:
            if high > last_high:
                last_high = high
                merged[-1] = (last_low, last_high)
        else:
            last_low, last_high = low, high
            merged.append((low, high))
    return tuple(merged)


def _number(digits: bytes) -> int:
    if digits == b"*":
        return STAR
    # A longer one is never converted: int() of many digits is quadratic.
    if len(digits) <= 16:
        number = int(digits)
        if 0 < number <= NUMBER_MAX:
            return number
    raise Invalid(f"Bad number {digits[:20].decode()} in a set: allowed are 1 to {NUMBER_MAX} and *")


def parse_set(data: bytes, *, star: bool = True, saved: bool = True, ranges_max: int = RANGES_MAX) -> SequenceSet:
    """Parse a sequence set. `$` is accepted where `saved`, `*` where `star` (known-uids
    have neither).

    Raises: Invalid, with a reason for the client.
    """
    if data == b"$" and saved:
        return SAVED
    if not _SET.fullmatch(data):
        shown = data[:32].decode("ascii", "replace").encode("ascii", "replace").decode()
        raise Invalid(f'Bad set "{shown}": expected numbers and ranges such as 1:5,7,9:*')
    if data.count(b",") >= ranges_max:
        raise Invalid(f"Too many ranges in a set: at most {ranges_max}")
    if not star and b"*" in data:
        raise Invalid("Bad set: * is not allowed here")
    pieces = data.split(b",")
    if len(pieces) > 1 and b":" not in data and b"*" not in data and max(map(len, pieces)) <= _DIGITS:
        # Numbers alone, as many as fit a line: in a loop of the interpreter's.
        numbers = list(map(int, pieces))
        if min(numbers) > 0 and max(numbers) <= NUMBER_MAX:
            return SequenceSet(tuple(zip(numbers, numbers, strict=True)))
    ranges: list[tuple[int, int]] = []
    for piece in pieces:
        left, colon, right = piece.partition(b":")
        low = _number(left)
        if colon:
            high = _number(right)
            ranges.append((low, high) if low <= high else (high, low))
        else:
            ranges.append((low, low))
    return SequenceSet(tuple(ranges))


def format_set(numbers: Iterable[int]) -> bytes:
    """Return numbers as a compact set: 1, 2, 3, 7 gives `1:3,7`; nothing gives an empty
    string. Numbers of a list are ascending. Those of an array keep their order.

    numbers: a list, any iterable, or a one-dimensional integer array, which is
    recognised by its `nonzero` and whose runs are found in its own loop.
    """
    if hasattr(numbers, "nonzero") and hasattr(numbers, "tolist"):
        array: Any = numbers
        if not len(array):
            return b""
        breaks = (array[1:] - array[:-1] != 1).nonzero()[0]
        starts = [int(array[0]), *array[breaks + 1].tolist()]
        ends = [*array[breaks].tolist(), int(array[-1])]
    else:
        values = numbers if isinstance(numbers, list) else list(numbers)
        if not values:
            return b""
        starts, ends = _runs(values)
    return ",".join([f"{a}:{b}" if a != b else str(a) for a, b in zip(starts, ends, strict=True)]).encode()


def _runs(values: list[int]) -> tuple[list[int], list[int]]:
    tail = values[1:]
    gaps = [(a, b) for a, b in zip(values, tail, strict=False) if b - a > 1]
    return [values[0], *[b for _, b in gaps]], [*[a for a, _ in gaps], values[-1]]


def format_ranges(ranges: Sequence[tuple[int, int]]) -> bytes:
    """Return ranges in wire form, in their order."""
    return ",".join([_one(low, high) for low, high in ranges]).encode()
