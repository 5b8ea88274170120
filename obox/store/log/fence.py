"""Boots that are over: ends them (`fence`), reads their journals (`replay`), and
records what has been done (`record`).

Theory of operation. `list_boots` names every boot that has objects in the bucket.
`fence` PUTs the next `seq` of a boot as `closed`, repeated until it succeeds. From then
on the owner of the boot can acknowledge nothing, even if it was only suspended.
`replay` reads the objects between the last object's watermark and the fence, for all
users or for some. A backend that has taken over users of a boot, so that bundles have
all their changes, writes that after the fence with `record`:

    open --fence--> closed --record, some users--> adopted in part
    adopted in part --record, the rest--> clean

A boot that is clean is never read again. Several backends can share a boot: each
replays and records its own users. If a record loses its `seq` to another record, it
takes over the users of that record, and is written under the next `seq`.

A serving backend can call all three. This module knows no local copies and no boxes of
users. Diagnostics: a damaged journal object is skipped and logged with its key; the
operator decides (docs/caveats.md). If it is the last object of a boot, the object
before it says where a replay begins. A last object of a newer version, or under a key
that is not configured, is `Corrupt`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

import msgspec
import structlog
from msgspec import structs

from ...errors import Corrupt, Unavailable
from ...objectstore import CorruptObject, NewerFormat, ObjectInfo, StoreError, UnknownKey, put_once
from ...objectstore.keys import journal_key, journal_prefix, parse_journal_key
from ..env import TRY_LATER, Env, is_large
from .journal import DELETED, JournalObject

log = structlog.get_logger()

OBJECTS_AT_ONCE: Final = 64
"""Journal objects that a replay reads in parallel."""

SEQ_MAX: Final = 1 << 48
"""No boot writes this number of objects. A key with a larger number is foreign."""
_BOOT: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
"""A boot's name as `MailStore` makes it. Other names are copies that somebody made."""


class Damaged(Corrupt):
    """A journal object does not decode, and never will."""


@dataclass(frozen=True)
class Boot:
    """A boot as a LIST shows it. objects: maps `seq` to the time of its PUT, by the
    bucket's clock in unix seconds."""

    backend: str
    name: str
    objects: dict[int, float]

    @property
    def first(self) -> int:
        return min(self.objects)

    @property
    def last(self) -> int:
        return max(self.objects)


@dataclass(frozen=True)
class Ended:
    """A boot that is over.

    seq: the next free `seq`. watermark: the first `seq` that a reader needs.
    closed_before: whether `fence` found it closed. clean: whether bundles have all its
    changes. adopted: users of whom bundles have all its changes. modseq_floor,
    assigned: see `JournalObject`. alive: the boot has not ended, but is read
    nevertheless.
    """

    boot: Boot
    seq: int
    watermark: int
    closed_before: bool
    clean: bool
    adopted: frozenset[str]
    modseq_floor: int
    assigned: int = 0
    alive: bool = False

    def is_before(self, other: Ended) -> bool:
        """Return whether this is the same boot, read at the same time or earlier."""
        same = (self.boot.backend, self.boot.name) == (other.boot.backend, other.boot.name)
        return same and self.seq <= other.seq


@dataclass
class Replayed:
    """The changes of boots. pending: deltas by storage id and box. sources: the boots
    that these are from, by storage id. users: the users that each boot names, by
    (backend, boot)."""

    pending: dict[str, dict[str, list[bytes]]] = field(default_factory=dict)
    sources: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    users: dict[tuple[str, str], set[str]] = field(default_factory=dict)


class _Said(NamedTuple):
    """A change in a journal. at: the time of its object by the bucket's clock. adopted:
    whether bundles have it."""

    box: str
    delta: bytes
    boot: tuple[str, str]
    seq: int
    at: float
    adopted: bool

    def void(self, deletion: _Said) -> bool:
        """Return whether the change is from before the user was deleted."""
        return self.seq <= deletion.seq if self.boot == deletion.boot else self.at <= deletion.at


async def list_journals(env: Env) -> list[ObjectInfo]:
    """Return the objects in the journals of all backends: a LIST for the names, and a
    LIST for each backend. Raises Unavailable."""
    prefixes: list[str] = []
    for name in await env.names(journal_prefix(), kind="journal"):
        try:
            prefixes.append(journal_prefix(name))
        except ValueError:
            log.warning("foreign objects in the journal ignored", key=f"{journal_prefix()}{name}/")
    found = await asyncio.gather(*(env.listing(prefix, kind="journal") for prefix in prefixes))
    return [info for infos in found for info in infos]


def boots_of(infos: Iterable[ObjectInfo]) -> list[Boot]:
    """Return the boots in a LIST of journals, by backend and time. Foreign objects are
    logged and stay."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for info in infos:
        try:
            key = parse_journal_key(info.key)
            if _BOOT.fullmatch(key.boot) is None or key.seq > SEQ_MAX:
                raise ValueError(key.boot)
        except ValueError:
            log.warning("foreign object in the journal ignored", key=info.key)
            continue
        found.setdefault((key.backend, key.boot), {})[key.seq] = info.modified
    return [Boot(backend, name, objects) for (backend, name), objects in sorted(found.items())]


async def fence(env: Env, boot: Boot) -> Ended:
    """End a boot that has not ended, so that its owner can acknowledge nothing any
    more. Raises Unavailable, Corrupt."""
    end = await _newest(env, boot)
    closed_before = end.closed
    while not end.closed:
        seq = end.seq + 1
        closing = JournalObject(
            boot.backend,
            boot.name,
            seq,
            end.watermark,
            closed=True,
            modseq_floor=end.modseq_floor,
            assigned=end.assigned,
        )
        if await _put(env, closing):
            log.info("boot fenced", backend=boot.backend, boot=boot.name, seq=seq)
            end = closing
        else:
            end = await _after(env, end)
    return _ended(boot, end, closed_before=closed_before)


async def look(env: Env, boot: Boot) -> Ended:
    """Read a boot without fencing it. It may still be running. Raises Unavailable,
    Corrupt."""
    newest = await _newest(env, boot)
    if newest.closed:
        return _ended(boot, newest, closed_before=True)
    return replace(_ended(boot, newest, closed_before=False), seq=newest.seq + 2, alive=True)


async def _newest(env: Env, boot: Boot) -> JournalObject:
    """Return the end of a boot: its newest object, or what the object before says if
    that is damaged. If none can be read, all objects belong to a replay. Raises
    Unavailable, Corrupt."""
    for seq in sorted(boot.objects, reverse=True):
        try:
            found = await read(env, boot.backend, boot.name, seq)
        except Damaged as exc:
            _skipped(exc)
        else:
            return found if seq == boot.last else structs.replace(found, seq=boot.last, lines=[])
    return JournalObject(boot.backend, boot.name, boot.last, boot.first)


async def _after(env: Env, end: JournalObject) -> JournalObject:
    """Return the end of a boot whose next object is not ours. Raises Unavailable,
    Corrupt."""
    try:
        return await read(env, end.backend, end.boot, end.seq + 1)
    except Damaged as exc:
        _skipped(exc)
        return structs.replace(end, seq=end.seq + 1, lines=[])


def _skipped(exc: Corrupt) -> None:
    log.error("journal object skipped", error=str(exc), next_step="restore it, or oboxadm rebuild the users named")


def _ended(boot: Boot, end: JournalObject, *, closed_before: bool) -> Ended:
    return Ended(
        boot,
        end.seq + 1,
        end.watermark,
        closed_before,
        end.clean,
        frozenset(end.adopted),
        end.modseq_floor,
        end.assigned,
    )


async def replay(env: Env, boots: Sequence[Ended], users: Callable[[str], bool] = lambda sid: True) -> Replayed:
    """Read the changes of users that no backend has taken over. users: selects users by
    storage id. Raises Unavailable.

    Changes from before the deletion of a user are left out, so pass all boots that may
    have changes of a user in a single call.
    """
    said: dict[str, list[_Said]] = {}
    found = Replayed()
    for one in boots:
        boot = one.boot
        name = boot.backend, boot.name
        named = found.users.setdefault(name, set())
        for journal in await _objects(env, boot, range(max(one.watermark, boot.first), one.seq - 1)):
            at = boot.objects.get(journal.seq, float("inf"))
            for line in journal.lines:
                named.add(line.sid)
                if users(line.sid):
                    adopted = line.sid in one.adopted
                    changes = said.setdefault(line.sid, [])
                    changes += (_Said(box, delta, name, journal.seq, at, adopted) for box, delta in line.changes)
    for sid, changes in _without_deleted(said).items():
        found.sources[sid] = {change.boot for change in changes}
        boxes = found.pending[sid] = {}
        for change in changes:
            boxes.setdefault(change.box, []).append(change.delta)
    return found


async def written(env: Env, one: Ended) -> dict[str, dict[int, tuple[float, float]]]:
    """Return when a boot wrote of each user who was not adopted, as far as a takeover
    would read it: first and last, by the bucket's clock, for each number of an
    assignment that was the highest seen. Raises Unavailable."""
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for journal in await _objects(env, one.boot, range(max(one.watermark, one.boot.first), one.seq - 1)):
        at = one.boot.objects.get(journal.seq)
        for line in journal.lines:
            if line.sid not in one.adopted and at is not None:
                times = found.setdefault(line.sid, {})
                first, last = times.get(journal.assigned, (at, at))
                times[journal.assigned] = min(first, at), max(last, at)
    return found


async def record(env: Env, ended: Ended, named: set[str], adopted: set[str], modseq_floor: int) -> Ended:
    """Record that users of a boot have been adopted. The boot is clean once these are
    all users that it names. Raises Unavailable, Corrupt.

    named: the users that `replay` returned. adopted: users of whom bundles have all
    changes of the boot, or that do not exist any more. Returns the boot as it is now,
    with what other backends have recorded meanwhile.
    """
    seq, done = ended.seq, ended.adopted | adopted
    while True:
        clean = named <= done
        noted = JournalObject(
            ended.boot.backend,
            ended.boot.name,
            seq,
            seq if clean else ended.watermark,
            closed=True,
            clean=clean,
            modseq_floor=modseq_floor,
            adopted=[] if clean else sorted(done),
            assigned=ended.assigned,
        )
        if not await _put(env, noted):
            noted = await _after(env, structs.replace(noted, seq=seq - 1, adopted=[], clean=False))
        done |= set(noted.adopted)
        seq += 1
        if noted.clean or adopted <= set(noted.adopted):
            return replace(ended, seq=seq, clean=noted.clean, adopted=done)


async def read(env: Env, backend: str, boot: str, seq: int) -> JournalObject:
    """Read a journal object. Raises Unavailable (also if it is gone), Damaged, Corrupt
    (this backend lacks the key or the version)."""
    key = journal_key(backend, boot, seq)
    data = await env.get(key, kind="journal")
    if data is None:  # deleted by another backend that has taken over
        raise Unavailable(TRY_LATER)
    try:
        if is_large(data):
            return await asyncio.to_thread(JournalObject.decode, env.codec, data, key)
        return JournalObject.decode(env.codec, data, key)
    except (UnknownKey, NewerFormat) as exc:
        raise Corrupt(f"journal object {key}: {exc}") from exc
    except (CorruptObject, msgspec.MsgspecError, ValueError) as exc:
        raise Damaged(f"journal object {key}: {exc}") from exc


async def _put(env: Env, journal: JournalObject) -> bool:
    """Return False if another object has its `seq`. Raises Unavailable."""
    oid = env.new_oid()
    try:
        return await put_once(env.bucket, journal.key, journal.encode(env.codec, oid), oid, kind="journal")
    except StoreError as exc:
        raise env.unavailable("put", journal.key, exc) from exc


async def _objects(env: Env, boot: Boot, seqs: range) -> list[JournalObject]:
    """Read these objects in order, without objects that do not decode."""
    found: list[JournalObject] = []
    for begin in range(0, len(seqs), OBJECTS_AT_ONCE):
        batch = seqs[begin : begin + OBJECTS_AT_ONCE]
        objects = await asyncio.gather(*(_read_or_skip(env, boot, seq) for seq in batch))
        found += [journal for journal in objects if journal is not None]
    users = len({line.sid for journal in found for line in journal.lines})
    log.info("journal replayed", backend=boot.backend, boot=boot.name, objects=len(seqs), users=users)
    return found


async def _read_or_skip(env: Env, boot: Boot, seq: int) -> JournalObject | None:
    try:
        return await read(env, boot.backend, boot.name, seq)
    except Corrupt as exc:
        _skipped(exc)
        return None


def _without_deleted(said: dict[str, list[_Said]]) -> dict[str, list[_Said]]:
    """Return changes by storage id, without changes from before a user's deletion, and
    without adopted changes."""
    left: dict[str, list[_Said]] = {}
    for sid, changes in said.items():
        deletions = [one for one in changes if one.box == DELETED]
        for one in changes:
            if one.box != DELETED and not one.adopted and not any(one.void(deletion) for deletion in deletions):
                left.setdefault(sid, []).append(one)
    return left
