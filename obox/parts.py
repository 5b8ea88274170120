"""Opens and closes every room of a backend in a single place.

`open` locks the state directory and opens the rooms in order. `Parts.close` closes them
in reverse. A serving backend, a reload, and the command line without a backend all use
it.

Invariant: a process that has `Parts` holds the lock of the state directory, so that two
processes never write the same local state. `open` sends no request to the bucket, so
that an unreachable bucket does not prevent it; `Parts.start` does. This module knows no
protocols, addresses or signals.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import shutil
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final

import structlog

from fscache import Fscache
from metacache import Cleaner, Metacache

from . import rooms
from .auth import Authenticator, PasswdFile, Penalties
from .config import Config
from .errors import ConfigError, StorageRefuses
from .objectstore import OpenStore, StoreError, needs_race, open_store, probe, require_one_winner
from .statelock import LOCK
from .store import Env, MailStore
from .store.backend.copies import Copies

if TYPE_CHECKING:
    from .events import Events
    from .events.news import News
    from .membership import Joining, Membership

log = structlog.get_logger()

RETRY_S: Final = 1.0
"""Interval between attempts to reach the bucket at start."""

REPORT_AFTER_S: Final = 1.0
"""Time until a start that waits for the bucket logs the reason for the first time."""

REPORT_EVERY_S: Final = 60.0
"""Interval at which it logs the reason again."""

RACE_RETRY_S: Final = 60.0
"""Interval between attempts of the race, while the bucket does not answer."""

RACED: Final = "raced"
"""File in the local state that names the bucket that has passed the race, or, behind
FAILED, the bucket that has failed."""

FAILED: Final = b"failed "

boottime: Final[Callable[[], float]] = partial(
    time.clock_gettime, getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
)
"""Return seconds of a clock that also runs while the machine is suspended. The
journal's lease uses it. A delivery reads it nine times."""


class Chance:
    """The system's randomness, read in larger pieces.

    Each system call releases the interpreter's lock. Without the pieces each mail would
    need two such calls.
    """

    PIECE_BYTES: Final = 4096

    def __init__(self) -> None:
        self._piece = b""
        self._at = 0

    def __call__(self, count: int) -> bytes:
        if self._at + count > len(self._piece):
            self._piece, self._at = os.urandom(max(self.PIECE_BYTES, count)), 0
        self._at += count
        return self._piece[self._at - count : self._at]


@dataclass(kw_only=True)
class Parts:
    """The rooms that `open` opened. config, users: those in use; a reload replaces
    them.
    """

    config: Config
    bucket: OpenStore
    metacache: Metacache
    fscache: Fscache
    store: MailStore
    copies: Copies
    cleaner: Cleaner
    users: PasswdFile
    authenticator: Authenticator
    joining: Joining | None
    """The cluster; None for a backend alone."""
    events: Events | None
    """The groups of events; None if there are none."""
    news: News | None
    """News between backends; None without a bus."""
    closing: AsyncExitStack

    async def close(self) -> None:
        """Close everything in reverse and unlock the state directory. The second call
        does nothing.

        Call `store.close` first, which uploads.
        """
        await self.closing.aclose()

    async def start(self, *, patient: bool = True) -> None:
        """Wait until the bucket answers, then start the store.

        A bucket that cannot do what we need is a ConfigError. patient: if it is False,
        a refusal of the store raises StorageRefuses with the store's message.
        """
        reported: float | None = None

        def report(error: str) -> None:
            nonlocal reported
            if reported is None or boottime() - reported >= REPORT_EVERY_S:
                reported = boottime()
                log.warning("bucket does not answer, clients get [UNAVAILABLE]", error=error)

        while True:
            probing = asyncio.ensure_future(probe(self.bucket))
            try:
                while not (await asyncio.wait([probing], timeout=REPORT_AFTER_S))[0]:
                    if self.bucket.last_failure:
                        report(self.bucket.last_failure)
                await probing
                break
            except StoreError as exc:
                if exc.permanent and not patient:
                    words = f"the storage refuses: {exc}"
                    raise StorageRefuses(words, words) from exc
                report(str(exc))
                await asyncio.sleep(RETRY_S)
            finally:
                probing.cancel()
        if self.joining is not None and not patient:
            await self.joining.membership.member.look()  # a tool, which is no member
        if self.metacache.get_state(RACED) == FAILED + self._mark:
            await self.race()  # nothing is served before it has passed
        await self.store.start()

    @property
    def _mark(self) -> bytes:
        """Return what identifies the bucket in the local state."""
        settings = self.bucket.settings
        return f"{settings.url} {settings.endpoint_url}".encode()

    async def drop_unused(self) -> None:
        """Drop local copies that were not used for the time that the settings say."""
        if unused_s := self.config.metacache.drop_at_start_older_than:
            await self.cleaner.clean(unused_s=unused_s)

    async def race(self) -> None:
        """Check once for each bucket that only one of several concurrent PUTs of a key
        succeeds.

        It runs while the store serves, which may take seconds. After a bucket has
        failed, it runs before the next start serves. Raises ConfigError for a bucket
        that lets several succeed.
        """
        metacache, mark = self.metacache, self._mark
        if not needs_race(self.bucket) or metacache.get_state(RACED) == mark:
            return
        while True:
            try:
                await require_one_winner(self.bucket, now=time.time())
                break
            except ConfigError:
                metacache.put_state(RACED, FAILED + mark)
                await self.store.env.commit_staged()
                raise
            except StoreError as exc:
                log.warning("check of create-only PUTs failed, it tries again", error=str(exc))
                await asyncio.sleep(RACE_RETRY_S)
        metacache.put_state(RACED, mark)
        await self.store.env.commit_staged()


async def open(config: Config) -> Parts:
    """Open every room.

    Raises ConfigError; rooms that were already open are closed again.
    """
    async with AsyncExitStack() as closing:
        closing.enter_context(_locked(config.state_dir))
        bucket = open_store(rooms.bucket_settings(config), log=log)
        closing.push_async_callback(bucket.close)
        metacache = Metacache(
            config.metacache.path,
            max_space=config.metacache.max_space,
            max_grace=config.metacache.max_grace.of(config.metacache.max_space),
            clock=time.time,
            sync=config.metacache.sync,
        )
        closing.push_async_callback(metacache.close)
        fscache = Fscache(config.fscache.path, max_size=config.fscache.max_size, clock=time.time)
        closing.push_async_callback(fscache.close)
        joining = None
        if config.cluster.directory != "local":
            from .membership import open_membership  # a backend alone starts without it

            joining = await open_membership(config, closing, boottime)
        store = _store(config, bucket, metacache, fscache, None if joining is None else joining.membership)
        if joining is not None:
            joining.join(store)
        events = None
        if _has_listeners(config):
            from .listening import open_events  # most backends have none

            events = open_events(config, store, closing)
        news = None
        if config.cluster.events != "local":
            from .listening import open_news  # few have a bus

            news = open_news(config, store, closing)
        warn_of_small_disks(config)
        copies = Copies(store, close_delay_s=config.metacache.close_delay)
        users = PasswdFile(config.auth.passwd_file, config.auth.default_domain)
        authenticator = Authenticator(
            users, cache_ttl_s=config.auth.cache_ttl, penalties=Penalties(rooms.login_delays(config))
        )
        closing.callback(authenticator.close)
        return Parts(
            config=config,
            bucket=bucket,
            metacache=metacache,
            fscache=fscache,
            store=store,
            copies=copies,
            cleaner=Cleaner(metacache, copies, weights=rooms.weights(config), clock=time.time),
            users=users,
            authenticator=authenticator,
            joining=joining,
            events=events,
            news=news,
            closing=closing.pop_all(),
        )


def _has_listeners(config: Config) -> bool:
    """Return whether the configuration has a listener of events."""
    events = config.events
    return bool(events.listeners or events.audit_file or events.webhook_url or events.quota_command or events.quota_url)


def _store(
    config: Config, bucket: OpenStore, metacache: Metacache, fscache: Fscache, cluster: Membership | None
) -> MailStore:
    store = MailStore(
        Env(
            bucket=bucket,
            codec=rooms.codec(config),
            metacache=metacache,
            fscache=fscache,
            settings=rooms.store_settings(config),
            now=time.time,
            clock=boottime,
            sleep=asyncio.sleep,
            random_bytes=Chance(),
        ),
        cluster=cluster,
    )
    if config.storage.url == "memory://":
        store.discard_local_state()
    return store


def _locked(path: Path) -> IO[str]:
    """Lock a state directory for this process. The lock is held until the file is
    closed.

    Raises ConfigError.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / LOCK).open("w")
    except OSError as exc:
        raise _unwritable(path, exc) from exc
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.close()
        raise ConfigError(
            f'state_dir = "{path}": another backend uses it; allowed: a directory for each process'
        ) from None
    except OSError as exc:
        lock.close()
        raise _unwritable(path, exc) from exc
    return lock


def _unwritable(path: Path, error: OSError) -> ConfigError:
    return ConfigError(f'state_dir = "{path}": {error.strerror}; allowed: a writable directory')


def warn_of_small_disks(config: Config) -> None:
    """Warn if a cache's limit exceeds its disk. The cache works, but keeps less than
    its limit promises.
    """
    for key, path, most in (
        ("fscache.max_size", config.fscache.path, config.fscache.max_size),
        ("metacache.max_space", config.metacache.path, config.metacache.max_space),
    ):
        total = disk_room(path).get("disk_total_bytes", most)
        if most > total:
            log.warning("cache limit exceeds the disk", setting=key, limit_bytes=most, disk_bytes=int(total))


def disk_room(path: Path) -> dict[str, float]:
    """Return the space of a directory's file system in bytes. The directory need not
    exist.

    It is empty while the file system does not answer.
    """
    try:
        usage = shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists()))
    except OSError:
        return {}
    return {"disk_free_bytes": usage.free, "disk_total_bytes": usage.total}
