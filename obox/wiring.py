"""Gives an administrator's verbs the rooms that they use: those of a running backend,
or those that the tool opens.

Invariant: `offline` holds the lock of the state directory while it is open. So a
backend and the tool never write the same local state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

from .admin.parts import Admin, ClusterParts, Evaluate, FindCluster, OwnHttp, Probe, Session
from .auth import Authenticator, PasswdFile
from .config import Config
from .errors import ConfigError, Unavailable

__all__ = [
    "Running",
    "bucket_alone",
    "find_cluster",
    "of_config",
    "of_parts",
    "offline",
    "own_http",
    "quiet_logging",
]

if TYPE_CHECKING:
    from . import net
    from .accounts import Account
    from .admin.peers import Kick
    from .cluster import Assigned, Directory, Member
    from .membership import Joining
    from .net import Listeners
    from .parts import Parts
    from .server import Lifecycle

START_S: Final = 30.0
"""How long the tool waits for the bucket's answer when it opens a state directory."""


def quiet_logging() -> None:
    """Log only warnings and errors to stderr, for a command that opens the rooms
    itself.
    """
    from .server.log import set_up_logging

    set_up_logging("warning", "console")


class Running:
    """The running process as verbs control it (`admin.Server`)."""

    def __init__(self, servers: Iterable[net.Server | None], listeners: Listeners, lifecycle: Lifecycle) -> None:
        """servers: of the protocols with a login; None for a protocol that is off. No
        two of their connections have the same number."""
        self._servers = [server for server in servers if server is not None]
        self._listeners = listeners
        self._lifecycle = lifecycle

    def sessions(self) -> Sequence[Session]:
        return [one for server in self._servers for one in server.who()]

    def kick(self, sessions: Sequence[Session], reason: str) -> None:
        ids = {one.id for one in sessions}
        for server in self._servers:
            for member in server.hub.registry:
                if member.who().id in ids:
                    member.stop(reason)

    async def reload(self) -> tuple[Sequence[str], Sequence[str]]:
        return await self._lifecycle.reloaded()

    def stop_logins(self) -> None:
        self._listeners.stop(keep=("http", "metrics", "admin"))

    def stop(self) -> None:
        self._lifecycle.stop()


def parse_search(program: bytes) -> Evaluate:
    """Parse a search program with IMAP's grammar. Raises Invalid."""
    from .imap import program as programs

    return programs.parse_search(program)


def of_config(config: Config, users: PasswdFile | None = None) -> Admin:
    """Return the parts for verbs that need only the configuration."""
    found = users or PasswdFile(config.auth.passwd_file, config.auth.default_domain)

    return Admin(
        users=found,
        authenticator=lambda: Authenticator(found),
        parse_search=parse_search,
        own_http=own_http(config),
        find_cluster=find_cluster(config),
    )


def find_cluster(
    config: Config, joining: Joining | None = None, *, directory: Directory | None = None
) -> FindCluster | None:
    """Return how verbs reach the directory; None if the configuration has no cluster.
    joining: the cluster of a backend; directory: of another process that has opened it.
    """
    local = config.state_dir / "cluster"
    if config.cluster.directory == "local" and joining is None and directory is None and not local.exists():
        return None

    @asynccontextmanager
    async def find(*, make: bool = False) -> AsyncIterator[ClusterParts]:
        from .cluster.open import file_of, open_directory, plain_url
        from .forms import reads

        url, settings = config.cluster.directory, config.cluster
        about = plain_url(url), settings.backend, settings.dead_after, reads()
        probe, kick = _probe(config), _kick(config)
        if joining is not None:
            serves = joining.membership.serves if joining.member_runs else None
            yield ClusterParts(joining.directory, *about, serves, probe, kick)
            return
        if directory is not None:
            yield ClusterParts(directory, *about, probe=probe, kick=kick)
            return
        file = file_of(url, config.state_dir)
        if file is not None and not make and not file.exists():
            raise ConfigError(
                f"cluster.directory: there is nothing at {file} yet; run oboxadm cluster init, or start a backend"
            )
        opened = await open_directory(url, config.state_dir, password_file=settings.password_file)
        try:
            yield ClusterParts(opened, *about, probe=probe, kick=kick)
        finally:
            await opened.close()

    return find


def _probe(config: Config) -> Probe | None:
    """None: there is no secret."""
    if config.cluster.secret_file is None:
        return None

    async def probe(backend: str, member: Member, account: Account, assigned: Assigned) -> tuple[bool, str]:
        """Raises ConfigError: the file of secrets cannot be read."""
        from . import rooms
        from .cluster import There
        from .proxy.probe import probe

        there, secrets = There(backend, member.address, member.ports, assigned), rooms.link_secrets(config)
        return await probe(there, account, member=config.cluster.backend, secret=secrets[0])

    return probe


def _kick(config: Config) -> Kick | None:
    """None: there is no secret."""
    if config.cluster.secret_file is None:
        return None

    async def kick(backend: str, member: Member, account: Account, assigned: Assigned) -> int:
        """Raises ConfigError: the file of secrets cannot be read."""
        from . import relay, rooms
        from .cluster import There
        from .proxy.probe import Asker

        asker = Asker(config.cluster.backend, rooms.link_secrets(config)[0])
        return await relay.kick(asker, There(backend, member.address, member.ports, assigned), account)

    return kick


def own_http(config: Config) -> OwnHttp:
    """Return how the [http] of this configuration is reached."""
    if config.http is None:
        return OwnHttp()
    entry = next((one for one in config.http.listen if one.port), None)
    key = config.http.api_key.reveal()
    return OwnHttp(key) if entry is None else OwnHttp(key, entry.port, entry.tls)


def of_parts(parts: Parts, server: Running | None = None) -> Admin:
    """Return the parts for all verbs. server: None if no backend runs."""
    from .server.log import recent_problems

    async def describe_bucket() -> Mapping[str, Any]:
        from .objectstore import control

        return await control.describe(parts.bucket.settings)

    admin = of_config(parts.config, parts.users)
    admin.authenticator = lambda: parts.authenticator
    admin.find_store = parts.store
    admin.find_cleaner = parts.cleaner
    admin.events = parts.events
    admin.server = server
    admin.recent = recent_problems
    admin.describe_bucket = describe_bucket
    admin.find_cluster = find_cluster(parts.config, parts.joining)
    return admin


@asynccontextmanager
async def offline(config: Config) -> AsyncIterator[Admin]:
    """Open the rooms of a backend that is not running, and close them at the end.
    Nothing listens.

    Raises ConfigError if a backend runs or the settings are bad. Raises Unavailable if
    the bucket does not answer, or StorageRefuses if it refuses; the text has the
    bucket's message; and if the state is that of several workers.
    """
    if config.server.workers > 1:
        raise Unavailable(f"server.workers = {config.server.workers}: this command needs the running server; start it")
    async with _opened(config) as parts:
        starting = asyncio.ensure_future(_start(parts))
        try:
            done, _ = await asyncio.wait([starting], timeout=START_S)
            if not done:
                raise Unavailable(f"the bucket does not answer: {parts.bucket.last_failure or 'no response'}")
            await starting
            yield of_parts(parts)
            await parts.store.close()
        finally:
            starting.cancel()
            # The start must end before the rooms are closed below.
            await asyncio.wait([starting])


async def _start(parts: Parts) -> None:
    await parts.start(patient=False)
    await parts.drop_unused()


@asynccontextmanager
async def bucket_alone(config: Config) -> AsyncIterator[Admin]:
    """Open the bucket as `offline` does, but without a request to it, for verbs that
    examine a bucket that fails."""
    async with _opened(config) as parts:
        yield of_parts(parts)


@asynccontextmanager
async def _opened(config: Config) -> AsyncIterator[Parts]:
    from . import parts, rooms

    rooms.refuse_absent(config)
    opened = await parts.open(config)
    try:
        yield opened
    finally:
        await opened.close()
