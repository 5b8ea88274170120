"""A fourth protocol with a login, made of a driver, a session and a server: everything
else is in `obox.login`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest
from net.drivers import Transport
from patience import PATIENT_S
from structlog.testing import capture_logs

from obox import login
from obox.auth import SaslError
from obox.errors import OboxError
from obox.login.context import NoCounters
from obox.net import Flow, Why
from obox.store.memory import MemoryStore
from tests.imap.harness import Passwords

ELSEWHERE = "192.0.2.7"
"""Passwords need TLS from there."""
ANNA = b"AGFubmEAc2VjcmV0"
"""SASL PLAIN of anna and her password."""


FLOW = Flow(address_connections_max=2)


@dataclass(frozen=True)
class Settings:
    flow: Flow = FLOW
    user_sessions_max: int = 1
    bad_commands_max: int = 3
    bad_logins_max: int = 2
    login_timeout_s: float = 60.0
    plaintext_login: bool = False


class Session(login.Session[Settings]):
    def greeting(self) -> bytes:
        return b"hello\n"

    def shown(self) -> tuple[str, str]:
        return ("served" if self.user is not None else "new", "")

    def end(self, reason: str) -> None:
        self.out.ended = reason
        self.write(f"bye {reason}\n".encode())
        self.out.close()

    async def leave_user(self, reason: str) -> None:
        user, self.user = self.user, None
        assert user is not None
        await user.release()
        self.context.log.info("lines logout", user=self.user_name, reason=reason)

    async def answer(self, line: bytes) -> None:
        """Answer a line of the client."""
        word, *rest = line.split()
        try:
            if self.sasl is not None:
                found: Any = await self.respond(line)
            elif word == b"login":
                self.need_tls()
                found = await self.by_password(login.decoded(rest[0]), login.decoded(rest[1]))
            elif word == b"sasl":
                found = await self.authenticate(rest[0].decode(), rest[1] if rest[1:] else None)
            else:
                self.write(b"bad\n")
                self.count("", "BAD", bad=True)
                return
        except (OboxError, SaslError) as error:
            self.write(f"no {type(error).__name__}\n".encode())
            self.count("login", "NO", bad=False)
            self.count_failed_login()
            return
        entered = isinstance(found, login.Entered)
        self.write(b"ok\n" if entered else b"+\n")
        self.count("login", "OK", bad=False)


class Connection(login.Connection[Settings]):
    session: Session

    def __init__(self, context: login.Context[Settings], *, tls: bool, remote: str | None) -> None:
        super().__init__(context, tls=tls, remote=remote)
        self.buffer = bytearray()
        self.session = Session(context, self)

    def received(self, data: bytes) -> bool:
        self.buffer += data
        return True

    def discard_input(self) -> None:
        self.buffer.clear()

    def take_input(self) -> bytes:
        rest = bytes(self.buffer)
        self.buffer.clear()
        return rest

    async def work(self) -> None:
        while not self.must_stop and (end := self.buffer.find(b"\n")) >= 0:
            line = bytes(self.buffer[:end])
            del self.buffer[: end + 1]
            await self.session.answer(line)

    def last_words(self, why: Why, text: str) -> bytes:
        return f"bye {why.value}\n".encode()

    def logged_in(self) -> None:
        self.arm(3600.0)

    def user_timer_due(self, quiet_s: float) -> float | None:
        return 3600.0


class LineServer(login.Server[Settings]):
    listener = "lines"
    settings_type = Settings
    context_type = login.Context

    def connection_factory(self, *, tls: bool = False, remote: str | None = None) -> Connection:
        return Connection(self.context, tls=tls, remote=remote)


class Counted(NoCounters):
    """Counters that keep the results of logins."""

    def __init__(self) -> None:
        self.logins: list[str] = []
        self.sessions = 0

    def session(self, change: int) -> None:
        self.sessions += change

    def login(self, result: str) -> None:
        self.logins.append(result)


class Client:
    """A client without a socket."""

    def __init__(self, server: LineServer, remote: str = "127.0.0.1", *, tls: bool = False) -> None:
        self.connection = server.connection_factory(tls=tls, remote=remote)
        self.transport = Transport(remote).connect(self.connection)

    async def says(self, *lines: bytes) -> bytes:
        """Send lines. Return what has been answered to all of them."""
        before = len(self.transport.output)
        self.transport.client_sends(b"".join(line + b"\n" for line in lines))
        await self.rests()
        return self.transport.output[before:]

    async def rests(self) -> None:
        """Return when no task of the connection is left."""
        async with asyncio.timeout(PATIENT_S):
            while self.connection.hub.tasks:
                await asyncio.wait(tuple(self.connection.hub.tasks))

    async def leaves(self) -> None:
        self.transport.client_leaves()
        await self.rests()


@pytest.fixture
def counted() -> Counted:
    return Counted()


@pytest.fixture
def server(counted: Counted) -> LineServer:
    return LineServer(MemoryStore(), Passwords(), counters=counted)


async def test_a_login_and_its_end(server: LineServer, counted: Counted) -> None:
    with capture_logs() as logs:
        client = Client(server)
        assert client.transport.output == b"hello\n"
        assert await client.says(b"login anna wrong") == b"no AuthFailed\n"
        assert await client.says(b"login anna secret") == b"ok\n"
        (who,) = server.who()
        assert (who.user, who.service, who.state, who.idle) == ("anna", "lines", "served", True)
        second = Client(server)
        assert await second.says(b"login anna secret") == b"no Limit\n", "user_sessions_max"
        await second.leaves()
        await client.leaves()
    assert counted.logins == ["failed", "ok", "unavailable"]
    assert counted.sessions == 0
    assert [line["event"] for line in logs] == ["lines login", "lines disconnect", "lines logout"]
    assert len(server.hub.registry) == 0
    third = Client(server)
    assert await third.says(b"login anna secret") == b"ok\n", "the session is no longer counted"
    await third.leaves()


async def test_passwords_need_tls(server: LineServer) -> None:
    for tls, answer in ((False, b"no NeedsTls\n"), (True, b"ok\n")):
        for line in (b"login anna secret", b"sasl PLAIN " + ANNA):
            client = Client(server, ELSEWHERE, tls=tls)
            assert await client.says(line) == answer
            await client.leaves()


async def test_the_steps_of_sasl(server: LineServer) -> None:
    client = Client(server)
    assert await client.says(b"sasl PLAIN", ANNA) == b"+\nok\n"
    await client.leaves()
    for lines in ((b"sasl PLAIN", b"*"), (b"sasl OTHER",), (b"sasl LOGIN", b"=")):
        client = Client(server)
        assert (await client.says(*lines)).endswith((b"no SaslError\n", b"no SaslCancelled\n"))
        assert client.connection.session.sasl is None
        assert await client.says(b"login anna secret") == b"ok\n"
        await client.leaves()


async def test_a_client_that_guesses_or_speaks_another_protocol_is_disconnected(server: LineServer) -> None:
    client = Client(server)
    answer = await client.says(*[b"login anna wrong"] * 3)
    assert answer == b"no AuthFailed\nno AuthFailed\nbye Too many failed logins\n"
    await client.leaves()
    client = Client(server)
    assert await client.says(b"GET /", b"GET /", b"login anna secret", b"GET /", b"GET /", b"GET /", b"GET /") == (
        b"bad\nbad\nok\nbad\nbad\nbad\nbye Too many bad commands\n"
    )
    await client.leaves()


async def test_a_client_that_does_not_log_in_is_closed_with_a_reason(server: LineServer) -> None:
    client = Client(server)
    assert client.connection.timer_due(60.0) is None
    assert client.transport.output == b"hello\nbye timeout\n"
    assert client.connection.ended == "login timeout"
    await client.leaves()
    client = Client(server)
    await client.says(b"login anna secret")
    assert client.connection.timer_due(60.0) == 3600.0, "the driver decides after the login"
    await client.leaves()


async def test_clients_beyond_a_limit_are_refused_and_logged(server: LineServer) -> None:
    with capture_logs() as logs:
        clients = [Client(server, ELSEWHERE) for _ in range(3)]
    assert [one.transport.output for one in clients] == [b"hello\n", b"hello\n", b"bye limit\n"]
    (line,) = logs
    assert (line["event"], line["remote"]) == ("lines connection refused", ELSEWHERE)
    for one in clients:
        await one.leaves()


async def test_settings_change_for_connections_that_begin_later(server: LineServer) -> None:
    before = Client(server, ELSEWHERE)
    open_to_all = Settings(plaintext_login=True)
    server.use(open_to_all, lambda remote: open_to_all)
    after = Client(server, ELSEWHERE)
    assert await before.says(b"login anna secret") == b"no NeedsTls\n"
    assert await after.says(b"login anna secret") == b"ok\n"
    await before.leaves()
    await after.leaves()


async def test_a_stop_ends_all_sessions(server: LineServer) -> None:
    client = Client(server)
    await server.stop(grace_s=0.0)
    assert client.transport.output == b"hello\nbye stopped\n"
    assert client.transport.closed
