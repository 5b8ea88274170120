"""A random life of a user's mail, from a seed."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

from obox.errors import OboxError
from obox.forms import reads
from obox.objectstore.faults import Rates
from obox.store import MailStore
from obox.store.backend import mark
from obox.store.operate import upgrade
from obox.store.operate.pull import Incoming, Outgoing

from .caches import Disk
from .loop import simulate
from .model import require
from .player import SID, USER, Player
from .world import DELETE_DELAY_S, Crash, Node, World


class Story:
    """The events of a life: commands, pauses, and accidents of backends and of the
    bucket."""

    def __init__(self, seed: int, *, steps: int = 30) -> None:
        self.seed = seed
        self.steps = steps
        self.rng = random.Random(seed * 7919)

    async def run(self) -> World:
        self.world = World(self.seed)
        try:
            await self._run()
        except BaseException as exc:
            exc.add_note(f"seed {self.seed}: .venv/bin/python -m tests.sim --start {self.seed} --seeds 1 -v")
            exc.add_note("\n".join(self.world.trace[-60:]))
            raise
        return self.world

    async def _run(self) -> None:
        world, rng = self.world, self.rng
        self.player = player = Player(world)
        self.settings = {"durability": rng.choice(["local", "local", "local", "bucket"])}
        self.zombies: list[Node] = []
        self.old: list[Disk] = []
        self.split_at = 0.0
        self.pulls = 0
        self.upgraded = 0
        if world.unraised or world.old or not world.batches:
            await world.make_without_batches()
        self.owner = await world.node("a", Disk(), **self.settings).start()
        self.faulty = rng.random() < 0.6
        for _ in range(self.steps):
            if self.zombies and world.clock() - self.split_at > DELETE_DELAY_S / 3:
                await self._heal()
            self._weather()
            if world.unraised and rng.random() < 0.1:
                await self._raise_forms()
            if world.old and rng.random() < 0.2:
                await self._upgrade()
            elif self.zombies and rng.random() < 0.3:
                await self._pull()
            elif rng.random() < 0.25:
                await self._accident()
            else:
                await self._commands()
            if rng.random() < 0.3:
                await asyncio.sleep(rng.choice([0.05, 0.5, 1.5, 5.0, 25.0, 60.0]))
            if not self.zombies and rng.random() < 0.3:
                await self._look()
        for zombie in self.zombies:
            if zombie.host.frozen:
                zombie.thaw()
        await player.finish([self.owner, *self.zombies])

    def _weather(self) -> None:
        plan, rng = self.world.plan, self.rng
        plan.outage = False
        if not self.faulty or rng.random() < 0.5:
            plan.every = Rates()
        else:
            plan.every = replace(
                Rates(), error=rng.choice([0, 10]), lost=rng.choice([0, 5]), delay=rng.choice([0, 20]),
                late=rng.choice([0, 5]), late_hang=rng.choice([0, 3]), hang=rng.choice([0, 3]),
                truncate=rng.choice([0, 5]),
            )  # fmt: skip

    async def _commands(self) -> None:
        rng = self.rng
        self.player.split = bool(self.zombies)
        nodes = [self.owner, *(zombie for zombie in self.zombies if zombie.up)]
        at_once = rng.choice([1, 1, 2, 4])
        work = [self.player.act(node, rng, gentle=bool(self.zombies)) for node in nodes for _ in range(at_once)]
        results = await asyncio.gather(*work, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException) and not isinstance(result, Crash):
                raise result

    async def _pull(self) -> None:
        """Two backends write. Pull the local copies of the first to the other while
        clients go on. The pull may be cut short."""
        rng = self.rng
        nodes = [node for node in (self.owner, *self.zombies) if node.up]
        if len(nodes) < 2:
            return
        source, destination = rng.sample(nodes, 2)
        everything, cut, busy = rng.random() < 0.3, rng.random() < 0.3, rng.random() < 0.5
        self.world.note("pull", source, destination, everything, cut)

        async def send(store: MailStore) -> list[bytes]:
            with store.pulling(SID):
                outgoing = Outgoing(store, SID)
                await outgoing.prepare(USER, everything=everything)
                return [piece async for piece in outgoing.stream()]

        async def take(store: MailStore, pieces: list[bytes]) -> None:
            with store.pulling(SID):
                incoming = Incoming(store, SID)
                await incoming.begin()
                for piece in pieces:
                    await incoming.feed(piece)
                await incoming.end()

        async def pull() -> None:
            try:
                pieces = await source.run(send)
                pieces = pieces[: rng.randrange(len(pieces))] if cut else pieces
                await destination.run(lambda store: take(store, pieces))
                self.pulls += 1
            except (Crash, OboxError) as exc:
                self.world.note("pull", "NO", exc)

        await asyncio.gather(pull(), *([self._commands()] if busy else []))

    async def _upgrade(self) -> None:
        """Upgrade what is of the first version while clients go on. The upgrade may be
        ended early, or its backend may be killed in the middle."""
        rng = self.rng
        nodes = [node for node in (self.owner, *self.zombies) if node.up]
        patience_s = rng.choice([0.01, 0.1, 1.0, 20.0])

        async def run(store: MailStore) -> upgrade.Upgraded:
            async with asyncio.timeout(patience_s):
                *_, done = [done async for done in upgrade.upgrade(store, SID, USER)]
            return done

        async def one(node: Node) -> None:
            try:
                done = await node.run(run)
                self.world.note("upgrade", node, done)
                require(done.damaged == 0, f"the upgrade finds damage: {done}")
                self.upgraded += done.upgraded
            except (Crash, OboxError, TimeoutError) as exc:
                self.world.note("upgrade", node, "NO", exc)

        work = asyncio.gather(*map(one, nodes), *([self._commands()] if rng.random() < 0.5 else []))
        if rng.random() < 0.3 and not self.zombies:
            await asyncio.sleep(rng.choice([0.01, 0.05, 0.2, 0.5]))
            killed = self.owner
            killed.kill()
            await work
            await self._restart(killed.name, killed.disk.snapshot())
            self.player.model.kept(killed.journaled_until, self.world.clock() + 3)
        await work

    async def _raise_forms(self) -> None:
        """Allow batches, as `cluster upgrade` does."""
        try:
            await self.owner.run(lambda store: mark.raise_forms(store.env, reads()))
            self.world.unraised = False
            self.world.note("batches are allowed")
        except (Crash, OboxError) as exc:
            self.world.note("batches are not allowed yet", exc)

    async def _look(self) -> None:
        self.world.plan.every = Rates()
        self.world.plan.outage = False
        try:
            await self.player.look(self.owner)
        except Crash:
            pass

    async def _accident(self) -> None:
        rng, world = self.rng, self.world
        kind = rng.choice(["stop", "kill", "kill", "lose", "lose", "freeze", "restore", "rename", "second", "outage"])
        if self.zombies and kind in ("freeze", "second", "restore"):
            await self._heal()
            return
        match kind:
            case "stop":
                await self.owner.stop(upload=bool(int(self.owner.store.journal.boot, 16) % 2))  # type: ignore[union-attr]  # the owner runs, so it has a store
                self.old.append(self.owner.disk.snapshot())
                await self._restart(self.owner.name, self.owner.disk)
            case "kill" | "lose" | "rename" | "restore":
                busy = [asyncio.ensure_future(self._commands())] if rng.random() < 0.6 else []
                await asyncio.sleep(rng.choice([0, 0.01, 0.03, 0.1, 1.0]))
                self.old.append(self.owner.disk.snapshot())
                world.note(kind, self.owner)
                killed = self.owner
                killed.kill()
                await asyncio.gather(*busy)
                disk, name = self.owner.disk, self.owner.name
                if kind != "kill":
                    self.player.lost(self.owner)
                    disk = self.old[rng.randrange(len(self.old))] if kind == "restore" else Disk()
                    name = rng.choice(["a", "a-b", "a.c"]) if kind == "rename" else name
                await asyncio.sleep(rng.choice([0, 0.5, 30]))
                await self._restart(name, disk.snapshot())
                if kind == "kill" and any(zombie.name == name for zombie in self.zombies):
                    # The bucket has a later boot, as if the disk came from a backup.
                    self.player.lost(killed)
                elif kind == "kill":
                    self.player.model.kept(killed.journaled_until, world.clock() + 3)
            case "freeze":
                commands = asyncio.ensure_future(self._commands())
                await asyncio.sleep(rng.choice([0.005, 0.02, 0.1]))
                zombie = self.owner
                zombie.freeze()
                self.player.split = True
                await asyncio.sleep(rng.choice([0.1, 5, 40]))
                self.player.clients["zombie"] = {
                    guid: client.clone() for guid, client in self.player.clients.get("client", {}).items()
                }
                self.zombies.append(zombie)
                self.split_at = world.clock()
                await self._restart(rng.choice(["a", "a-b"]), Disk())
                for _ in range(rng.randint(0, 4)):
                    await self.player.act(self.owner, rng, gentle=True)
                zombie.thaw()
                await commands
            case "second":
                self.player.split = True
                self.split_at = world.clock()
                self.zombies.append(await world.node(rng.choice(["a", "a+x"]), Disk(), **self.settings).start())
            case "outage":
                world.plan.outage = True
                world.note("outage")
                commands = asyncio.ensure_future(self._commands())
                await asyncio.sleep(rng.choice([1, 8, 45]))
                world.plan.outage = False
                world.note("outage over")
                await commands

    async def _restart(self, name: str, disk: Disk) -> None:
        self.owner = await self.world.node(name, disk, **self.settings).start()

    async def _heal(self) -> None:
        """Let the two writers learn of each other: both stop, and a backend starts
        again with an empty disk."""
        await self.world.no_faults()
        await asyncio.sleep(60)
        for node in (self.owner, *self.zombies):
            await node.stop()
        self.zombies.clear()
        await self._restart(self.owner.name, Disk())
        await self._look()


def play(seed: int, *, steps: int = 30) -> World:
    return simulate(lambda: Story(seed, steps=steps).run())
