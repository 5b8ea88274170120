"""Loads a box from its local copy and its bundles, and compares it with the bucket.

The order: `load_copy`; then `catch_up` if the copy is not trusted; then
`join_unflushed`; then `compared`, which lets the copy be trusted from now on. While
sessions use a box, `refresh` and `join_changes` join what others have written.

Invariant: the stamp names a bundle only once the state has its content. This module
knows no users and no sessions. Diagnostics: a local copy that does not decode is
dropped, with a warning, and the bucket is read. A bundle that does not decode is
`Corrupt`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from enum import Enum
from typing import Any

import structlog
from msgspec.structs import replace

from metacache import Change

from ...errors import Corrupt
from ...objectstore import ObjectInfo
from ..env import INLINE_DECODED_BYTES
from ..log.stage import Edit
from ..stamp import Assignment, Stamp, Trust, trust
from .box import Box

log = structlog.get_logger()

AnyBox = Box[Any, Any]


class Found(Enum):
    """What other backends have written: nothing new, bundles that continue our history,
    or another history."""

    NOTHING = "nothing"
    MORE = "more"
    HISTORY = "history"


async def load_copy(box: AnyBox, *, made_here: bool = False) -> tuple[Trust, list[bytes]]:
    """Take the state from the local copy. Returns how far the copy can be trusted, and
    the deltas of a copy without a base: holders that were noted while the box was not
    in memory.

    Threads read and join a large copy. The box is not in use before it is loaded.
    """
    metacache = box.env.metacache
    copy = await metacache.large.load(box.sid, box.box)
    stamp = None if copy is None else Stamp.decode(copy.stamp)
    if copy is not None and stamp is not None:
        try:
            await _join_all(box, copy.parts())
        except Corrupt as exc:
            log.warning("local copy damaged and dropped", user=box.sid, mailbox=box.box, error=str(exc))
            metacache.drop(box.sid, box.box)
            box.state = box.empty()
            stamp = None
        else:
            box.stamp, box.change, box.local_deltas = stamp, copy.change, len(copy.deltas)
    fragments = [] if copy is None or stamp is not None else copy.deltas
    return trust(copy, stamp, box.assignment, made_here=made_here), fragments


async def catch_up(box: AnyBox, worth: Trust, infos: list[ObjectInfo]) -> Found:
    """Read new bundles of a LIST, or all of them, after `load_copy` has returned a copy
    that is not trusted. Raises Unavailable, Corrupt."""
    if worth is Trust.REBUILD:
        found = Found.HISTORY if await _rebuild(box, infos) else Found.NOTHING
    else:
        found = await take_bundles(box, infos)
        if found is not Found.NOTHING:
            # Others have written, perhaps mails too.
            box.stamp = box.stamp.uncompared()
    box.stamp = replace(box.stamp, checked=box.env.now())
    return found


async def take_bundles(box: AnyBox, infos: list[ObjectInfo], *, renew: bool = False) -> Found:
    """Join the bundles of a LIST that other backends have written. renew: sessions use
    the box. Raises Unavailable, Corrupt."""
    stamp, unflushed = box.stamp, box.change is not Change.NONE
    if stamp.knows(infos):
        return Found.NOTHING
    loaded = await box.bundles.load(infos)
    for delta in [await box.read(payload) for payload in loaded.payloads]:
        await box.take_others(delta, renew=renew)
    box.stamp = replace(
        loaded.stamp,
        version=max(loaded.stamp.version, stamp.version),
        generation=stamp.generation,
        listed=stamp.listed,
        flushed_uidnext=stamp.flushed_uidnext,
    ).for_new_base()
    return Found.HISTORY if unflushed or loaded.merged else Found.MORE


async def refresh(
    box: AnyBox, infos: list[ObjectInfo], assignment: Assignment, then: Callable[[Found], Awaitable[None]]
) -> None:
    """Join what other backends have written to a box that sessions use, and note that
    it was compared.

    assignment: under which the LIST `infos` was made. If it is over, the next open
    compares again. then: does what follows from the join, before the copy is trusted.
    Raises Unavailable, Corrupt.
    """
    async with box.flushing:
        found = await take_bundles(box, infos, renew=True)
    await then(found)
    compared(box, assignment)


def join_unflushed(box: AnyBox, fragments: Iterable[bytes]) -> None:
    """Join changes that no bundle has, from journals or from a local copy without a
    base. Raises Corrupt."""
    for data in fragments:
        join_journal(box, data)


def join_journal(box: AnyBox, data: bytes) -> bool:
    """Join changes that no bundle has, from the journal of a boot that is over. Returns
    whether mails or flags differ. Raises Corrupt."""
    changed = box.state.join(box.decoded(data))
    box.change, box.stamp = Change.IMPORTANT, box.stamp.for_new_base()
    return bool(changed)


async def join_changes(box: AnyBox, deltas: Iterable[bytes]) -> None:
    """Join changes of a journal that ended, while sessions use the box. The caller
    holds `flushing`. Raises Corrupt."""
    for data in deltas:
        await box.take_others(await box.read(data), renew=True)
    box.stamp = box.stamp.for_new_base()
    box.changed(Change.IMPORTANT)
    box.save()


def restate(box: AnyBox, *, again: bool = False) -> None:
    """Write what the bundles lack to the journal again, because the journal of the boot
    before may not have it. again: whether it has it."""
    edit = Edit(box.sid)
    again = again or (box.sid, box.box) in box.log.journal.unloaded
    edit.add_journal_only(box.box, box.lacking(), again=again)
    box.log.stage(edit)


def compared(box: AnyBox, assignment: Assignment, *, listed: float | None = None) -> None:
    """Note that the state has everything that the bucket has. The local copy is trusted
    as long as the assignment is valid.

    listed: the time of a LIST of the mails; None if there was none.
    """
    stamp = replace(box.stamp, generation=assignment.generation, checked=box.stamp.checked or box.env.now())
    box.stamp = stamp if listed is None else replace(stamp, listed=listed)
    box.save()


def rebuilt(box: AnyBox, infos: list[ObjectInfo]) -> None:
    """Note that the state was made anew, from mails. infos: a LIST of the bundles,
    which the next bundle covers, also if they do not decode."""
    box.bundles.cover(infos)
    box.stamp = replace(box.stamp, generation=box.assignment.generation)
    box.changed(Change.IMPORTANT)
    box.save()


async def _rebuild(box: AnyBox, infos: list[ObjectInfo]) -> bool:
    """Join the heads of the bundles in a LIST. Returns True if they are of several
    histories. Raises Unavailable, Corrupt."""
    loaded = await box.bundles.load(infos)
    box.stamp = loaded.stamp
    for number, payload in enumerate(loaded.payloads):
        await _join_all(box, [payload])
        if number == 0:
            of_base = {"base_modseq": box.state.highestmodseq, "base_bytes": len(payload)}
            box.stamp = replace(box.stamp, known_uidnext=box.uidnext, **of_base)
    box.stamp = replace(box.stamp, flushed_uidnext=max(1, box.uidnext))
    return loaded.merged


async def _join_all(box: AnyBox, datas: list[bytes]) -> None:
    """Join data of a box that nobody uses yet; a thread joins much of it. Raises
    Corrupt."""

    def join() -> None:
        for data in datas:
            box.state.join(box.decoded(data))

    if sum(map(len, datas)) > INLINE_DECODED_BYTES:
        await asyncio.to_thread(join)
    else:
        join()
