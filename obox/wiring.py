"""What an administrator's verbs work on, put together: out of a running backend, or out of a state directory of which
nobody runs one.

Invariant: `offline` holds the lock of the state directory while it is open, so that a backend and the tool never write
the same local state.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from .admin.parts import Admin, Evaluate, OwnHttp, Session
from .auth import Authenticator, PasswdFile
from .config import Config
from .errors import Invalid, Unavailable

__all__ = ["bucket_alone", "of_backend", "of_config", "offline", "quiet_logging", "socket_path"]

if TYPE_CHECKING:
    from .backend import Backend
    from .imap.sets import SequenceSet
    from .mailbox._uidset import UidArray
    from .mailbox.search import Query
    from .mailbox.view import View
    from .store.mailbox import Mailbox

SOCKET: Final = "admin.sock"
"""Below state_dir: the admin API for root and the service user."""

START_S: Final = 30.0
"""Until the bucket has answered, when a state directory is opened without a backend."""


def quiet_logging() -> None:
    """Warnings to stderr, news nowhere: for a command that runs the parts by itself."""
    from .server.log import set_up_logging

    set_up_logging("warning", "console")


def socket_path(state_dir: Path) -> Path:
    return state_dir / SOCKET


class Running:
    """The process as verbs may move it (`admin.Server`)."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def sessions(self) -> Sequence[Session]:
        imap = self._backend.imap
        return imap.who() if imap is not None else ()

    def kick(self, sessions: Sequence[Session], reason: str) -> None:
        imap = self._backend.imap
        if imap is not None:
            ids = {one.id for one in sessions}
            for member in imap.context.registry:
                if member.who().id in ids:
                    member.stop(reason)

    async def reload(self) -> tuple[Sequence[str], Sequence[str]]:
        return await self._backend.lifecycle.reloaded()

    def stop_logins(self) -> None:
        self._backend.listeners.stop(keep=("http", "metrics", "admin"))

    def stop(self) -> None:
        self._backend.lifecycle.stop()


class _Alone:
    """A mailbox as a search sees it without a session: sequence numbers of now, nothing saved, nothing recent."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        from .mailbox.view import View

        self._view = View(mailbox.state)

    def need_mailbox(self) -> tuple[Mailbox, View]:
        return self._mailbox, self._view

    def resolve(self, sequence: SequenceSet, *, uid: bool, lenient: bool = False) -> UidArray:
        uids = self._view.uids
        if uid:
            return self._view.by_uid(sequence.resolve(int(uids[-1]) if len(uids) else 0))
        return self._view.by_seq(sequence.resolve(len(uids)))


def parse_search(program: bytes) -> Evaluate:
    """IMAP's own grammar over one search program. Raises Invalid."""
    from .imap import _search
    from .imap._scan import Limits, Malformed, Scan
    from .imap.commands.search import to_query

    try:
        key = _search.search(Scan([b" " + program], 0, Limits()), b"a", True).key
    except Malformed as error:
        raise Invalid(f"search query: {error}") from error

    def evaluate(mailbox: Mailbox) -> Query:
        return to_query(cast(Any, _Alone(mailbox)), key)

    return evaluate


def of_config(config: Config, users: PasswdFile | None = None) -> Admin:
    """Verbs that need the configuration alone."""
    found = users or PasswdFile(config.auth.passwd_file, config.auth.default_domain)

    return Admin(
        users=found,
        authenticator=lambda: Authenticator(found),
        parse_search=parse_search,
        own_http=_own_http(config),
    )


def _own_http(config: Config) -> OwnHttp:
    if config.http is None:
        return OwnHttp()
    entry = next((one for one in config.http.listen if one.port), None)
    key = config.http.api_key.reveal()
    return OwnHttp(key) if entry is None else OwnHttp(key, entry.port, entry.tls)


def of_backend(
    backend: Backend, users: PasswdFile, authenticator: Callable[[], Authenticator], *, running: bool
) -> Admin:
    """All verbs over a backend's parts; without `running` those that need no process."""
    from .objectstore import control
    from .server.log import recent_problems

    admin = of_config(backend.config, users)
    admin.authenticator = authenticator
    admin.find_store = backend.store
    admin.find_cleaner = backend.cleaner
    admin.server = Running(backend) if running else None
    admin.recent = recent_problems
    admin.describe_bucket = lambda: control.describe(backend.bucket.settings)
    return admin


@asynccontextmanager
async def offline(config: Config) -> AsyncIterator[Admin]:
    """The parts of a backend that is not running, opened and closed in order; nothing listens.

    Raises ConfigError (a backend runs after all, or the settings are bad), Unavailable (the bucket does not answer, or
    refuses; with its words).
    """
    from .backend import Backend

    backend = Backend(config)
    store = backend.open_parts()
    starting = asyncio.ensure_future(backend.start_store(store, patient=False))
    try:
        done, _ = await asyncio.wait([starting], timeout=START_S)
        if not done:
            raise Unavailable(f"the bucket does not answer: {backend.bucket.last_failure or 'not a word'}")
        await starting
        users = PasswdFile(config.auth.passwd_file, config.auth.default_domain)
        yield of_backend(backend, users, lambda: Authenticator(users), running=False)
        await store.close()
    finally:
        starting.cancel()
        await backend.close_parts()


@asynccontextmanager
async def bucket_alone(config: Config) -> AsyncIterator[Admin]:
    """As `offline`, but the bucket has not been asked anything: for verbs that say what is wrong with it."""
    from .backend import Backend

    backend = Backend(config)
    backend.open_parts()
    try:
        users = PasswdFile(config.auth.passwd_file, config.auth.default_domain)
        yield of_backend(backend, users, lambda: Authenticator(users), running=False)
    finally:
        await backend.close_parts()
