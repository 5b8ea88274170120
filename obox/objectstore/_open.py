"""Opens the bucket of the settings: driver -> faults -> statistics -> deadline and
retries -> key prefix.

Invariant: every ObjectStore that obox uses is composed here, in this order. Statistics
see each attempt, faults are below both, and only the last layer knows the prefix of the
url.

This module does not know configuration files or the content of objects.

Diagnostics: a bad setting is ConfigError, in one line. Opening makes no request: an
unreachable bucket does not stop a start.
"""

from __future__ import annotations

import asyncio
import os
import random
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

import structlog
from obstore.exceptions import BaseError

from obox.errors import ConfigError
from obox.objectstore._driver import REQUEST_KEYS_MAX, Driver, Kind, Names, ObjectInfo, Objects
from obox.objectstore._file import FileDriver
from obox.objectstore._retry import Retrying, Sleep
from obox.objectstore.stats import Counted, Stats
from obox.turn import Turn

_URLS = "memory://, file:///dir, s3://bucket/prefix, gs://bucket/prefix, az://container/prefix"


@dataclass(frozen=True)
class Settings:
    """The [storage] settings that concern the store itself."""

    url: str
    endpoint_url: str = ""
    ca_file: str = ""
    """PEM certificates of authorities to trust beside those of the system."""
    access_key_id: str = ""
    secret_access_key: str = ""
    region: str = ""
    addressing: Literal["auto", "path", "virtual"] = "auto"
    """Where the bucket's name is: in the path, or in the host; auto: in the path with
    an endpoint_url, else in the host.
    """
    conditional_put: Literal["on", "off"] = "on"
    """off: PUT overwrites. Only a single backend may use such a bucket, because two
    backends that write the same user would lose mails.
    """
    deadline_s: float = 10.0
    """Deadline of a request, retries included."""
    slow_s: float = 5.0
    connections_max: int = 256
    """HTTP connections, each with a single request at a time. Further requests wait
    within their deadline.
    """


class OpenStore:
    """An ObjectStore below a key prefix, with the counters of all requests that it
    sent.

    stats: see stats.py. driver: the innermost driver, for tests.
    """

    def __init__(
        self,
        inner: Retrying,
        *,
        prefix: str,
        stats: Stats,
        driver: Driver,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        """prefix: "" or ends with `/`."""
        self.stats = stats
        self.driver = driver
        self.settings = settings
        self.inner = inner
        self._clock = clock
        self._prefix = prefix
        self._cut = len(prefix)

    async def put(self, key: str, data: bytes, *, kind: Kind) -> None:
        """See ObjectStore."""
        await self.inner.put(self._prefix + key, data, kind=kind)

    async def replace(self, key: str, data: bytes, *, kind: Kind) -> None:
        """See ObjectStore."""
        await self.inner.replace(self._prefix + key, data, kind=kind)

    async def get(self, key: str, *, kind: Kind, start: int = 0, end: int | None = None) -> bytes:
        """See ObjectStore."""
        return await self.inner.get(self._prefix + key, kind=kind, start=start, end=end)

    async def list(
        self, prefix: str, *, kind: Kind, after: str = "", limit: int | None = None, exact: bool = False
    ) -> Objects:
        """See ObjectStore."""
        start = self._prefix + after if after else ""
        return await self._below(
            await self.inner.list(self._prefix + prefix, kind=kind, after=start, limit=limit, exact=exact)
        )

    async def list_as_stored(self, prefix: str, *, kind: Kind, after: str = "") -> Objects:
        """See ObjectStore."""
        start = self._prefix + after if after else ""
        return await self._below(await self.inner.list_as_stored(self._prefix + prefix, kind=kind, after=start))

    async def _below(self, found: Objects) -> Objects:
        """Take the prefix off the keys; others run meanwhile."""
        cut = self._cut
        if not cut:
            return found
        turn = Turn(self._clock)
        for at in range(0, len(found), REQUEST_KEYS_MAX):
            if turn.over():
                await turn.end()
            part = found[at : at + REQUEST_KEYS_MAX]
            found[at : at + len(part)] = [ObjectInfo(info.key[cut:], info.size, info.modified) for info in part]
        return found

    async def list_names(self, prefix: str, *, kind: Kind) -> Names:
        """See ObjectStore."""
        return await self.inner.list_names(self._prefix + prefix, kind=kind)

    @property
    def last_failure(self) -> str:
        """Return the error of the latest attempt that failed, for the log of a caller
        that waits."""
        return self.inner.last_failure

    async def delete(self, keys: Sequence[str], *, kind: Kind) -> None:
        """See ObjectStore."""
        await self.inner.delete([self._prefix + key for key in keys], kind=kind)

    async def copy(self, source: str, target: str, *, kind: Kind) -> None:
        """See ObjectStore."""
        await self.inner.copy(self._prefix + source, self._prefix + target, kind=kind)

    async def close(self) -> None:
        """See ObjectStore."""
        await self.inner.close()


def open_store(
    settings: Settings,
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Sleep = asyncio.sleep,
    wall: Callable[[], float] = time.time,
    rng: random.Random | None = None,
    log: Any = None,
    driver: Driver | None = None,
    wrap: Callable[[Driver], Driver] | None = None,
) -> OpenStore:
    """Open the bucket of settings.url; sends no request.

    clock, sleep: time of deadlines, pauses and statistics; wall: unix time. rng: jitter
    and temporary names. driver: is used instead of the url's, so that several stores
    share a memory bucket. wrap: puts faults around the driver. Raises: ConfigError.
    """
    if settings.conditional_put not in ("on", "off"):
        raise ConfigError(f'storage.conditional_put = "{settings.conditional_put}"; allowed: "on", "off"')
    if settings.addressing not in ("auto", "path", "virtual"):
        raise ConfigError(f'storage.addressing = "{settings.addressing}"; allowed: "auto", "path", "virtual"')
    if not settings.deadline_s > 0:
        raise ConfigError(f"storage.deadline = {settings.deadline_s}; allowed: more than 0 s")
    if settings.connections_max < 1:
        raise ConfigError(f"storage.connections_max = {settings.connections_max}; allowed: 1 or more")
    rng = rng if rng is not None else random.SystemRandom()
    log = log if log is not None else structlog.get_logger("obox.objectstore")
    opened, prefix = _driver(settings, rng, wall)
    base = driver if driver is not None else opened
    stats = Stats()
    counted = Counted(wrap(base) if wrap else base, stats, clock=clock, slow_s=settings.slow_s, log=log)
    retrying = Retrying(counted, deadline_s=settings.deadline_s, clock=clock, sleep=sleep, rng=rng, log=log)
    return OpenStore(retrying, prefix=prefix, stats=stats, driver=counted, settings=settings, clock=clock)


def _driver(settings: Settings, rng: random.Random, wall: Callable[[], float]) -> tuple[Driver, str]:
    """Return the driver of settings.url and the key prefix in it."""
    url = settings.url
    try:
        parts = urlsplit(url)
    except ValueError:
        raise _bad_url(url) from None
    if parts.query or parts.fragment:
        raise _bad_url(url)
    prefix = parts.path.strip("/")
    if "//" in prefix or any(element in (".", "..") for element in prefix.split("/")):
        raise _bad_url(url)
    match parts.scheme:
        case "memory" if not prefix and not parts.netloc:
            from obox.objectstore._memory import MemoryDriver

            return MemoryDriver(wall=wall), ""
        case "file" if parts.netloc in ("", "localhost") and prefix:
            return FileDriver(os.path.normpath(unquote(parts.path)), rng=rng, wall=wall), ""
        case "s3" | "gs" | "az" if parts.netloc:
            try:
                return _cloud(settings, parts.scheme, parts.netloc), f"{prefix}/" if prefix else ""
            except BaseError as error:
                reason = str(error).split("\n", 1)[0]
                raise ConfigError(f'storage.url = "{url}": {reason}; allowed: {_URLS}') from None
    raise _bad_url(url)


def _bad_url(url: str) -> ConfigError:
    return ConfigError(f'storage.url = "{url}"; allowed: {_URLS}')


def _cloud(settings: Settings, scheme: str, bucket: str) -> Driver:
    from obstore.store import AzureStore, GCSStore, S3Store

    from obox.objectstore._cloud import (
        CloudDriver,
        boto3_client,
        boto3_credentials,
        boto3_region,
        fixed_credentials,
    )
    from obox.objectstore._endpoint import endpoint_of, with_bucket
    from obox.objectstore._exact import ExactKeys

    endpoint = endpoint_of(settings.endpoint_url) if scheme == "s3" else ""
    if bool(settings.access_key_id) != bool(settings.secret_access_key):
        raise ConfigError("storage.access_key_id and storage.secret_access_key; allowed: both or none")
    options: Any = {
        "allow_http": endpoint.startswith("http://"),
        "connect_timeout": timedelta(seconds=min(settings.deadline_s / 2, 5.0)),
        "timeout": timedelta(seconds=settings.deadline_s),
        "pool_max_idle_per_host": str(settings.connections_max),
    }
    if settings.ca_file:
        options["root_certificate"] = _read_ca(settings.ca_file)
    no_retries: Any = {"max_retries": 0, "retry_timeout": timedelta(seconds=settings.deadline_s)}
    common: Any = {"create_only": settings.conditional_put == "on", "connections_max": settings.connections_max}
    if scheme == "gs":
        gcs = GCSStore(bucket, client_options=options, retry_config=no_retries)
        return CloudDriver(gcs, copies_create_only=True, **common)
    if scheme == "az":
        azure = AzureStore(bucket, client_options=options, retry_config=no_retries)
        return CloudDriver(azure, copies_create_only=True, **common)
    region = settings.region or boto3_region() or "us-east-1"
    virtual = settings.addressing == "virtual" or (settings.addressing == "auto" and not endpoint)
    config: Any = {
        "region": region,
        "virtual_hosted_style_request": virtual,
        "copy_if_not_exists": "header-with-status:if-none-match:*:412",
        "conditional_put": "etag",
    }
    if endpoint:
        # obstore does not add the bucket's name to a host
        config["endpoint"] = with_bucket(endpoint, bucket) if virtual else endpoint
    if settings.access_key_id:
        config["credential_provider"] = fixed_credentials(settings.access_key_id, settings.secret_access_key)
    else:
        config["credential_provider"] = boto3_credentials()
    s3 = S3Store(bucket, client_options=options, retry_config=no_retries, **config)
    same: dict[str, str] = {
        "endpoint_url": endpoint,
        "region": region,
        "access_key_id": settings.access_key_id,
        "secret_access_key": settings.secret_access_key,
        "ca_file": settings.ca_file,
    }
    style: Literal["path", "virtual"] = "virtual" if virtual else "path"
    exact = ExactKeys(bucket, lambda: boto3_client(same, addressing=style, deadline_s=settings.deadline_s))
    return CloudDriver(s3, copies_create_only=False, exact=exact, **common)


def _read_ca(path: str) -> bytes:
    """Raises: ConfigError."""
    try:
        ssl.create_default_context(cafile=path)
        return Path(path).read_bytes()
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigError(f'storage.ca_file = "{path}": {reason}; allowed: a file of PEM certificates') from None
