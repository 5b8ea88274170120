"""The rest: lines of other boots whose events a group has not handled.

Theory of operation. After a start, a gain of units and a fence, a look reads the
journals. A boot that lives handles its own lines; if it has released the units, the
look comes after it has passed what it had written until then. Of a boot that is over,
the owner of each user handles the lines behind the cursor, in the order of the bucket's
clock:

    lives: wait for its cursor
    over: behind the cursor -> lanes -> done -> a cursor that names the users

Invariant: a cursor that names users is written only when everything of them in the boot
is done. A look changes nothing else in the bucket, so it may end anywhere. This module
does not know how events are handled.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator, Sequence
from itertools import groupby
from typing import Final

import structlog

from ..errors import Corrupt, Unavailable
from ..objectstore.eventkeys import CursorKey, cursor_key
from ..store.env import Env
from ..store.log.fence import Boot as ListedBoot
from ..store.log.fence import boots_of, list_journals, read
from ..store.log.journal import JournalObject
from ..store.log.takeover import BOOT_MS_DIGITS
from .cursors import CursorBody, Progress, list_cursors, put_cursor, read_progress
from .group import Runner
from .lanes import Item
from .tail import Boot, heard

log = structlog.get_logger()

LIVE_S: Final = 30.0
"""How long the events of users who have moved wait for the cursor of their previous
owner, which writes one every 10 s. After that they may come before its last events."""

LIVE_TICK_S: Final = 1.0
"""Interval of looks at these cursors."""

READ_AT_ONCE: Final = 16
"""Journal objects that are read in parallel."""

FORGOTTEN_S: Final = 3600.0
"""Cursors of a boot of which the journal has nothing are deleted when the boot began
longer ago."""

AGAIN_S: Final = 1.0
"""Pause before the next attempt while the bucket does not answer."""

PATIENCE: Final = 300
"""Attempts to read objects of which others have been read already. Another backend may
have deleted them."""

Spawn = Callable[[Coroutine[None, None, None]], "asyncio.Task[None]"]


class _Work:
    """The ticket of what a look has found of a boot for a group."""

    def __init__(self, runner: Runner, boot: Boot, end: int, finish: Callable[[_Work], None]) -> None:
        self.runner, self.boot, self.end = runner, boot, end
        self.users: set[str] = set()
        self._left = 1
        self._finish = finish

    def add(self) -> None:
        self._left += 1

    def done(self, item: Item | None = None) -> None:
        self._left -= 1
        if not self._left:
            self._finish(self)


class _Wanted:
    """What a group wants of a boot. seqs: objects behind its cursor."""

    def __init__(self, work: _Work, progress: Progress, seqs: Collection[int]) -> None:
        self.work, self.progress, self.seqs = work, progress, frozenset(seqs)


class Rest:
    """See the module's text."""

    def __init__(self, env: Env, present: Callable[[], str], runners: Sequence[Runner], spawn: Spawn) -> None:
        """present: the present boot of this process."""
        self._env, self._present, self._runners, self._spawn = env, present, runners, spawn
        self._named: dict[tuple[str, Boot], set[str]] = {}
        """Users in the rest of a boot, by group, once it was read."""
        self._handled: dict[tuple[str, Boot], set[str]] = {}
        """Users of whom this process has put the rest into lanes."""
        self._works: Counter[Boot] = Counter()
        """How much of each boot is in lanes."""
        self._skipped: set[tuple[str, Boot]] = set()
        """Boots that are over, and whose rest has nothing for a group."""

    def clear(self) -> None:
        """Forget what was put into lanes, because the lanes were cleared."""
        self._handled.clear()
        self._works.clear()

    def holds(self, boot: Boot) -> bool:
        """Return whether some of the rest of a boot is in lanes."""
        return self._works[boot] > 0

    async def look(self, units: Collection[str] | None) -> None:
        """Put the rest into lanes: of users of these units, or of all users of this
        backend. Raises Unavailable, Corrupt."""
        env = self._env
        listed = boots_of(await list_journals(env))
        me = env.settings.backend, self._present()
        others = [boot for boot in listed if (boot.backend, boot.name) != me]
        newest = dict(zip(map(_name, others), await self._read_all([(one, one.last) for one in others]), strict=True))
        over = [one for one in others if (end := newest[_name(one)]) is None or end.closed]
        wanted: list[tuple[ListedBoot, _Wanted]] = []
        for runner in self._runners:
            keys = await list_cursors(env, runner.group.name)
            await self._forget(keys, {_name(boot) for boot in listed})
            progress = await read_progress(env, [key for key in keys if (key.backend, key.boot) in map(_name, over)])
            for boot in over:
                found = await self._wanted(runner, boot, progress.get(_name(boot), Progress()), units)
                if found is not None:
                    wanted.append((boot, found))
        try:
            await self._put(wanted, units)
        except BaseException:
            for _, one in wanted:
                one.work.users.clear()  # no cursor says that they are done
            raise
        finally:
            for _, one in wanted:
                one.work.done()

    async def wait_for_others(self) -> None:
        """Wait until boots that live have passed what they have written until now,
        LIVE_S at most. Raises Unavailable."""
        env = self._env
        listed = boots_of(await list_journals(env))
        found = await self._read_all([(one, one.last) for one in listed if one.name != self._present()])
        lives = [one for one in found if one is not None and not one.closed]
        until = env.clock() + LIVE_S
        while lives and env.clock() < until:
            left = []
            for runner in self._runners:
                ends: dict[Boot, int] = {}
                for key in await list_cursors(env, runner.group.name):
                    if key.writer == key.boot:
                        ends[key.backend, key.boot] = max(key.seq, ends.get((key.backend, key.boot), -1))
                has = [one for one in lives if runner.group.name in one.groups]
                left += [one for one in has if ends.get((one.backend, one.boot), -1) < one.seq]
            if not left:
                return
            lives = [one for one in lives if one in left]
            await env.sleep(LIVE_TICK_S)
        if lives:
            names = sorted({one.backend for one in lives})
            log.warning("events of users who have moved do not wait any longer", backends=len(names))

    async def _forget(self, keys: Iterable[CursorKey], known: Collection[Boot]) -> None:
        """Delete cursors of boots of which the journal has nothing."""
        limit = int((self._env.now() - FORGOTTEN_S) * 1000)
        old = []
        for key in keys:
            try:
                began = int(key.boot[:BOOT_MS_DIGITS], 16)
            except ValueError:
                continue
            if (key.backend, key.boot) not in known and began < limit:
                old.append(cursor_key(key))
        await self._env.delete(old, kind="events")

    async def _wanted(
        self, runner: Runner, boot: ListedBoot, progress: Progress, units: Collection[str] | None
    ) -> _Wanted | None:
        """Return what a group wants of a boot that is over."""
        group, name = runner.group.name, _name(boot)
        rescan = [sid for sid in progress.rescan if self._is_ours(sid, units) and sid not in runner.rescan]
        if rescan and progress.users.keys().isdisjoint(rescan):
            runner.ask_to_rescan(rescan)
        if (group, name) in self._skipped:
            return None
        named, handled = self._named.get((group, name)), self._handled.setdefault((group, name), set())
        if named is not None and not any(self._is_ours(sid, units) and sid not in handled for sid in named):
            return None
        seqs = sorted(seq for seq in boot.objects if seq > progress.seq)
        first = (await self._read_all([(boot, seqs[0])]))[0] if seqs else None
        if first is None or group not in first.groups:
            # Settings of groups change only with a start, so no line is for it.
            self._skipped.add((group, name))
            return None
        self._works[name] += 1
        return _Wanted(_Work(runner, name, boot.last, self._finish), progress, seqs)

    async def _put(self, wanted: list[tuple[ListedBoot, _Wanted]], units: Collection[str] | None) -> None:
        """Put the events of all objects that are wanted into lanes, in order."""
        by_name = {_name(boot): boot for boot, _ in wanted}
        places = {(_name(boot), seq) for boot, one in wanted for seq in one.seqs}
        times = sorted((by_name[name].objects[seq], name, seq) for name, seq in places)
        named: dict[tuple[str, Boot], set[str]] = {}
        for batch in _batches(times):
            found = await self._read_patiently([(by_name[name], seq) for _, name, seq in batch])
            objects = [
                (at, one.assigned, name, seq, one)
                for (at, name, seq), one in zip(batch, found, strict=True)
                if one is not None
            ]
            for _, _, name, seq, written in sorted(objects, key=lambda one: one[:4]):
                of_boot = [one for boot, one in wanted if _name(boot) == name and seq in one.seqs]
                await self._put_object(written, of_boot, units, named)
        for boot, one in wanted:
            key = one.work.runner.group.name, _name(boot)
            self._named[key] = named.get(key, set())
            self._handled[key] |= one.work.users

    async def _put_object(
        self,
        written: JournalObject,
        wanted: list[_Wanted],
        units: Collection[str] | None,
        named: dict[tuple[str, Boot], set[str]],
    ) -> None:
        of_line = await heard(written)
        for one in wanted:
            work, runner = one.work, one.work.runner
            group = runner.group.name
            if group not in written.groups:
                continue
            for sid in of_line.deleted:
                runner.lanes.drop_rest(sid)
                work.add()
                self._spawn(self._forget_letters(work, sid))
            for sid, events in of_line.events.items():
                named.setdefault((group, work.boot), set()).add(sid)
                ours = self._is_ours(sid, units) and sid not in self._handled[group, work.boot]
                if not ours or one.progress.users.get(sid, -1) >= written.seq:
                    continue
                work.users.add(sid)
                await runner.room()
                for event in events:
                    work.add()
                    runner.add(Item(-1, event, work))

    def _is_ours(self, sid: str, units: Collection[str] | None) -> bool:
        owned = self._env.owned
        return owned.owns(sid) and (units is None or owned.unit_of(sid) in units)

    async def _read_all(self, places: Sequence[tuple[ListedBoot, int]]) -> list[JournalObject | None]:
        """Read journal objects; None for those that are gone or damaged. Raises
        Unavailable."""
        env, gate = self._env, asyncio.Semaphore(READ_AT_ONCE)

        async def one(boot: ListedBoot, seq: int) -> JournalObject | None:
            async with gate:
                try:
                    return await read(env, boot.backend, boot.name, seq)
                except Corrupt as exc:
                    log.error("journal object makes no events", error=str(exc))
                    return None

        return list(await asyncio.gather(*(one(boot, seq) for boot, seq in places)))

    async def _read_patiently(self, places: Sequence[tuple[ListedBoot, int]]) -> list[JournalObject | None]:
        """Do `_read_all` while some events are in lanes already, so that they are not
        put there twice. An object that cannot be read is left out in the end."""
        for _ in range(PATIENCE):
            try:
                return await self._read_all(places)
            except Unavailable:
                await self._env.sleep(AGAIN_S)
        found: list[JournalObject | None] = []
        for boot, seq in places:
            try:
                found += await self._read_all([(boot, seq)])
            except Unavailable as exc:
                log.error("journal object makes no events", backend=boot.backend, boot=boot.name, error=str(exc))
                found.append(None)
        return found

    async def _forget_letters(self, work: _Work, sid: str) -> None:
        try:
            await work.runner.forget_letters(sid)
        finally:
            work.done()

    # -- cursors -------------------------------------------------------------------------------------------------------

    def _finish(self, work: _Work) -> None:
        self._works[work.boot] -= 1
        if work.users:
            self._spawn(self._write(work))

    async def _write(self, work: _Work) -> None:
        """Write that the users of a boot are done."""
        backend, boot = work.boot
        writer = f"{self._present()}-{self._env.random_bytes(4).hex()}"
        key = CursorKey(work.runner.group.name, backend, boot, work.end, writer)
        users = set(work.users)
        while True:
            try:
                await put_cursor(self._env, key, CursorBody(users=sorted(users)))
                return
            except Unavailable:
                await self._env.sleep(AGAIN_S)


def _name(boot: ListedBoot) -> Boot:
    return boot.backend, boot.name


def _batches(times: list[tuple[float, Boot, int]]) -> Iterator[list[tuple[float, Boot, int]]]:
    """Yield objects in parts, none of which ends between two objects of one time."""
    part: list[tuple[float, Boot, int]] = []
    for _, group in groupby(times, key=lambda one: one[0]):
        part += group
        if len(part) >= READ_AT_ONCE:
            yield part
            part = []
    if part:
        yield part
