"""It runs a verb over the API of a backend, by its socket or URL. If no backend runs,
it runs the verb in this process.

Both ways give the same events in order: {"row": …}, {"progress": …}, {"failure": …},
and at the end {"end": {"exitCode": …, "message": …}}.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from obox.errors import ConfigError, NoPerm, OboxError, Temporary, Unavailable
from obox.statelock import is_locked
from obox.unixsocket import short_name

if TYPE_CHECKING:
    from obox.admin import Admin

PATH = "/doveadm/v1"
LINES = "application/x-ndjson"
CONNECT_S = 10.0

Event = Mapping[str, Any]


class NoBackend(Unavailable):
    """No process listens on the socket."""


class _OnSocket(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost")
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with short_name(self._path) as name:
                self.sock.connect(name)
        except OSError:
            self.sock.close()
            raise


class Remote:
    """A backend's API, on its unix socket or at a URL with a key."""

    def __init__(self, where: Path | str, key: str = "", backend: str = "") -> None:
        """backend: the backend of the cluster that runs the verbs; "": each verb goes
        to the backend that it is for."""
        self._where = where
        self._key = key
        self._query = f"?backend={quote(backend, safe='')}" if backend else ""

    def listens(self) -> bool:
        """Return whether a process accepts connections there. Raises NoPerm if we may
        not connect."""
        connection = self._connection()
        try:
            connection.connect()
        except PermissionError as error:
            raise NoPerm(f"{self._where}: permission denied; allowed: root and the service user") from error
        except OSError:
            return False
        finally:
            connection.close()
        return True

    def call(self, name: str, params: Mapping[str, Any]) -> Iterator[Event]:
        """Call a verb, and yield its events. Raises NoBackend, NoPerm, Unavailable,
        ConfigError (a bad URL)."""
        connection = self._connection()
        headers = {"Accept": LINES, "Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"X-Dovecot-API {base64.b64encode(self._key.encode()).decode()}"
        try:
            try:
                connection.request("POST", self._path() + self._query, json.dumps([[name, params, "oboxadm"]]), headers)
                connection.sock.settimeout(None)  # long commands have no time limit
                answer = connection.getresponse()
            except (FileNotFoundError, ConnectionRefusedError) as error:
                raise NoBackend(f"no backend listens at {self._where}") from error
            except PermissionError as error:
                raise NoPerm(f"{self._where}: permission denied; allowed: root and the service user") from error
            except (OSError, http.client.HTTPException) as error:
                raise Unavailable(f"{self._where}: {error}") from error
            self._check(answer)
            yield from self._events(answer)
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        if isinstance(self._where, Path):
            return _OnSocket(self._where)
        parts = urlsplit(self._where)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError(f'--url = "{self._where}"; allowed: http://host:port, https://host:port')
        if parts.scheme == "http":
            return http.client.HTTPConnection(parts.hostname, parts.port or 80, timeout=CONNECT_S)
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(parts.hostname, parts.port or 443, timeout=CONNECT_S, context=context)

    def _path(self) -> str:
        if isinstance(self._where, Path):
            return PATH
        path = urlsplit(self._where).path.rstrip("/")
        return path if path.endswith(PATH) else path + PATH

    def _check(self, answer: http.client.HTTPResponse) -> None:
        if answer.status == 200:
            return
        text = answer.read(500).decode("utf-8", "replace").strip()
        match answer.status:
            case 401:
                raise NoPerm(f"{self._where}: the key is not accepted; give it by --key-file or OBOXADM_API_KEY")
            case 404:
                raise NoPerm(f"{self._where}: no admin API answers there; it needs http.api_key")
            case _:
                raise Unavailable(f"{self._where}: HTTP {answer.status} {text}")

    def _events(self, answer: http.client.HTTPResponse) -> Iterator[Event]:
        ended = False
        try:
            while line := answer.readline():
                event: Event = json.loads(line)
                ended = "end" in event
                yield event
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise Temporary(f"{self._where}: the answer was cut short: {error}") from error
        if not ended:
            raise Temporary(f"{self._where}: the answer was cut short")


class Local:
    """A verb's run in this process. open_: opens the parts for the time of the run."""

    def __init__(self, open_: Callable[[], AbstractAsyncContextManager[Admin]]) -> None:
        self._open = open_

    def call(self, name: str, params: Mapping[str, Any]) -> Iterator[Event]:
        """Run a verb, and yield its events. Raises OboxError, ConfigError."""
        with asyncio.Runner() as runner:
            events = self._events(name, params)
            while True:
                try:
                    event = runner.run(_next(events))
                except StopAsyncIteration:
                    return
                if event is None:
                    return
                yield event

    async def _events(self, name: str, params: Mapping[str, Any]) -> AsyncIterator[Event]:
        from obox.admin.run import Outcome, guarded, line

        outcome = Outcome()
        async with self._open() as admin:
            async for event in guarded(admin, name, dict(params), outcome):
                yield line(event)
        yield {"end": {"exitCode": outcome.code, "message": outcome.message}}


async def _next(events: AsyncIterator[Event]) -> Event | None:
    return await anext(events, None)


@contextmanager
def state_is_free(state_dir: Path) -> Iterator[None]:
    """Hold the state directory for the time of the context. Raises Temporary if a
    process holds it but its socket does not answer.
    """
    if is_locked(state_dir):
        raise Temporary(f"a backend holds {state_dir}, but its socket does not answer; it may be starting or stopping")
    yield


__all__ = ["Event", "Local", "NoBackend", "OboxError", "Remote", "state_is_free"]
