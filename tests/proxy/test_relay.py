"""A sender may hand a mail to any member. The recipients go to their owners, over real
sockets."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from members import ADDRESS, ATTEMPTS, SECRET, Cluster, Member, cluster
from structlog.testing import capture_logs

from obox import errors
from obox.auth import LINK, Forward, LinkOwner, LinkSender
from obox.lmtp import Envelope, Recipient, Settings
from obox.lmtp import connection as lmtp_connection

MAIL = b"Message-ID: <1@x>\r\nSubject: s\r\n\r\n.\r\n..\r\nbare\nlf\r\n"


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Member, Member]]:
    """Backends b1 and b2. b1 serves anna; b2 serves ben and carl."""
    async with cluster(tmp_path) as made:
        made.rows.own("anna", "b1")
        made.rows.own("ben", "b2")
        made.rows.own("carl", "b2")
        yield made, await made.member("b1"), await made.member("b2")


async def test_recipients_are_split_by_owner(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    proxy = await made.member("p1", proxy=True)
    for member in (b1, b2, proxy):
        replies = await member.deliver(MAIL, "anna", "ben+work", "carl")
        assert [reply[:5] for reply in replies] == ["250 2"] * 3, replies
        assert [reply.split()[2] for reply in replies] == ["<anna>", "<ben+work>", "<carl>"]
    for member, user in ((b1, "anna"), (b2, "ben"), (b2, "carl")):
        mails = await member.mails(user)
        assert len(mails) == 3
        for mail in mails:
            # The mail is stored byte for byte.
            assert MAIL in mail
            assert mail.count(b"Received: from mta.example ([127.0.0.1])") == 1
            assert mail.count(b"Return-Path: <from@example.org>") == 1
    # Ben and Carl are recipients of the same transaction.
    assert b1.counts.results.count(("lmtp", "ok")) == 1
    assert proxy.counts.results == [("lmtp", "ok"), ("lmtp", "ok")]


async def test_a_mail_for_another_machine_goes_under_starttls(
    two: tuple[Cluster, Member, Member], elsewhere: list[bytes]
) -> None:
    _, b1, b2 = two
    assert [reply[:5] for reply in await b1.deliver(MAIL, "anna", "ben")] == ["250 2"] * 2
    assert elsewhere == [b2.forwarder.certificate()]
    assert MAIL in (await b2.mails("ben"))[0]


async def test_the_trace_says_that_the_client_used_no_tls(
    two: tuple[Cluster, Member, Member], elsewhere: list[bytes]
) -> None:
    """The link has TLS, but the client had none."""
    _, b1, b2 = two
    await b1.deliver(MAIL, "ben")
    assert len(elsewhere) == 1
    assert b" with LMTP\r\n" in (await b2.mails("ben"))[0]


async def test_the_trace_says_that_the_client_used_tls(two: tuple[Cluster, Member, Member]) -> None:
    """The link has none, since it does not leave the machine."""
    made, b1, b2 = two
    server = await asyncio.get_running_loop().create_server(lambda: b1.lmtp.connection_factory(tls=True), ADDRESS, 0)
    made.stack.callback(server.close)
    b1.lmtp_port = server.sockets[0].getsockname()[1]
    await b1.deliver(MAIL, "ben")
    assert b" with LMTPS\r\n" in (await b2.mails("ben"))[0]


async def test_a_large_mail_goes_through_a_file(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, b2 = two
    mail = b"Subject: s\r\n\r\n" + os.urandom(3 << 20)
    assert [reply[:3] for reply in await b1.deliver(mail, "anna", "ben")] == ["250", "250"]
    for member, user in ((b1, "anna"), (b2, "ben")):
        assert mail in (await member.mails(user))[0]


async def test_each_recipient_has_its_own_reply(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, b2 = two
    deliver = b2.lmtp.deliverer.deliver

    async def failing(recipient: Recipient, envelope: Envelope, source: bytes) -> None:
        if recipient.user == "carl":
            raise errors.OverQuota
        await deliver(recipient, envelope, source)

    b2.lmtp.deliverer.deliver = failing
    with capture_logs() as logs:
        replies = await b1.deliver(MAIL, "nobody", "anna", "ben", "carl")
    assert [reply[:9] for reply in replies] == ["550 5.1.1", "250 2.0.0", "250 2.0.0", "552 5.2.2"]
    lines = [line for line in logs if line["event"] == "lmtp delivery" and line.get("backend")]
    assert [(line["user"], line["backend"], line["result"]) for line in lines] == [
        ("ben", "b2", "250 2.0.0"),
        ("carl", "b2", "552 5.2.2"),
    ]


async def test_what_an_owner_refuses_at_once(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, b2 = two
    recipient = b2.lmtp.deliverer.recipient

    async def full(address: str, user: str, detail: str, size: int | None) -> Recipient:
        if user == "ben":
            raise errors.OverQuota
        return await recipient(address, user, detail, size)

    b2.lmtp.deliverer.recipient = full
    replies = await b1.deliver(MAIL, "ben", "carl")
    assert [reply[:9] for reply in replies] == ["552 5.2.2", "250 2.0.0"]
    assert len(await b2.mails("carl")) == 1


async def test_an_owner_that_does_not_answer_is_temporary(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, b2 = two
    b2.silent()
    replies = await b1.deliver(MAIL, "anna", "ben")
    assert [reply[:9] for reply in replies] == ["250 2.0.0", "451 4.3.0"]
    assert b1.counts.results == [("lmtp", "unavailable")] * ATTEMPTS
    await b2.listen()


async def test_the_replacement_of_a_dead_owner_gets_the_mail(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    b3 = await made.member("b3")
    await b1.router.route("ben")
    b2.silent()
    made.rows.own("ben", "b3")
    assert [reply[:3] for reply in await b1.deliver(MAIL, "ben")] == ["250"]
    assert len(await b3.mails("ben")) == 1
    await b2.listen()


async def test_a_referral_is_followed_for_its_recipient(two: tuple[Cluster, Member, Member]) -> None:
    made, b1, b2 = two
    b3 = await made.member("b3")
    await b1.router.route("ben")
    made.rows.own("ben", "b3")
    b2.router.read["ben"] = made.rows.owners["ben"]
    assert [reply[:3] for reply in await b1.deliver(MAIL, "ben", "carl")] == ["250", "250"]
    assert len(await b3.mails("ben")) == 1
    assert len(await b2.mails("carl")) == 1


class Ends:
    """A backend that closes each connection at the same point of the exchange."""

    def __init__(self, at: str) -> None:
        self.at = at
        self.transactions = 0
        self.bodies: list[int] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = LinkOwner((SECRET,), nonce=os.urandom(32), unknown=b"", binding=b"")
        writer.write(b"220 hi\r\n")
        await reader.readline()
        writer.write(b"250 hi\r\n")
        first = (await reader.readline()).split()[2]
        writer.write(b"334 " + link.start(LINK, first).wire + b"\r\n")
        assert isinstance(link.step((await reader.readline()).strip()), Forward)
        writer.write(b"235 2.7.0 in\r\n")
        self.transactions += 1
        if self.at != "link":
            assert b"XOBOX=b2:" in await reader.readline() + await reader.readline()
            writer.write(b"250 2.1.0 OK\r\n250 2.1.5 OK\r\n")
            line = await reader.readline()
            if self.at == "end":
                self.bodies.append(len(await reader.readexactly(int(line.split()[1]))))
        writer.close()


@pytest.mark.parametrize(("at", "attempts"), [("link", ATTEMPTS), ("body", ATTEMPTS), ("end", 1)])
async def test_no_other_is_tried_after_the_end_of_the_mail(tmp_path: Path, at: str, attempts: int) -> None:
    """Before the end of the mail the owner cannot have stored it, so the member tries
    again. After the end the owner may have stored it, so the member does not."""
    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        b1 = await made.member("b1")
        ends = Ends(at)
        server = await asyncio.start_server(ends.serve, ADDRESS, 0)
        made.stack.callback(server.close)
        made.rows.places["b2"] = (ADDRESS, {"lmtp": server.sockets[0].getsockname()[1]})
        # The mail is larger than the kernel's buffers.
        mail = b"Subject: s\r\n\r\n" + b"x" * (8 << 20)
        assert [reply[:9] for reply in await b1.deliver(mail, "ben")] == ["451 4.3.0"]
        assert ends.transactions == attempts
        assert len(b1.router.rereads) == (at != "end")


# -- the link ----------------------------------------------------------------------------------------------------------


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *lines: bytes) -> list[bytes]:
    """Send lines. Return the last line of the answer to each."""
    got = []
    for line in lines:
        writer.write(line + b"\r\n")
        while True:
            answer = await asyncio.wait_for(reader.readline(), 20)
            if answer[3:4] != b"-":
                break
        got.append(answer.strip())
    return got


async def test_a_member_is_trusted_wherever_it_is(tmp_path: Path) -> None:
    """The network of a member is not in `trusted_networks`, and it may deliver all the
    same. Other clients of that network are refused."""
    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        b2 = await made.member("b2", lmtp_settings=Settings(trusted_networks=("192.0.2.0/24",)))
        proxy = await made.member("p1", proxy=True)
        assert [reply[:3] for reply in await proxy.deliver(MAIL, "ben")] == ["250"]
        assert len(await b2.mails("ben")) == 1
        reader, writer = await asyncio.open_connection(ADDRESS, b2.lmtp_port)
        await reader.readline()
        got = await talk(reader, writer, b"LHLO x", b"MAIL FROM:<a@b>", b"QUIT")
        assert [line[:3] for line in got] == [b"250", b"554", b"221"]


async def test_without_secrets_a_stranger_is_refused_at_once(tmp_path: Path) -> None:
    async with cluster(tmp_path) as made:
        b2 = await made.member("b2", secrets=(), lmtp_settings=Settings(trusted_networks=("192.0.2.0/24",)))
        reader, _ = await asyncio.open_connection(ADDRESS, b2.lmtp_port)
        assert (await asyncio.wait_for(reader.read(), 20)).startswith(b"554 5.7.1 ")


async def test_a_stranger_has_little_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lmtp_connection, "LINK_S", 0.05)
    async with cluster(tmp_path) as made:
        b2 = await made.member("b2", lmtp_settings=Settings(trusted_networks=("192.0.2.0/24",)))
        reader, _ = await asyncio.open_connection(ADDRESS, b2.lmtp_port)
        assert (await asyncio.wait_for(reader.read(), 20)).splitlines()[-1].startswith(b"554 5.7.1 ")


async def test_a_forged_proof_is_refused_logged_and_counted(two: tuple[Cluster, Member, Member]) -> None:
    _, _, b2 = two
    reader, writer = await asyncio.open_connection(ADDRESS, b2.lmtp_port, local_addr=("127.0.0.9", 0))
    await reader.readline()
    sender = LinkSender(SECRET, Forward("", "", ""), nonce=b"n" * 32, binding=b"")
    _, challenge = await talk(reader, writer, b"LHLO x", b"AUTH X-OBOX-LINK " + sender.first())
    proof = bytearray(base64.b64decode(sender.answer(challenge[4:])))
    proof[0] ^= 1
    with capture_logs() as logs:
        (answer,) = await talk(reader, writer, base64.b64encode(proof))
    assert answer == b"535 5.7.8 Authentication failed"
    assert [(line["event"], line["remote"]) for line in logs] == [("trusted link refused", "127.0.0.9")]
    assert len(b2.penalties) == 1
    _, refused = await talk(reader, writer, b"MAIL FROM:<a@b>", b"RCPT TO:<ben> XOBOX=b2:1:1")
    # Only a member may name the owner of a recipient.
    assert refused.startswith(b"555 5.5.4")


async def test_auth_has_its_place(two: tuple[Cluster, Member, Member]) -> None:
    _, _, b2 = two
    reader, writer = await asyncio.open_connection(ADDRESS, b2.lmtp_port)
    await reader.readline()
    got = await talk(
        reader, writer, b"AUTH X-OBOX-LINK", b"LHLO x", b"AUTH PLAIN AAAA", b"AUTH X-OBOX-LINK", b"*", b"NOOP"
    )
    assert [line[:3] for line in got] == [b"503", b"250", b"504", b"334", b"501", b"250"]


async def test_without_a_common_secret_mail_waits(two: tuple[Cluster, Member, Member]) -> None:
    _, b1, _ = two
    b1.forwarder.secrets = (b"another secret of thirty-two bytes",)
    assert [reply[:9] for reply in await b1.deliver(MAIL, "ben")] == ["451 4.3.0"]
    assert b1.counts.results == [("lmtp", "refused")]
