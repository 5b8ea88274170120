"""Logins and deliveries wait while a backend restarts or is taken over: a short delay,
and nothing refused."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from members import ADDRESS, ATTEMPTS, Cluster, Member, cluster, until

from obox.cluster import Assigned
from obox.cluster import Member as MemberRow
from obox.errors import Elsewhere, Unavailable
from obox.lmtp import Envelope, Recipient, Settings
from obox.membership import greets
from obox.proxy import moves as moves_module
from obox.proxy import waiting as waiting_module
from obox.proxy.waiting import FIRST_S

MAIL = b"Subject: a mail\r\n\r\nbody\r\n"


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Member, Member, Member]]:
    """A proxy, and the backends b1 and b2; anna is of b1, ben and carl of b2."""
    async with cluster(tmp_path) as made:
        made.rows.own("anna", "b1")
        made.rows.own("ben", "b2")
        made.rows.own("carl", "b2")
        yield made, await made.member("p1", proxy=True), await made.member("b1"), await made.member("b2")


def taken_over(made: Cluster, by: str, *members: Member, user: str = "ben", released: bool = False) -> None:
    """The members learn from the directory that a user has another backend."""
    before = made.rows.owners[user]
    made.rows.owners[user] = Assigned(by, before.number + 1, 7, released=released)
    for member in members:
        member.router.read[user] = made.rows.owners[user]
        member.forwarder.moves.look()


class Suspended:
    """A backend that takes connections and answers nothing; after the end of a mail if
    `says` is given: what it answers before."""

    def __init__(self) -> None:
        self.connections: list[asyncio.StreamWriter] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections.append(writer)
        await reader.read()
        writer.close()


async def suspended(made: Cluster, name: str) -> Suspended:
    found = Suspended()
    server = await asyncio.start_server(found.serve, ADDRESS, 0)
    made.stack.callback(server.close)
    port = server.sockets[0].getsockname()[1]
    made.rows.places[name] = (ADDRESS, {"imap": port, "lmtp": port})
    return found


# -- logins --------------------------------------------------------------------------------------------------------


async def test_a_login_waits_until_a_backend_has_started_again(two: tuple[Cluster, Member, Member, Member]) -> None:
    """A restart takes longer than the first attempts."""
    _, proxy, _, b2 = two
    b2.silent()
    client = await proxy.client()
    client.send(b"a LOGIN ben secret\r\n")
    await until(lambda: len(proxy.counts.results) > len(FIRST_S) + 1)
    assert proxy.forwarder.waiting.count == 1
    await b2.listen()
    assert (await client.line()).startswith(b"a OK")
    assert proxy.forwarder.waiting.count == 0


async def test_a_login_waits_for_the_replacement_of_a_dead_backend(two: tuple[Cluster, Member, Member, Member]) -> None:
    """The pause before the next attempt ends when the directory names it."""
    made, proxy, b1, b2 = two
    b2.silent()
    proxy.forwarder.waiting.sleep = lambda _: asyncio.Event().wait()
    client = await proxy.client()
    client.send(b"a LOGIN ben secret\r\n")
    await until(lambda: len(proxy.forwarder.moves) == 1 and len(proxy.counts.results) == 1)
    taken_over(made, "b1", proxy, b1)
    assert (await client.line()).startswith(b"a OK")
    assert [who.user for who in b1.imap.who()] == ["ben"]
    taken_over(made, "b2", b2)
    await b2.listen()


async def test_a_login_at_a_suspended_backend_goes_to_its_replacement(
    two: tuple[Cluster, Member, Member, Member],
) -> None:
    """It has taken the connection, and would be waited for until LOGIN_S."""
    made, proxy, b1, _ = two
    place = made.rows.places["b2"]
    hung = await suspended(made, "b2")
    client = await proxy.client()
    client.send(b"a LOGIN ben secret\r\n")
    await until(lambda: hung.connections)
    taken_over(made, "b1", proxy, b1)
    assert (await client.line()).startswith(b"a OK")
    assert [who.user for who in b1.imap.who()] == ["ben"]
    assert proxy.counts.results == [("imap", "unavailable"), ("imap", "ok")]
    made.rows.places["b2"] = place


async def test_a_login_waits_until_somebody_serves_the_user(two: tuple[Cluster, Member, Member, Member]) -> None:
    """Groups have no owner in the first seconds of a new cluster."""
    _, proxy, _, _ = two
    proxy.router.down = True
    slept: list[float] = []

    async def sleep(delay_s: float) -> None:
        slept.append(delay_s)
        proxy.router.down = len(slept) < 6

    proxy.forwarder.waiting.sleep = sleep
    await proxy.client(login="ben")
    assert len(slept) == 6


async def test_who_waits_is_limited(
    two: tuple[Cluster, Member, Member, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more is refused after the first attempts, as long as one waits."""
    monkeypatch.setattr(waiting_module, "WAITING_MAX", 1)
    _, proxy, _, b2 = two
    b2.silent()
    gate = asyncio.Event()
    soon = proxy.forwarder.waiting.sleep

    async def sleep(delay_s: float) -> None:
        await (soon(delay_s) if delay_s in FIRST_S[:2] or not proxy.forwarder.waiting.count else gate.wait())

    proxy.forwarder.waiting.sleep = sleep
    first, second = await proxy.client(), await proxy.client()
    first.send(b"a LOGIN ben secret\r\n")
    await until(lambda: proxy.forwarder.waiting.count == 1)
    before = len(proxy.counts.results)
    monkeypatch.setattr(waiting_module, "FIRST_S", FIRST_S[:2])
    assert (await second.cmd("LOGIN ben secret"))[-1].startswith(b"NO [UNAVAILABLE]")
    assert len(proxy.counts.results) - before == 3
    await b2.listen()
    gate.set()
    assert (await first.line()).startswith(b"a OK")


async def test_a_client_that_leaves_waits_no_more(two: tuple[Cluster, Member, Member, Member]) -> None:
    _, proxy, _, b2 = two
    b2.silent()
    proxy.forwarder.waiting.sleep = lambda _: asyncio.Event().wait()
    client = await proxy.client()
    client.send(b"a LOGIN ben secret\r\n")
    await until(lambda: len(proxy.forwarder.moves) == 1)
    sock = client.writer.get_extra_info("socket")
    # The connection is reset, and does not end in order.
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.writer.transport.abort()
    await until(lambda: not len(proxy.hub.registry) and not proxy.forwarder.moves)
    await b2.listen()


async def test_what_a_backend_refuses_is_not_tried_again(two: tuple[Cluster, Member, Member, Member]) -> None:
    """It answers, so it has waited itself."""
    _, proxy, _, b2 = two

    async def fails(account: object) -> object:
        raise Unavailable("the bucket does not answer")

    b2.imap.context.open_user = fails
    client = await proxy.client()
    assert (await client.cmd("LOGIN ben secret"))[-1].startswith(b"NO [UNAVAILABLE]")
    assert proxy.counts.results == [("imap", "unavailable")]


# -- deliveries ----------------------------------------------------------------------------------------------------


async def test_a_mail_waits_until_a_backend_has_started_again(two: tuple[Cluster, Member, Member, Member]) -> None:
    _, proxy, _, b2 = two
    b2.silent()
    delivery = asyncio.ensure_future(proxy.deliver(MAIL, "ben", "carl"))
    await until(lambda: len(proxy.counts.results) > len(FIRST_S) + 1)
    await b2.listen()
    assert [reply[:3] for reply in await delivery] == ["250", "250"]
    assert len(await b2.mails("ben")) == 1


async def test_a_mail_for_a_suspended_backend_goes_to_its_replacement(
    two: tuple[Cluster, Member, Member, Member],
) -> None:
    made, proxy, b1, _ = two
    place = made.rows.places["b2"]
    hung = await suspended(made, "b2")
    delivery = asyncio.ensure_future(proxy.deliver(MAIL, "ben"))
    await until(lambda: hung.connections)
    taken_over(made, "b1", proxy, b1)
    assert [reply[:3] for reply in await delivery] == ["250"]
    assert len(await b1.mails("ben")) == 1
    made.rows.places["b2"] = place


async def stuck(member: Member) -> tuple[asyncio.Event, asyncio.Event]:
    """Deliveries at a backend do not end: set when one has begun; lets them go on."""
    begun, gate = asyncio.Event(), asyncio.Event()
    deliver = member.lmtp.deliverer.deliver

    async def wait(recipient: Recipient, envelope: Envelope, source: bytes) -> None:
        begun.set()
        await gate.wait()
        await deliver(recipient, envelope, source)

    member.lmtp.deliverer.deliver = wait
    return begun, gate


async def test_after_its_end_a_mail_at_a_dead_backend_is_temporary_at_once(
    two: tuple[Cluster, Member, Member, Member],
) -> None:
    """It may have been taken, so no other backend is tried; but nobody waits for the
    reply until the end of the delivery's time."""
    made, proxy, b1, b2 = two
    begun, gate = await stuck(b2)
    delivery = asyncio.ensure_future(proxy.deliver(MAIL, "ben"))
    await asyncio.wait_for(begun.wait(), 20)
    taken_over(made, "b1", proxy, b1)
    assert [reply[:9] for reply in await delivery] == ["451 4.3.0"]
    assert await b1.mails("ben") == []
    gate.set()


async def test_after_its_end_a_mail_at_a_backend_that_released_the_user_has_its_reply(
    two: tuple[Cluster, Member, Member, Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it wrote the row the backend has taken the mail; the reply is on its
    way."""
    monkeypatch.setattr(moves_module, "MOVED_S", 3600.0)
    made, proxy, b1, b2 = two
    begun, gate = await stuck(b2)
    delivery = asyncio.ensure_future(proxy.deliver(MAIL, "ben"))
    await asyncio.wait_for(begun.wait(), 20)
    taken_over(made, "b1", proxy, b1, released=True)
    await asyncio.sleep(0.01)
    gate.set()
    assert [reply[:3] for reply in await delivery] == ["250"]


async def test_each_backend_has_its_own_deadline(two: tuple[Cluster, Member, Member, Member]) -> None:
    """A backend that never replies costs its own recipients alone."""
    made, _, _, b2 = two
    _, gate = await stuck(b2)
    proxy = await made.member("p2", proxy=True, lmtp_settings=Settings(delivery_timeout_s=2.0))
    replies = await proxy.deliver(MAIL, "anna", "ben")
    assert [reply[:9] for reply in replies] == ["250 2.0.0", "451 4.3.0"]
    assert proxy.counts.results == [("lmtp", "ok"), ("lmtp", "unavailable")]
    gate.set()


async def hands_over(made: Cluster, member: Member, user: str, to: str) -> None:
    """The user is handed over between RCPT and the delivery at this member."""
    deliver = member.lmtp.deliverer.deliver

    async def moved(recipient: Recipient, envelope: Envelope, source: bytes) -> None:
        if recipient.user != user:
            return await deliver(recipient, envelope, source)
        made.rows.own(user, to)
        member.router.read[user] = made.rows.owners[user]
        raise Elsewhere("another backend serves the user; try again")

    member.lmtp.deliverer.deliver = moved


@pytest.mark.parametrize("size", [10, 3 << 20])
async def test_a_mail_for_a_user_who_moves_after_rcpt_is_handed_on(
    two: tuple[Cluster, Member, Member, Member], size: int
) -> None:
    """The backend that took it from the client has not delivered it: nothing is
    delivered twice."""
    made, _, b1, b2 = two
    await hands_over(made, b1, "anna", "b2")
    mail = MAIL + b"x" * size
    assert [reply[:3] for reply in await b1.deliver(mail, "ben", "anna")] == ["250", "250"]
    assert [mail in one for one in await b2.mails("anna")] == [True]


async def test_a_forwarded_mail_is_not_forwarded_again(two: tuple[Cluster, Member, Member, Member]) -> None:
    made, proxy, b1, b2 = two
    await hands_over(made, b1, "anna", "b2")
    replies = await proxy.deliver(MAIL, "anna")
    assert [reply[:3] for reply in replies] == ["451"]
    assert await b2.mails("anna") == []


async def test_a_mail_for_a_user_who_becomes_ours_after_rcpt_is_delivered_here(
    two: tuple[Cluster, Member, Member, Member],
) -> None:
    made, _, b1, b2 = two
    b2.silent()
    delivery = asyncio.ensure_future(b1.deliver(MAIL, "ben", "carl"))
    await until(lambda: len(b1.counts.results) > len(FIRST_S))
    for user in ("ben", "carl"):
        taken_over(made, "b1", b1, user=user)
    assert [reply[:3] for reply in await delivery] == ["250", "250"]
    assert len(await b1.mails("ben")) == len(await b1.mails("carl")) == 1
    await b2.listen()


async def test_rcpt_of_a_user_who_is_handed_over_is_referred(two: tuple[Cluster, Member, Member, Member]) -> None:
    """It waits for the end of the hand-over, so that the mail goes to the new
    backend."""
    made, proxy, b1, b2 = two
    assert b1.store is not None
    recipient = b1.lmtp.deliverer.recipient

    async def moved(address: str, user: str, detail: str, size: int | None) -> Recipient:
        b1.lmtp.deliverer.recipient = recipient
        made.rows.own(user, "b2")
        b1.router.read[user] = made.rows.owners[user]
        raise Elsewhere("another backend serves the user; try again")

    b1.lmtp.deliverer.recipient = moved
    assert [reply[:3] for reply in await proxy.deliver(MAIL, "anna")] == ["250"]
    assert len(await b2.mails("anna")) == 1
    assert proxy.counts.results == [("lmtp", "referred"), ("lmtp", "ok")]


async def test_rcpt_asks_the_store_whether_a_user_is_handed_over(two: tuple[Cluster, Member, Member, Member]) -> None:
    _, _, b1, _ = two
    assert b1.store is not None
    asked: list[str] = []

    async def admit(sid: str) -> None:
        asked.append(sid)

    b1.store.env.owned.admit = admit
    await b1.lmtp.deliverer.recipient("anna", "anna", "", None)
    assert asked == ["anna"]


# -- the parts -----------------------------------------------------------------------------------------------------


async def test_a_look_at_many_splices_is_no_long_turn(two: tuple[Cluster, Member, Member, Member]) -> None:
    _, proxy, _, _ = two
    await proxy.router.route("ben")
    there = proxy.router.known("ben")
    moves, cut = proxy.forwarder.moves, []
    watches = [moves.watch(there, ("ben",), lambda: cut.append(1)) for _ in range(5 * moves_module.PART)]
    proxy.router.read["ben"] = Assigned("b1", 2, 1)
    moves.look()
    turns = 0
    while len(cut) < len(watches):
        before = len(cut)
        await asyncio.sleep(0)
        assert len(cut) - before <= moves_module.PART
        turns += 1
        assert turns < 20
    assert not moves


async def test_both_listeners_of_a_backend_are_greeted_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second for each, one after the other, were a second more without service."""
    monkeypatch.setattr("obox.membership.GREETING_S", 20.0)
    there: list[asyncio.StreamWriter] = []

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.append(writer)
        if len(there) == 2:
            for one in there:
                one.write(b"hello\r\n")

    servers = [await asyncio.start_server(serve, ADDRESS, 0) for _ in range(2)]
    imap, lmtp = (server.sockets[0].getsockname()[1] for server in servers)
    assert await greets(MemberRow("backend", "", ADDRESS, {"imap": imap, "lmtp": lmtp}, {}, ""))
    for server in servers:
        server.close()
    assert not await greets(MemberRow("backend", "", ADDRESS, {"imap": imap, "lmtp": lmtp}, {}, ""))


def test_attempts_end_after_the_patience() -> None:
    """The test checks what `ATTEMPTS` of the tests says."""
    at, attempts = sum(FIRST_S), 1 + len(FIRST_S)
    while at < waiting_module.PATIENCE_S:
        at, attempts = at + waiting_module.AGAIN_S, attempts + 1
    assert attempts == ATTEMPTS
