"""POP3 in a cluster: a client may connect to any member."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from members import SECRET, Cluster, cluster, until
from pop3_members import Pop3
from structlog.testing import capture_logs

from obox.errors import Elsewhere
from obox.pop3 import Pop3Settings
from obox.store.api import NewMail
from obox.types import StorageId

MAIL = b"Subject: a mail\r\n\r\nbody\r\n"


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Pop3, Pop3]]:
    """Backends b1 and b2. b1 serves anna; b2 serves ben, who has a mail."""
    async with cluster(tmp_path) as made:
        made.rows.own("anna", "b1")
        made.rows.own("ben", "b2")
        both = [Pop3(await made.member(name)) for name in ("b1", "b2")]
        for one in both:
            await one.listen()
            made.stack.push_async_callback(one.stop)
        store = both[1].member.store
        assert store is not None
        user = await store.open_user("ben", StorageId("ben"))
        await user.append("INBOX", [NewMail(MAIL)])
        await user.release()
        yield made, both[0], both[1]


async def test_a_client_may_connect_anywhere(two: tuple[Cluster, Pop3, Pop3]) -> None:
    _, b1, b2 = two
    with capture_logs() as logs:
        client, answer = await b1.client("ben")
    assert answer == b"+OK 1 mails of %d octets" % len(MAIL)
    assert [line["event"] for line in logs if line["log_level"] == "info"][-2:] == ["pop3 login", "pop3 forwarded"]
    (here,), (there,) = b1.server.who(), b2.server.who()
    assert (here.user, here.service, here.state) == ("ben", "pop3", "forwarded to b2")
    assert (there.user, there.remote, there.mailbox) == ("ben", "127.0.0.1", "INBOX")
    assert await client.many("RETR 1") == MAIL.split(b"\r\n")[:-1]
    client.send("DELE 1\r\nQUIT\r\n")
    assert (await client.line()).startswith(b"+OK Marked")
    assert (await client.line()).startswith(b"+OK Logging out, 1 mails deleted")
    await until(lambda: not b1.server.who() and not b2.server.who())
    assert b1.member.counts.results == [("pop3", "ok")]
    assert b2.member.counts.results == [("pop3", "accepted")]
    assert (await b2.client("ben"))[1] == b"+OK 0 mails of 0 octets"


async def test_a_member_on_another_machine_is_asked_for_stls(
    two: tuple[Cluster, Pop3, Pop3], elsewhere: list[bytes]
) -> None:
    """The proof is bound to the certificate."""
    _, b1, b2 = two
    _, answer = await b1.client("ben")
    assert answer.startswith(b"+OK 1 mails")
    assert elsewhere == [b2.member.forwarder.certificate()]


async def test_a_proxy_has_no_store(two: tuple[Cluster, Pop3, Pop3]) -> None:
    made, _, _ = two
    proxy = Pop3(await made.member("p1", proxy=True))
    await proxy.listen()
    made.stack.push_async_callback(proxy.stop)
    client, answer = await proxy.client("ben")
    assert answer.startswith(b"+OK 1 mails")
    assert (await client.cmd("STAT")).startswith(b"+OK 1 ")


async def test_a_user_who_has_moved_is_followed(two: tuple[Cluster, Pop3, Pop3]) -> None:
    """The owner refers the client to the backend of the newer row."""
    made, b1, b2 = two
    client, _ = await b1.client("ben")
    await client.ok("QUIT")
    made.rows.own("ben", "b1")
    b2.member.router.read["ben"] = made.rows.owners["ben"]
    _, answer = await b1.client("ben")
    assert answer.startswith(b"+OK")
    assert ("pop3", "referred") in b1.member.counts.results


async def test_a_user_of_an_owner_that_is_gone(two: tuple[Cluster, Pop3, Pop3]) -> None:
    _, b1, b2 = two
    b2.listener.close()
    _, answer = await b1.client("ben")
    assert answer == b"-ERR [SYS/TEMP] The backend of this user does not answer, try again later"


@pytest.mark.parametrize(
    ("settings", "code"),
    [(Pop3Settings(lock_session=True), b"[IN-USE]"), (Pop3Settings(login_delay_s=60), b"[LOGIN-DELAY]")],
)
async def test_what_the_owner_refuses(two: tuple[Cluster, Pop3, Pop3], settings: Pop3Settings, code: bytes) -> None:
    _, b1, b2 = two
    b2.server.use(settings, lambda remote: settings)
    await b2.client("ben")
    _, answer = await b1.client("ben")
    assert answer.startswith(b"-ERR " + code)


@pytest.mark.parametrize("says", [b"+OK Welcome", b"+ \r\n+OK Welcome", b"-ERR [AUTH] Disabled", b"-ERR [IN-USE] x"])
async def test_a_server_that_proves_nothing_gets_no_client(two: tuple[Cluster, Pop3, Pop3], says: bytes) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"+OK ready\r\n")
        await reader.readline()
        writer.write(says + b"\r\n")
        await reader.read()
        writer.close()

    made, b1, _ = two
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    made.rows.places["b2"] = ("127.0.0.1", {"pop3": server.sockets[0].getsockname()[1]})
    _, answer = await b1.client("ben")
    assert answer == b"-ERR [SYS/TEMP] The backend of this user does not answer, try again later"
    assert b1.member.counts.results == [("pop3", "refused")]
    server.close()


async def test_members_without_a_common_secret(two: tuple[Cluster, Pop3, Pop3]) -> None:
    _, b1, _ = two
    b1.member.forwarder.secrets = (b"x" * len(SECRET),)
    with capture_logs() as logs:
        _, answer = await b1.client("ben")
    assert answer.startswith(b"-ERR [SYS/TEMP] ")
    assert "trusted link failed" in [line["event"] for line in logs]


async def test_without_a_link_another_backends_user_is_refused(
    two: tuple[Cluster, Pop3, Pop3], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, b1, _ = two
    b1.server.forwards(None)

    async def elsewhere(account: object) -> None:
        raise Elsewhere("another backend serves the user; try again")

    monkeypatch.setattr(b1.server.context, "open_user", elsewhere)
    _, answer = await b1.client("ben")
    assert answer == b"-ERR [SYS/TEMP] Another backend serves the user; try again"
