"""JSON of answers, made in pieces: a row may have a whole mail, or each record of a
mailbox.

A piece takes about a millisecond. Others run between two pieces. The pieces together
are what msgspec makes of the value at once.

This module does not know verbs or HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any, Final

import msgspec

PIECE_WEIGHT: Final = 64 * 1024
"""Characters of a piece of JSON, and eight for each other value."""
_VALUE_WEIGHT: Final = 8


async def encoded(value: Any) -> AsyncIterator[bytes]:
    """Yield the JSON of a value; a light value is one piece."""
    if is_light(value):
        yield msgspec.json.encode(value)
        return
    for piece in pieces(value):
        yield piece
        await asyncio.sleep(0)


def is_light(value: Any) -> bool:
    """Return whether a value can be encoded in one piece."""
    return _weight(value, PIECE_WEIGHT) <= PIECE_WEIGHT


def pieces(value: Any) -> Iterator[bytes]:
    """Return the JSON of a value in pieces, none of them small."""
    some: list[bytes] = []
    size = 0
    for part in _parts(value):
        some.append(part)
        size += len(part)
        if size >= PIECE_WEIGHT:
            yield b"".join(some)
            some.clear()
            size = 0
    yield b"".join(some)


def _parts(value: Any) -> Iterator[bytes]:
    if is_light(value):
        yield msgspec.json.encode(value)
    elif isinstance(value, str):
        yield b'"'
        for at in range(0, len(value), PIECE_WEIGHT):
            yield msgspec.json.encode(value[at : at + PIECE_WEIGHT])[1:-1]
        yield b'"'
    elif isinstance(value, dict):
        yield b"{"
        for at, (name, one) in enumerate(value.items()):
            # This cuts the name and its colon out of `{"name":null}`.
            yield (b"," if at else b"") + msgspec.json.encode({name: None})[1:-5]
            yield from _parts(one)
        yield b"}"
    elif isinstance(value, list | tuple):
        yield from _list(value)
    else:
        yield msgspec.json.encode(value)


def _list(values: Iterable[Any]) -> Iterator[bytes]:
    """Encode light neighbours together: a list may have a million of them."""
    yield b"["
    comma, weight = b"", 0
    light: list[Any] = []
    for one in values:
        heavy = _weight(one, PIECE_WEIGHT)
        if light and weight + heavy > PIECE_WEIGHT:
            yield comma + msgspec.json.encode(light)[1:-1]
            comma, weight = b",", 0
            light.clear()
        if heavy > PIECE_WEIGHT:
            yield comma
            yield from _parts(one)
            comma = b","
        else:
            light.append(one)
            weight += heavy
    if light:
        yield comma + msgspec.json.encode(light)[1:-1]
    yield b"]"


def _weight(value: Any, most: int) -> int:
    """Return the weight of a value, or a number above `most` if it weighs more. No more
    is looked at than that."""
    if isinstance(value, str):
        return len(value) + _VALUE_WEIGHT
    weight = _VALUE_WEIGHT
    if isinstance(value, dict):
        for name, one in value.items():
            weight += _weight(name, most) + _weight(one, most - weight)
            if weight > most:
                break
    elif isinstance(value, list | tuple):
        for one in value:
            weight += _weight(one, most - weight)
            if weight > most:
                break
    return weight
