"""The directory across hosts, in one table of Cassandra; see docs/cassandra.md.

Invariant: the three statements below are all that a member runs. There is no
lightweight transaction and no DELETE. The driver decides by the timestamp that the
caller gives, as every engine does.

The driver belongs to a thread: connecting and sending may block there. Answers come
back to the event loop. Nothing is connected before the first operation, so that a
member starts while Cassandra is away, and serves what it knows.

Diagnostics: a bad URL, a missing package and unreadable files are ConfigError. Any
error of Cassandra is Unavailable to the caller. The log gets one line a minute, with
the reason.
"""

from __future__ import annotations

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import structlog

from obox.errors import ConfigError, Unavailable

from .directory import DEADLINE_S, Kind, Row, checked

log = structlog.get_logger()

SELECT_ROW: Final = "SELECT key, value, writetime(value) FROM rows WHERE kind = ? AND key = ?"
SELECT_KIND: Final = "SELECT key, value, writetime(value) FROM rows WHERE kind = ?"
INSERT: Final = "INSERT INTO rows (kind, key, value) VALUES (?, ?, ?) USING TIMESTAMP ?"
STATEMENTS: Final = (SELECT_ROW, SELECT_KIND, INSERT)
"""A member runs no other statements."""

TABLE: Final = """
CREATE TABLE IF NOT EXISTS rows (kind text, key text, value blob, PRIMARY KEY ((kind), key))
WITH compaction = {'class': 'LeveledCompactionStrategy'}
AND compression = {'class': 'LZ4Compressor', 'chunk_length_in_kb': 4}
AND caching = {'keys': 'ALL', 'rows_per_partition': 'NONE'}
AND bloom_filter_fp_chance = 0.01
AND default_time_to_live = 0
AND read_repair = 'BLOCKING'
AND comment = 'obox cluster directory'
"""
"""`CassandraDirectory.make` runs it, and no member does. docs/cassandra.md has the
reasons."""

PORT: Final = 9042
PENDING_MAX: Final = 4096
"""At most 4,096 operations may wait for an answer. A connection of the driver takes
32,768."""

CONNECT_S: Final = 3.0
"""The time for a connection to one host."""

CONNECT_AGAIN_S: Final = 1.0
"""For so long after a failed attempt to connect, operations fail at once."""

RECONNECT_MAX_S: Final = 10.0
"""The driver waits at most this time before it tries a host that is down again."""

RENEW_S: Final = 30.0
"""After so long without a good answer everything is connected again. Names are then
resolved again. The driver's own attempts do not suffice: they end for good where a
password was refused."""

REQUEST_S: Final = DEADLINE_S - 1  # the driver has a reason, and our deadline has none
_LOG_EVERY_S: Final = 60.0
_OPTIONS: Final = ("ca", "cert", "datacenter", "key", "tls")
_TLS: Final = ("off", "verify", "chain")


@dataclass(frozen=True)
class Place:
    """Where the table is, as the URL says; `docs/cassandra.md` lists the options.

    tls: off; verify: a certificate must be of the CA and name the node; chain: it must
    be of the CA. Relative paths start at the working directory.
    """

    hosts: tuple[str, ...]
    port: int
    keyspace: str
    user: str = ""
    password: str = field(default="", repr=False)
    datacenter: str = ""
    tls: str = "off"
    ca: str = ""
    cert: str = ""
    key: str = ""


def read_url(url: str) -> Place:
    """Raises ConfigError. Its text says what is allowed, and never has a password."""
    try:
        parts = urlsplit(url)
    except ValueError:  # brackets of IPv6 at the wrong place
        parts = urlsplit("")
    who, _, where = parts.netloc.rpartition("@")
    user, _, password = who.partition(":")
    names = [re.fullmatch(r"(?:\[([0-9A-Fa-f:.]+)\]|([\w.-]+))(?::(\d{1,5}))?", host) for host in where.split(",")]
    hosts = [match[1] or match[2] for match in names if match]
    ports = {int(match[3]) for match in names if match and match[3]}
    keyspace = re.fullmatch(r"/([A-Za-z]\w{0,47})", parts.path)
    if len(hosts) != len(names) or len(ports) > 1 or not keyspace:
        raise _refused("hosts with one port and a keyspace", "cassandra://user@host,host:9042/keyspace")
    try:
        options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
    except ValueError:
        options = {"": ""}
    if unknown := sorted(set(options) - set(_OPTIONS)):
        raise _refused(f"unknown option {unknown[0]!r}", "?" + "&".join(f"{name}=…" for name in _OPTIONS))
    tls = options.get("tls", "verify" if "ca" in options else "off")
    files = [name for name in ("ca", "cert", "key") if name in options]
    if tls not in _TLS or ("cert" in files) != ("key" in files) or (tls == "off" and files):
        raise _refused("tls", f"tls={' or '.join(_TLS)}; ca, cert and key with verify or chain, cert and key together")
    place = Place(tuple(hosts), ports.pop() if ports else PORT, keyspace[1], unquote(user), unquote(password))
    return Place(**{**vars(place), **options, "tls": tls})


def _refused(what: str, allowed: str) -> ConfigError:
    return ConfigError(f"cluster.directory: {what}; allowed: {allowed}")


def open_cassandra(url: str, password_file: Path | None = None) -> CassandraDirectory:
    """Return the directory behind a URL. It connects at the first operation.

    password_file: it is read at each connect, so that a password can be changed.
    Raises ConfigError.
    """
    place = read_url(url)
    try:
        import cassandra.cluster  # noqa: F401 - only its import counts
    except ImportError as error:
        raise ConfigError(
            "cluster.directory: cassandra:// needs a package that is not installed; install it with "
            f"pip install 'obox[cluster]' ({error})"
        ) from error
    directory = CassandraDirectory(place, password_file)
    directory.check_files()
    return directory


class CassandraDirectory:
    """A `Directory`; made by `open_cassandra`."""

    def __init__(self, place: Place, password_file: Path | None) -> None:
        self._place, self._password_file = place, password_file
        self._thread = ThreadPoolExecutor(1, "directory")
        self._cluster: Any = None
        self._session: Any = None
        self._prepared: dict[str, Any] = {}
        self._pending = 0
        self._failed_at = -CONNECT_AGAIN_S
        self._failure = ""
        self._bad_since: float | None = None
        self._logged: dict[str, float] = {}
        self._closed = False

    def check_files(self) -> None:
        """Raises ConfigError: a file of the settings cannot be read."""
        self._password()
        self._tls()

    async def get(self, kind: Kind, key: str) -> Row | None:
        rows = await self._ask(SELECT_ROW, kind.value, key)
        return rows[0][1] if rows else None

    async def all(self, kind: Kind) -> dict[str, Row]:
        return dict(await self._ask(SELECT_KIND, kind.value))

    async def put(self, kind: Kind, key: str, value: bytes, timestamp: int) -> None:
        row = checked(key, value, timestamp)
        await self._ask(INSERT, kind.value, key, row.value, row.timestamp)

    async def make(self) -> None:
        """Make the table, if there is none. The role needs CREATE on the keyspace."""
        await self._ask(TABLE)

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        try:
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.wrap_future(self._thread.submit(self._disconnect))
        except TimeoutError:
            pass  # it is still connecting: the thread ends when that has failed
        self._thread.shutdown(wait=False)

    # -- on the loop ------------------------------------------------------------------

    async def _ask(self, statement: str, *values: object) -> list[tuple[str, Row]]:
        if self._closed:
            raise Unavailable("the directory is closed")
        if self._pending >= PENDING_MAX:
            raise Unavailable("too many operations wait for the directory")
        answer = _Answer(asyncio.get_running_loop())
        self._pending += 1
        try:
            self._thread.submit(self._send, answer, statement, values)
            async with asyncio.timeout(DEADLINE_S):
                return await answer.future
        except TimeoutError:
            raise self._failed("no answer in time") from None
        finally:
            answer.given_up = True
            self._pending -= 1

    def _failed(self, reason: str) -> Unavailable:
        """Return the error for the caller, with the reason as a note, since clients see
        its text; the log gets each reason once a minute."""
        now = time.monotonic()
        self._bad_since = now if self._bad_since is None else self._bad_since
        if now - self._logged.get(reason, -_LOG_EVERY_S) >= _LOG_EVERY_S:
            if len(self._logged) > 100:
                self._logged.clear()
            self._logged[reason] = now
            log.error("directory does not answer", hosts=",".join(self._place.hosts), error=reason)
        failure = Unavailable("the directory does not answer")
        failure.add_note(reason)
        return failure

    # -- in the thread ----------------------------------------------------------------

    def _send(self, answer: _Answer, statement: str, values: tuple[object, ...]) -> None:
        if answer.given_up:
            return
        try:
            self._connect()
            sent = self._session.execute_async(self._bound(statement, values))
        except Exception as error:
            answer.fail(self._failed(_reason(error)))
            return
        rows: list[tuple[str, Row]] = []

        def page(found: Any) -> None:
            rows.extend((key, Row(value, stamp)) for key, value, stamp in found or () if value is not None)
            if sent.has_more_pages:
                sent.start_fetching_next_page()
            else:
                self._bad_since = None
                answer.give(rows)

        # They run in the driver's thread, or here if the answer is there already.
        sent.add_callbacks(page, lambda error: answer.fail(self._failed(_reason(error))))

    def _bound(self, statement: str, values: tuple[object, ...]) -> Any:
        if statement not in STATEMENTS:
            return statement
        if statement not in self._prepared:
            prepared = self._session.prepare(statement)
            prepared.is_idempotent = True  # INSERT, too: it has a timestamp of its own
            self._prepared[statement] = prepared
        return self._prepared[statement].bind(values)

    def _connect(self) -> None:
        """Connect for the first time, or again after RENEW_S. Otherwise the driver
        reconnects by itself."""
        bad_s = 0.0 if self._bad_since is None else time.monotonic() - self._bad_since
        if self._session is not None and bad_s < RENEW_S:
            return
        if time.monotonic() - self._failed_at < CONNECT_AGAIN_S:
            raise ConnectionError(self._failure)
        self._disconnect()
        self._bad_since = None
        try:
            self._cluster = self.new_cluster()
            session = self._cluster.connect(self._place.keyspace)
            session.default_fetch_size = 1000
            self._session = session
        except Exception as error:
            self._failure, self._failed_at = _reason(error), time.monotonic()
            self._disconnect()
            raise

    def _disconnect(self) -> None:
        cluster, self._cluster, self._session = self._cluster, None, None
        self._prepared.clear()
        if cluster is not None:
            cluster.shutdown()

    def new_cluster(self) -> Any:
        from cassandra import ConsistencyLevel
        from cassandra.cluster import EXEC_PROFILE_DEFAULT, Cluster, ExecutionProfile
        from cassandra.policies import DCAwareRoundRobinPolicy, ExponentialReconnectionPolicy, TokenAwarePolicy

        logging.getLogger("cassandra").setLevel(logging.ERROR)  # obox logs the reasons
        place = self._place
        profile = ExecutionProfile(
            load_balancing_policy=TokenAwarePolicy(DCAwareRoundRobinPolicy(place.datacenter)),
            consistency_level=ConsistencyLevel.LOCAL_QUORUM,
            request_timeout=REQUEST_S,
        )
        return Cluster(
            list(place.hosts),
            port=place.port,
            auth_provider=_Passwords(place.user, self._password) if place.user else None,
            ssl_context=self._tls(),
            execution_profiles={EXEC_PROFILE_DEFAULT: profile},
            reconnection_policy=ExponentialReconnectionPolicy(1.0, RECONNECT_MAX_S),
            connect_timeout=CONNECT_S,
            control_connection_timeout=CONNECT_S,
            monitor_reporting_enabled=False,
        )

    def _password(self) -> str:
        if self._password_file is None:
            return self._place.password
        try:
            return self._password_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cluster.password_file: {self._password_file}: cannot read: {error}") from error

    def _tls(self) -> ssl.SSLContext | None:
        place = self._place
        if place.tls == "off":
            return None
        try:
            context = ssl.create_default_context(cafile=place.ca or None)
            context.check_hostname = place.tls == "verify"
            if place.cert:
                context.load_cert_chain(place.cert, place.key)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"cluster.directory: ca, cert or key cannot be read: {error}") from error
        return context


class _Passwords:
    """An AuthProvider of the driver. It reads the password for each connection."""

    def __init__(self, user: str, password: Callable[[], str]) -> None:
        self._user, self._read = user, password

    def new_authenticator(self, host: object) -> Any:
        from cassandra.auth import PlainTextAuthenticator

        return PlainTextAuthenticator(self._user, self._read())


class _Answer:
    """An answer on its way from the driver's threads to the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.future: asyncio.Future[list[tuple[str, Row]]] = loop.create_future()
        self.given_up = False
        self._loop = loop

    def give(self, rows: list[tuple[str, Row]]) -> None:
        self._call(lambda: self.future.set_result(rows))

    def fail(self, error: Exception) -> None:
        self._call(lambda: self.future.set_exception(error))

    def _call(self, resolve: Callable[[], None]) -> None:
        def unless_done() -> None:
            if not self.future.done():
                resolve()

        try:
            self._loop.call_soon_threadsafe(unless_done)
        except RuntimeError:
            pass  # the loop has ended


def _reason(error: BaseException) -> str:
    """Return the driver's error with the reasons of single hosts, on one line."""
    causes = getattr(error, "errors", None)
    text = "; ".join(f"{host}: {cause}" for host, cause in causes.items()) if isinstance(causes, dict) else ""
    if re.search(r"table rows does not exist|unconfigured table", str(error)):
        text = "the keyspace has no table; oboxadm cluster init makes it (docs/cassandra.md)"
    return " ".join((text or str(error) or repr(error)).split())[:500]
