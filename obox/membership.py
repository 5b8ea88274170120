"""The connection between a backend's store and its member of the cluster.

`obox.store` and `obox.cluster` do not know each other. Each defines a Protocol of what
it needs of the other side. `Membership` implements both, and `open_membership` makes it
from the configuration.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import psutil

from . import __version__
from .cluster import (
    Assigned,
    BackendMember,
    DeadWatch,
    Directory,
    KeptFile,
    Member,
    Myself,
    State,
    View,
    World,
    make_settings,
    open_directory,
)
from .cluster.initial import GROUPS_LOCAL
from .cluster.twin import refuse_twin
from .config import Config
from .errors import Unavailable
from .forms import reads
from .store import MailStore
from .store.backend import handover, mark
from .store.backend.handover import Kick
from .store.log import boots
from .store.owned import Tag
from .unixsocket import short_name

GREETING_S: Final = 1.0
"""A backend that lives greets within this time (docs/cluster.md)."""

LOAD_S: Final = 60
"""The CPU of a beat is the average over a minute."""

UNIX: Final = "unix:"
"""The address of a worker begins with this. Its listeners are sockets in a
directory."""


class Membership:
    """`store.owned.Cluster` for the store, and `cluster.world.Store` for the member.

    It is made first. The store and the member get it when they are made. `bind` then
    gives it both.
    """

    def __init__(self) -> None:
        self._store: MailStore
        self.member: BackendMember
        self.kick: Kick = _nobody
        """A function that ends the sessions and deliveries of users. A backend that
        serves sets it."""
        self.gone: frozenset[str] = frozenset()
        """The backends whose process has ended, as a supervisor knows."""

    def bind(self, store: MailStore, member: BackendMember) -> None:
        """Take the store and the member."""
        self._store, self.member = store, member

    # -- for the store ---------------------------------------------------------------------------------------------

    def unit_of(self, sid: str) -> str:
        return self.member.unit_of(sid)

    async def ready(self) -> None:
        await self.member.ready()

    def units(self) -> Mapping[str, Tag]:
        return {unit: Tag(*tag) for unit, tag in self.member.units().items()}

    def number(self) -> int:
        return self.member.number()

    async def confirm(self) -> None:
        self._store.env.owned.lose(await self.member.confirm())

    async def fenced(self, boot: str) -> None:
        self._store.spawn(handover.continue_after_fence(self._store, boot))
        self._store.env.owned.lose(await self.member.reread_rows())

    # -- for the member --------------------------------------------------------------------------------------------

    def held(self) -> Mapping[str, tuple[int, int]]:
        return self._store.env.owned.units

    def serves(self) -> dict[str, Assigned]:
        """Return the units that are served, with their assignments."""
        return {unit: Assigned(self.member.me, number, token) for unit, (number, token) in self.held().items()}

    def holds(self, unit: str) -> bool:
        return self._store.env.owned.holds(unit)

    def boot(self) -> str:
        return self._store.journal.boot

    def ended(self) -> bool:
        """Return whether the present boot has ended in order."""
        return any(one.boot == self.boot() and one.ended > 0 for one in boots.listing(self._store.env))

    def forms(self) -> Mapping[str, int] | None:
        return self._store.env.forms.raised if self._store.started else None

    async def raise_forms(self, wanted: Mapping[str, int]) -> None:
        await mark.raise_forms(self._store.env, wanted)

    def split(self, group: str, unit: str) -> None:
        self._store.env.owned.split(group, unit)
        self._store.remember_units()

    def renumber(self, unit: str, row: Assigned) -> None:
        self._store.env.owned.renumber({unit: Tag(row.number, row.token)})
        self._store.remember_units()

    async def gain(self, units: Mapping[str, Assigned], fence: Sequence[tuple[str, str]], *, orderly: bool) -> None:
        await self._started()
        tags = {unit: Tag(row.number, row.token) for unit, row in units.items()}
        # If a journal had the assignment at the start, an earlier process of this
        # backend may have gained it and written since, although the directory showed
        # older rows then.
        orderly = orderly and all(tag.number > self._store.takeover.assigned for tag in tags.values())
        await handover.gain(self._store, tags, fence, orderly=orderly)

    async def release(self, units: Sequence[str], hand: handover.Hand) -> frozenset[str]:
        await self._started()
        return await handover.release(self._store, frozenset(units), self.kick, hand)

    async def lose(self, units: Sequence[str]) -> int:
        await self._started()
        return len(await handover.lose(self._store, frozenset(units), self.kick))

    async def doubt(self, units: Sequence[str]) -> None:
        await self._started()
        await handover.doubt(self._store, frozenset(units))

    async def sweep(self, clears: Callable[[str], bool]) -> Collection[tuple[str, str]]:
        await self._started()
        return await handover.sweep(self._store, clears)

    async def _started(self) -> None:
        """Wait until the store has started. Raises Unavailable: it has not, or is
        closing."""
        await self._store.beginning.decided()
        if not self._store.started:
            raise Unavailable("the store has not started")


async def _nobody(users: object) -> None:
    """End no session, because a tool has none."""


class Joining:
    """What `parts.open` makes of `[cluster]`: the view first, and the member once the
    store is there."""

    def __init__(self, config: Config, directory: Directory, view: View, clock: Callable[[], float]) -> None:
        self._config, self.directory = config, directory
        self._clock = clock
        self._view = view
        self.membership = Membership()
        self._earlier: frozenset[str] = frozenset()
        self._named = False
        """Whether it is known that no other backend has the name."""
        self.member_runs = False
        """Whether this process is a member. A tool is none."""

    def join(self, store: MailStore) -> None:
        """Make the member for the store that was made with `membership`."""
        cluster = self._config.cluster
        watch = DeadWatch(cluster.backend, cluster.site, cluster.dead_after)
        gone = lambda: self.membership.gone  # noqa: E731 - a name for a short line
        world = World(time.time, self._clock, asyncio.sleep, os.urandom, _machine_load(), greets, gone)
        self._earlier = store.earlier_boots()
        self.membership.bind(store, BackendMember(self._view, self.membership, watch, world))

    async def run(self, ports: Mapping[str, int]) -> None:
        """Be a member until cancelled. ports: the ports of this backend's listeners.
        Raises ConfigError."""
        self.member_runs = True
        cluster = self._config.cluster
        one_host = not cluster.directory.startswith("cassandra:")
        address = cluster.address or ("127.0.0.1" if one_host else socket.gethostname())
        member = Member("backend", cluster.site, address, dict(ports), reads(), __version__)

        async def make() -> None:
            await make_settings(
                self.directory,
                GROUPS_LOCAL,
                now=time.time,
                sleep=asyncio.sleep,
                random_bytes=os.urandom,
            )
            if not self._named:
                was_ours = self._earlier.__contains__
                await refuse_twin(self.directory, cluster.backend, member, was_ours=was_ours, sleep=asyncio.sleep)
                self._named = True

        joins_as = State.ONLINE if one_host else State.STANDBY
        await self.membership.member.run(Myself(member, joins_as, make))

    async def end(self, *, uploaded: bool) -> None:
        """Write into the directory how the boot of the closed store has ended.
        uploaded: whether the close has uploaded all changes."""
        await self.membership.member.end(clean=uploaded and self.membership.ended())


async def open_membership(config: Config, closing: AsyncExitStack, clock: Callable[[], float]) -> Joining:
    """Open the directory of a cluster. clock: seconds, also while the machine sleeps.

    Raises ConfigError, Unavailable.
    """
    cluster = config.cluster
    directory = await open_directory(cluster.directory, config.state_dir, password_file=cluster.password_file)
    closing.push_async_callback(directory.close)
    keeper = KeptFile(config.state_dir / "cluster.kept")
    view = View(directory, clock=clock, now=time.time, sleep=asyncio.sleep, keeper=keeper)
    view.restore()
    return Joining(config, directory, view, clock)


def ports_of(listeners: Iterable[str], addresses: Callable[[str], list[str]]) -> dict[str, int]:
    """Return the ports of TCP listeners by name, with an "s" where TLS begins at once.

    addresses: returns the addresses to which a listener is bound. A host name may have
    several.
    """
    found: dict[str, int] = {}
    for name in listeners:
        for bound in addresses(name):
            place, _, flags = bound.partition("/")
            if not bound.startswith("unix:") and "proxy" not in flags:
                found.setdefault(f"{name}s" if "tls" in flags else name, int(place.rpartition(":")[2]))
    return found


class MachineLoad:
    """The load of this machine for beats. CPU is an average over LOAD_S, since a single
    second means little. Memory is the present value."""

    def __init__(self, cpu: Callable[[], float], memory: Callable[[], float]) -> None:
        """cpu, memory: return the present values, as fractions of 1."""
        self._cpu, self._memory = cpu, memory
        self._mean: float | None = None

    def __call__(self) -> dict[str, float]:
        """Return the load. It is called once a second."""
        now = self._cpu()
        self._mean = now if self._mean is None else self._mean + (now - self._mean) / LOAD_S
        return {"cpu": round(self._mean, 3), "memory": round(self._memory(), 3)}


def _machine_load() -> MachineLoad:
    psutil.cpu_percent()  # the first answer means nothing
    return MachineLoad(lambda: psutil.cpu_percent() / 100, lambda: psutil.virtual_memory().percent / 100)


async def _connect(member: Member, listener: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a listener of a member. Raises OSError."""
    if member.address.startswith(UNIX):
        with short_name(Path(member.address.removeprefix(UNIX)) / f"{listener}.sock") as name:
            return await asyncio.open_unix_connection(name)
    return await asyncio.open_connection(member.address, member.ports[listener])


async def greets(member: Member | None) -> bool:
    """Return whether a listener of a backend answers a connection with a greeting."""
    if member is None:
        return False
    listeners = [name for name in ("imap", "lmtp") if member.address.startswith(UNIX) or member.ports.get(name)]
    return any(await asyncio.gather(*(_greets_at(member, name) for name in listeners)))


async def _greets_at(member: Member, listener: str) -> bool:
    try:
        async with asyncio.timeout(GREETING_S):
            reader, writer = await _connect(member, listener)
            try:
                return bool(await reader.readline())
            finally:
                writer.transport.abort()
    except OSError:
        return False
