"""`metacache pull` between two backends of this process, over HTTP: who may ask, how
each error ends, and which copies remain on which side."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from adminservice import KEY, Service, mail, running, write_config
from certificates import certificate
from patience import PATIENT_S
from ports import free_port
from test_verbs import ANNA, BEN, Client

from obox.admin import pull
from obox.cluster import Assigned, There
from obox.store.operate import pull as pulling

Start = Callable[..., Any]


def http(service: Service) -> str:
    return str(service.backend.listeners.addresses("http")[0]).removesuffix("/tls")


@asynccontextmanager
async def two(start: Start) -> AsyncIterator[tuple[Service, Service]]:
    """Start two backends on the same bucket."""
    async with (
        start("first", '[cluster]\nbackend = "first"\n') as one,
        start("second", '[cluster]\nbackend = "second"\n') as other,
    ):
        journal = one.backend.parts.store.journal
        # The start of the second backend fenced the first. The first backend learns of
        # the fence with its next write, and goes on as a new boot.
        await journal.announce()
        yield one, other


async def some_mail(service: Service) -> None:
    await service.deliver(ANNA, [mail(n) for n in range(20)], "INBOX", "\\Flagged")
    await service.deliver(ANNA, [mail(n) for n in range(5)], "Archive")
    await service.deliver(BEN, [mail(1)])


async def gets(service: Service) -> dict[str, int]:
    stats = service.backend.parts.bucket.stats.snapshot()
    return {f"{op} {kind}": one.requests for (op, kind), one in stats.items() if kind != "journal" and op != "put"}


async def test_a_pull(start: Start) -> None:
    async with two(start) as (one, other):
        await some_mail(one)
        rows = await other.call("metacachePull", allUsers=True, sourceBackendHost=http(one))
        assert [(row["username"], row["mailboxes"], row["result"]) for row in rows] == [
            (ANNA, 2, "pulled"), (BEN, 1, "pulled"), ("eve@other.org", 0, "nothing there")
        ]  # fmt: skip
        assert all(row["bytes"] > 100 for row in rows)
        before = await gets(other)
        rows = await other.call("fetch", user=ANNA, field=["uid", "flags", "imap.envelope"], query=["MAILBOX", "INBOX"])
        assert [row["uid"] for row in rows] == list(range(1, 21))
        assert all(row["flags"] == "\\Flagged" and "number" not in row["imap.envelope"] for row in rows)
        after = await gets(other)
        assert after.get("get index", 0) == before.get("get index", 0)
        assert after.get("get mail", 0) == before.get("get mail", 0)
        listed = {row["username"]: row["mailboxes"] for row in await other.call("metacacheList")}
        assert listed[BEN] == 2, "INBOX and the list of mailboxes"
        assert {row["username"] for row in await one.call("metacacheList")} >= {ANNA, BEN}


async def test_again_is_nothing_new(start: Start) -> None:
    async with two(start) as (one, other):
        await some_mail(one)
        for result in ("pulled", "nothing newer there"):
            row = (await other.call("metacachePull", user=BEN, sourceBackendHost=http(one)))[0]
            assert row["result"] == result, row


async def test_clean(start: Start) -> None:
    async with two(start) as (one, other):
        await some_mail(one)
        row = (await other.call("metacachePull", user=ANNA, sourceBackendHost=http(one), clean=True))[0]
        assert row["cleaned"] == 3
        assert ANNA not in {row["username"] for row in await one.call("metacacheList")}
        rows = await other.call("mailboxStatus", user=ANNA, field=["messages"], mailboxMask=["INBOX", "Archive"])
        assert {row["messages"] for row in rows} == {20, 5}


async def test_clean_leaves_what_is_in_use(start: Start) -> None:
    async with two(start) as (one, other):
        await some_mail(one)
        client = await Client.login(one)
        await client.ask("SELECT INBOX")
        result = await other.refused("metacachePull", user=ANNA, sourceBackendHost=http(one), clean=True)
        assert result["exitCode"] == 75, result
        assert "in use" in result["message"]
        assert result["rows"][0]["mailboxes"] >= 2
        await client.ask("STORE 3 +FLAGS (late)")
        rows = await one.call("fetch", user=ANNA, field=["flags"], query=["MAILBOX", "INBOX", "UID", "3"])
        assert "late" in rows[0]["flags"]


async def test_clean_never_drops_what_the_bucket_lacks(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user changes mails at the source after the copies were sent. The source keeps
    its copy of the changed mailbox, or uploads it before it drops the copy."""
    async with two(start) as (one, other):
        await some_mail(one)
        real = pulling.Incoming.end

        async def end(self: Any) -> None:
            await one.deliver(ANNA, [mail(99)], "Archive")
            await one.call("flagsAdd", user=ANNA, flag=["late"], query=["MAILBOX", "INBOX", "UID", "7"])
            await real(self)

        monkeypatch.setattr(pulling.Incoming, "end", end)
        await other.ask("metacachePull", user=ANNA, sourceBackendHost=http(one), clean=True)
        monkeypatch.undo()
        await other.call("metacacheRefresh", user=ANNA)
        rows = await other.call("fetch", user=ANNA, field=["flags"], query=["MAILBOX", "INBOX", "UID", "7"])
        assert "late" in rows[0]["flags"]
        rows = await other.call("mailboxStatus", user=ANNA, field=["messages"], mailboxMask=["Archive"])
        assert rows[0]["messages"] == 6


async def test_outdated(start: Start) -> None:
    async with two(start) as (one, other):
        await some_mail(one)
        await one.call("metacacheFlush", allUsers=True)
        await other.call("flagsAdd", user=ANNA, flag=["x"], query=["MAILBOX", "INBOX", "ALL"])
        await other.call("metacacheFlush", user=ANNA)
        result = await other.refused("metacachePull", users=[ANNA, BEN], sourceBackendHost=http(one), latestOnly=True)
        assert result["exitCode"] == 2, result
        assert [(one["user"], one["exitCode"]) for one in result["users"]] == [(ANNA, 1003)]
        assert [row["username"] for row in result["rows"]] == [BEN]
        assert (await other.fails("metacachePull", user=ANNA, sourceBackendHost=http(one), latestOnly=True))[0] == 1003
        await other.call("metacachePull", user=ANNA, sourceBackendHost=http(one))


# -- the source is not as it should be ---------------------------------------------------------------------------------


async def test_keys(start: Start) -> None:
    async with two(start) as (one, other):
        await some_mail(one)
        wrong = {"user": BEN, "sourceBackendHost": http(one), "apiKey": "wrong"}
        code, message = await other.fails("metacachePull", **wrong)
        assert (code, "wrong" in message) == (77, False)
        userinfo = f"http://doveadm:{quote('other:key', safe='')}@{http(one)}"
        code, message = await other.fails("metacachePull", user=BEN, sourceBackendHost=userinfo)
        assert (code, "other" in message) == (77, False)
        right = f"http://doveadm:{quote(KEY, safe='')}@{http(one)}/doveadm/v1"
        await other.call("metacachePull", user=BEN, sourceBackendHost=right)
        for path in ("", f"/{quote(ANNA)}"):
            async with httpx.AsyncClient() as client:
                for method in ("GET", "POST", "DELETE"):
                    got = await client.request(method, f"http://{http(one)}/doveadm/v1/metacache{path}")
                    assert got.status_code in (401, 405), (method, path)
        logged = json.dumps(await other.call("logErrors")) + json.dumps(await one.call("logErrors"))
        assert "other:key" not in logged


async def test_unreachable(start: Start, unused: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    new = pull.Keyed.new
    monkeypatch.setattr(pull.Keyed, "new", lambda source: asked.append(source.name) or new(source))
    async with two(start) as (_, other):
        assert (await other.fails("metacachePull", allUsers=True, sourceBackendHost=unused))[0] == 69
        assert len(asked) == 1, "asked once, not for each user"
        assert (await other.fails("metacachePull", user=BEN, sourceBackendHost="no-such-host.invalid"))[0] == 68
        for bad in ("ftp://x", "http://", "", "host:port", "host:99999", "http://host?x=1"):
            code, message = await other.fails("metacachePull", user=BEN, sourceBackendHost=bad)
            assert code == 65, bad
            assert "host:port" in message


@pytest.fixture
def unused() -> str:
    return f"127.0.0.1:{free_port()}"


async def test_ourselves_and_another_bucket(start: Start, tmp_path: Path) -> None:
    async with start("first", '[cluster]\nbackend = "first"\n') as one:
        assert (await one.fails("metacachePull", user=BEN, sourceBackendHost=http(one)))[0] == 65
        config = write_config(tmp_path / "third", f"file://{tmp_path}/elsewhere", '[cluster]\nbackend = "third"\n')
        async with running(config) as third:
            await some_mail(one)
            code, message = await third.fails("metacachePull", user=BEN, sourceBackendHost=http(one))
            assert code == 65
            assert "another bucket" in message
            assert await third.call("metacacheList") == []


async def test_no_key_no_api(start: Start, tmp_path: Path) -> None:
    async with start("first", '[cluster]\nbackend = "first"\n') as one:
        config = write_config(tmp_path / "open", f"file://{tmp_path}/bucket", '[cluster]\nbackend = "open"\n')
        config.write_text(config.read_text().replace(f'api_key = "{KEY}"', ""))
        async with running(config) as silent:
            assert (await one.fails("metacachePull", user=BEN, sourceBackendHost=http(silent)))[0] == 77
            assert (await silent.fails("metacachePull", user=BEN, sourceBackendHost=http(one)))[0] == 77


async def answering(data: bytes, *, context: ssl.SSLContext | None = None) -> tuple[asyncio.Server, str]:
    """Start a server that gives the same answer to each request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(data)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    return server, f"127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"", 69),
        (b"SSH-2.0-x\r\n\r\n", 69),
        (b"HTTP/1.1 500 no\r\nContent-Length: 0\r\n\r\n", 69),
        (b"HTTP/1.1 404 no\r\nContent-Length: 0\r\n\r\n", 77),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", 69),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 69),
        (b'HTTP/1.1 409 no\r\nContent-Length: 35\r\n\r\n{"exitCode": 75, "message": "busy"}', 75),
    ],
)
async def test_what_else_may_answer_there(start: Start, data: bytes, code: int) -> None:
    async with start("first", '[cluster]\nbackend = "first"\n') as one:
        server, address = await answering(data)
        try:
            assert (await one.fails("metacachePull", user=BEN, sourceBackendHost=address))[0] == code
        finally:
            server.close()


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-secret_1.2\r\n",
        b"220 secret ESMTP\r\n",
        b"HTTP/1.1 secret\r\n\r\n",
        b'HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n"secret"',
        b"HTTP/1.1 500 secret\r\nX: secret\r\nContent-Length: 6\r\n\r\nsecret",
        b"HTTP/1.1 500 no\r\nContent-Length: 100000\r\n\r\n" + b"[" * 100_000,
        b"HTTP/1.1 200 no\r\nContent-Length: 60000\r\n\r\n" + b"[" * 60_000,
    ],
)
async def test_what_a_foreign_service_says_is_not_repeated(start: Start, data: bytes) -> None:
    """Otherwise each client that may use this verb could read services that only this
    machine can reach."""
    async with start("first", '[cluster]\nbackend = "first"\n') as one:
        server, address = await answering(data)
        try:
            code, message = await one.fails("metacachePull", user=BEN, sourceBackendHost=address)
            assert code == 69
            assert "secret" not in message
            assert len(message) < 100
        finally:
            server.close()


async def test_the_sources_message_is_short_and_printable(start: Start) -> None:
    async with start("first", '[cluster]\nbackend = "first"\n') as one:
        body = json.dumps({"exitCode": 75, "message": "busy\x1b[2J\n" + "x" * 10_000}).encode()
        server, address = await answering(b"HTTP/1.1 409 no\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
        try:
            code, message = await one.fails("metacachePull", user=BEN, sourceBackendHost=address)
            assert code == 75
            assert "busy?[2J?xxx" in message
            assert len(message) < 400
        finally:
            server.close()


class Endless:
    """A member of the cluster that fails with a message without an end."""

    def __init__(self) -> None:
        self.sent_bytes = 0

    def find(self, name: str, host: str, port: int | None) -> There:
        return There(name, host, {}, Assigned(name, 0, 0))

    @asynccontextmanager
    async def ask(self, there: There, question: bytes) -> AsyncIterator[tuple[int, AsyncIterator[bytes]]]:
        async def stream() -> AsyncIterator[bytes]:
            while self.sent_bytes < 100 * pull.ANSWER_BYTES_MAX:
                self.sent_bytes += 4096
                yield b"x" * 4096

        yield 500, stream()


async def test_a_members_message_is_read_to_a_limit(start: Start) -> None:
    async with start("first", '[cluster]\nbackend = "first"\n') as one:
        one.backend.admin.sources = endless = Endless()
        assert await one.fails("metacachePull", user=BEN, sourceBackendHost="second") == (69, "second: HTTP 500")
        assert endless.sent_bytes == pull.ANSWER_BYTES_MAX


async def test_a_certificate_that_nobody_has_signed(start: Start, tmp_path: Path) -> None:
    async with start("first", '[cluster]\nbackend = "first"\n') as one:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*certificate(tmp_path))
        server, address = await answering(b"HTTP/1.1 200 OK\r\n\r\n", context=context)
        try:
            code, message = await one.fails("metacachePull", user=BEN, sourceBackendHost=f"https://{address}")
            assert code == 69
            assert "certificate" in message
        finally:
            server.close()


async def test_over_tls(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The destination checks the certificate with the system's authorities.
    SSL_CERT_FILE names other authorities."""
    cert, secret = certificate(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(cert))
    tls = f'[cluster]\nbackend = "first"\n[tls]\ncert = "{cert}"\nkey = "{secret}"\n'
    config = write_config(tmp_path / "first", f"file://{tmp_path}/bucket", tls)
    text = config.read_text()
    config.write_text(text.replace('[http]\nlisten = ["127.0.0.1:0"]', '[http]\nlisten = ["127.0.0.1:0/tls"]'))
    async with running(config) as one, start("second", '[cluster]\nbackend = "second"\n') as other:
        await some_mail(one)
        row = (await other.call("metacachePull", user=BEN, sourceBackendHost=f"https://{http(one)}"))[0]
        assert row["result"] == "pulled"


async def test_cut_in_the_middle(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The connection breaks in the middle, and the verb exits with 75. The copies that
    had arrived stay, and a second run brings the rest."""
    async with two(start) as (one, other):
        await some_mail(one)
        real = pulling.Outgoing.objects

        async def breaks(self: Any) -> AsyncIterator[Any]:
            count = 0
            async for item in real(self):
                if count == 3:
                    raise ZeroDivisionError("a bug of the source")
                count += 1
                yield item

        monkeypatch.setattr(pulling.Outgoing, "objects", breaks)
        code, message = await other.fails("metacachePull", user=ANNA, sourceBackendHost=http(one))
        assert code == 75
        assert "cut short" in message
        monkeypatch.undo()
        assert not one.backend.parts.store.pulls
        row = (await other.call("metacachePull", user=ANNA, sourceBackendHost=http(one)))[0]
        assert row["mailboxes"] + row["kept"] == 2
        rows = await other.call("mailboxStatus", user=ANNA, field=["messages"], mailboxMask=["INBOX"])
        assert rows[0]["messages"] == 20


# -- what the source answers -------------------------------------------------------------------------------------------


async def test_the_sources_side(start: Start) -> None:
    async with two(start) as (one, _):
        await some_mail(one)
        headers = {"Authorization": f"X-Dovecot-API {base64.b64encode(KEY.encode()).decode()}"}
        async with httpx.AsyncClient(base_url=f"http://{http(one)}/doveadm/v1", headers=headers) as client:
            identity = (await client.get("/metacache")).json()
            assert identity["backend"] == "first"
            assert identity["boot"] == one.backend.parts.store.journal.boot
            got = await client.post(f"/metacache/{quote('A/b', safe='')}")
            assert (got.status_code, got.json()["exitCode"]) == (409, 65) if got.status_code == 409 else True
            got = await client.post("/metacache/Anna")
            assert (got.status_code, got.json()["exitCode"]) == (409, 65)
            got = await client.post(f"/metacache/{quote(ANNA)}")
            assert got.headers["content-type"] == "application/vnd.obox.pull"
            assert got.content[4:8] == b"obox"
            row = (await client.delete(f"/metacache/{quote(ANNA)}")).json()
            assert set(row) == {"copies", "bytes", "kept", "why"}
            assert (await client.delete("/metacache/nobody")).json()["copies"] == 0
            with one.backend.parts.store.barring(ANNA):
                got = await client.post(f"/metacache/{quote(ANNA)}")
                assert (got.status_code, got.json()["exitCode"]) == (409, 75)


async def test_a_destination_that_reads_nothing(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """The source ends such a connection after a time, so that the user can be deleted
    again."""
    from obox.admin import copies

    async def endless(self: Any) -> AsyncIterator[bytes]:
        while True:
            yield bytes(256 * 1024)

    monkeypatch.setattr(copies, "SILENCE_S", 0.2)
    monkeypatch.setattr(pulling.Outgoing, "stream", endless)
    async with start("first", '[cluster]\nbackend = "first"\n') as one:
        await some_mail(one)
        store = one.backend.parts.store
        reader, writer = await asyncio.open_connection(*http(one).rsplit(":", 1), limit=1)
        key = base64.b64encode(KEY.encode()).decode()
        head = f"POST /doveadm/v1/metacache/{quote(ANNA)} HTTP/1.1\r\nHost: x\r\nAuthorization: X-Dovecot-API {key}\r\n"
        writer.write(head.encode() + b"\r\n")
        assert b"200" in await reader.read(20)
        async with asyncio.timeout(PATIENT_S):
            while not store.pulls:  # noqa: ASYNC110 - the pull has no event
                await asyncio.sleep(0.01)
            while store.pulls:  # noqa: ASYNC110 - the end has no event either
                await asyncio.sleep(0.05)
        writer.close()


async def test_progress_is_reported(start: Start) -> None:
    async with two(start) as (one, other):
        await some_mail(one)
        got = await other.client.post(
            "/doveadm/v1",
            json=[["metacachePull", {"user": ANNA, "sourceBackendHost": http(one)}, "t"]],
            headers={"Accept": "application/x-ndjson"},
        )
        lines = [json.loads(line) for line in got.text.splitlines()]
        steps = [line["progress"] for line in lines if "progress" in line]
        assert steps[-1] == {"what": f"pulling {ANNA}", "done": 3, "total": 3}
        assert lines[-1] == {"end": {"exitCode": 0, "message": ""}}
