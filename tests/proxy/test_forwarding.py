"""A client may connect to any member: two backends and a proxy, over real sockets."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from members import ADDRESS, ATTEMPTS, SECRET, Cluster, Member, cluster, until
from structlog.testing import capture_logs

from obox.auth import Forward, LinkSender
from obox.cluster import Assigned
from obox.errors import Elsewhere
from obox.imap.settings import ImapSettings

MAIL = b"Subject: a mail\r\n\r\nbody\r\n"


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Member, Member]]:
    """Backends b1 and b2. b1 serves anna; b2 serves ben."""
    async with cluster(tmp_path) as made:
        made.rows.own("anna", "b1")
        made.rows.own("ben", "b2")
        yield made, await made.member("b1", tls=True), await made.member("b2", tls=True)


async def test_a_client_may_connect_anywhere(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, b2 = two
    client = await b1.client()
    lines = await client.ok("LOGIN ben secret")
    assert lines[-1].startswith(b"OK [CAPABILITY IMAP4rev1 ")
    assert lines[-1].endswith(b"] Logged in")
    await client.append("INBOX", MAIL)
    assert await client.ok("SELECT INBOX")
    assert b2.store is not None
    assert [who.user for who in b2.imap.who()] == ["ben"]
    (at_b1,) = b1.imap.who()
    assert (at_b1.user, at_b1.state, at_b1.remote) == ("ben", "forwarded to b2", "127.0.0.1")
    direct = await b2.client(login="ben")
    assert (await direct.ok("STATUS INBOX (MESSAGES)"))[0] == b"* STATUS INBOX (MESSAGES 1)"
    await client.ok("LOGOUT")
    await until(lambda: not b1.imap.who())
    assert b1.counts.results == [("imap", "ok")]
    assert b2.counts.results == [("imap", "accepted")]
    assert b1.counts.bytes[0] > len(MAIL)


async def test_our_own_users_are_served_here(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, _ = two
    client = await b1.client(login="anna")
    await client.ok("SELECT INBOX")
    assert b1.imap.who()[0].state == "selected"
    assert b1.counts.results == []


async def test_pipelined_commands_go_on_at_the_owner(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, _ = two
    client = await b1.client()
    client.send(
        b"a LOGIN ben secret\r\nb APPEND INBOX {%d+}\r\n%b\r\nc SELECT INBOX\r\nd FETCH 1 BODY.PEEK[]\r\n"
        % (len(MAIL), MAIL)
    )
    lines = await client.until(b"d ")
    assert [line[:4] for line in lines if not line.startswith(b"*")] == [b"a OK", b"b OK", b"c OK", b"d OK"]
    assert MAIL in b"".join(lines)


async def test_authenticate_is_forwarded_like_login(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, b2 = two
    client = await b1.client()
    client.send(b"a AUTHENTICATE PLAIN\r\n")
    assert (await client.line()).startswith(b"+")
    client.send(base64.b64encode(b"\0ben\0secret") + b"\r\nb NOOP\r\n")
    assert (await client.line()).startswith(b"a OK")
    assert (await client.line()).startswith(b"b OK")
    assert [who.user for who in b2.imap.who()] == ["ben"]


async def test_tls_on_both_legs(two: tuple[Cluster, Member, Member]) -> None:
    """The client uses TLS. The member uses TLS to the owner as well, because the
    owner's address is not a local address."""
    made, b1, b2 = two
    made.rows.places["b2"] = ("localhost", {"imaps": b2.tls_port})
    client = await b1.client(tls=True, login="ben")
    await client.append("INBOX", MAIL)
    assert b1.imap.who()[0].tls
    await client.ok("LOGOUT")
    await until(lambda: not b1.imap.who() and not b2.imap.who())


async def test_a_member_on_another_machine_is_asked_for_starttls(
    two: tuple[Cluster, Member, Member], elsewhere: list[bytes]
) -> None:
    """The proof is bound to the certificate, as on a port under TLS."""
    _, b1, b2 = two
    client = await b1.client(login="ben")
    await client.append("INBOX", MAIL)
    assert elsewhere == [b2.forwarder.certificate()]


@pytest.mark.parametrize(("client_tls", "link_tls"), [(False, True), (True, False)])
async def test_the_owner_says_whether_the_client_uses_tls(
    two: tuple[Cluster, Member, Member], client_tls: bool, link_tls: bool
) -> None:
    """The link's TLS is another question."""
    made, b1, b2 = two
    if link_tls:
        made.rows.places["b2"] = ("localhost", {"imaps": b2.tls_port})
    with capture_logs() as logs:
        client = await b1.client(tls=client_tls, login="ben")
    assert [line["tls"] for line in logs if line["event"] in ("imap login", "imap forwarded")] == [client_tls] * 2
    assert [who.tls for member in (b1, b2) for who in member.imap.who()] == [client_tls] * 2
    await client.ok("LOGOUT")


async def test_a_proxy_has_no_store(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    proxy = await made.member("p1", proxy=True)
    for user, owner in (("anna", b1), ("ben", b2)):
        client = await proxy.client(login=user)
        await client.ok("SELECT INBOX")
        assert [who.user for who in owner.imap.who()] == [user]
    assert {who.user for who in proxy.imap.who()} == {"anna", "ben"}


async def test_the_owner_sees_the_client_and_not_the_proxy(two: tuple[Cluster, Member, Member]) -> None:
    made, _, b2 = two
    proxy = await made.member("p1", proxy=True)
    with capture_logs() as logs:
        await proxy.client(login="ben", address="127.0.0.77")
    assert b2.imap.who()[0].remote == "127.0.0.77"
    (line,) = (line for line in logs if line["event"] == "imap login")
    assert line["remote"] == "127.0.0.77"


async def test_users_are_limited_at_the_owner(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        b2 = await made.member("b2", settings=ImapSettings(user_sessions_max=2))
        proxies = [await made.member(f"p{n}", proxy=True) for n in range(3)]
        for proxy in proxies[:2]:
            await proxy.client(login="ben")
        client = await proxies[2].client()
        assert (await client.cmd("LOGIN ben secret"))[-1] == b"NO [LIMIT] Too many sessions of this user"
        await proxies[0].clients[0].ok("LOGOUT")
        await until(lambda: len([who for who in b2.imap.who() if who.user]) == 1)
        await client.ok("LOGIN ben secret")


async def test_addresses_are_limited_at_each_proxy(tmp_path: Path) -> None:
    """A client that was forwarded still counts at its proxy, and at no other member."""
    settings = ImapSettings(address_sessions_max=2)
    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        b2 = await made.member("b2", settings=settings)
        proxies = [await made.member(f"p{n}", proxy=True, settings=settings) for n in range(2)]
        for proxy in proxies:
            # A PROXY header names the address: those of this machine are not counted.
            server = await asyncio.get_running_loop().create_server(
                lambda imap=proxy.imap: imap.connection_factory(tls=True, remote="192.0.2.7"), ADDRESS, 0
            )
            made.stack.callback(server.close)
            proxy.port = server.sockets[0].getsockname()[1]
            for _ in range(2):
                await proxy.client(login="ben", strict=False)
            third = await asyncio.open_connection(ADDRESS, proxy.port)
            assert b"Too many connections from your address" in await third[0].readline()
            third[1].close()
            assert proxy.hub.registry.addresses == {"192.0.2.7": 2}
        assert b2.hub.registry.addresses == {}
        assert len(b2.imap.who()) == 4
        await proxies[0].clients[0].ok("LOGOUT")
        await until(lambda: proxies[0].hub.registry.addresses == {"192.0.2.7": 1})


# -- owners that are not there -----------------------------------------------------------------------------------------


async def test_an_owner_that_does_not_answer_is_no_failed_login(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, b2 = two
    b2.silent()
    client = await b1.client()
    assert (await client.cmd("LOGIN ben secret"))[-1].startswith(b"NO [UNAVAILABLE]")
    assert len(b1.router.rereads) == 1
    assert len(b1.penalties) == 0
    assert b1.counts.results == [("imap", "unavailable")] * ATTEMPTS
    await b2.listen()
    await client.ok("LOGIN ben secret")


async def test_an_owner_that_comes_back_within_seconds_is_waited_for(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, b2 = two
    b2.silent()
    asked = asyncio.Event()
    b1.forwarder.waiting.sleep = lambda _: asked.wait()
    client = await b1.client()
    client.send(b"a LOGIN ben secret\r\n")
    await until(lambda: b1.counts.results == [("imap", "unavailable")])
    await b2.listen()
    asked.set()
    assert (await client.line()).startswith(b"a OK")
    assert len(b1.router.rereads) == 1


async def test_the_replacement_of_a_dead_owner_is_found(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    proxy = await made.member("p1", proxy=True)
    await proxy.client(login="ben")
    b2.silent()
    made.rows.own("ben", "b1")
    client = await proxy.client(login="ben")
    await client.ok("SELECT INBOX")
    assert [who.user for who in b1.imap.who()] == ["ben"]
    made.rows.own("ben", "b2")
    await b2.listen()


async def test_we_may_be_the_replacement(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    await (await b1.client(login="ben")).ok("LOGOUT")
    b2.silent()
    made.rows.own("ben", "b1")
    client = await b1.client(login="ben")
    assert b1.imap.who()[-1].state == "authenticated"
    await client.ok("SELECT INBOX")


async def test_a_directory_that_does_not_answer_is_unavailable(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, _ = two
    b1.router.down = True
    client = await b1.client()
    assert (await client.cmd("LOGIN ben secret"))[-1].startswith(b"NO [UNAVAILABLE]")


# -- the wrong owner ---------------------------------------------------------------------------------------------------


async def test_a_referral_is_followed_once(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    b3 = await made.member("b3")
    # b1 has read now that b2 owns ben.
    await (await b1.client(login="ben")).ok("LOGOUT")
    made.rows.own("ben", "b3")
    b2.router.read["ben"] = made.rows.owners["ben"]
    client = await b1.client(login="ben")
    assert [who.user for who in b3.imap.who()] == ["ben"]
    assert b1.router.rereads == [("ben", made.rows.owners["ben"])]
    assert b1.counts.results[-2:] == [("imap", "referred"), ("imap", "ok")]
    await client.ok("SELECT INBOX")


async def test_a_receiver_that_knows_less_reads_the_row(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    await b2.router.route("anna")
    made.rows.own("anna", "b2")
    client = await b1.client(login="anna")
    await client.ok("SELECT INBOX")
    assert [who.user for who in b2.imap.who()] == ["anna"]
    assert len(b2.router.rereads) == 1


async def test_a_tie_is_served_and_reported_to_the_router(two: tuple[Cluster, Member, Member]) -> None:
    """The router of a backend marks the user for a merge
    (tests/cluster/test_member.py)."""
    made, b1, b2 = two
    await (await b1.client(login="ben")).ok("LOGOUT")
    assert b2.router.rereads == []
    ours = b2.router.read["ben"]
    for token in (ours.token - 1, ours.token + 1):
        b2.router.read["ben"] = made.rows.owners["ben"] = Assigned("b2", ours.number, token)
        client = await b1.client(login="ben")
        await client.ok("SELECT INBOX")
        assert b2.router.rereads.pop() == ("ben", ours)


async def test_members_that_name_each_other_end_it(two: tuple[Cluster, Member, Member]) -> None:
    """The views of two members never agree. The session is then forwarded at most
    twice."""
    made, b1, b2 = two
    b3 = await made.member("b3")
    for member, other in ((b2, "b3"), (b3, "b2")):
        member.router.rows = type(made.rows)()
        member.router.rows.places = made.rows.places
        for _ in range(9):
            member.router.rows.own("ben", other)
    client = await b1.client()
    made.rows.own("ben", "b3")
    b1.router.read["ben"] = made.rows.owners["ben"]
    assert (await client.cmd("LOGIN ben secret"))[-1].startswith(b"NO [UNAVAILABLE]")
    assert len(b1.counts.results) == 2


async def moves_at_login(made: Cluster, member: Member, user: str, to: str) -> None:
    """Make the login at this member wait, and hand the user over to another backend
    meanwhile."""

    async def moved(account: object) -> object:
        made.rows.own(user, to)
        member.router.read[user] = made.rows.owners[user]
        raise Elsewhere("another backend serves the user; try again")

    member.imap.context.open_user = moved


async def test_a_login_that_waited_for_a_hand_over_is_forwarded(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    await moves_at_login(made, b1, "anna", "b2")
    client = await b1.client(login="anna")
    await client.ok("SELECT INBOX")
    assert [who.user for who in b2.imap.who()] == ["anna"]


async def test_a_forwarded_login_that_waited_for_a_hand_over_is_referred(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    proxy = await made.member("p1", proxy=True)
    await moves_at_login(made, b1, "anna", "b2")
    client = await proxy.client(login="anna")
    await client.ok("SELECT INBOX")
    assert [who.user for who in b2.imap.who()] == ["anna"]
    assert proxy.counts.results == [("imap", "referred"), ("imap", "ok")]


# -- the link ----------------------------------------------------------------------------------------------------------


async def test_a_forged_forward_is_refused_logged_and_counted(two: tuple[Cluster, Member, Member]) -> None:
    _, _, b2 = two
    client = await b2.client(address="127.0.0.9")
    forward = Forward("ben", "ben", "192.0.2.1", backend="b2")
    sender = LinkSender(SECRET, forward, nonce=b"n" * 32, binding=b"")
    client.send(b"a AUTHENTICATE X-OBOX-LINK %b\r\n" % sender.first())
    answer = bytearray(base64.b64decode(sender.answer((await client.line()).removeprefix(b"+ "))))
    answer[-1] ^= 1
    with capture_logs() as logs:
        client.send(base64.b64encode(answer) + b"\r\n")
        assert (await client.line()).startswith(b"a NO [AUTHENTICATIONFAILED]")
    assert [(line["event"], line["remote"], line["log_level"]) for line in logs] == [
        ("trusted link refused", "127.0.0.9", "warning")
    ]
    assert b2.counts.results == [("imap", "forged")]
    assert len(b2.penalties) == 1
    # The session goes on after the refusal.
    await client.ok("LOGIN ben secret")


async def test_members_without_a_common_secret(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, b2 = two
    b1.forwarder.secrets = (b"another secret of thirty-two bytes",)
    client = await b1.client()
    with capture_logs() as logs:
        assert (await client.cmd("LOGIN ben secret"))[-1].startswith(b"NO [UNAVAILABLE]")
    (line,) = (line for line in logs if line["event"] == "trusted link failed")
    assert "secret_file" in line["next_step"]
    assert b1.counts.results == [("imap", "refused")]
    # The owner knows two secrets during a rotation. The second is the sender's.
    b2.forwarder.secrets = (SECRET, *b1.forwarder.secrets)
    await client.ok("LOGIN ben secret")


async def test_a_member_without_secrets_has_no_link(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        b2 = await made.member("b2", secrets=())
        client = await b2.client()
        assert (await client.cmd("AUTHENTICATE X-OBOX-LINK AAAA"))[-1].startswith(b"NO [NOPERM]")


async def test_somebody_in_the_middle_has_another_certificate(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    made.rows.places["b2"] = ("localhost", {"imaps": b2.tls_port})
    # The owner takes another certificate for its own than the sender sees.
    b2.forwarder.certificate = lambda: b"x" * 32
    client = await b1.client()
    assert (await client.cmd("LOGIN ben secret"))[-1].startswith(b"NO [UNAVAILABLE]")
    assert b1.counts.results == [("imap", "refused")]


async def test_a_user_who_is_another_there_is_not_served(two: tuple[Cluster, Member, Member]) -> None:
    """The members have different user databases. No user may get the mailbox of another
    user."""
    _, b1, _ = two
    made = b1.forwarder.forward_of
    b1.forwarder.forward_of = lambda *a, **k: Forward("ben", "anna", "")
    client = await b1.client()
    with capture_logs() as logs:
        assert (await client.cmd("LOGIN ben secret"))[-1].startswith(b"NO [UNAVAILABLE]")
    assert "members have different users" in {line["event"] for line in logs}
    b1.forwarder.forward_of = made


async def test_a_session_leaves_the_address_of_its_proxy(two: tuple[Cluster, Member, Member]) -> None:
    """Each proxy limits the sessions of an address. The owner does not, because all
    forwarded sessions come from the address of a proxy."""
    _, _, b2 = two
    registry = b2.hub.registry
    client = await b2.client()
    (connection,) = registry
    registry.enter(connection, "192.0.2.5", most=0)
    connection._counted = connection.remote = "192.0.2.5"
    assert registry.addresses == {"192.0.2.5": 1}
    sender = LinkSender(SECRET, Forward("ben", "ben", "198.51.100.1", backend="b2"), nonce=b"n" * 32, binding=b"")
    connection._remote_given = False
    connection.tls = True
    b2.forwarder.certificate = bytes
    client.send(b"a AUTHENTICATE X-OBOX-LINK %b\r\n" % sender.first())
    client.send(sender.answer((await client.line()).removeprefix(b"+ ")) + b"\r\n")
    assert (await client.line()).startswith(b"a OK")
    assert registry.addresses == {}
    await client.ok("LOGOUT")
    await until(lambda: not b2.imap.who())
    assert registry.addresses == {}
