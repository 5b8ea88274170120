"""Calls of the admin API between members: which callers are trusted, and which calls
are refused."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from certificates import certificate
from members import SECRET, FakeRouter, Rows, until
from structlog.testing import capture_logs

from obox.auth import Authenticator, Forward, LinkRefused, LinkSender, PasswdFile, Penalties
from obox.cluster import Assigned, There
from obox.config import Listen
from obox.net import Via
from obox.proxy import Forwarder, calls
from obox.server.http import HttpServer, application

BODY = b'{"command":"who"}'


class Place:
    """A member with [http]. It records the calls that it has run, and has a port
    without and a port with TLS."""

    def __init__(self, stack: AsyncExitStack, path: Path, certs: tuple[Path, Path]) -> None:
        self.ran: list[tuple[bytes, str]] = []
        self.certs, self._stack, self._path = certs, stack, path
        self.forwarder = self.member("b2")
        self.port = self.tls_port = 0

    def member(self, name: str, *secrets: bytes) -> Forwarder:
        users = PasswdFile(self._path / "users", "")
        authenticator = Authenticator(users, penalties=Penalties((0.0, 0.0)))
        self._stack.callback(authenticator.close)
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(self.certs[0].read_text())).digest()
        router = FakeRouter(Rows(), name)
        return Forwarder(router, secrets or (SECRET,), authenticator, member=name, certificate=lambda: digest)

    async def serve(self, body: bytes, forward: Forward) -> AsyncIterator[bytes]:
        self.ran.append((body, forward.member))
        for number in range(3):
            yield b'{"row":%d}\n' % number

    def routes(self) -> list[Any]:
        return [calls.route(self.forwarder, self.serve)]

    async def listen(self, via: Via | None = None) -> None:
        server = HttpServer(application(routes=self.routes()))
        self._stack.push_async_callback(server.close)
        loop = asyncio.get_running_loop()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self.certs)
        made = lambda: server.factory(Listen(host="127.0.0.1", port=1), via)  # noqa: E731 - a short name
        clear = await loop.create_server(made, "127.0.0.1", 0)
        secure = await loop.create_server(made, "127.0.0.1", 0, ssl=context)
        self.port, self.tls_port = (one.sockets[0].getsockname()[1] for one in (clear, secure))
        for one in (clear, secure):
            self._stack.callback(one.close)

    def there(self, name: str = "b2", **ports: int) -> There:
        return There(name, "127.0.0.1", ports or {"http": self.port}, Assigned(name, 1, 1))


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    (tmp_path / "users").write_text("")
    async with AsyncExitStack() as stack:
        made = Place(stack, tmp_path, certificate(tmp_path / "tls"))
        await made.listen()
        yield made


async def lines(place: Place, sender: Forwarder, there: There | None = None) -> list[bytes]:
    return [line async for line in calls.call(sender, there or place.there(), BODY)]


@pytest.mark.parametrize("tls", [False, True])
async def test_a_member_is_believed(place: Place, tls: bool) -> None:
    there = place.there(**({"https": place.tls_port} if tls else {"http": place.port}))
    assert await lines(place, place.member("b1"), there) == [b'{"row":0}', b'{"row":1}', b'{"row":2}']
    assert place.ran == [(BODY, "b1")]


async def test_another_secret_is_refused_on_both_sides(place: Place) -> None:
    with pytest.raises(LinkRefused):
        await lines(place, place.member("b1", b"another secret"))
    assert place.ran == []


async def test_a_call_for_another_backend_is_refused(place: Place) -> None:
    """The call is for a backend whose address another backend has by now."""
    with pytest.raises(ConnectionRefusedError, match="403"):
        await lines(place, place.member("b1"), place.there("b3", http=place.port))
    assert place.ran == []


async def test_nothing_is_there_without_a_secret(place: Place) -> None:
    place.forwarder.secrets = ()
    with pytest.raises(ConnectionRefusedError, match="secret_file"):
        await lines(place, place.member("b1"))


async def test_a_proxy_in_front_is_no_member(tmp_path: Path) -> None:
    """The caller is behind an HTTP proxy. The address of that proxy does not show that
    the caller is a member."""
    (tmp_path / "users").write_text("")
    async with AsyncExitStack() as stack:
        place = Place(stack, tmp_path, certificate(tmp_path / "tls"))
        await place.listen(Via(client=("127.0.0.1", 1), local=("127.0.0.1", 2)))
        with pytest.raises(ConnectionRefusedError, match="403"):
            await lines(place, place.member("b1"))
        assert place.ran == []


# -- an attacker -----------------------------------------------------------------------------------------------------


class Attacker:
    """An attacker who writes requests by hand on a single connection."""

    def __init__(self, place: Place) -> None:
        self.place = place

    async def open(self) -> None:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.place.port)

    async def send(self, message: bytes, body: bytes = b"", path: str = calls.PATH) -> tuple[int, dict[str, str]]:
        self.writer.write(
            b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nAuthorization: X-OBOX-LINK %b\r\n\r\n%b"
            % (path.encode(), len(body), message, body)
        )
        status, headers = await calls.head(self.reader)
        async for _ in calls.lines(self.reader, headers):
            pass
        return status, headers

    async def proved(self, body: bytes, *, secret: bytes = SECRET, listener: str = "admin") -> bytes:
        """Run an exchange up to its last message, which proves the body. Return that
        message."""
        forward = Forward("", "", "", listener=listener, member="b1", backend="b2",
                          digest=calls.digest("POST", calls.PATH, body))  # fmt: skip
        sender = LinkSender(secret, forward, nonce=bytes(32), binding=b"")
        status, headers = await self.send(sender.first())
        assert status == 401
        return sender.answer(headers["www-authenticate"].partition(" ")[2].encode())


async def _replayed(attacker: Attacker) -> int:
    """Send the messages of a correct call again, on the same connection."""
    last = await attacker.proved(BODY)
    assert (await attacker.send(last, BODY))[0] == 200
    return (await attacker.send(last, BODY))[0]


async def _replayed_elsewhere(attacker: Attacker) -> int:
    """Send the last message of a correct call after the first message of another
    call."""
    last = await attacker.proved(BODY)
    assert (await attacker.send(last, BODY))[0] == 200
    await attacker.open()
    await attacker.proved(BODY)
    return (await attacker.send(last, BODY))[0]


async def _changed(attacker: Attacker) -> int:
    """Send another body after a correct proof."""
    return (await attacker.send(await attacker.proved(BODY), b'{"command":"stop"}'))[0]


async def _of_mail(attacker: Attacker) -> int:
    """Send a proof that was made for a mail session."""
    return (await attacker.send(await attacker.proved(BODY, listener="imap"), BODY))[0]


async def _forged(attacker: Attacker) -> int:
    """Send a proof that was made without the secret."""
    forward = b"x" * 40
    await attacker.proved(BODY)
    return (await attacker.send(base64.b64encode(bytes(32) + forward), BODY))[0]


async def _rubbish(attacker: Attacker) -> int:
    return (await attacker.send(b"!!!", BODY))[0]


@pytest.mark.parametrize("attack", [_replayed, _replayed_elsewhere, _changed, _of_mail, _forged, _rubbish])
async def test_a_forged_or_repeated_call_is_refused_and_logged(
    place: Place, attack: Callable[[Attacker], AsyncIterator[int]]
) -> None:
    attacker = Attacker(place)
    await attacker.open()
    with capture_logs() as logs:
        assert await attack(attacker) == 403
    (line,) = (line for line in logs if line["event"] == "trusted link refused")
    assert (line["remote"], line["listener"]) == ("127.0.0.1", "admin")
    assert [body for body, _ in place.ran] in ([], [BODY]), "the good call alone has run"
    attacker.writer.close()


async def test_an_operator_who_goes_away_ends_the_call(place: Place) -> None:
    ended = asyncio.Event()

    async def endless(body: bytes, forward: Forward) -> AsyncIterator[bytes]:
        try:
            while True:
                yield b'{"row":1}\n'
                await asyncio.sleep(0)
        finally:
            ended.set()

    place.serve = endless
    await place.listen()
    answer = calls.call(place.member("b1"), place.there(), BODY)
    assert await anext(answer) == b'{"row":1}'
    await answer.aclose()
    await until(ended.is_set)
