"""The accidents that the design names, one by one, and a crash at each numbered step of
each command.

The random lives (test_sim.py) mix all of these. Here each accident stands alone, so
that a failure has a name.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import pytest

from obox.objectstore.keys import mail_prefix, parse_mail_key
from obox.types import Guid

from .caches import Disk
from .loop import simulate
from .model import Client
from .objects import claim_in, mails_of
from .player import SID, Player
from .world import Crash, Node, When, World

INBOX, TRASH = "INBOX", "Trash"


class Stage:
    """A world with a backend that is up, and a few mails."""

    def __init__(self) -> None:
        self.world = World(1)
        self.player = Player(self.world)
        self.guids: dict[str, str] = {}
        self.crashes = 0

    async def begin(self, **settings: Any) -> Node:
        self.settings = settings
        if not self.world.batches:
            await self.world.make_without_batches()
        self.node = await self.world.node("a", Disk(), **settings).start()
        await self.names(self.node)
        await self.player.append(self.node, INBOX, self.guids[INBOX], 4, ("work",))
        await asyncio.sleep(1.5)
        return self.node

    async def names(self, node: Node) -> None:
        self.guids = dict(await self.player.boxes_of(node))

    async def start(self, name: str = "a", disk: Disk | None = None) -> Node:
        return await self.world.node(name, disk or Disk(), **self.settings).start()

    def fail(self, op: Any, key: str, fault: Any, **more: Any) -> None:
        self.world.faults.fail_next(op, key, fault, **more)


def scene(work: Callable[[Stage], Coroutine[Any, Any, None]], *, batches: bool = True) -> None:
    """batches: whether the bucket may have them."""
    stage = Stage()
    stage.world.batches = batches
    try:
        simulate(lambda: work(stage))
    except BaseException as exc:
        exc.add_note("\n".join(stage.world.trace[-40:]))
        raise


def key_of(guid: str, uid: int) -> str:
    return f"{mail_prefix(SID, Guid(guid))}{uid:08x}"


def held(world: World, key: str) -> list[int]:
    """Return the UIDs of the mails in an object."""
    data = world.memory.objects[key][0]
    if claim_in(key, data) is not None:
        return [uid for uid, _ in mails_of(key, data)]
    return [parse_mail_key(key).uid]


# -- a crash at each numbered step -------------------------------------------------------------------------------------

Script = Callable[[Player, Node, dict[str, str]], Awaitable[None]]


async def deliver(player: Player, node: Node, guids: dict[str, str]) -> None:
    await player.append(node, INBOX, guids[INBOX], 1, ("later",))
    await player.append(node, INBOX, guids[INBOX], 3)


async def flags(player: Player, node: Node, guids: dict[str, str]) -> None:
    await player.store(node, INBOX, guids[INBOX], [1, 2], "add", ["\\Seen", "later"])
    await player.store(node, INBOX, guids[INBOX], [1], "remove", ["\\Seen"])


async def expunge(player: Player, node: Node, guids: dict[str, str]) -> None:
    await player.expunge(node, INBOX, guids[INBOX], [2, 3])


async def copy(player: Player, node: Node, guids: dict[str, str]) -> None:
    await player.copy(node, INBOX, guids[INBOX], [1, 3], TRASH, guids[TRASH], False)
    await player.copy(node, TRASH, guids[TRASH], [1], INBOX, guids[INBOX], False)


async def move(player: Player, node: Node, guids: dict[str, str]) -> None:
    await player.copy(node, INBOX, guids[INBOX], [1, 3], TRASH, guids[TRASH], True)
    await player.copy(node, TRASH, guids[TRASH], [1], TRASH, guids[TRASH], True)


async def mailboxes(player: Player, node: Node, guids: dict[str, str]) -> None:
    await player.create(node, "box1")
    for name, guid in await player.boxes_of(node):
        if name == "box1":
            await player.append(node, "box1", guid, 2)
            await player.copy(node, "box1", guid, [1], INBOX, guids[INBOX], False)
            await player.rename(node, "box1", "box2", guid)
            await player.delete(node, "box2", guid)


async def upkeep(player: Player, node: Node, guids: dict[str, str]) -> None:
    """Flush, flush again so that bundles are merged, and then delete what has waited
    for its delay."""
    await player.copy(node, INBOX, guids[INBOX], [4], TRASH, guids[TRASH], True)
    await player.expunge(node, INBOX, guids[INBOX], [1])
    for _ in range(3):
        await asyncio.sleep(30)
        await player.store(node, INBOX, guids[INBOX], [2], "add", ["\\Seen"])
        await player.store(node, INBOX, guids[INBOX], [2], "remove", ["\\Seen"])
    for _ in range(2):
        await asyncio.sleep(330)
        await player.append(node, INBOX, guids[INBOX])
        await player.store(node, INBOX, guids[INBOX], [2], "add", ["\\Flagged"])
        await player.store(node, INBOX, guids[INBOX], [2], "remove", ["\\Flagged"])
        await asyncio.sleep(30)


async def stop(player: Player, node: Node, guids: dict[str, str]) -> None:
    await player.append(node, TRASH, guids[TRASH], 2)
    await player.store(node, INBOX, guids[INBOX], [2], "add", ["\\Seen"])
    try:
        await node.stop()
    except Crash:
        pass


SCRIPTS: dict[str, Script] = {
    work.__name__: work for work in (deliver, flags, expunge, copy, move, mailboxes, upkeep, stop)
}


async def steps_of(script: Script) -> int:
    stage = Stage()
    node = await stage.begin()
    before = stage.world.steps
    await script(stage.player, node, stage.guids)
    await asyncio.sleep(25)
    return stage.world.steps - before


async def crash_at(stage: Stage, script: Script, step: int, when: When, *, keep: bool, durability: str) -> None:
    player, world = stage.player, stage.world
    node = await stage.begin(durability=durability)
    await player.look(node)
    world.at = (world.steps + step, when, node.kill)
    try:
        await script(player, node, stage.guids)
        await asyncio.sleep(25)
    except Crash:
        pass
    crashed = world.at is None
    world.at = None
    if not node.ended:
        node.kill()
    if not keep:
        player.lost(node)
    stage.crashes += crashed
    again = await stage.start("a", node.disk if keep else None)
    await asyncio.sleep(2)
    await player.look(again)
    await player.append(again, INBOX, stage.guids[INBOX])
    await player.look(again)
    await player.finish([again])


@pytest.mark.parametrize("keep", [True, False], ids=["state kept", "state lost"])
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_crash_at_each_step(name: str, keep: bool) -> None:
    script = SCRIPTS[name]
    steps = simulate(lambda: steps_of(script))
    assert steps > 1
    crashes = 0
    for step in range(1, steps + 1):
        for when in ("before", "after"):
            durability = "bucket" if step % 3 == 0 else "local"

            async def work(stage: Stage, step: int = step, when: Any = when, how: str = durability) -> None:
                nonlocal crashes
                await crash_at(stage, script, step, when, keep=keep, durability=how)
                crashes += stage.crashes

            try:
                scene(work)
            except BaseException as exc:
                exc.add_note(f"{name}: crash {when} step {step} of {steps}, {durability=}")
                raise
    assert crashes > steps


# -- the scenarios of the design ---------------------------------------------------------------------------------------


def test_zombie_writer() -> None:
    """A machine is suspended and replaced, and then resumes in the middle of a
    delivery. Both histories are joined."""

    async def work(stage: Stage) -> None:
        player, zombie = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        player.split = True
        under_way = asyncio.ensure_future(player.append(zombie, INBOX, inbox, 2))
        await asyncio.sleep(0.003)
        zombie.freeze()
        await asyncio.sleep(45)
        owner = await stage.start("b")
        await player.append(owner, INBOX, inbox, 2)
        await player.store(owner, INBOX, inbox, [1], "add", ["zb"])
        zombie.thaw()
        await under_way
        await player.store(zombie, INBOX, inbox, [2], "add", ["za"])
        await player.append(zombie, INBOX, inbox)
        await asyncio.sleep(30)
        await player.finish([owner, zombie])

    scene(work)


def test_frozen_machine_acknowledges_nothing_after_its_fence() -> None:
    async def work(stage: Stage) -> None:
        player, zombie = stage.player, await stage.begin()
        await asyncio.sleep(5)
        zombie.freeze()
        await asyncio.sleep(60)
        owner = await stage.start("b")
        await player.look(owner)
        boot = zombie.store.journal.boot if zombie.store else ""
        zombie.thaw()
        assert await player.append(zombie, INBOX, stage.guids[INBOX])
        assert zombie.store is not None
        assert zombie.store.journal.boot != boot, "acknowledged under the fenced boot"
        await player.finish([owner, zombie])

    scene(work)


def test_restored_disk() -> None:
    """The disk is restored from a backup of last week. The backend must know everything
    that the bucket knows."""

    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        await node.stop()
        backup = node.disk.snapshot()
        node = await stage.start("a", node.disk)
        await player.append(node, INBOX, inbox, 2)
        await player.expunge(node, INBOX, inbox, [1])
        await player.store(node, INBOX, inbox, [2], "add", ["\\Seen"])
        await player.look(node)
        await asyncio.sleep(2)
        node.kill()
        node = await stage.start("a", backup)
        await player.look(node)
        await player.append(node, INBOX, inbox)
        await player.finish([node])

    scene(work)


@pytest.mark.parametrize("name", ["a", "x"])
def test_two_directories(name: str) -> None:
    """Two backends, of the same name or of two names, each believe that they own the
    user."""

    async def work(stage: Stage) -> None:
        player, one = stage.player, await stage.begin()
        inbox, trash = stage.guids[INBOX], stage.guids[TRASH]
        two = await stage.start(name)
        player.split = True
        for _ in range(3):
            await asyncio.gather(
                player.append(one, INBOX, inbox, 2),
                player.append(two, INBOX, inbox, 3),
                player.store(one, INBOX, inbox, [1, 2], "add", ["za"]),
                player.store(two, INBOX, inbox, [1, 3], "add", ["zb"]),
                player.copy(two, INBOX, inbox, [1, 4], TRASH, trash, False),
                player.copy(one, INBOX, inbox, [2], TRASH, trash, False),
            )
        await player.expunge(one, INBOX, inbox, [1])
        await player.expunge(two, INBOX, inbox, [2])
        await asyncio.sleep(30)
        await player.finish([one, two])

    scene(work)


def test_two_directories_agree_from_either_side() -> None:
    """After both have written their bundles, a backend with an empty disk sees the same
    state."""

    async def work(stage: Stage) -> None:
        player, one = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        two = await stage.start("x")
        await asyncio.gather(player.append(one, INBOX, inbox, 3), player.append(two, INBOX, inbox, 3))
        await player.store(one, INBOX, inbox, [1], "add", ["za"])
        await player.store(two, INBOX, inbox, [1], "add", ["zb"])
        await one.stop()
        await two.stop()
        seen = []
        for disk in (one.disk, two.disk, Disk()):
            node = await stage.start("c", disk)
            user = await node.user()
            box = await node.run(lambda store, user=user: user.select(INBOX))
            seen.append((box.state.uids.tolist(), [box.state.flags.of_bits(int(b)) for b in box.state.bits]))
            node.kill()
        flags = [[sorted(f) for f in of] for _, of in seen]
        assert [uids for uids, _ in seen] == [seen[0][0]] * 3
        assert flags == [flags[0]] * 3
        assert {"za", "zb"} <= set(flags[0][0])

    scene(work)


@pytest.mark.parametrize("seconds", [12.0, 70.0])
def test_late_put(seconds: float) -> None:
    """A PUT takes effect after its deadline. By then its UID is burnt, or the mail
    counts."""

    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        stage.fail("put", key_of(inbox, 5), "late_hang", seconds=seconds)
        under_way = asyncio.ensure_future(player.append(node, INBOX, inbox))
        await asyncio.sleep(0.1)
        assert await player.append(node, INBOX, inbox) in ([6], [7], [])
        await under_way
        await asyncio.sleep(100)
        await player.look(node)
        await player.finish([node])

    scene(work)


def test_lost_answer() -> None:
    """A PUT took effect, and its answer and all later answers were lost. The PUT must
    not be done twice."""

    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        stage.fail("put", key_of(inbox, 5), "lost")
        assert await player.append(node, INBOX, inbox) == [5]
        stage.fail("put", key_of(inbox, 6), "lost", times=3)
        assert await player.append(node, INBOX, inbox) == [6]
        stage.fail("put", key_of(stage.guids[TRASH], 1), "lost", times=2)
        await player.copy(node, INBOX, inbox, [5, 6], TRASH, stage.guids[TRASH], True)
        await player.look(node)
        user = await node.user()
        assert (await node.run(lambda store: user.status(TRASH))).messages == 2
        await player.finish([node])

    scene(work)


def test_claim_races_with_deliveries() -> None:
    """A backend claims a range of UIDs while another writes mails there. These mails
    are void, and are delivered again under other UIDs."""

    async def work(stage: Stage) -> None:
        player, one = stage.player, await stage.begin()
        inbox, trash = stage.guids[INBOX], stage.guids[TRASH]
        two = await stage.start("x")
        player.split = True
        for node in (one, two):
            await player.select_box(node, TRASH)
        for _ in range(5):
            await asyncio.gather(
                player.copy(one, INBOX, inbox, [1, 2, 3, 4], TRASH, trash, False),
                *(player.append(two, TRASH, trash) for _ in range(3)),
                player.append(two, TRASH, trash, 3),
            )
        await player.finish([one, two])
        keys = [parse_mail_key(key).uid for key in stage.world.keys(mail_prefix(SID, Guid(trash)))]
        assert len(keys) == len(set(keys))

    scene(work)


def test_skipping_uids_races_with_deliveries() -> None:
    """An administrator skips UIDs at a backend. Another backend, which does not know of
    it, gives these UIDs to mails at the same moment."""

    async def work(stage: Stage) -> None:
        player, one = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        two = await stage.start("x")
        player.split = True
        for _ in range(5):
            await asyncio.gather(
                player.resync(one, INBOX, inbox, 7),
                *(player.append(two, INBOX, inbox) for _ in range(3)),
                player.append(one, INBOX, inbox, 3),
            )
        await player.finish([one, two])
        mails = [mail for key in stage.world.keys(mail_prefix(SID, Guid(inbox))) for mail in held(stage.world, key)]
        assert max(mails) > 35, "skipped"
        assert len(mails) == len(set(mails)) == 4 + 5 * 6

    scene(work)


@pytest.mark.parametrize("seconds", [5, 60, 600])
def test_outage_and_return(seconds: float) -> None:
    """During the outage clients get a temporary error. Afterwards everything is served
    without a restart."""

    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        inbox, trash = stage.guids[INBOX], stage.guids[TRASH]
        stage.world.plan.outage = True
        before = player.unanswered
        work = [
            player.append(node, INBOX, inbox),
            player.store(node, INBOX, inbox, [1], "add", ["\\Seen"]),
            player.copy(node, INBOX, inbox, [2], TRASH, trash, True),
            player.create(node, "box1"),
        ]
        under_way = [asyncio.ensure_future(each) for each in work]
        await asyncio.sleep(seconds)
        stage.world.plan.outage = False
        await asyncio.gather(*under_way)
        if seconds >= 60:
            assert player.unanswered >= before + 3
        await asyncio.sleep(15)
        assert await player.append(node, INBOX, inbox)
        await player.store(node, INBOX, inbox, [1], "remove", ["work"])
        await player.look(node)
        await player.finish([node])

    scene(work)


def test_a_slow_bucket_is_reported_in_time() -> None:
    """Requests are answered slowly, one after another, and the PUT of the mail is not
    answered at all. A client waits at most 10 s for the user and 15 s for the change,
    however many requests those take. Nothing is lost, and the next try finds
    everything."""

    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        await node.stop()
        node = await stage.start("a")
        for op in ("get", "list"):
            stage.fail(op, "", "delay", times=99, seconds=4.9)
        stage.fail("put", key_of(inbox, 5), "hang", times=99)
        began = stage.world.clock()
        assert not await player.append(node, INBOX, inbox)
        assert stage.world.clock() - began <= 25
        stage.world.faults.scripts.clear()
        await asyncio.sleep(300)
        assert await player.append(node, INBOX, inbox)
        await player.finish([node])

    scene(work)


def test_start_during_an_outage() -> None:
    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        node.kill()
        stage.world.plan.outage = True
        starting = asyncio.ensure_future(stage.start("b"))
        await asyncio.sleep(100)
        assert not starting.done()
        stage.world.plan.outage = False
        again = await starting
        await player.look(again)
        await player.finish([again])

    scene(work)


def test_another_name_reads_all_and_the_first_comes_back() -> None:
    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        await node.stop()
        other = await stage.start("b")
        await player.append(other, INBOX, inbox, 2)
        await player.store(other, INBOX, inbox, [1], "add", ["\\Seen"])
        await player.expunge(other, INBOX, inbox, [2])
        await player.create(other, "box1")
        await other.stop()
        again = await stage.start("a", node.disk)
        await player.look(again)
        await player.finish([again])

    scene(work)


def test_flags_are_safe_after_the_interval() -> None:
    """With durability = "local" the bucket has the flag a second after the OK. With
    "bucket" it has the flag at the OK."""

    async def work(stage: Stage, durability: str, seconds: float) -> None:
        player, node = stage.player, await stage.begin(durability=durability)
        await player.store(node, INBOX, stage.guids[INBOX], [1], "add", ["\\Seen"])
        await player.expunge(node, INBOX, stage.guids[INBOX], [2])
        await asyncio.sleep(seconds)
        node.kill()
        again = await stage.start("b")
        user = await again.user()
        box = await again.run(lambda store: user.select(INBOX))
        assert box.state.uids.tolist() == [1, 3, 4]
        assert "\\Seen" in box.state.flags.of_bits(int(box.state.bits[0]))
        await box.release()
        await player.finish([again])

    scene(lambda stage: work(stage, "local", 1.2))
    scene(lambda stage: work(stage, "bucket", 0.0))


def test_a_client_inside_a_gap_gets_everything() -> None:
    """The client saw changes that were lost with the machine. After a resync it must
    have the truth all the same."""

    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        user = await node.user()
        box = await node.run(lambda store: user.select(INBOX))
        await player.store(node, INBOX, stage.guids[INBOX], [1, 2], "add", ["\\Seen"])
        await player.expunge(node, INBOX, stage.guids[INBOX], [3])
        client = Client()
        client.resync(box.state, "before", set())
        node.kill()
        player.lost(node)
        again = await stage.start("a")
        user = await again.user()
        box = await again.run(lambda store: user.select(INBOX))
        assert 3 in box.state.uids
        client.resync(box.state, "after", {3})
        await player.finish([again])

    scene(work)


def test_a_local_disk_that_fails_costs_time_only() -> None:
    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        node.metacache.failing = True
        await player.append(node, INBOX, stage.guids[INBOX], 2)
        await player.store(node, INBOX, stage.guids[INBOX], [1], "add", ["\\Seen"])
        await asyncio.sleep(1)
        node.kill()
        again = await stage.start("b")
        await player.look(again)
        await player.finish([again])

    scene(work)
