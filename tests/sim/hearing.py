"""Lives whose backends have groups of events, and what the groups must have heard.

`Ears` keeps what each group of each backend has handled, in order. At the end it
compares that with the bucket: whatever has changed was heard, at least once.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

from obox.events import Event, Events, EventSettings, Group
from obox.mailbox import State
from obox.store import MailStore
from obox.store.log.journal import JournalObject

from . import batches
from .cluster import ClusterStory
from .loop import simulate
from .model import Broken, require
from .player import SID, USER
from .story import Story
from .world import Crash, Node, World

GROUPS = ("good", "picky")
CARRY_S = 400.0
"""An event may come twice only if a backend has begun, died, or was suspended within
this time before. A mailbox that was open then is carried forward after 240 s, and is
loaded and compared for that."""
DRAIN_S = 4000.0
"""The groups have handled everything by then. Some events fail 9 times, which takes 26
s, and the user's later events wait for them."""


class Heard(NamedTuple):
    at: float
    node: str
    event: Event

    def mails(self) -> Iterator[tuple[str, int]]:
        for first, last in self.event.uids:
            for uid in range(first, last + 1):
                yield self.event.mailbox, uid


def is_poisoned(event: Event) -> bool:
    """Return whether the picky group can never handle an event."""
    return event.kind == "Added" and any(first <= 11 <= last for first, last in event.uids)


class _Ear:
    def __init__(self, ears: Ears, node: Node, group: str) -> None:
        self._ears, self._node, self._group = ears, node, group

    async def handle(self, event: Event) -> None:
        ears = self._ears
        await asyncio.sleep(ears.rng.choice((0.0, 0.001, 0.05)))
        if self._group == "picky" and (is_poisoned(event) or ears.rng.random() < 0.05):
            ears.failed += 1
            raise RuntimeError("not this event")
        ears.heard[self._group].append(Heard(ears.world.clock(), self._node.name, event))


class Ears:
    """See the module's text."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.rng = random.Random(world.seed + 11)
        self.heard: dict[str, list[Heard]] = {group: [] for group in GROUPS}
        self.failed = 0
        self.strays: set[tuple[str, int]] = set()
        """Journal objects of a backend that did not own the user any more. They have no
        order with those of the owner."""
        world.listen = self._listen

    def _listen(self, node: Node, store: MailStore) -> Events:
        groups = [Group(name, _Ear(self, node, name)) for name in GROUPS]
        events = Events(store, groups, EventSettings())
        before = events.landed

        def landed(written: JournalObject) -> None:
            if not store.env.owned.owns(SID):
                self.strays.add((written.boot, written.seq))
            before(written)

        events.landed = landed  # type: ignore[method-assign]  # the store calls it through the object
        return events

    async def quiet(self, node: Node) -> None:
        """Wait until the groups of a backend have handled everything. Then compare what
        they have heard with the bucket."""
        assert node.events is not None
        user = await node.user(USER)
        for guid, entry in user.root.entries.items():
            if not entry.cleared:  # what a LIST finds is an event
                await node.run(partial(_box, user, guid))
        await node.run(lambda store: store.journal.sync())
        until = self.world.clock() + DRAIN_S
        while not node.events.idle():
            require(self.world.clock() < until, "events wait for ever:", node.events.figures())
            await asyncio.sleep(5)
        for guid, entry in user.root.entries.items():
            if not entry.cleared:
                box = await node.run(partial(_box, user, guid))
                self._check_mails(guid, box.state)
            self._check_name(guid, entry)
        await user.release()

    def _check_mails(self, guid: str, state: State) -> None:
        for group in GROUPS:
            added = self._mails(group, "Added") | self._dead(group)
            missing = {(guid, uid) for uid in state.uids.tolist()} - added
            require(not missing, group, "has not heard of mails:", missing)
            gone = {(guid, uid) for uid in state.gone_uid.tolist()} & added
            missing = gone - self._mails(group, "Expunged")
            require(not missing, group, "has not heard of expunges:", missing)
            saved = dict(zip(state.uids.tolist(), state.column("savedate").tolist(), strict=True))
            rows = state.rows()
            for flag, stamps in rows.stamps.items():
                for uid, stamp in zip(rows.uid.tolist(), stamps.tolist(), strict=True):
                    if stamp and stamp >> 1 != saved[uid]:
                        heard = self._flag(group, guid, uid, flag, bool(stamp & 1))
                        require(heard, group, "has not heard of a flag:", guid, uid, flag, stamp, saved[uid])

    def _check_name(self, guid: str, entry: Any) -> None:
        for group in GROUPS:
            heard = [one.event for one in self.heard[group] if one.event.mailbox == guid]
            kinds = {event.kind for event in heard if event.name}
            if entry.name in ("INBOX", "Trash"):
                continue
            require("MailboxAdded" in kinds, group, "has not heard of the mailbox", entry)
            require(any(event.name == entry.name for event in heard), group, "does not know the name", entry)
            require(not entry.deleted or "MailboxDeleted" in kinds, group, "has not heard of the deletion", entry)

    def _mails(self, group: str, kind: str) -> set[tuple[str, int]]:
        return {mail for one in self.heard[group] if one.event.kind == kind for mail in one.mails()}

    def _dead(self, group: str) -> set[tuple[str, int]]:
        """Return the mails whose event is a dead letter."""
        found = set()
        for one in self.heard["good"] if group == "picky" else ():
            if is_poisoned(one.event) and self.world.keys(f"_events/picky/dead/{SID}/"):
                found |= set(one.mails())
        return found

    def _flag(self, group: str, guid: str, uid: int, flag: str, on: bool) -> bool:
        for one in self.heard[group]:
            for name, value, uids in one.event.flags if one.event.mailbox == guid else ():
                if name == flag and value == on and any(first <= uid <= last for first, last in uids):
                    return True
        return False

    # -- at the end ----------------------------------------------------------------------------------------------------

    def check(self, *, split: bool) -> None:
        """Check order and repetitions. split: whether two backends have written at the
        same time; then there is no order."""
        accidents = [float(line.split()[0]) + 1000 for line in self.world.trace if _is_accident(line)]
        for group in GROUPS:
            first: dict[tuple[str, int], float] = {}
            expunged: dict[tuple[str, int], float] = {}
            last: dict[tuple[str, int], float] = {}
            for one in self.heard[group]:
                if one.event.kind == "Expunged" and (one.event.boot, one.event.seq) not in self.strays:
                    for mail in one.mails():
                        expunged.setdefault(mail, one.at)
                if one.event.kind != "Added":
                    continue
                for mail in one.mails():
                    if mail in expunged and mail not in first and not split:
                        raise Broken(f"{group} has heard of an expunge before its mail: {mail}")
                    first.setdefault(mail, one.at)
                    if mail in last and not any(one.at - CARRY_S < at <= one.at for at in accidents):
                        raise Broken(f"{group} has heard twice of {mail}, at {last[mail]:.1f} and {one.at:.1f}")
                    last[mail] = one.at
        require(not self.world.keys("_events/good/dead/"), "the good group has dead letters")
        cursors = self.world.keys("/cursor/")
        require(len(cursors) <= 300, "cursors are left:", len(cursors))


async def _box(user: Any, guid: str, store: MailStore) -> Any:
    return await user.box(guid)


def _is_accident(line: str) -> bool:
    return any(
        word in line for word in (" start", " stop", " crash", " freeze", " thaw", " kick", "accident", "outage")
    )


class HearingStory(Story):
    """A life of a backend whose groups hear of everything."""

    async def _run(self) -> None:
        self.ears = Ears(self.world)
        await super()._run()
        self.ears.check(split=self.was_split)

    was_split = False

    async def _accident(self) -> None:
        await super()._accident()
        self.was_split |= bool(self.zombies)

    async def _commands(self) -> None:
        if self.ears.quiet not in self.player.checks:
            self.player.checks.append(self.ears.quiet)
        await super()._commands()


class HearingCluster(ClusterStory):
    """A life of a cluster whose groups hear of everything."""

    was_split = False

    async def _run(self) -> None:
        self.ears = Ears(self.world)
        await super()._run()
        self.ears.check(split=self.was_split)

    def begin(self, world: World) -> None:
        super().begin(world)
        self.player.checks.append(self.ears.quiet)

    def _split(self) -> None:
        self.was_split = True
        super()._split()


def play(seed: int, *, steps: int = 30) -> Ears:
    return _played(HearingStory, seed, steps, batched=True)


def play_cluster(seed: int, *, steps: int = 30) -> Ears:
    """Play a life without batches: with batches the life of seed 21 does not end
    (docs/packs.md, "What is missing")."""
    return _played(HearingCluster, seed, steps, batched=False)


def _played(kind: type[HearingStory | HearingCluster], seed: int, steps: int, *, batched: bool) -> Ears:
    on, batches.ON = batches.ON, batches.ON and batched
    try:
        story = kind(seed, steps=steps)
        simulate(story.run)
    finally:
        batches.ON = on
    return story.ears


__all__ = ["Crash", "Ears", "play", "play_cluster"]
