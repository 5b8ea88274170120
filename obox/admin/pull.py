"""metacache pull: copies a user's local copies from another backend's metacache, over
its [http].

The destination runs the verb and sends requests to the source. `operate.pull` defines
what is sent, and `source` answers. A source that is a member of the same cluster is
asked over the trusted link, which needs no key. Others are asked with a key: the
source's certificate is then verified with the system's authorities, and the key leaves
this module only in the request's header.

The host comes with the request and may be any machine. So its answer is not repeated,
except the message of an admin API. The message is shortened, and characters that do not
print are replaced.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import socket
import ssl
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated, Final, TypeVar
from urllib.parse import unquote, urlsplit

import msgspec
from msgspec import Meta

from ..accounts import Account
from ..errors import Corrupt, Exists, InUse, Invalid, NoPerm, NotFound, OboxError, Temporary, Unavailable
from ..types import StorageId
from .exits import NoHost, Outdated, of
from .params import Selection
from .parts import Admin
from .source import Question
from .table import Event, Needs, Progress, user_verb

if TYPE_CHECKING:
    from ..cluster import There
    from ..store.backend.store import MailStore
    from ..store.operate.pull import Incoming
    from .peers import Sources

T = TypeVar("T")

PATH: Final = "/doveadm/v1"
CONNECT_S: Final = 10.0
SILENCE_S: Final = 120.0
"""The longest time without a byte from the source. The source may upload a user's
mailboxes before it sends."""
READ_BYTES: Final = 256 * 1024
ANSWER_BYTES_MAX: Final = 64 * 1024
MESSAGE_CHARS_MAX: Final = 300
"""At most 300 characters of the source's message are repeated."""


class MetacachePullParams(Selection, kw_only=True):
    source_backend_host: Annotated[
        str, Meta(description="Source of the copies: name of a member, host, host:port, or URL of its [http]")
    ]
    latest_only: Annotated[
        bool, Meta(description="Refuse users of whom the bucket has newer bundles than the source")
    ] = False
    clean: Annotated[
        bool, Meta(description="The source drops its copies afterwards, except changes that the bucket lacks")
    ] = False
    api_key: Annotated[
        str,
        Meta(description="The source's http.api_key. Left out: the trusted link, else this backend's own key"),
    ] = ""


async def _reachable(admin: Admin, params: MetacachePullParams) -> None:
    """Check what concerns all users, before the first user.

    Raises NoHost, Unavailable, NoPerm, Invalid.
    """
    async with _source(admin, params) as source:
        found = await source.identity()
    if found.bucket != admin.store.bucket_id().hex():
        raise Invalid("the source has another bucket, or another prefix of it")
    if admin.store.journal.boot in (found.boot, *found.boots):
        raise Invalid("the source is this backend itself")


@user_verb(
    "metacache pull",
    MetacachePullParams,
    needs=Needs.BACKEND,
    columns=("mailboxes", "kept", "bytes", "cleaned", "result"),
    begin=_reachable,
)
async def metacache_pull(admin: Admin, account: Account, params: MetacachePullParams) -> AsyncIterator[Event]:
    """Copy users' local copies from another backend's metacache.

    Then mailboxes open here without reading bundles.

    A source that is a member of this cluster is asked over the trusted link, without a
    key, unless one is given. The source first uploads important changes. A mailbox is
    kept as it is here if its copy here is as new as that of the source, or if it is
    open; an open mailbox is compared with the bucket. If the command is interrupted,
    run it again. The exit code is 68 or 69 if the source does not answer, 77 if the
    source refuses the key or the secret, 1003 (a shell sees 235) if the source is
    outdated, and 75 if copies stay at the source in spite of --clean.
    """
    sid, store = account.storage_id, admin.store
    async with _source(admin, params) as source:
        shown, incoming = None, _incoming(store, sid)
        async for _ in _copied(source, store, incoming, latest_only=params.latest_only, clean=params.clean):
            if incoming.seen != shown:
                shown = incoming.seen
                yield Progress(f"pulling {account.name}", shown, incoming.boxes)
        left = await source.drop(sid) if params.clean and incoming.seen else _Dropped()
    result = "pulled" if incoming.mailboxes else "nothing newer there" if incoming.seen else "nothing there"
    yield {
        "mailboxes": incoming.mailboxes,
        "kept": incoming.kept,
        "bytes": incoming.bytes,
        "cleaned": left.copies,
        "result": result,
    }
    if left.why:
        raise InUse(f"pulled, but local copies stay at the source: {left.why}")


async def left_behind(sources: Sources, there: There, after: str) -> Sequence[StorageId]:
    """Ask a member of whom it has local copies, although it does not serve them.
    Returns some storage ids behind `after`, sorted; none: there are no more.

    Raises Unavailable, NoPerm, and what the source says.
    """
    async with _Member(sources, there) as source:
        return await source.left_behind(after)


async def bring(sources: Sources, there: There, store: MailStore, sid: StorageId) -> None:
    """Pull a user's local copies from a member, which drops them then.

    Raises OboxError, also if the member has no complete copy, or keeps some.
    """
    async with _Member(sources, there) as source:
        incoming = _incoming(store, sid)
        async for _ in _copied(source, store, incoming, latest_only=False, clean=True):
            pass
        if not incoming.seen:
            raise NotFound("the source has no complete copy")
        left = await source.drop(sid)
    if left.why:
        raise InUse(f"local copies stay at the source: {left.why}")


def _incoming(store: MailStore, sid: StorageId) -> Incoming:
    from ..store.operate.pull import Incoming  # a start does without it

    return Incoming(store, sid)


async def _copied(
    source: _Source, store: MailStore, incoming: Incoming, *, latest_only: bool, clean: bool
) -> AsyncIterator[None]:
    """Receive a user's copies, and yield after each piece."""
    with store.pulling(incoming.sid):
        await incoming.begin()
        async with aclosing(source.copies(incoming.sid, latest_only=latest_only, clean=clean)) as pieces:
            async for data in pieces:
                await incoming.feed(data)
                yield
        await incoming.end()


class _Identity(msgspec.Struct):
    bucket: str
    boot: str
    boots: list[str] = []
    """Those of all workers, if the source has workers."""


class _Dropped(msgspec.Struct):
    copies: int = 0
    why: str = ""


class _Users(msgspec.Struct):
    users: list[StorageId] = []


class _Failure(msgspec.Struct, rename="camel"):
    """A failure as the source reports it."""

    exit_code: int
    message: str = ""


class _Source(ABC):
    """The other backend. Use it as a context. A subclass says how a question gets
    there."""

    def __init__(self, name: str) -> None:
        """name: begins all messages."""
        self.name = name

    async def __aenter__(self) -> _Source:
        return self

    @abstractmethod
    async def __aexit__(self, *_: object) -> None: ...

    async def identity(self) -> _Identity:
        """Raises NoHost, Unavailable, NoPerm, Invalid."""
        return await self._json(Question("identity"), _Identity)

    def copies(self, sid: StorageId, *, latest_only: bool, clean: bool) -> AsyncGenerator[bytes]:
        """Yield the stream of a user in pieces.

        Raises Outdated, NotFound, InUse, Temporary, …
        """
        return self._ask(Question("copies", sid, latest_only, clean))

    async def drop(self, sid: StorageId) -> _Dropped:
        """Ask the source to drop its copies. The result says why some stay."""
        return await self._json(Question("drop", sid), _Dropped)

    async def left_behind(self, after: str) -> Sequence[StorageId]:
        """See the function `left_behind`. Only a member is asked this."""
        return (await self._json(Question("users", after=after), _Users)).users

    async def _json(self, question: Question, kind: type[T]) -> T:
        async with aclosing(self._ask(question)) as pieces:
            data = await _beginning(pieces)
        try:
            return msgspec.json.decode(data, type=kind)
        except (msgspec.DecodeError, RecursionError) as error:
            raise Unavailable(f"{self.name}: no admin API answers there") from error

    @abstractmethod
    def _ask(self, question: Question) -> AsyncGenerator[bytes]:
        """Return the body of the answer. Raises NoHost, Unavailable, NoPerm, and what
        the source says; Temporary if the answer had already begun."""

    def _failure(self, status: int, text: bytes) -> OboxError:
        """Return the error for a failure that the source answered."""
        try:
            failure = msgspec.json.decode(text, type=_Failure)
        except (msgspec.DecodeError, RecursionError):
            return Unavailable(f"{self.name}: HTTP {status}")
        kinds = (Outdated, NotFound, InUse, Unavailable, Corrupt, Exists, NoPerm)
        kind = next((kind for kind in kinds if of(kind("")) == failure.exit_code), Temporary)
        shown = "".join(char if char.isprintable() else "?" for char in failure.message[:MESSAGE_CHARS_MAX])
        return kind(f"{self.name}: {shown}")


async def _beginning(pieces: AsyncIterator[bytes]) -> bytes:
    """Read a short answer: at most ANSWER_BYTES_MAX, whatever the source sends."""
    data = bytearray()
    async for piece in pieces:
        data += piece
        if len(data) >= ANSWER_BYTES_MAX:
            break
    return bytes(data[:ANSWER_BYTES_MAX])


def _source(admin: Admin, params: MetacachePullParams) -> _Source:
    """Return a member over the link, unless a key is given. Raises Invalid."""
    text = params.source_backend_host
    own = admin.own_http
    parts = urlsplit(text if "://" in text else f"{'https' if own.tls else 'http'}://{text}")
    wrong = Invalid("the source is not an address; allowed: host, host:port, http://host:port, https://host:port")
    try:
        port = parts.port
    except ValueError:
        raise wrong from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise wrong
    if port is None and "://" in text:
        port = 443 if parts.scheme == "https" else 80
    path = parts.path.rstrip("/").removesuffix(PATH)
    key = unquote(parts.password or "") or params.api_key
    if not key and not path and admin.sources is not None:
        there = admin.sources.find(text, parts.hostname, port)
        if there is not None:
            return _Member(admin.sources, there)
    return Keyed(
        parts.hostname, port or own.port, f"{path}{PATH}/metacache", key or own.key, tls=parts.scheme == "https"
    )


class _Member(_Source):
    """A member of the cluster, over the trusted link."""

    def __init__(self, sources: Sources, there: There) -> None:
        super().__init__(there.backend)
        self._sources, self._there = sources, there

    async def __aexit__(self, *_: object) -> None:
        """A question has its own connection, which ends with it."""

    async def _ask(self, question: Question) -> AsyncGenerator[bytes]:
        began = False
        try:
            async with self._sources.ask(self._there, msgspec.json.encode(question)) as (status, pieces):
                if status == 403:
                    raise NoPerm(f"{self.name}: it refuses the link; its log says why")
                if status != 200:
                    raise self._failure(status, await _beginning(pieces))
                began = True
                async for piece in pieces:
                    yield piece
        except OSError as error:
            text = "no answer in time" if isinstance(error, TimeoutError) else error.strerror or str(error)
            if began:
                raise Temporary(f"{self.name}: the stream was cut short: {text}") from error
            raise Unavailable(f"{self.name}: {text}") from error


class Keyed(_Source):
    """Any backend's API, with a key. Each request has its own connection, which a
    thread reads."""

    def __init__(self, host: str, port: int, path: str, key: str, *, tls: bool) -> None:
        super().__init__(f"{host}:{port}")
        self._tls, self._host, self._port, self._path, self._key = tls, host, port, path, key
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="pull")
        self._connection: http.client.HTTPConnection | None = None

    async def __aexit__(self, *_: object) -> None:
        self._disconnect()
        self._thread.shutdown(wait=False)

    async def _ask(self, question: Question) -> AsyncGenerator[bytes]:
        answer = await self._request(*question.request())
        while data := await self._in_thread(lambda: answer.read1(READ_BYTES)):
            yield data

    async def _request(self, method: str, path: str) -> http.client.HTTPResponse:
        self._disconnect()
        connection = self._connection = self.new()
        headers = {}
        if self._key:
            headers["Authorization"] = f"X-Dovecot-API {base64.b64encode(self._key.encode()).decode()}"

        def ask() -> tuple[http.client.HTTPResponse, bytes]:
            connection.connect()
            connection.sock.settimeout(SILENCE_S)
            connection.request(method, self._path + path, headers=headers)
            answer = connection.getresponse()
            return answer, b"" if answer.status == 200 else answer.read(ANSWER_BYTES_MAX)

        answer, text = await self._in_thread(ask, asking=True)
        if answer.status == 200:
            return answer
        raise self._failure(answer.status, text)

    def new(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=CONNECT_S)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(self._host, self._port, timeout=CONNECT_S, context=context)

    def _disconnect(self) -> None:
        """Close the connection. A thread that reads it sees the end of the input."""
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if connection.sock is not None:
            try:
                connection.sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
        connection.close()

    async def _in_thread(self, work: Callable[[], T], *, asking: bool = False) -> T:
        """Raises NoHost or Unavailable, or Temporary if the answer had already
        begun."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, work)
        except socket.gaierror as error:
            raise NoHost(f"{self.name}: {error.strerror or 'no such host'}") from error
        except (OSError, http.client.HTTPException) as error:
            text = _why(error)
            if asking:
                raise Unavailable(f"{self.name}: {text}") from error
            raise Temporary(f"{self.name}: the stream was cut short: {text}") from error

    def _failure(self, status: int, text: bytes) -> OboxError:
        if status == 401:
            return NoPerm(f"{self.name}: the key is not accepted")
        if status == 404:
            return NoPerm(f"{self.name}: no admin API there; it needs http.api_key")
        return super()._failure(status, text)


def _why(error: Exception) -> str:
    """Describe a network error in words of obox, because an exception of http.client
    quotes the answer.
    """
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"certificate verify failed: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return f"TLS: {error.reason or 'failed'}"
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "no HTTP answer" if not isinstance(error, http.client.IncompleteRead) else "closed in the middle"
