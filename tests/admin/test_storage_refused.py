"""A bucket that refuses requests and gives a reason. `storage check` then exits with 65
and shows the reason, and a backend that waits logs the reason."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from adminservice import running, write_config
from certificates import certificate
from servers import S3Bucket, moto, moto_bucket, s3_bucket, seaweedfs
from structlog.testing import capture_logs

from obox import parts as module
from obox.admin import exits
from obox.admin.run import Outcome
from obox.backend import Backend
from obox.config import load
from obox.errors import ConfigError
from obox.objectstore import MemoryDriver, Refused, Unreachable, open_store
from obox.wiring import bucket_alone, offline
from tests.stores import Late, Racy, SeaweedLike, Stale, Stubborn

__all__ = ["moto", "moto_bucket", "s3_bucket", "seaweedfs"]


def on_s3(home: Path, endpoint: str, *, bucket: str = "mail", key: str = "id", secret: str = "secret") -> Path:
    config = write_config(home)
    text = config.read_text()
    storage = (
        f'[storage]\nurl = "s3://{bucket}"\nendpoint_url = "{endpoint}"\nregion = "us-east-1"\n'
        f'access_key_id = "{key}"\nsecret_access_key = "{secret}"\n'
    )
    config.write_text(text[: text.index("[storage]")] + storage + text[text.index("[imap]") :])
    return config


async def check(config: Path) -> Outcome:
    """Run `oboxadm storage check` where no backend runs."""
    outcome = Outcome()
    async with bucket_alone(load(config, {})) as admin:
        await outcome.gather(admin, "storageCheck", {})
    return outcome


@asynccontextmanager
async def always(status: int, code: str, tls: ssl.SSLContext | None = None) -> AsyncIterator[tuple[str, list[bytes]]]:
    """Start an S3 server that gives the same error to each request. Yield its address
    and the heads of the requests that it gets."""
    heads: list[bytes] = []
    body = f"<Error><Code>{code}</Code><Message>about {code}</Message></Error>".encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 %d X\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % (status, len(body)) + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", heads
    finally:
        server.close()


@pytest.mark.parametrize(
    ("status", "code"),
    [(403, "SignatureDoesNotMatch"), (403, "InvalidAccessKeyId"), (403, "RequestTimeTooSkewed"), (404, "NoSuchBucket")],
)
async def test_the_stores_words_and_exit_65(tmp_path: Path, status: int, code: str) -> None:
    async with always(status, code) as (endpoint, heads):
        outcome = await check(on_s3(tmp_path, endpoint))
        assert outcome.code == 65
        assert [row["check"] for row in outcome.rows][:1] == ["rights"]
        assert outcome.rows[0]["result"] == "wrong"
        assert outcome.rows[0]["detail"].startswith(f"{status} {code}: about {code} (put ")
        assert sum(head.startswith(b"PUT") for head in heads) == 1, "what is refused is not tried again"
        assert not any(head.startswith((b"POST", b"DELETE")) for head in heads), "nothing was written"


@pytest.mark.needs("weed")
async def test_a_wrong_key_and_a_wrong_secret(s3_bucket: S3Bucket, tmp_path: Path) -> None:
    server = s3_bucket.server
    for number, (key, secret) in enumerate([("nobody", "secret"), (server.access_key_id, "wrong")]):
        home = tmp_path / str(number)
        outcome = await check(on_s3(home, server.endpoint_url, bucket=s3_bucket.name, key=key, secret=secret))
        assert outcome.code == 65
        assert outcome.rows[0]["check"] == "rights"
        assert re.match(r"403 \w+: .*\(put ", outcome.rows[0]["detail"])


async def test_no_such_bucket(moto_bucket: S3Bucket, tmp_path: Path) -> None:
    outcome = await check(on_s3(tmp_path, moto_bucket.server.endpoint_url, bucket="nobody-made-it"))
    assert outcome.code == 65
    assert outcome.rows[0]["detail"].startswith("404 NoSuchBucket: ")


async def test_a_store_that_does_not_answer_is_69_with_the_cause(tmp_path: Path) -> None:
    config = on_s3(tmp_path, "http://127.0.0.1:1")
    config.write_text(config.read_text().replace("[imap]", 'deadline = "1s"\n[imap]'))
    outcome = await check(config)
    assert outcome.code == 69
    assert [row["result"] for row in outcome.rows] == ["wrong"]
    assert "Connection refused" in outcome.message


@pytest.mark.parametrize(
    ("scheme", "spoken", "words"),
    [
        ("http", b"220 mail.example.org ESMTP\r\n", "the answer is not HTTP"),
        # This is an alert of TLS.
        ("http", b"\x15\x03\x01\x00\x02\x02\x46", "the answer is not HTTP"),
        ("https", b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n", "the answer is not TLS"),
    ],
)
async def test_a_port_that_speaks_another_protocol(
    tmp_path: Path, scheme: str, spoken: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The check used to take 27 s, and its answer had no reason."""
    monkeypatch.setattr("obox.admin.storage.GIVE_UP_S", 0.3)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(spoken)
        with suppress(OSError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    config = on_s3(tmp_path, f"{scheme}://127.0.0.1:{port}")
    config.write_text(config.read_text().replace("[imap]", 'deadline = "60s"\n[imap]'))
    # The check ends before the deadline of the requests, because it gives up earlier.
    outcome = await asyncio.wait_for(check(config), 50)
    server.close()
    assert outcome.code == 69
    assert outcome.rows[0]["detail"].startswith(words)
    assert outcome.message.startswith(f"the storage does not answer: {words}")


async def test_an_unknown_outcome_names_its_request_once(tmp_path: Path) -> None:
    config = on_s3(tmp_path, "http://127.0.0.1:1")
    config.write_text(config.read_text().replace("[imap]", 'deadline = "1s"\n[imap]'))
    outcome = await check(config)
    assert outcome.rows[0]["detail"].count("(put ") == 1
    assert "put _probe" in outcome.rows[0]["detail"]
    assert outcome.rows[0]["detail"].count("_probe/") == 2, "the request, and its URL"


async def test_a_command_without_a_backend_ends_with_the_stores_words(tmp_path: Path) -> None:
    """The command used to take 36 s, and said only "the bucket does not answer"."""
    async with always(403, "InvalidAccessKeyId") as (endpoint, heads):
        with pytest.raises(Exception, match="InvalidAccessKeyId") as refused:
            async with offline(load(on_s3(tmp_path, endpoint), {})):
                pass
        assert exits.of(refused.value) == 65
        assert sum(head.startswith(b"PUT") for head in heads) == 1


@pytest.mark.parametrize("end", ["refuses", "is not there"])
async def test_a_backend_that_waits_says_why_after_a_second(
    tmp_path: Path, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backend logs the reason after a second, and then once a minute. The first
    line used to come after 17 s, and without "connection refused"."""
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    monkeypatch.setattr(module, "REPORT_AFTER_S", 0.05)
    async with always(403, "InvalidAccessKeyId") as (endpoint, heads):
        config = on_s3(tmp_path, endpoint if end == "refuses" else "http://127.0.0.1:1")
        parts = await module.open(load(config, {}))
        with capture_logs() as logs:
            starting = asyncio.ensure_future(parts.start())
            for _ in range(500):
                await asyncio.sleep(0.01)
                if any("bucket does not answer" in line["event"] for line in logs) and (
                    len(heads) > 8 or end != "refuses"
                ):
                    break
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        await parts.close()
    reported = [line for line in logs if "bucket does not answer" in line["event"]]
    assert len(reported) == 1
    assert ("InvalidAccessKeyId" if end == "refuses" else "Connection refused") in reported[0]["error"]


async def test_a_backend_that_waits_says_it_again_after_a_minute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is silent before the minute is over."""
    monkeypatch.setattr(module, "RETRY_S", 0.001)
    now = 1_000.0
    monkeypatch.setattr(module, "boottime", lambda: now)

    def refused(_: object) -> asyncio.Future[None]:
        failing = asyncio.get_running_loop().create_future()
        failing.set_exception(Unreachable("connection refused", maybe_done=False))
        return failing

    monkeypatch.setattr(module, "probe", refused)
    parts = await module.open(load(on_s3(tmp_path, "http://127.0.0.1:1"), {}))
    reported: list[int] = []
    with capture_logs() as logs:
        starting = asyncio.ensure_future(parts.start())
        for pause_s in (0, 59.9, 0.2, 59.7, 0.2):
            now += pause_s
            for _ in range(20):
                await asyncio.sleep(0.002)
            reported.append(sum("bucket does not answer" in line["event"] for line in logs))
        starting.cancel()
        await asyncio.gather(starting, return_exceptions=True)
    await parts.close()
    assert reported == [1, 1, 2, 2, 2]


def served_by(monkeypatch: pytest.MonkeyPatch, driver: MemoryDriver) -> None:
    monkeypatch.setattr(module, "open_store", lambda settings, **words: open_store(settings, driver=driver))


async def test_the_order_that_a_store_has_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (driver, words) in enumerate(
        [(SeaweedLike(), "not in byte order"), (MemoryDriver(), "in byte order,")]
    ):
        served_by(monkeypatch, driver)
        outcome = await check(write_config(tmp_path / str(number), "memory://"))
        assert outcome.code == 0, outcome.rows
        (row,) = [row for row in outcome.rows if row["check"] == "list order"]
        assert words in row["detail"]
        assert [info.key for info in await open_store_of(driver).list("", kind="format")] == []


def open_store_of(driver: MemoryDriver) -> Any:
    from obox.objectstore import Settings

    return open_store(Settings("memory://"), driver=driver)


async def test_a_racy_store_fails_the_check(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served_by(monkeypatch, Racy())
    outcome = await check(write_config(tmp_path, "memory://"))
    assert outcome.code == 65
    assert [row["check"] for row in outcome.rows if row["result"] == "wrong"] == ["race"]
    (row,) = [row for row in outcome.rows if row["check"] == "race"]
    assert row["detail"].startswith("0 of 20 rounds of 8 writers had exactly one winner")


async def test_a_store_without_create_only_puts_passes_for_one_backend_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `conditional_put = "off"` the check used to report the second PUT, the race,
    the range and the copy as wrong."""

    class Overwrites(MemoryDriver):
        creates_at_once = False

        async def put(self, key: str, data: bytes, *, kind: Any) -> None:
            await self.replace(key, data, kind=kind)

    driver = Overwrites()
    served_by(monkeypatch, driver)
    config = write_config(tmp_path, "memory://")
    assert (await check(config)).code == 65
    config.write_text(config.read_text().replace("[imap]", 'conditional_put = "off"\n[imap]'))
    outcome = await check(config)
    assert outcome.code == 0
    results = {row["check"]: row["result"] for row in outcome.rows}
    assert results.pop("create-only") == results.pop("race") == "warning"
    assert set(results.values()) == {"ok"}
    assert await open_store_of(driver).list("", kind="format") == []


async def test_puts_of_the_race_that_land_late_are_no_fault_and_are_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The requests of the race were sent twice, and the first attempts landed after the
    DELETE. The check then used to report "1 objects are still listed"."""
    monkeypatch.setattr("obox.objectstore._probe.SWEEP_PAUSES_S", (0.01, 0.01, 0.01))
    driver = Late()
    served_by(monkeypatch, driver)
    config = write_config(tmp_path, "memory://")
    config.write_text(config.read_text().replace("[imap]", 'deadline = "2s"\n[imap]'))
    outcome = await check(config)
    assert driver.held == [], "all of them landed"
    assert [row for row in outcome.rows if row["result"] == "wrong"] == []
    assert outcome.code == 0
    assert await open_store_of(driver).list("", kind="format") == []


async def test_a_list_that_names_the_deleted_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obox.objectstore._probe.SWEEP_PAUSES_S", ())

    class Keeps(Stubborn):
        async def delete_batch(self, keys: Any, *, kind: Any) -> None:
            self.stay = {key for key in keys if key.endswith("/z")}
            await super().delete_batch(keys, kind=kind)

    for number, driver in enumerate((Stale(), Keeps([]))):
        served_by(monkeypatch, driver)
        outcome = await check(write_config(tmp_path / str(number), "memory://"))
        assert outcome.code == 65
        (row,) = [row for row in outcome.rows if row["result"] == "wrong"]
        assert row["check"] == "delete"
        assert "still listed" in row["detail"]


async def test_a_backend_ends_at_a_racy_store_and_remembers_one_that_is_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    racy = Racy()
    served_by(monkeypatch, racy)
    path = write_config(tmp_path / "racy", f"file://{tmp_path}/unused")
    for _ in range(2):
        before = list(racy.keys)
        backend = Backend(load(path, {}))
        with pytest.raises(BaseExceptionGroup) as caught:
            await asyncio.wait_for(backend.run(signals=False), 30)
        assert caught.group_contains(ConfigError, match="exactly one winner")
        backend.listeners.stop()
        await backend.parts.close()
    assert racy.keys == before, "the second start serves nobody before the race has passed"
    # It serves once the store lets one PUT succeed.
    racy.every = 1 << 40
    async with running(path) as service:
        await service.backend.ready.wait()

    class Fit(MemoryDriver):
        creates_at_once = False
        raced = 0

        async def put(self, key: str, data: bytes, *, kind: Any) -> None:
            self.raced += key.startswith("_probe/") and "." not in key
            await super().put(key, data, kind=kind)

    fit = Fit()
    served_by(monkeypatch, fit)
    path = write_config(tmp_path / "fit", f"file://{tmp_path}/unused")
    for _ in range(2):
        async with running(path) as service:
            for _ in range(3000):
                if fit.raced >= 160 and service.backend.parts.store.env.metacache.get_state(module.RACED):
                    break
                await asyncio.sleep(0.01)
        assert fit.raced == 160, "once for a bucket"


UNKNOWN = "an authority has issued it that is not trusted; storage.ca_file names one to trust"


@pytest.mark.parametrize(
    ("kind", "first", "then"),
    [
        ("unknown", UNKNOWN, ""),
        ("name", UNKNOWN, "it is for another name than that in storage.endpoint_url"),
        ("authority", "it is that of an authority; issue one for the server with it", "it is that of an authority"),
    ],
)
async def test_a_certificate_that_is_not_trusted_is_named_with_the_setting(
    tmp_path: Path, kind: str, first: str, then: str
) -> None:
    """then: what is wrong once the setting names the authority."""
    authority = certificate(tmp_path / "tls", "ca", "ca")
    name = "localhost" if kind == "unknown" else "elsewhere"
    cert = authority if kind == "authority" else certificate(tmp_path / "tls", "server", name, by=authority)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*cert)
    async with always(403, "AccessDenied", tls) as (endpoint, _):
        config = on_s3(tmp_path, endpoint.replace("http://127.0.0.1", "https://localhost"))
        outcome = await check(config)
        assert (outcome.code, outcome.rows[0]["result"]) == (69, "wrong")
        assert f"the server's certificate is refused: {first}" in outcome.rows[0]["detail"], outcome.rows[0]
        assert first in outcome.message
        config.write_text(config.read_text().replace("[storage]\n", f'[storage]\nca_file = "{authority[0]}"\n'))
        outcome = await check(config)
        assert outcome.code == (69 if then else 65)
        assert (then or "403 AccessDenied: about AccessDenied") in outcome.rows[0]["detail"]


async def test_a_ca_file_that_is_none_stops_the_start(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("no certificate")
    config = on_s3(tmp_path, "https://localhost:9000")
    text = config.read_text()
    for name, reason in (("ca.pem", "allowed: a file of PEM certificates"), ("none.pem", "No such file")):
        config.write_text(text.replace("[storage]\n", f'[storage]\nca_file = "{name}"\n'))
        with pytest.raises(ConfigError, match=rf"storage\.ca_file = .*{name}.*{reason}"):
            await check(config)


async def test_a_verb_of_a_running_backend_ends_with_the_stores_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client does not see the words of the store."""

    async def refuse(*_: Any, **__: Any) -> Any:
        raise Refused("403 InvalidAccessKeyId: no such key (list u/)")

    async with running(write_config(tmp_path)) as service:
        for name in ("get", "list", "put"):
            monkeypatch.setattr(service.backend.parts.bucket, name, refuse)
        code, message = await service.fails("mailboxStatus", user="ben@example.org", mailboxMask=["*"], field=["all"])
        assert (code, message) == (65, "the storage refuses: 403 InvalidAccessKeyId: no such key (list u/)")
        reader, writer = await asyncio.open_connection("127.0.0.1", service.imap_port())
        await reader.readline()
        writer.write(b"a LOGIN ben@example.org secret\r\n")
        assert await reader.readline() == b"a NO [UNAVAILABLE] The storage does not answer; try again later\r\n"
        writer.close()
        monkeypatch.undo()
