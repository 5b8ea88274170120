"""Where the envelope of a mail lies: alone under the key of its UID, in a batch, or in
a pack.

A place does not say which mail lies there. The envelope is bound to the key of the
mail, and its oid is in the index, so a wrong place is found as damage.

Mails that are read at the same time and lie next to each other in a batch are read by
one GET (`Ranges`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, NamedTuple

from ...errors import Unavailable
from ...mailbox import Table
from ...objectstore import CorruptObject
from ...objectstore.keys import mail_key
from ...types import Guid, StorageId, Uid
from ..env import GETS_AT_ONCE, TRY_LATER
from .batch import cut

GAP_BYTES: Final = 64 << 10
"""Bytes between two mails of a batch up to which they are read by one GET. They take
less time than another request."""


class Place(NamedTuple):
    """key: of the mail, which names it in fscache and is its owner. under: the key of
    the object that has it. start, length: where in the object; length 0: it is the
    whole object. recorded: the place that the record has, if this is one in a pack."""

    key: str
    under: str
    start: int = 0
    length: int = 0
    recorded: Place | None = None


def place_of(table: Table, position: int, sid: StorageId, home: Guid, home_uid: int) -> Place:
    """Return the place of the mail of a record. home, home_uid: of the record."""
    key = mail_key(sid, home, Uid(home_uid))
    batch, start, length = table.column("place")[position].tolist()
    return Place(key, mail_key(sid, home, Uid(batch)), start, length) if batch else Place(key, key)


def envelope_at(place: Place, data: bytes) -> bytes:
    """Return the envelope out of the bytes at its place. If it is damaged, they are
    returned as they are, and do not decode."""
    if not place.length:
        return data
    try:
        return cut(data)
    except CorruptObject:
        return data


class Ranges:
    """GETs of envelopes that may lie next to each other in an object."""

    def __init__(
        self,
        get: Callable[[str, int, int | None], Awaitable[bytes | None]],
        spawn: Callable[[Coroutine[Any, Any, None]], object],
    ) -> None:
        """get: of an object by key, start and end; None: there is no object. spawn:
        starts a task."""
        self._get, self._spawn = get, spawn
        self._gate = asyncio.Semaphore(GETS_AT_ONCE)
        self._wanted: list[tuple[Place, asyncio.Future[bytes | None]]] = []

    async def get(self, place: Place) -> bytes | None:
        """Return what lies at a place. Calls in the same turn of the loop share
        requests. Raises as the GET does."""
        if not place.length:
            async with self._gate:
                return await self._get(place.under, 0, None)
        loop = asyncio.get_running_loop()
        if not self._wanted:
            loop.call_soon(self._start)
        future: asyncio.Future[bytes | None] = loop.create_future()
        self._wanted.append((place, future))
        return await future

    def _start(self) -> None:
        wanted, self._wanted = sorted(self._wanted, key=lambda one: (one[0].under, one[0].start)), []
        run: list[tuple[Place, asyncio.Future[bytes | None]]] = []
        for one in wanted:
            before = run[-1][0] if run else None
            if before is not None and (
                one[0].under != before.under or one[0].start > before.start + before.length + GAP_BYTES
            ):
                self._spawn(self._read(run))
                run = []
            run.append(one)
        if run:
            self._spawn(self._read(run))

    async def _read(self, run: list[tuple[Place, asyncio.Future[bytes | None]]]) -> None:
        low = run[0][0].start
        high = max(place.start + place.length for place, _ in run)
        data: bytes | None = None
        # It stays if this task is cancelled.
        failure: Exception | None = Unavailable(TRY_LATER)
        try:
            async with self._gate:
                data = await self._get(run[0][0].under, low, high)
            failure = None
        except Exception as exc:
            failure = exc
        finally:
            for place, future in run:
                if future.done():
                    continue
                if failure is not None:
                    future.set_exception(failure)
                else:
                    begin = place.start - low
                    future.set_result(None if data is None else data[begin : begin + place.length])
