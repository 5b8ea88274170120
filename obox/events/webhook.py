"""Webhooks: POSTs of JSON, signed with HMAC-SHA256.

The receiver answers 2xx once it has taken the event. Any other answer, and no answer,
counts as a failure. The events of a mailbox come in order: the next is sent after the
answer. The signature covers time and body, so that the receiver can refuse what is old:

    X-Obox-Timestamp: unix seconds
    X-Obox-Signature: sha256=<hex of HMAC-SHA256(secret, timestamp "." body)>

Threads of their own make the requests, so that a receiver that hangs holds no thread
that mail needs.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from http.client import HTTPConnection, HTTPSConnection
from typing import Any, Final
from urllib.parse import urlsplit

import msgspec

from .event import Event

ANSWER_S: Final = 10.0
"""Time for a connection, and for each answer of the receiver."""

ANSWER_BYTES_MAX: Final = 4096
"""Bytes of an answer that are read. Only its status counts."""


class Refused(Exception):
    """The receiver did not answer 2xx."""


class Poster:
    """Sends signed requests to a URL."""

    def __init__(self, url: str, secret: bytes, threads: Executor, now: Callable[[], float]) -> None:
        """secret: empty for requests without a signature."""
        self._url, self._secret, self._threads, self._now = urlsplit(url), secret, threads, now

    async def post(self, body: Mapping[str, Any]) -> None:
        """Send a body. Raises Refused, OSError, HTTPException."""
        await asyncio.get_running_loop().run_in_executor(self._threads, self._post, msgspec.json.encode(body))

    def _post(self, body: bytes) -> None:
        url, stamp = self._url, str(int(self._now()))
        headers = {"Content-Type": "application/json", "X-Obox-Timestamp": stamp}
        if self._secret:
            headers["X-Obox-Signature"] = sign(self._secret, stamp, body)
        connection = self._connection(url.scheme, url.hostname or "", url.port)
        try:
            path = (url.path or "/") + (f"?{url.query}" if url.query else "")
            connection.request("POST", path, body, headers)
            answer = connection.getresponse()
            answer.read(ANSWER_BYTES_MAX)
            if not 200 <= answer.status < 300:
                raise Refused(f"answer {answer.status}")
        finally:
            connection.close()

    def _connection(self, scheme: str, host: str, port: int | None) -> HTTPConnection:
        if scheme == "https":
            return HTTPSConnection(host, port, timeout=ANSWER_S, context=ssl.create_default_context())
        return HTTPConnection(host, port, timeout=ANSWER_S)


def sign(secret: bytes, stamp: str, body: bytes) -> str:
    """Return the signature of a request."""
    return "sha256=" + hmac.new(secret, stamp.encode() + b"." + body, hashlib.sha256).hexdigest()


class Webhook:
    """The listener of the group `webhook`: new mails."""

    def __init__(self, poster: Poster) -> None:
        self._poster = poster

    async def handle(self, event: Event) -> None:
        """Send an event of new mails. Raises as `Poster.post`."""
        if event.kind == "Added":
            await self._poster.post({"id": event.identity, **msgspec.to_builtins(event)})
