"""At start: which boots are over, what they say that no bundle has, and what the local copies are worth.

Theory of operation. A LIST of `_journal/` names the backends, and a LIST for each of them shows its boots, each with
its last `seq`. (One LIST over all would cross directories whose names may begin alike; stores have been seen to leave
keys out there.) A boot that no live backend claims is fenced and replayed (`fence`). What it says is kept, by user and
box, until each box has been loaded and flushed.

Our own last boot tells what the local copies are worth:
- closed, and the local state remembers that we did it: every copy is current, flushed (clean) or not;
- not closed, or closed by another backend (a crash), or others have written meanwhile: copies hold all that was
  acknowledged here, perhaps even what no journal has, but not all that is in the bucket: bundles are LISTed for each
  user and mails for each mailbox when it is opened, and joined;
- the bucket knows a later boot of ours, or a later seq that is no fence (disks restored from a backup): no copy is
  trusted, for what it has and the bucket has not may have been undone since.

Diagnostics: see `fence`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog

from ..objectstore.keys import journal_key, parse_journal_key
from ._env import Env
from .fence import Boot, Ended, boots_of, fence, list_journals, read, replay

log = structlog.get_logger()

BOOT_MS_DIGITS: Final = 12
"""Of a boot's name: when it began, unix milliseconds."""

CLOCKS_S: Final = 60.0
"""By which the bucket's clock and ours may differ."""


class LastBoot(msgspec.Struct):
    """What the local state remembers of this backend: its boot, the last `seq` it began to PUT, and if it ended
    well."""

    boot: str
    seq: int
    clean: bool


@dataclass
class Takeover:
    """What a start has found. pending: deltas by storage id and box; boots: those that are over and not clean; users:
    whom each of them names, by (backend, boot); old: journal keys but each backend's newest, which tells of it for
    ever, with the time they were written, to be deleted after the delay."""

    pending: dict[str, dict[str, list[bytes]]] = field(default_factory=dict)
    boots: list[Ended] = field(default_factory=list)
    users: dict[tuple[str, str], set[str]] = field(default_factory=dict)
    old: list[tuple[str, float]] = field(default_factory=list)
    unclean: bool = False
    ahead: int = 0
    """The highest of all backends' journals."""
    trust: str = "none"
    """"all", "check" (LIST each mailbox once) or "none"."""


async def take_over(env: Env, last: LastBoot | None, live: Callable[[str], bool]) -> Takeover:
    """Fence what is dead and read what it left. live: does another running backend claim this name. Raises
    Unavailable, Corrupt."""
    found = Takeover()
    backend = env.settings.backend
    boots = [boot for boot in boots_of(await list_journals(env)) if boot.backend == backend or not live(boot.backend)]
    fenced_by_other = False
    for boot in boots:
        found.old += [(journal_key(boot.backend, boot.name, seq), at) for seq, at in boot.objects.items()]
        ended = await fence(env, boot)
        found.ahead = max(found.ahead, ended.ahead)
        if ended.closed_before and ended.clean:
            continue
        if boot.backend == backend and ended.closed_before and last is not None and boot.name == last.boot:
            fenced_by_other = not (last.clean and ended.seq - 1 == last.seq)
            found.unclean |= fenced_by_other  # else our own end, with indexes not uploaded
        else:
            found.unclean = True
        found.boots.append(ended)
    replayed = await replay(env, found.boots)
    found.pending, found.users = replayed.pending, replayed.users
    own = {boot.name: boot for boot in boots if boot.backend == backend}
    known = None if last is None else own.get(last.boot)
    if last is not None and known is not None and known.last > last.seq and not fenced_by_other:
        after = last.seq + 1
        fenced_by_other = after in known.objects and (await read(env, backend, last.boot, after)).closed
    found.trust = _trust(last, max(own, default=""), known, fenced_by_other)
    if found.trust == "all" and last is not None and _others_wrote(found.old, backend, last.boot):
        log.info("another backend has written since we began: local copies are compared with the bucket")
        found.trust = "check"
    newest = {parse_journal_key(key).backend: key for key, _ in sorted(found.old)}
    found.old = [(key, at) for key, at in found.old if key not in newest.values()]
    return found


def _others_wrote(objects: list[tuple[str, float]], backend: str, boot: str) -> bool:
    """A backend that is over now wrote in or after our last life: it may have changed what we have copies of, and while
    both wrote neither knew."""
    begun = int(boot[:BOOT_MS_DIGITS], 16) / 1000 - CLOCKS_S
    return any(at >= begun for key, at in objects if parse_journal_key(key).backend != backend)


def _trust(last: LastBoot | None, newest: str, known: Boot | None, fenced: bool) -> str:
    """What the local copies are worth; see the module's text. newest: our latest boot in the bucket; known: the last
    one that we remember."""
    if last is None:
        return "none"
    if newest > last.boot:
        log.warning("the bucket knows a later boot of ours: local state is from a backup, dropped", boot=newest)
        return "none"
    if fenced:
        return "check"
    if known is not None and known.last > last.seq:
        log.warning("the bucket knows later changes of ours: local state is from a backup, dropped", boot=last.boot)
        return "none"
    return "all" if last.clean else "check"
