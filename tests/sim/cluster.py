"""A random life of a user's mail in a cluster. Backends die, leave and return, and the
directory returns outdated rows.

Each backend has its own store, member and connection to the directory. The player's
clients ask a backend that says that it serves the user. While two backends say so,
there are two groups of clients, which do not see each other's changes.

In half of the lives half of the clients come through a proxy, and mails come by LMTP
(`senders`). Clients get to the backend that the proxy finds, wait where it waits, and
lose their session when the user moves. The proxy dies as well.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, ClassVar

import msgspec
from msgspec.structs import replace

from obox.cluster import (
    Assigned,
    BackendMember,
    DeadWatch,
    Faults,
    Kind,
    Member,
    MemoryDirectory,
    MemoryReplica,
    Move,
    Myself,
    Orders,
    Row,
    State,
    View,
    decode,
    encode,
    home_of,
    make_settings,
    next_timestamp,
    user_key,
)
from obox.cluster import World as MemberWorld
from obox.errors import OboxError, Unavailable
from obox.lmtp import LmtpServer
from obox.membership import Membership
from obox.objectstore.faults import Rates
from obox.store import MailStore
from obox.types import StorageId

from .batches import READS, allow_batches
from .caches import Disk, SimKeeper
from .loop import SimLoop, simulate
from .model import require
from .player import SID, Player
from .proxies import NAME as PROXY
from .proxies import Proxy, Session, forwarder_of
from .senders import LMTP_PORT, OTHERS, Senders, SimDeliverer
from .world import Crash, Node, World

GROUPS = 4
DEAD_AFTER_S = 10.0
NAMES = ("a", "b", "c")
LEAVE_S = 10.0
CALM_S = 90.0
"""The time after the last accident. By then there is a single owner, and it knows what
the others wrote."""


class ClusterStory:
    """The events of a life, from a seed. sites: the site of each backend."""

    flag = "--cluster"
    sites: ClassVar[dict[str, str]] = dict.fromkeys(NAMES, "default")

    def __init__(self, seed: int, *, steps: int = 30) -> None:
        self.seed, self.steps = seed, steps
        self.rng = random.Random(seed * 104_729)
        self.chance = random.Random(seed * 7_919)
        """Of the proxy, so that lives without one are as they were."""
        self.proxied = seed % 4 < 2 and steps > 0
        self.proxies: list[Proxy] = []
        """All lives of the proxy. The last life is the present life."""
        self.stays: list[tuple[Proxy, Session]] = []
        """Sessions that clients keep open, with the life of the proxy that they came
        through."""

    async def run(self) -> World:
        self.world = World(self.seed)
        try:
            await self._run()
        except BaseException as exc:
            exc.add_note(
                f"seed {self.seed}: .venv/bin/python -m tests.sim {self.flag} --start {self.seed} --seeds 1 -v"
            )
            exc.add_note("\n".join(self.world.trace[-80:]))
            raise
        return self.world

    def begin(self, world: World) -> None:
        """Make a story without backends."""
        self.world = world
        self.player = Player(world)
        self.senders = Senders(world, self.player)
        self.deliverers: dict[str, tuple[LmtpServer, SimDeliverer]] = {}
        loop = asyncio.get_running_loop()
        assert isinstance(loop, SimLoop)
        loop.net = world.net
        self.replicas = {site: MemoryReplica(world.clock) for site in dict.fromkeys(self.sites.values())}
        self.replica = next(iter(self.replicas.values()))
        self.old_rows: list[Any] = []
        self.nodes: dict[str, Node] = {}
        self.members: dict[str, BackendMember] = {}
        self.ways: dict[str, MemoryDirectory] = {}
        self.frozen: dict[str, Node] = {}
        self.waiting: list[asyncio.Future[None]] = []
        self.everybody: list[Node] = []
        self.split_until = 0.0

    async def _run(self) -> None:
        self.begin(self.world)
        rng = self.rng
        await self.make_cluster()
        await self._until_served()
        if self.proxied:
            self._start_proxy()
            self.player.checks.append(self.senders.nothing_lost)
        for step in range(self.steps):
            allow_batches(self, step)
            self._weather()
            if rng.random() < 0.3:
                await self._accident()
            else:
                await self._commands()
            if rng.random() < 0.4:
                await asyncio.sleep(rng.choice([0.05, 0.5, 1.5, 5.0, 25.0]))
            if rng.random() < 0.2:
                await self._look()
        await self._finish()

    async def make_cluster(self) -> None:
        await asyncio.gather(*(self._start(name, Disk()) for name in self.sites))

    # -- the proxy -------------------------------------------------------------------------------------------------

    def _start_proxy(self) -> None:
        if self.proxies:
            self.proxies[-1].kill()
        way = MemoryDirectory(
            self.chance.choice([*self.replicas.values()]),
            sleep=asyncio.sleep,
            rng=random.Random(self.chance.random()),
            faults=Faults(latency_s=0.02),
        )
        self.ways["proxy"] = way
        self.world.note("start the proxy")
        self.proxies.append(Proxy(self.world, way, self.nodes, self.members, self.senders))

    async def _comes(self, after_s: float = 0.0) -> None:
        """A client comes through the proxy, or is there already, and runs a command."""
        await asyncio.sleep(after_s)
        proxy, session = self.proxies[-1], self._kept()
        if session is None:
            try:
                session = await proxy.login(SID)
            except Unavailable as exc:
                self.world.note("the proxy refuses a client:", exc)
                return
        self.owners()
        self.player.split = self.in_doubt
        try:
            await self.player.act(session, self.rng, gentle=True)  # type: ignore[arg-type]  # a session over a wire has the same methods
        finally:
            if self.chance.random() < 0.5 and session.lives():
                self.stays.append((proxy, session))
            else:
                proxy.leave(session)

    async def _mail_comes(self, after_s: float = 0.0) -> None:
        """A sender gives a mail to the proxy, or to any backend."""
        await asyncio.sleep(after_s)
        via = PROXY if self.chance.random() < 0.7 else self.chance.choice([*self.nodes])
        await self.senders.send(via, self.chance)

    def _kept(self) -> Session | None:
        """Return a session that a client has kept open, and uses now. Clients notice
        that a session is over when they use it."""
        while self.stays and not self.stays[0][1].suspended:
            proxy, session = self.stays.pop(0)
            if session.lives():
                return session
            proxy.leave(session)
        return None

    async def _proxy_restarts(self, node: Node) -> None:
        self.proxies[-1].kill()
        await asyncio.sleep(self.chance.choice([0, 0.5, 5]))
        self._start_proxy()

    async def _finds(self, owner: Node) -> None:
        """In the end the proxy finds the only owner, and nothing of it is left."""
        proxy = self.proxies[-1]
        session = await proxy.login(SID)
        for proxy_of, one in [(proxy, session), *self.stays]:
            if one.lives():
                require(one.name == owner.name, "a client is left at", one.name, "and the owner is", owner.name)
            proxy_of.leave(one)
        require(proxy.at_rest(), "the proxy still waits or watches")
        proxy.kill()

    # -- backends --------------------------------------------------------------------------------------------------

    def greets(self, name: str) -> bool:
        node = self.nodes[name]
        return not node.ended and not node.host.frozen

    async def _start(self, name: str, disk: Disk) -> None:
        world, site = self.world, self.sites[name]
        node = world.node(name, disk)
        self.nodes[name] = node
        self.everybody.append(node)
        way = MemoryDirectory(
            self.replicas[site],
            sleep=asyncio.sleep,
            rng=random.Random(world.rng.random()),
            faults=Faults(latency_s=0.02),
        )
        self.ways[name] = way
        chance = random.Random(world.rng.random())
        membership = _Membership(self, name)

        def make() -> None:
            store = node.store = MailStore(node.env, cluster=membership)
            node.hear(store)
            view = View(way, clock=world.clock, now=node.env.now, sleep=asyncio.sleep, keeper=SimKeeper(node.metacache))
            view.restore()

            async def begin() -> None:
                await make_settings(way, GROUPS, now=node.env.now, sleep=asyncio.sleep, random_bytes=chance.randbytes)

            async def greets(member: Member | None) -> bool:
                await asyncio.sleep(0.01)
                return member is not None and self.greets(member.address)

            member = BackendMember(
                view,
                membership,
                DeadWatch(name, site, DEAD_AFTER_S),
                MemberWorld(node.env.now, world.clock, asyncio.sleep, chance.randbytes, dict, greets),
            )
            membership.bind(store, member)
            membership.kick = self._kicker(node)
            self.members[name] = member
            myself = Member("backend", site, name, {"lmtp": LMTP_PORT}, READS)
            node.host.spawn(member.run(Myself(myself, State.ONLINE, begin)))
            deliverer = SimDeliverer(self.senders, node)
            self.deliverers[name] = (
                self.senders.serve(name, node.host, deliverer, forwarder_of(name, member)),
                deliverer,
            )

        node.host.context.run(make)
        world.note("start", name)
        assert node.store is not None
        starting = node.host.spawn(node.store.start())
        starting.add_done_callback(lambda _: self._listens(node))
        try:
            await asyncio.wait([starting], timeout=60)
        except Crash:
            pass

    def _listens(self, node: Node) -> None:
        """A backend has started, or has failed to."""
        if node.up or node.host.frozen:
            node.begin_events()
            self.world.net.listen(node.name, node.host, self.deliverers[node.name][0].connection_factory)

    def _kicker(self, node: Node) -> Any:
        async def kick(users: Collection[StorageId]) -> None:
            assert node.store is not None
            for sid in users:
                user = node.store.users.get(sid)
                if user is not None:
                    self.world.note("kick", node, sid)
                    user.sessions = self.deliverers[node.name][1].opened.count[user]
                    for box in user.boxes.values():
                        box.sessions = 0

        return kick

    def owners(self) -> list[Node]:
        """Return the backends that say that they own the user."""
        found = []
        for node in self.nodes.values():
            if node.up and node.store is not None and node.env.owned.owns(SID):
                found.append(node)
        if len(found) > 1:
            self._split()
        return found

    def _split(self) -> None:
        self.split_until = self.world.clock() + CALM_S
        self.player.split = True

    @property
    def in_doubt(self) -> bool:
        """Return whether two backends may write, or have written lately without knowing
        of each other."""
        return bool(self.frozen) or self.world.clock() < self.split_until

    async def _until_served(self, patience_s: float = 120.0) -> Node:
        until = self.world.clock() + patience_s
        while not (owners := self.owners()):
            if self.world.clock() >= until:
                self._note_why()
                raise AssertionError(f"nobody serves the user: {self.members}")
            await asyncio.sleep(0.5)
        return owners[0]

    def _note_why(self) -> None:
        """Print what each backend believes, for the reader of a failure."""
        for name, node in self.nodes.items():
            member = self.members[name]
            self.world.note(
                name,
                "up" if node.up else "down",
                "has",
                dict(node.env.owned.units),
                "knows",
                member.view.groups,
                "dead",
                member.watch.dead,
            )
            self.world.note(name, "boots", [one.boot.name for one in node.store.takeover.boots] if node.store else "")
        for (kind, key), row in self.replica.rows().items():
            if kind in (Kind.GROUPS, Kind.PINS, Kind.ORDERS, Kind.MOVES):
                self.world.note(kind, key, msgspec.msgpack.decode(row.value))

    # -- what happens ----------------------------------------------------------------------------------------------

    def _weather(self) -> None:
        plan, rng = self.world.plan, self.rng
        plan.outage = False
        plan.every = Rates()
        self.world.net.cut_rate = self.chance.choice([0, 0, 0.3]) if self.proxied else 0
        if rng.random() < 0.3:
            plan.every = Rates(error=rng.choice([0, 10]), lost=rng.choice([0, 5]), delay=rng.choice([0, 20]))
        for way in self.ways.values():
            way.faults = Faults(latency_s=0.02)
            if rng.random() < 0.3:
                way.faults = Faults(
                    latency_s=0.1,
                    lost=rng.choice([0, 0.05]),
                    unanswered=rng.choice([0, 0.1]),
                    failed=rng.choice([0, 0.1]),
                    old=rng.choice([0, 0.2]),
                )

    async def _commands(self) -> None:
        rng = self.rng
        owners = self.owners()
        self.player.split = self.in_doubt
        work = [
            self._comes() if self.proxies and self.chance.random() < 0.5 else self.player.act(node, rng, gentle=True)
            for node in owners
            for _ in range(rng.choice([1, 1, 2]))
        ]
        if self.proxies and not owners:
            # The proxy lets its clients wait.
            work.append(self._comes())
        if self.proxies and self.chance.random() < 0.5:
            self.waiting.append(asyncio.ensure_future(self._mail_comes()))
        for result in await asyncio.gather(*work, return_exceptions=True):
            if isinstance(result, BaseException) and not isinstance(result, Crash):
                raise result
        self.owners()

    async def _look(self) -> None:
        await self._look_at_others()
        if self.in_doubt or len(owners := self.owners()) != 1:
            return
        await self.world.no_faults()
        try:
            await self.player.look(owners[0])
        except Crash:
            pass
        except Exception:
            if self.owners() != owners:
                # The user has moved meanwhile.
                return
            raise

    async def _look_at_others(self) -> None:
        if not self.proxies:
            return
        user = self.chance.choice(OTHERS)
        for name, node in self.nodes.items():
            if node.up and node.env.owned.owns(user):
                try:
                    await self.senders.look(node, user, self.deliverers[name][1].opened)
                except (Crash, OboxError):
                    pass

    async def _accident(self) -> None:
        rng = self.rng
        kinds: list[Callable[[Node], Awaitable[None]]] = [
            self._stops, self._stop_all, self._dies, self._dies, self._is_evacuated, self._moves, self._moves_alone,
            self._is_unpinned, self._is_cut, self._outage, self._restored, self._freezes, self._bucket_is_gone,
            *self._more_accidents(),
        ]  # fmt: skip
        kind = self._thaws if self.frozen else rng.choice(kinds)
        up = [name for name, node in self.nodes.items() if node.up]
        if not up:
            return
        owners = [node.name for node in self.owners()]
        name = rng.choice(owners or up) if rng.random() < 0.7 else rng.choice(up)
        self.world.note("accident", kind.__name__, name)
        busy = [asyncio.ensure_future(self._commands())] if rng.random() < 0.5 else []
        if self.proxies and self.chance.random() < 0.7:
            comes = self._mail_comes if self.chance.random() < 0.5 else self._comes
            busy.append(asyncio.ensure_future(comes(self.chance.choice([0.2, 1.5, 4]))))
        await asyncio.sleep(rng.choice([0, 0.01, 0.1, 1.0]))
        await kind(self.nodes[name])
        self.old_rows.append(dict(self.replica.rows()))
        self.waiting += busy
        if not self.frozen:
            await self._answered()

    def _more_accidents(self) -> list[Callable[[Node], Awaitable[None]]]:
        return [self._proxy_restarts] if self.proxies else []

    async def _stops(self, node: Node) -> None:
        await self._leave(node)
        await self.stop_node(node)
        await asyncio.sleep(self.rng.choice([0, 2, 30]))
        await self._start(node.name, node.disk)

    async def _stop_all(self, node: Node) -> None:
        """Stop all backends that are up, one shortly after another. Then start all of
        them again."""
        up = [one for one in self.nodes.values() if one.up]
        pause = self.rng.choice([0, 0.01, 0.3, 3])

        async def stop(one: Node, after_s: float) -> None:
            await asyncio.sleep(after_s)
            await self._leave(one)
            await self.stop_node(one)

        await asyncio.gather(*(stop(one, number * pause) for number, one in enumerate(up)))
        self.rng.shuffle(up)
        for one in up:
            await asyncio.sleep(self.rng.choice([0, 2, 15]))
            await self._start(one.name, one.disk)

    async def _dies(self, node: Node) -> None:
        node.kill()
        self.player.lost(node)
        await asyncio.sleep(self.rng.choice([0, 0.5, 5, 30]))
        await self._start(node.name, Disk() if self.rng.random() < 0.5 else node.disk.snapshot())

    async def _is_evacuated(self, node: Node) -> None:
        self.put(Kind.ORDERS, node.name, Orders(evacuate=True))
        await asyncio.sleep(self.rng.choice([1, 5, 20]))
        self.put(Kind.ORDERS, node.name, Orders())

    async def _moves(self, node: Node) -> None:
        self.put(Kind.MOVES, home_of(SID, GROUPS), Move(self.rng.choice([*self.sites]), self.world.now()))

    async def _moves_alone(self, node: Node) -> None:
        """Pin the user, who is then a unit, or move the pinned user."""
        self.put(Kind.MOVES, user_key(SID), Move(self.rng.choice([*self.sites]), self.world.now()))

    async def _is_unpinned(self, node: Node) -> None:
        """Remove the pin as the verb does it: the assignment stays, and the user
        follows the group from then on."""
        row = self.replica.rows().get((Kind.PINS, SID))
        if row is not None:
            self.put(Kind.PINS, SID, replace(decode(row.value, Assigned), removed=True))

    async def _is_cut(self, node: Node) -> None:
        self.ways[node.name].faults.cut = True
        await asyncio.sleep(self.rng.choice([1, 15, 40]))
        self.ways[node.name].faults.cut = False

    async def _outage(self, node: Node) -> None:
        for way in self.ways.values():
            way.faults.cut = True
        await asyncio.sleep(self.rng.choice([1, 15, 40]))
        for way in self.ways.values():
            way.faults.cut = False

    async def _restored(self, node: Node) -> None:
        if self.old_rows:
            self._split()
            self.replica.restore(self.rng.choice(self.old_rows))

    async def _freezes(self, node: Node) -> None:
        self._split()
        node.freeze()
        self.frozen[node.name] = node

    async def _thaws(self, node: Node) -> None:
        self.frozen.popitem()[1].thaw()
        self._split()

    async def _answered(self) -> None:
        """Wait until the commands that were given before an accident have ended.
        Commands of a frozen backend wait until the backend resumes."""
        waiting, self.waiting = self.waiting, []
        for task in waiting:
            await task

    async def _bucket_is_gone(self, node: Node) -> None:
        self.world.plan.outage = True
        await asyncio.sleep(self.rng.choice([1, 8, 20]))
        self.world.plan.outage = False

    async def _leave(self, node: Node) -> None:
        """Run the first part of an orderly stop, in which other backends get the
        groups. Sometimes the stop is for a restart, and they do not."""
        if node.ended or self.rng.random() < 0.2:
            return
        leaving = node.host.spawn(self.members[node.name].leave())
        await asyncio.wait([leaving], timeout=LEAVE_S)
        leaving.cancel()

    async def stop_node(self, node: Node) -> None:
        for task in list(node.host.tasks):
            if "BackendMember." in repr(task):
                task.cancel()
        if self.proxied:
            await self._stop_deliveries(node)
        try:
            await node.stop()
        except Crash:
            pass

    async def _stop_deliveries(self, node: Node) -> None:
        self.world.net.close(node.name)
        ending = node.host.spawn(self.deliverers[node.name][0].stop(grace_s=LEAVE_S))
        await asyncio.wait([ending], timeout=2 * LEAVE_S)

    def put(self, kind: Kind, key: str, record: Any) -> None:
        row = self.replica.rows().get((kind, key))
        self.replica.write((kind, key), Row(encode(record), next_timestamp(self.world.now, row)))

    # -- the end ---------------------------------------------------------------------------------------------------

    async def _finish(self) -> None:
        world = self.world
        await world.no_faults()
        world.net.cut_rate = 0.0
        for way in self.ways.values():
            way.faults = Faults(latency_s=0.02)
        for node in self.frozen.values():
            node.thaw()
        self.frozen.clear()
        await self._healed()
        await self._answered()
        await asyncio.sleep(2 * CALM_S)
        owner = await self._until_served()
        assert len(self.owners()) == 1, f"more than one owner in the end: {self.owners()}"
        self.player.split = False
        if self.proxies:
            await self._finds(owner)
        await self.player.look(owner, "at the end")
        for name, node in self.nodes.items():
            if node.up:
                world.note("last stop", name)
                await self.stop_node(node)
            # This backend never started.
            elif not node.ended:
                node.kill()
        await self.player.finish([])

    async def _healed(self) -> None:
        """Mend what else an accident has broken."""


class _Membership(Membership):
    """Check that a backend fences only backends of its own site."""

    def __init__(self, story: ClusterStory, name: str) -> None:
        super().__init__()
        self._story, self._name = story, name

    async def gain(self, units: Mapping[str, Assigned], fence: Sequence[tuple[str, str]], *, orderly: bool) -> None:
        sites = self._story.sites
        for backend, _ in fence:
            require(sites[backend] == sites[self._name], self._name, "fences", backend, "of another site")
        await super().gain(units, fence, orderly=orderly)


def play(seed: int, *, steps: int = 30) -> World:
    return simulate(lambda: ClusterStory(seed, steps=steps).run())


__all__ = ["ClusterStory", "play"]
