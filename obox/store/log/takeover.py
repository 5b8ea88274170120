"""The takeover at a start: finds the boots that have ended, their changes that no
bundle has, and how far local copies can be trusted.

Theory of operation. A LIST of `_journal/` names the backends, and a LIST for each of
them shows its boots, each with its last `seq`. (A single LIST of all would cross
directories whose names have a common prefix; some stores leave keys out there.) A boot
that no live backend claims is fenced and replayed (`fence`). Its changes are kept, by
user and box, until each box has been loaded and flushed.

Our own last boot decides how far local copies can be trusted:
- closed, and the local state remembers that we did it: every copy is current, flushed
  (clean) or not;
- not closed, or closed by another backend (a crash), or others have written meanwhile:
  copies hold all that was acknowledged here, perhaps even what no journal has, but not
  all that is in the bucket: bundles are LISTed for each user and mails for each mailbox
  when it is opened, and joined;
- the bucket knows a later boot of ours, or a later seq that is no fence (disks restored
  from a backup): no copy is trusted, for what it has and the bucket has not may have
  been undone since.

Diagnostics: see `fence`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final

import msgspec
import structlog

from ...errors import Corrupt
from ...objectstore.keys import journal_key, parse_journal_key
from ..env import Env
from .fence import Boot, Damaged, Ended, Replayed, boots_of, fence, list_journals, look, read, replay

log = structlog.get_logger()

BOOT_MS_DIGITS: Final = 12
"""These digits of a boot's name say when it began, in unix milliseconds."""

CLOCKS_S: Final = 60.0
"""The bucket's clock and this machine's clock may differ by a minute."""


class LastBoot(msgspec.Struct):
    """What the local state has of this backend: its boot, the last `seq` whose PUT
    began, and whether it ended in order."""

    boot: str
    seq: int
    clean: bool


class LocalCopies(Enum):
    """What a start does with the local copies."""

    KEEP = "all"
    """All of them are current."""
    COMPARE = "check"
    """Each is compared with the bucket when its box is opened."""
    DROP = "none"


@dataclass
class Takeover:
    """What a start has found. pending: deltas by storage id and box. sources: the boots
    that have changes in pending, by storage id. boots: boots that have ended and are
    not clean. users: the users that each of them names, by (backend, boot). old:
    journal keys with the time when they were written, to be deleted after the delay.
    The newest key of each backend is not in it, because it records the backend for
    ever."""

    pending: dict[str, dict[str, list[bytes]]] = field(default_factory=dict)
    boots: list[Ended] = field(default_factory=list)
    users: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    sources: dict[str, set[tuple[str, str]]] = field(default_factory=dict)
    old: list[tuple[str, float]] = field(default_factory=list)
    unclean: bool = False
    modseq_floor: int = 0
    """The highest of all backends' journals."""
    assigned: int = 0
    """The highest number of an assignment in all backends' journals."""
    trust: LocalCopies = LocalCopies.DROP
    left: set[str] = field(default_factory=set)
    """Users that the boots name, and of whom bundles do not have everything yet."""
    again: set[str] = field(default_factory=set)
    """Users that were added since upkeep has begun to upload what is left."""

    def adopted(self, users: set[str]) -> None:
        """Note that bundles have everything of users, but for what was added since."""
        done = users - self.again
        self.left -= done
        for sid in done:
            self.sources.pop(sid, None)

    def add(self, survey: Survey) -> None:
        """Add what was found when a running backend gained units."""
        for sid, boxes in survey.replayed.pending.items():
            waiting = self.pending.setdefault(sid, {})
            for box, deltas in boxes.items():
                waiting.setdefault(box, []).extend(deltas)
            self.left.add(sid)
            self.again.add(sid)
        for sid, boots in survey.replayed.sources.items():
            self.sources[sid] = self.sources.get(sid, set()) | boots
        known = {(one.boot.backend, one.boot.name): at for at, one in enumerate(self.boots)}
        for one in survey.boots:
            name = one.boot.backend, one.boot.name
            named = survey.replayed.users.get(name, set())
            self.users.setdefault(name, set()).update(named)
            if name in known:
                self.boots[known[name]] = one
            elif named:
                self.boots.append(one)


def one_history(boots: Collection[tuple[str, str]], heads: Iterable[tuple[str, float]]) -> bool:
    """Return whether the owner of a journal has certainly known the bundles of a box.

    boots: (backend, boot) of the journals with changes of the user. heads: writer and
    time (by the bucket's clock) of bundles. A backend that began after a bundle was
    written has read it, and its own boots know of each other.
    """
    if len({backend for backend, _ in boots}) > 1:
        return False
    names = {boot for _, boot in boots}
    began = min((int(name[:BOOT_MS_DIGITS], 16) / 1000 for name in names), default=float("inf"))
    return all(writer in names or at < began - CLOCKS_S for writer, at in heads)


async def take_over(env: Env, last: LastBoot | None, live: Callable[[str], bool]) -> Takeover:
    """Fence boots that have ended and read their journals. live: whether another
    running backend claims a name. Raises Unavailable, Corrupt."""
    found = Takeover()
    backend = env.settings.backend
    present = boots_of(await list_journals(env))
    boots = [boot for boot in present if boot.backend == backend or not live(boot.backend)]
    fenced_by_other = False
    for boot in boots:
        found.old += [(journal_key(boot.backend, boot.name, seq), at) for seq, at in boot.objects.items()]
        ended = await fence(env, boot)
        found.modseq_floor, found.assigned = (
            max(found.modseq_floor, ended.modseq_floor),
            max(found.assigned, ended.assigned),
        )
        if ended.closed_before and ended.clean:
            continue
        if boot.backend == backend and ended.closed_before and last is not None and boot.name == last.boot:
            fenced_by_other = not (last.clean and ended.seq - 1 == last.seq)
            # Otherwise it was our own end, with indexes not uploaded.
            found.unclean |= fenced_by_other
        else:
            found.unclean = True
        found.boots.append(ended)
    for other in await _look_all(env, [boot for boot in present if boot not in boots]):
        found.modseq_floor, found.assigned = (
            max(found.modseq_floor, other.modseq_floor),
            max(found.assigned, other.assigned),
        )
    replayed = await replay(env, found.boots, env.owned.owns)
    found.pending, found.users, found.left = replayed.pending, replayed.users, set(replayed.pending)
    found.sources = replayed.sources
    own = {boot.name: boot for boot in boots if boot.backend == backend}
    known = None if last is None else own.get(last.boot)
    if last is not None and known is not None and known.last > last.seq and not fenced_by_other:
        fenced_by_other = last.seq + 1 in known.objects and await _is_fence(env, backend, last.boot, last.seq + 1)
    found.trust = _trust(last, max(own, default=""), known, fenced_by_other)
    if (
        found.trust is LocalCopies.KEEP
        and last is not None
        and env.owned.alone
        and _others_wrote(found.old, backend, last.boot)
    ):
        log.info("another backend has written since the start, local copies are compared with the bucket")
        found.trust = LocalCopies.COMPARE
    newest = {parse_journal_key(key).backend: key for key, _ in sorted(found.old)}
    found.old = [(key, at) for key, at in found.old if key not in newest.values()]
    return found


@dataclass
class Survey:
    """What the journals have of units that this backend gains.

    boots: boots that are over and not clean. unclean_boots: the names of all such
    boots, also of those that were known. open_boots: the names of all boots that are
    not clean, also of live boots. replayed: the changes of the users in these and in
    live boots. unclean: whether an owner has crashed, so that clients may know MODSEQs
    that no object has. modseq_floor, assigned: the highest of all journals. clean:
    boots that are over and of which bundles have everything. newest: the newest journal
    key of each backend.
    """

    boots: list[Ended]
    unclean_boots: set[tuple[str, str]]
    open_boots: set[tuple[str, str]]
    replayed: Replayed
    unclean: bool
    modseq_floor: int
    assigned: int
    clean: list[Ended]
    newest: dict[str, str]


async def survey(
    env: Env,
    own: str,
    dead: Sequence[tuple[str, str]],
    users: Callable[[str], bool],
    *,
    orderly: bool,
    alive: bool = True,
    known: Collection[tuple[str, str]] = (),
) -> Survey:
    """Fence dead boots, and read the changes of users in all journals. Raises
    Unavailable, Corrupt.

    own: the present boot of this backend, which is not read. dead: (backend, boot).
    Earlier boots of that backend are fenced too; if boot is empty, all boots. orderly:
    whether the previous owner has handed over, so that its bundles have everything.
    alive: whether to read also boots that have not ended. known: boots that have been
    read before.
    """
    listed = boots_of(await list_journals(env))
    newest = {boot.backend: journal_key(boot.backend, boot.name, boot.last) for boot in listed}
    present = [boot for boot in listed if boot.name != own]
    dying = [boot for boot in present if any(boot.backend == name and _until(boot, last) for name, last in dead)]
    fenced = [await fence(env, boot) for boot in dying]
    seen = fenced + await _look_all(env, [boot for boot in present if boot not in dying])
    unclean = [one for one in seen if not one.clean and (alive or not one.alive)]
    over_names = {(one.boot.backend, one.boot.name) for one in unclean if not one.alive}
    unclean = [one for one in unclean if (one.boot.backend, one.boot.name) not in known]
    replayed = Replayed() if orderly else await replay(env, unclean, users)
    over = [one for one in unclean if not one.alive]
    names = {name for name, named in replayed.users.items() if any(map(users, named))}
    return Survey(
        over,
        over_names,
        {(one.boot.backend, one.boot.name) for one in seen if not one.clean},
        replayed,
        any((one.boot.backend, one.boot.name) in names for one in over) or any(not one.closed_before for one in fenced),
        max((one.modseq_floor for one in seen), default=0),
        max((one.assigned for one in seen), default=0),
        [one for one in seen if one.clean],
        newest,
    )


async def _is_fence(env: Env, backend: str, boot: str, seq: int) -> bool:
    """Return whether an object of our boot, which we did not write, ended it. A damaged
    object counts: the copies are compared then. Raises Unavailable, Corrupt."""
    try:
        return (await read(env, backend, boot, seq)).closed
    except Damaged:
        return True


def _until(boot: Boot, last: str) -> bool:
    return not last or boot.name <= last


async def _look_all(env: Env, boots: Sequence[Boot]) -> list[Ended]:
    """Read boots without fencing them. Boots whose newest object is gone or does not
    decode are left out. Raises Unavailable."""

    async def read_end(boot: Boot) -> Ended | None:
        try:
            return await look(env, boot)
        except Corrupt as exc:
            log.error("journal cannot be read", backend=boot.backend, boot=boot.name, error=str(exc))
            return None

    return [found for found in await asyncio.gather(*map(read_end, boots)) if found is not None]


def _others_wrote(objects: list[tuple[str, float]], backend: str, boot: str) -> bool:
    """Return whether a backend that has ended wrote during or after our last boot. It
    may have changed what we have copies of, and neither backend knew of the other."""
    begun = int(boot[:BOOT_MS_DIGITS], 16) / 1000 - CLOCKS_S
    return any(at >= begun for key, at in objects if parse_journal_key(key).backend != backend)


def _trust(last: LastBoot | None, newest: str, known: Boot | None, fenced: bool) -> LocalCopies:
    """Return how far local copies can be trusted; see the module's text. newest: our
    latest boot in the bucket. known: the last boot that the local state has."""
    if last is None:
        return LocalCopies.DROP
    if newest > last.boot:
        log.warning("local state from a backup dropped, the bucket has a later boot of this backend", boot=newest)
        return LocalCopies.DROP
    if fenced:
        return LocalCopies.COMPARE
    if known is not None and known.last > last.seq:
        log.warning("local state from a backup dropped, the bucket has later changes of this backend", boot=last.boot)
        return LocalCopies.DROP
    return LocalCopies.KEEP if last.clean else LocalCopies.COMPARE
