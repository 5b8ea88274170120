"""nginx as a front end: the answers that its mail module asks for (`auth_http`).

nginx sends name, password and the client's address as headers. The answer says where
the user is served. It has a token that nginx uses there as the password
(`obox.auth.token`). The answer to a wrong password is a text. All answers have status
200, as the mail module requires. A caller must know the key of [http], because it names
the client whose failures count. docs/proxy.md, "nginx".
"""

from __future__ import annotations

import asyncio
import hmac
import socket
import time
from collections.abc import Callable, Mapping
from typing import Any, Final
from urllib.parse import unquote

import structlog

from obox.addresses import parsed
from obox.auth import NO_OWNER, LinkRefused
from obox.auth.token import NONCE_BYTES, make_token
from obox.cluster import Assigned, There
from obox.errors import NoPerm, OboxError
from obox.types import StorageId

from .forward import Forwarder

log = structlog.get_logger("obox.proxy")

PATH: Final = "/nginx-auth"
KEY: Final = "x-obox-key"
"""The header that has `http.api_key`."""
WAIT_S: Final = "1"
"""After this time nginx lets a client try again. The delay of a failure came before."""
HEADERS_BYTES_MAX: Final = 2048
"""A name or a password has at most 2 KiB when it is decoded."""


class NginxAuth:
    """See the module's text. here: where this member serves its own users. all_here:
    the answer names this place for all users, because the listener of this member
    forwards a client that has a token.
    """

    def __init__(
        self,
        forwarder: Forwarder,
        key: Callable[[], str],
        here: Callable[[], tuple[str, Mapping[str, int]]],
        *,
        all_here: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._forwarder = forwarder
        self._all_here = all_here
        self._key = key
        self._here = here
        self._now = now

    def routes(self) -> list[Any]:
        """Return the routes for `obox.server.application`."""
        from starlette.requests import Request
        from starlette.responses import PlainTextResponse, Response
        from starlette.routing import Route

        async def ask(request: Request) -> Response:
            key = self._key()
            if not key or not hmac.compare_digest(request.headers.get(KEY, "").encode(), key.encode()):
                return PlainTextResponse("X-Obox-Key is not http.api_key\n", 403)
            answer = Response()
            # starlette would write Latin-1; nginx passes the bytes on
            answer.raw_headers += [
                (name.encode(), said.encode()) for name, said in (await self.answer(request.headers)).items()
            ]
            return answer

        return [Route(PATH, ask)]

    async def answer(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Return the headers of an answer. headers: those of the request, with names in
        lower case."""
        method, protocol = headers.get("auth-method", ""), headers.get("auth-protocol", "")
        if (method, protocol) != ("plain", "imap"):
            return _no("Only IMAP with a password is served")
        user, password = (unquote(headers.get(name, "")) for name in ("auth-user", "auth-pass"))
        remote = headers.get("client-ip", "")
        if parsed(remote) is None or max(len(user), len(password)) > HEADERS_BYTES_MAX:
            return _no("[UNAVAILABLE] The front end does not say who asks")
        try:
            return await self._place(user, password, remote, tls=headers.get("auth-ssl") == "on")
        except NoPerm as error:
            return {**_no(f"[AUTHENTICATIONFAILED] {error}"), "Auth-Wait": WAIT_S}
        except (OboxError, OSError, LinkRefused) as error:
            log.warning("nginx login not answered", remote=remote, error=str(error))
            return _no("[UNAVAILABLE] Temporary failure, try again later")

    async def _place(self, user: str, password: str, remote: str, *, tls: bool) -> dict[str, str]:
        forwarder = self._forwarder
        account = await forwarder.authenticator.verify(user, password, remote=remote)
        there = await self._owner(account.storage_id)
        address, ports = there.address, there.ports
        forward = forwarder.forward_of(there, account, listener="nginx", remote=remote, tls=tls)
        nonce = forwarder.random_bytes(NONCE_BYTES)
        token = make_token(forwarder.secret(), forward, now=self._now(), nonce=nonce)
        if "imap" not in ports:
            raise OSError(f"{there.backend} has no port without TLS for nginx")
        return {
            "Auth-Status": "OK",
            "Auth-Server": await _number(address),
            "Auth-Port": str(ports["imap"]),
            "Auth-User": account.name,
            "Auth-Pass": token,
        }

    async def _owner(self, sid: StorageId) -> There:
        """Return the backend that owns a user. Raises: Unavailable."""
        if self._all_here:
            me = self._forwarder.member
            address, ports = self._here()
            return There(me, address, dict(ports), Assigned(me, NO_OWNER, 0))
        route = await self._forwarder.router.route(sid)
        if isinstance(route, There):
            return route
        address, ports = self._here()
        return There(route.assigned.backend, address, dict(ports), route.assigned)


def _no(text: str) -> dict[str, str]:
    return {"Auth-Status": text.encode("ascii", "replace").decode()}


async def _number(host: str) -> str:
    """Return the IP address of a host, since nginx takes no names. Raises: OSError."""
    if parsed(host) is not None:
        return host
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return str(found[0][4][0])
