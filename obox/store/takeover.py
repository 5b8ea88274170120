"""At start: which boots left a journal, which of them are over, and what they say that no bundle knows.

Theory of operation. A LIST of `_journal/` names the backends, and a LIST for each of them shows its boots, each with
its last `seq`. (One LIST over all would cross directories whose names may begin alike; stores have been seen to leave
keys out there.) A boot that no live backend claims is fenced: the next `seq` is PUT as `closed`, repeated until it
wins; from then on its owner, should it wake up, can acknowledge nothing. What lies between the last object's watermark
and the fence is read and kept, by user and box, until each box has been loaded and flushed; then the boot is marked
`clean` and never read again.

Our own last boot tells what the local copies are worth:
- closed, and the local state remembers that we did it: every copy is current, flushed (clean) or not;
- not closed, or closed by another backend (a crash), or others have written meanwhile: copies hold all that was
  acknowledged here, perhaps even what no journal has, but not all that is in the bucket: bundles are LISTed for each
  user and mails for each mailbox when it is opened, and joined;
- the bucket knows a later boot of ours, or a later seq that is no fence (disks restored from a backup): no copy is
  trusted, for what it has and the bucket has not may have been undone since.

Diagnostics: an unreadable journal object is fatal for its boot's replay and logged with its key; the operator decides
(`oboxadm rebuild`); the rest goes on.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import msgspec
import structlog

from ..errors import Corrupt, Unavailable
from ..objectstore import CorruptObject, NewerFormat, ObjectInfo, StoreError, put_once
from ..objectstore.keys import journal_key, journal_prefix, parse_journal_key
from ._env import TRY_LATER, Env
from .journal import DELETED, JournalObject

log = structlog.get_logger()


BOOT_MS_DIGITS: Final = 12
"""Of a boot's name: when it began, unix milliseconds."""

_BOOT: Final = re.compile(r"[0-9a-f]{16}", re.ASCII)
"""A boot's name, as `MailStore` makes it; anything else is somebody's copy."""

CLOCKS_S: Final = 60.0
"""By which the bucket's clock and ours may differ."""


class LastBoot(msgspec.Struct):
    """What the local state remembers of this backend: its boot, the last `seq` it began to PUT, and if it ended
    well."""

    boot: str
    seq: int
    clean: bool


class _Said(NamedTuple):
    """One change in a journal. at: when its object was written, by the bucket's clock."""

    box: str
    delta: bytes
    boot: tuple[str, str]
    seq: int
    at: float

    def void(self, grave: _Said) -> bool:
        """Was it said before the user was deleted?"""
        return self.seq <= grave.seq if self.boot == grave.boot else self.at <= grave.at


@dataclass
class Takeover:
    """What a start has found. pending: deltas by storage id and box; boots: (backend, boot, next seq) to mark clean
    when
    all that is flushed; old: journal keys but
    each backend's newest, which tells of it for ever, with the time they were written, to be deleted after the
    delay."""

    pending: dict[str, dict[str, list[bytes]]] = field(default_factory=dict)
    boots: list[tuple[str, str, int]] = field(default_factory=list)
    old: list[tuple[str, float]] = field(default_factory=list)
    unclean: bool = False
    ahead: int = 0
    """The highest of all backends' journals."""
    trust: str = "none"
    """"all", "check" (LIST each mailbox once) or "none"."""


async def take_over(env: Env, last: LastBoot | None, live: Callable[[str], bool]) -> Takeover:
    """Fence what is dead and read what it left. live: does another running backend claim this name. Raises
    Unavailable."""
    found = Takeover()
    said: dict[str, list[_Said]] = {}
    backend = env.settings.backend
    boots: dict[tuple[str, str], list[int]] = {}
    for info in await list_journals(env):
        try:
            key = parse_journal_key(info.key)
            if _BOOT.fullmatch(key.boot) is None:
                raise ValueError(key.boot)
        except ValueError:
            log.warning("foreign object in the journal, left alone", key=info.key)
            continue
        boots.setdefault((key.backend, key.boot), []).append(key.seq)
        found.old.append((info.key, info.modified))
    own = sorted(boot for name, boot in boots if name == backend)
    fenced_by_other = False
    for (name, boot), seqs in sorted(boots.items()):
        if name != backend and live(name):
            keep = journal_prefix(name, boot)
            found.old = [(key, at) for key, at in found.old if not key.startswith(keep)]
            continue
        end = await _read(env, name, boot, max(seqs))
        found.ahead = max(found.ahead, end.ahead)
        if end.closed and end.clean:
            continue
        if name == backend and end.closed and last is not None and boot == last.boot:
            fenced_by_other = not (last.clean and end.seq == last.seq)
            found.unclean |= fenced_by_other  # else our own end, with indexes not uploaded
        else:
            found.unclean = True
        last_seq, watermark = (end.seq, end.watermark) if end.closed else await _fence(env, name, boot, end)
        written = dict(found.old)
        for seq, journal in await _replay(env, name, boot, range(max(watermark, min(seqs)), last_seq)):
            at = written.get(journal_key(name, boot, seq), float("inf"))
            for line in journal.lines:
                changes = said.setdefault(line.sid, [])
                changes += (_Said(box, delta, (name, boot), seq, at) for box, delta in line.changes)
        found.boots.append((name, boot, last_seq + 1))
    found.pending = _of_the_living(said)
    known = boots.get((backend, last.boot), []) if last is not None else []
    if last is not None and known and max(known) > last.seq and not fenced_by_other:
        fenced_by_other = last.seq + 1 in known and (await _read(env, backend, last.boot, last.seq + 1)).closed
    found.trust = _trust(last, own, known, fenced_by_other)
    if found.trust == "all" and last is not None and _others_wrote(found.old, backend, last.boot):
        log.info("another backend has written since we began: local copies are compared with the bucket")
        found.trust = "check"
    newest = {parse_journal_key(key).backend: key for key, _ in sorted(found.old)}
    found.old = [(key, at) for key, at in found.old if key not in newest.values()]
    return found


async def list_journals(env: Env) -> list[ObjectInfo]:
    """All that lies in the journals of all backends: a LIST for their names and one for each. Raises Unavailable."""
    prefixes: list[str] = []
    for name in await env.names(journal_prefix(), kind="journal"):
        try:
            prefixes.append(journal_prefix(name))
        except ValueError:
            log.warning("foreign objects in the journal, left alone", key=f"{journal_prefix()}{name}/")
    found = await asyncio.gather(*(env.listing(prefix, kind="journal") for prefix in prefixes))
    return [info for infos in found for info in infos]


def _others_wrote(objects: list[tuple[str, float]], backend: str, boot: str) -> bool:
    """A backend that is over now wrote in or after our last life: it may have changed what we have copies of, and while
    both wrote neither knew."""
    begun = int(boot[:BOOT_MS_DIGITS], 16) / 1000 - CLOCKS_S
    return any(at >= begun for key, at in objects if parse_journal_key(key).backend != backend)


def _trust(last: LastBoot | None, own: list[str], known: list[int], fenced: bool) -> str:
    """What the local copies are worth; see the module's text. own: our boots; known: the seqs of the last of them."""
    if last is None:
        return "none"
    if own and own[-1] > last.boot:
        log.warning("the bucket knows a later boot of ours: local state is from a backup, dropped", boot=own[-1])
        return "none"
    if fenced:
        return "check"
    if known and max(known) > last.seq:
        log.warning("the bucket knows later changes of ours: local state is from a backup, dropped", boot=last.boot)
        return "none"
    return "all" if last.clean else "check"


async def _read(env: Env, backend: str, boot: str, seq: int) -> JournalObject:
    key = journal_key(backend, boot, seq)
    data = await env.get(key, kind="journal")
    if data is None:  # deleted since the LIST, by another backend that has taken over
        raise Unavailable(TRY_LATER)
    try:
        return JournalObject.decode(env.codec, data, key)
    except (CorruptObject, NewerFormat, msgspec.MsgspecError, ValueError) as exc:
        raise Corrupt(f"journal object {key}: {exc}") from exc


async def _fence(env: Env, backend: str, boot: str, end: JournalObject) -> tuple[int, int]:
    """Close a boot's journal after its last object; returns the fence's seq and the watermark."""
    while not end.closed:
        seq = end.seq + 1
        fence = JournalObject(backend, boot, seq, end.watermark, closed=True, ahead=end.ahead)
        oid = env.new_oid()
        key = journal_key(backend, boot, seq)
        try:
            if await put_once(env.bucket, key, fence.encode(env.codec, oid), oid, kind="journal"):
                log.info("fenced", backend=backend, boot=boot, seq=seq)
                return seq, end.watermark
        except StoreError as exc:
            raise env.unavailable("put", key, exc) from exc
        end = await _read(env, backend, boot, seq)
    return end.seq, end.watermark


async def _replay(env: Env, backend: str, boot: str, seqs: range) -> list[tuple[int, JournalObject]]:
    """These objects, in order, but those that do not decode."""
    found: list[tuple[int, JournalObject]] = []
    for begin in range(0, len(seqs), 64):
        batch = seqs[begin : begin + 64]
        objects = await asyncio.gather(*(_read_or_skip(env, backend, boot, seq) for seq in batch))
        found += [(seq, journal) for seq, journal in zip(batch, objects, strict=True) if journal is not None]
    users = len({line.sid for _, journal in found for line in journal.lines})
    log.info("journal replayed", backend=backend, boot=boot, objects=len(seqs), users=users)
    return found


def _of_the_living(said: dict[str, list[_Said]]) -> dict[str, dict[str, list[bytes]]]:
    """Deltas by storage id and box, without what was said of users before they were deleted."""
    pending: dict[str, dict[str, list[bytes]]] = {}
    for sid, changes in said.items():
        graves = [one for one in changes if one.box == DELETED]
        for one in changes:
            if one.box != DELETED and not any(one.void(grave) for grave in graves):
                pending.setdefault(sid, {}).setdefault(one.box, []).append(one.delta)
    return pending


async def _read_or_skip(env: Env, backend: str, boot: str, seq: int) -> JournalObject | None:
    try:
        return await _read(env, backend, boot, seq)
    except Corrupt as exc:
        log.error("journal object skipped", error=str(exc), next_step="restore it, or oboxadm rebuild the users named")
        return None


async def mark_clean(env: Env, backend: str, boot: str, seq: int, ahead: int) -> None:
    """Say that everything in a fenced boot is in bundles now."""
    done = JournalObject(backend, boot, seq, seq, closed=True, clean=True, ahead=ahead)
    oid = env.new_oid()
    try:
        await put_once(env.bucket, journal_key(backend, boot, seq), done.encode(env.codec, oid), oid, kind="journal")
    except StoreError as exc:
        raise env.unavailable("put", journal_key(backend, boot, seq), exc) from exc
