"""`s3://`, `gs://`, `az://`: object stores over HTTP, through obstore.

Credentials for S3 come from the settings, or else from boto3's own chain (environment,
files, container, instance). Refreshable credentials are read again every few minutes;
boto3 renews them in time. They are looked up at the first request, in a thread, so that
a metadata service that is slow or down does not delay a start.

A custom endpoint is addressed in path style (`http://host:port/bucket/key`), AWS itself
in virtual-host style (`https://bucket.host/key`), unless the settings say otherwise.
`gs://` and `az://` use obstore's own credential chain. They are accepted and untested.

Invariant: a call is a single HTTP request (obstore's own retries are off), except a
copy before the store is known to make copies create-only (see Driver). put sends
`If-None-Match: *`.

This module does not know retries, statistics, or our prefix.

Diagnostics: `translate` turns an answer of the store into a StoreError kind. 401, 403,
400 and a missing bucket are Refused. 5xx, 429, SlowDown, timeouts and broken
connections are Unreachable; only those that cannot have reached the store (no
connection, 429, SlowDown) say so. A text begins with the store's words, or with the
reason why there are none. 409 ConditionalRequestConflict is S3's "somebody else
is writing this key at this moment": it is Unreachable, so that the retry gets the real
answer.
"""

from __future__ import annotations

import asyncio
import html
import re
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal

import obstore
from obstore import exceptions
from obstore.store import AzureStore, GCSStore, S3Store

from obox.objectstore._driver import REQUEST_KEYS_MAX, SENDING, Cursor, Kind, ObjectInfo, Page
from obox.objectstore._errors import AlreadyExists, Missing, Refused, StoreError, Truncated, Unreachable
from obox.objectstore._exact import ExactKeys, Token, unnamable

if TYPE_CHECKING:
    from obstore.store import S3Credential

_CREDENTIALS_FOR = timedelta(minutes=4)
"""How long obstore keeps refreshable credentials. boto3 renews them 10 to 15 minutes
before they end.
"""

_NOT_SENT = (
    "error trying to connect",
    "Connection refused",
    "ConnectError",
    "dns error",
    "SlowDown",
    "InvalidCertificate",
)
"""Texts which show that a request had no effect."""

_PASSING = ("ConditionalRequestConflict", "OperationAborted", "RequestTimeout", "SlowDown")
"""S3's error codes for "try again", with any status."""

_OS_WORDS = re.compile(r'(?:message|error): "((?:[^"\\\n]|\\.){1,200})"')
"""As in `Os { code: 111, kind: ConnectionRefused, message: "Connection refused" }`."""

_ANSWER = re.compile(r"status code: (\d{3}) ?([^:]*): ?(.*)", re.S)
_CODE = re.compile(r"<Code>([^<]{1,100})</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,300})")

_TOOK = re.compile(r" in [\d.]+(?:ns|µs|ms|s)\b")
"""How long a request took: a log line that comes again should be the same."""

_HANDSHAKES = (
    ("Parse(", "the answer is not HTTP: is it the right port, and does it speak http or https?"),
    ("InvalidContentType", "the answer is not TLS: does the port speak http instead of https?"),
    ("TimedOut", "no connection in time: is it the right port, and does it speak https?"),
)
"""What obstore's debug text has, and what an operator should look at."""

_CERTIFICATE = re.compile(r"InvalidCertificate\(\s*(?:Other\(\s*OtherError\(\s*)?(\w+)")
_CERTIFICATES = {
    "UnknownIssuer": "an authority has issued it that is not trusted; storage.ca_file names one to trust",
    "CaUsedAsEndEntity": "it is that of an authority; issue one for the server with it, and name it in storage.ca_file",
    "NotValidForName": "it is for another name than that in storage.endpoint_url",
    "NotValidForNameContext": "it is for another name than that in storage.endpoint_url",
    "Expired": "it has expired",
    "ExpiredContext": "it has expired",
    "NotValidYet": "it is not valid yet: is our clock right?",
    "NotValidYetContext": "it is not valid yet: is our clock right?",
    "Revoked": "it is revoked",
}
"""What rustls finds wrong with a certificate."""

_STATUS = re.compile(r"status(?: code)?: (\d{3})\b")
"""As in obstore's texts. No key can contain a space, so no key can look like it."""


_REFUSALS = (
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
    exceptions.InvalidPathError,
    exceptions.NotSupportedError,
    NotImplementedError,
)


def translate(op: str, key: str, error: Exception) -> StoreError:
    """Return the StoreError for an error of obstore."""
    whole = str(error)
    what = f"{_words(whole)} ({op} {key})"
    status = _status(error)
    unreachable = Unreachable(what, maybe_done=status != 429 and not any(word in whole for word in _NOT_SENT))
    if any(word in whole for word in _PASSING):
        return unreachable
    if isinstance(error, (exceptions.AlreadyExistsError, exceptions.PreconditionError)):
        return AlreadyExists(what)
    if isinstance(error, FileNotFoundError):
        return Missing(what) if op in ("get", "copy") and "NoSuchBucket" not in whole else Refused(what)
    # a redirect: the region is wrong
    if isinstance(error, _REFUSALS) or "without LOCATION" in whole:
        return Refused(what)
    if status is not None and (300 <= status < 500 or status == 501) and status not in (408, 429):
        return Refused(what)
    return unreachable


def _words(whole: str) -> str:
    """Return the store's own words first: `403 SignatureDoesNotMatch: …`; without an
    answer, the reason for it.
    """
    text, _, debug = whole.partition("\n\nDebug source")
    if answer := _ANSWER.search(text):
        status, reason, body = answer.groups()
        if code := _CODE.search(body):
            message = _MESSAGE.search(body)
            said = f"{status} {code[1]}" + (f": {html.unescape(message[1])}" if message else "")
        else:
            said = f"{status} {reason}" + (f": {body}" if body else "")
        return " ".join(said.split())[:500]
    text = _TOOK.sub("", " ".join(text.split()))[:500]
    if found := _OS_WORDS.findall(debug):
        return f"{found[-1]}: {text}"
    if bad := _CERTIFICATE.search(debug):
        return f"the server's certificate is refused: {_CERTIFICATES.get(bad[1], bad[1])}. {text}"
    if text.endswith("error sending request"):
        for sign, meaning in _HANDSHAKES:
            if sign in debug:
                return f"{meaning} {text}"
    where, _, said = text.partition(" - ")
    return f"{said}: {where}" if said else text


def _status(error: Exception) -> int | None:
    found = _STATUS.search(str(error))
    return int(found[1]) if found else None


COPIED_AT_ONCE = 1 << 20
"""Bytes of an answer that are copied without letting others run: 1 ms. Where the memory
is new to the machine, the host takes as much as 18 ms to give it."""


async def _copied(data: obstore.Bytes) -> bytes:
    """Return the bytes of an answer. A single copy of 50 MB would hold the loop for 40
    ms, and would keep the interpreter's lock in a thread as well.
    """
    if len(data) <= COPIED_AT_ONCE:
        return bytes(data)
    view, out = memoryview(data), BytesIO()
    for at in range(0, len(view), COPIED_AT_ONCE):
        out.write(view[at : at + COPIED_AT_ONCE])
        await asyncio.sleep(0)
    return out.getvalue()


class _Connections(asyncio.Semaphore):
    """Places for requests at one time; says of an attempt that it waits for one."""

    async def acquire(self) -> Literal[True]:
        sending = SENDING.get()
        if sending is None or not self.locked():
            return await super().acquire()
        sending.held = True
        await super().acquire()
        sending.held = False  # not in a `finally`: who is cancelled has not been sent
        return True


class CloudDriver:
    """A bucket behind HTTP."""

    creates_at_once = False
    page_keys = REQUEST_KEYS_MAX

    def __init__(
        self,
        store: S3Store | GCSStore | AzureStore,
        *,
        create_only: bool,
        copies_create_only: bool,
        connections_max: int,
        exact: ExactKeys | None = None,
    ) -> None:
        """create_only: False drops `If-None-Match`, for stores that reject it
        (conditional_put = "off").

        connections_max: requests at a time; the others wait, within their deadline.
        exact: for keys that obstore cannot name. Without it such keys stay, and a LIST
        that meets one is refused.
        """
        self.backing = store
        self._exact = exact
        self.slots = _Connections(connections_max)
        self._mode: Literal["create", "overwrite"] = "create" if create_only else "overwrite"
        self.copies_create_only = copies_create_only

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._put(key, data, self._mode)

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        await self._put(key, data, "overwrite")

    async def _put(self, key: str, data: bytes, mode: Literal["create", "overwrite"]) -> None:
        try:
            async with self.slots:
                await obstore.put_async(self.backing, key, data, mode=mode, use_multipart=False)
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise translate("put", key, error) from error

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        options: obstore.GetOptions | None = None
        if end is not None:
            options = {"range": (start, end)}
        elif start:
            options = {"range": {"offset": start}}
        try:
            async with self.slots:
                answer = await obstore.get_async(self.backing, key, options=options)
                first, after = answer.range
                data = await _copied(await answer.bytes_async())
        except (exceptions.BaseError, OSError, ValueError) as error:
            if _status(error) == 416:
                # no such bytes: an empty object, or a start at or behind its end
                return b""
            raise translate("get", key, error) from error
        if len(data) != after - first:
            raise Truncated(f"get {key}: {len(data)} of {after - first} bytes")
        return data

    async def list_page(
        self, prefix: str, *, kind: Kind, after: str, limit: int, cursor: Cursor = None, exact: bool = False
    ) -> Page:
        """See Driver. The cursor is obstore's stream, which follows the store's
        continuation tokens, or a Token.
        """
        exact_keys = self._exact
        if isinstance(cursor, Token) or (exact and exact_keys is not None):
            assert exact_keys is not None
            async with self.slots:
                return await exact_keys.page(prefix, after, REQUEST_KEYS_MAX, cursor or Token(""))
        stream = cursor
        try:
            if stream is None:
                # The final `/` is left out, because obstore adds it again.
                where = prefix.rstrip("/") or None
                stream = obstore.list(self.backing, where, offset=after or None, chunk_size=REQUEST_KEYS_MAX)
            async with self.slots:
                rows = await stream.__anext__()
        except StopAsyncIteration:
            return Page([], None)
        except exceptions.InvalidPathError as error:
            if exact_keys is None:
                raise translate("list", prefix, error) from error
            # a key that obstore cannot name: begin again with `exact`
            async with self.slots:
                return await exact_keys.page(prefix, after, REQUEST_KEYS_MAX, Token(""))
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise translate("list", prefix, error) from error
        items = [ObjectInfo(row["path"], row["size"], row["last_modified"].timestamp()) for row in rows]
        if prefix:  # obstore names the marker of the prefix itself without its `/`
            items = [info if info.key.startswith(prefix) else info._replace(key=prefix) for info in items]
        return Page(items, stream if len(rows) >= REQUEST_KEYS_MAX else None)

    async def list_names(self, prefix: str, *, kind: Kind) -> list[str]:
        try:
            async with self.slots:
                found = await obstore.list_with_delimiter_async(self.backing, prefix.rstrip("/") or None)
        except exceptions.InvalidPathError as error:
            if self._exact is None:
                raise translate("list", prefix, error) from error
            async with self.slots:
                return await self._exact.names(prefix)
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise translate("list", prefix, error) from error
        return [path[len(prefix) :] for path in found["common_prefixes"] if path.startswith(prefix)]

    async def delete_batch(self, keys: Sequence[str], *, kind: Kind) -> None:
        odd = [key for key in keys if unnamable(key)] if self._exact is not None else []
        plain = [key for key in keys if not unnamable(key)] if odd else list(keys)
        try:
            async with self.slots:
                if odd and self._exact is not None:
                    await self._exact.delete(odd)
                if plain:
                    await obstore.delete_async(self.backing, plain)
        except FileNotFoundError:
            await self._delete_one_by_one(plain)
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise translate("delete", keys[0], error) from error

    async def _delete_one_by_one(self, keys: Sequence[str]) -> None:
        """GCS and Azure stop at a missing key: continue behind it."""
        for key in keys:
            try:
                async with self.slots:
                    await obstore.delete_async(self.backing, key)
            except FileNotFoundError as error:
                if "NoSuchBucket" in str(error):
                    raise translate("delete", key, error) from error
            except (exceptions.BaseError, OSError, ValueError) as error:
                raise translate("delete", key, error) from error

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        try:
            async with self.slots:
                await obstore.copy_async(self.backing, source, target, overwrite=self._mode == "overwrite")
        except (exceptions.BaseError, OSError, ValueError) as error:
            raise translate("copy", target, error) from error

    async def close(self) -> None:
        """Nothing to do: obstore closes its connections when it is collected."""


def fixed_credentials(access_key_id: str, secret_access_key: str) -> Callable[[], S3Credential]:
    """Return a credential provider of exactly these credentials.

    obstore would add a session token from the environment.
    """

    def provide() -> S3Credential:
        return {
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "token": None,
            "expires_at": None,
        }

    return provide


def boto3_credentials() -> Callable[[], Coroutine[Any, Any, S3Credential]]:
    """Return a credential provider over boto3's chain."""
    import boto3

    session = boto3.Session()
    found: list[Any] = []

    def look() -> S3Credential:
        if not found:
            credentials = session.get_credentials()
            if credentials is None:
                raise PermissionError("there are no credentials, neither in the settings nor in boto3's chain")
            found.append(credentials)
        frozen = found[0].get_frozen_credentials()
        refreshable = hasattr(found[0], "refresh_needed")
        return {
            "access_key_id": frozen.access_key,
            "secret_access_key": frozen.secret_key,
            "token": frozen.token,
            "expires_at": datetime.now(UTC) + _CREDENTIALS_FOR if refreshable else None,
        }

    async def provide() -> S3Credential:
        return await asyncio.to_thread(look)

    return provide


def boto3_region() -> str | None:
    """Return the region that boto3's chain finds, or None."""
    import boto3

    region: str | None = boto3.Session().region_name
    return region


def boto3_client(config: Mapping[str, Any], *, addressing: Literal["path", "virtual"], deadline_s: float) -> Any:
    """Return a boto3 S3 client.

    config: endpoint_url, region, access_key_id, secret_access_key, ca_file; an empty
    value comes from boto3's chain. addressing: where the bucket's name is.
    """
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=config["endpoint_url"] or None,
        verify=config["ca_file"] or None,
        region_name=config["region"],
        aws_access_key_id=config["access_key_id"] or None,
        aws_secret_access_key=config["secret_access_key"] or None,
        config=Config(
            connect_timeout=min(deadline_s / 2, 5.0),
            read_timeout=deadline_s,
            retries={"total_max_attempts": 1},
            s3={"addressing_style": addressing},
        ),
    )
