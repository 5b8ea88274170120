"""[http] with clients that send nothing or disconnect. Other clients are served, probes
first, and the log has no error."""

from __future__ import annotations

import asyncio
import gc
import logging
import tracemalloc
import weakref
from collections.abc import AsyncIterator, Iterator
from ipaddress import ip_network
from typing import Any

import httpx
import pytest
from patience import PATIENT_S
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from test_http import served
from uvicorn.protocols.http.flow_control import FlowControl

from obox.config import Listen
from obox.net import Listeners
from obox.server import http
from obox.server.http import HttpServer, application
from tests.turns import turns

TCP = Listen("127.0.0.1", 0)


class Slow:
    """An application whose requests wait until the test lets them go on."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.begun = 0
        self.two = asyncio.Event()
        self.left = asyncio.Event()

    async def wait(self, request: Request) -> Response:
        self.begun += 1
        if self.begun == 2:
            self.two.set()
        await self.go.wait()
        return PlainTextResponse("done")

    async def body(self, request: Request) -> Response:
        self.begun += 1
        return PlainTextResponse(str(len(await request.body())))

    async def stream(self, request: Request) -> Response:
        async def forever() -> AsyncIterator[bytes]:
            try:
                while True:
                    yield b"x" * 65536
                    await asyncio.sleep(0)
            finally:
                self.left.set()

        return StreamingResponse(forever())

    def app(self) -> Any:
        routes = [Route("/wait", self.wait), Route("/body", self.body, methods=["POST"]), Route("/stream", self.stream)]
        return application(metrics=lambda: b"metrics", draining=lambda: False, routes=routes)


@pytest.fixture
def slow() -> Slow:
    return Slow()


@pytest.fixture(autouse=True)
def no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Assert that neither uvicorn nor the loop has logged a traceback."""
    caplog.set_level(logging.INFO)
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


async def opened(client: httpx.AsyncClient) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = str(client.base_url).removeprefix("http://").rstrip("/").partition(":")
    return await asyncio.open_connection(host, int(port))


async def ended(reader: asyncio.StreamReader) -> bytes:
    try:
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""


async def test_silent_connections_count_against_no_request(
    log: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The oldest connections end because others come, and not because of the time.
    monkeypatch.setattr(http, "HEADER_S", 1e6)
    async with served(slow.app(), TCP, log) as client:
        silent = [await opened(client) for _ in range(300)]
        for _, writer in silent[::2]:
            writer.write(b"GET /healthz HT")
        slow.go.set()
        for path in ("/healthz", "/readyz", "/metrics", "/wait"):
            assert (await client.get(path)).status_code == 200, path
        gone = 0
        for reader, _ in silent[: 300 - http.SILENT_MAX]:
            assert await ended(reader) == b""
            gone += 1
        assert gone == 44, "the oldest have given way"
        for _, writer in silent:
            writer.close()


async def test_an_address_has_a_share_of_the_silent_connections(
    log: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All addresses of an IPv6 network count as one. Others keep their connections."""
    monkeypatch.setattr(http, "HEADER_S", 1e6)
    monkeypatch.setattr(http, "SILENT_ADDRESS_MAX", 3)
    entry = Listen("127.0.0.1", 0, proxy=True)
    served_by = HttpServer(slow.app())
    listeners = Listeners(log=log, proxy_networks=[ip_network("127.0.0.0/8")])
    listeners.bind("http", [entry], served_by.factory)
    port = int(listeners.addresses("http")[0].partition("/")[0].rpartition(":")[2])

    async def silent(remote: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"PROXY TCP6 {remote} 2001:db8::80 4000 80\r\n".encode())
        return reader, writer

    async with asyncio.TaskGroup() as tasks:
        await listeners.start(tasks)
        other = await silent("2001:db8:0:1::1")
        many = []
        for number in range(8):
            many.append(await silent(f"2001:db8::{number}"))
            while len(served_by.shared.connections) < min(number + 2, 4):  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.001)
        for reader, _ in many[:5]:
            assert await ended(reader) == b""
        for reader, writer in (other, *many[5:]):
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            assert (await ended(reader)).endswith(b"ok\n")
        listeners.stop()
        await served_by.close()


@pytest.mark.parametrize("send", [b"", b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-Never: ends", b"GET"])
async def test_a_header_has_little_time(send: bytes, log: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEADER_S", 0.2)
    async with served(slow.app(), TCP, log) as client:
        reader, writer = await opened(client)
        writer.write(send)
        assert await ended(reader) == b""
        # This is the second request of its connection.
        reader, writer = await opened(client)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200")
        writer.write(send or b"G")
        assert await ended(reader) == b""


async def test_drops_of_a_header_do_not_stretch_the_time(log: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "HEADER_S", 0.3)
    async with served(slow.app(), TCP, log) as client:
        reader, writer = await opened(client)
        end = asyncio.ensure_future(ended(reader))
        for _ in range(200):
            if end.done():
                break
            writer.write(b"G")
            await asyncio.sleep(0.05)
        assert await end == b""


async def test_a_body_that_stops(log: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.2)
    async with served(slow.app(), TCP, log) as client:
        reader, writer = await opened(client)
        writer.write(b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc")
        assert await ended(reader) == b""
        assert slow.begun == 1
        writer.close()


@pytest.mark.parametrize("path", ["/body", "/nothing"])
async def test_a_body_in_the_smallest_chunks(path: str, log: Any, slow: Slow) -> None:
    """A client can send such a body without a key. A single read of the socket may
    bring 40,000 chunks."""
    async with served(slow.app(), TCP, log) as client:
        reader, writer = await opened(client)
        with turns(mine=False) as found:
            writer.write(f"POST {path} HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
            writer.write(b"1\r\na\r\n" * 100_000 + b"0\r\n\r\n")
            writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            answer = await asyncio.wait_for(reader.read(), PATIENT_S)
        assert answer.endswith(b"ok\n")
        assert (b"100000" in answer) == (path == "/body")
        if found.count:  # callbacks of uvloop cannot be measured
            found.check()
        writer.close()


async def test_the_probes_have_places_of_their_own(log: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "REQUESTS_MAX", 2)
    async with served(slow.app(), TCP, log) as client:
        waiting = [asyncio.create_task(client.get("/wait")) for _ in range(2)]
        await asyncio.wait_for(slow.two.wait(), PATIENT_S)
        assert (await client.get("/wait")).status_code == 503
        assert (await client.get("/healthz")).text == "ok\n"
        assert (await client.get("/metrics")).text == "metrics"
        slow.go.set()
        assert {(await task).text for task in waiting} == {"done"}
        assert (await client.get("/wait")).text == "done", "the places are free again"


async def test_a_probe_that_is_not_read_holds_no_place(log: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "PROBES_MAX", 2)
    monkeypatch.setattr(http, "SILENT_MAX", 4)
    waiting = 0
    plain = FlowControl.drain

    async def drain(flow: FlowControl) -> None:
        nonlocal waiting
        waiting += 1
        await plain(flow)
        waiting -= 1

    monkeypatch.setattr(FlowControl, "drain", drain)
    app = application(metrics=lambda: b"m" * 100_000, draining=lambda: False)
    async with served(app, TCP, log) as client:
        greedy = [await opened(client) for _ in range(3)]
        try:
            for _, writer in greedy:
                writer.transport.pause_reading()
                writer.write(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)
            for _ in range(1_000):
                if waiting >= 2:
                    break
                await asyncio.sleep(0.01)
            for _ in range(5):
                for probe in ("/healthz", "/readyz", "/metrics"):
                    assert (await client.get(probe)).status_code == 200, probe
            greedy += [await opened(client) for _ in range(4)]
            assert (await client.get("/healthz")).status_code == 200
            assert waiting == 0, "who does not read gives way to newcomers"
        finally:
            for _, writer in greedy:
                writer.transport.abort()


async def test_many_who_ask_for_metrics_at_once(log: Any) -> None:
    """A burst of texts is made, and then texts for a tenth of the time. Other requests
    get the last text again. The clocks are the test's, so that the load of the machine
    changes nothing."""
    now, cpu, made = 0.0, 0.0, 0

    def metrics() -> bytes:
        nonlocal cpu, made
        made += 1
        cpu += 1 / 128
        return b"metrics %d" % made

    async def asked(client: httpx.AsyncClient) -> bytes:
        reader, writer = await opened(client)
        get = b"GET /metrics HTTP/1.1\r\nHost: x\r\n"
        writer.write((get + b"\r\n") * 3 + get + b"Connection: close\r\n\r\n")
        answers = await asyncio.wait_for(reader.read(), PATIENT_S)
        writer.close()
        return answers

    app = application(metrics=metrics, clock=lambda: now, cpu_clock=lambda: cpu)
    async with served(app, TCP, log) as client:
        answers = await asyncio.gather(*[asked(client) for _ in range(50)])
        assert sum(answer.count(b"\r\n\r\n") for answer in answers) >= 50
        for seconds, most in ((0.0, 13), (0.0, 13), (1.0, 26), (0.01, 26), (60.0, 39)):
            now += seconds
            texts = [(await client.get("/metrics")).text for _ in range(20)]
            assert (made, texts[-1]) == (most, f"metrics {most}")


@pytest.mark.parametrize(
    "send",
    [
        b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nabc",
        b"POST /body HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nab",
        b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 50,
        b"GET /hea",
    ],
)
@pytest.mark.parametrize("how", ["abort", "close", "eof"])
async def test_a_client_that_leaves(send: bytes, how: str, log: Any, slow: Slow) -> None:
    async with served(slow.app(), TCP, log) as client:
        _, writer = await opened(client)
        writer.write(send)
        await asyncio.sleep(0.05)
        if how == "eof":
            writer.write_eof()
            await asyncio.sleep(0.05)
            writer.transport.abort()
        else:
            getattr(writer.transport, how)()
        await asyncio.sleep(0.05)
        slow.go.set()
        assert (await client.get("/healthz")).text == "ok\n"


LARGE = b"POST /body HTTP/1.1\r\nHost: x\r\nContent-Length: 9000000\r\n\r\n" + b"x" * 4_000_000


@pytest.mark.parametrize(
    "send",
    [
        b"",
        b"GET /hea",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n",
        b"nonsense\r\n\r\n",
        LARGE,
        LARGE.replace(b"/body", b"/nothing"),
    ],
    ids=lambda send: send[:16].decode(),
)
async def test_reference_counts_free_a_connection(
    send: bytes, log: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client leaves. The garbage collector finds nothing of its connection, and the
    body that it has sent so far is released."""
    made: list[weakref.ref[object]] = []
    plain = http.HttpProtocol.connection_made

    def connection_made(protocol: Any, transport: Any) -> None:
        made.append(weakref.ref(protocol))
        plain(protocol, transport)

    async with served(slow.app(), TCP, log) as client:
        assert (await client.get("/healthz")).status_code == 200
        monkeypatch.setattr(http.HttpProtocol, "connection_made", connection_made)
        gc.collect()
        gc.disable()
        try:
            tracemalloc.start(1)
            before = tracemalloc.get_traced_memory()[0]
            for _ in range(3):
                reader, writer = await opened(client)
                writer.write(send)
                await asyncio.sleep(0.05)
                writer.transport.abort()
                del reader, writer
            slow.go.set()
            async with asyncio.timeout(PATIENT_S):
                while any(one() for one in made):  # noqa: ASYNC110 - nothing says so
                    await asyncio.sleep(0.01)
            assert len(made) == 3
            assert tracemalloc.get_traced_memory()[0] - before < 1 << 20
        finally:
            tracemalloc.stop()
            gc.enable()


@pytest.mark.parametrize("method", [b"GET", b"HEAD"])
@pytest.mark.parametrize("path", [b"/wait", b"/stream", b"/body"])
async def test_a_body_that_is_no_http(path: bytes, method: bytes, log: Any, slow: Slow) -> None:
    """The broken body arrives before the beginning of the response, or after it."""
    failures: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
    async with served(slow.app(), TCP, log) as client:
        reader, writer = await opened(client)
        method = b"POST" if path == b"/body" else method
        writer.write(method + b" " + path + b" HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n")
        if path == b"/stream" and method == b"GET":
            await reader.read(10)
        await asyncio.sleep(0.05)
        writer.write(b"zzz\r\n")
        await ended(reader)
        slow.go.set()
        assert (await client.get("/healthz")).text == "ok\n"
        writer.close()
    assert failures == []


async def test_a_client_that_does_not_read(log: Any, slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "WRITE_S", 0.2)
    async with served(slow.app(), TCP, log) as client:
        _, writer = await opened(client)
        writer.write(b"GET /stream HTTP/1.1\r\nHost: x\r\n\r\n")
        writer.transport.pause_reading()
        await asyncio.wait_for(slow.left.wait(), PATIENT_S)
        writer.transport.abort()
