"""Probes and metrics over a real socket; the names of metrics."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from patience import PATIENT_S
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from obox.config import Listen
from obox.net import Listeners
from obox.server import Metrics
from obox.server.exposition import Exposition
from obox.server.http import HttpServer, application


class Requests:
    requests, errors, bytes, seconds, buckets = 3, 1, 500, 0.25, [1, 1, 1]


@asynccontextmanager
async def served(app: Any, entry: Listen, log: Any) -> AsyncIterator[httpx.AsyncClient]:
    listeners, server = Listeners(log=log), HttpServer(app)
    listeners.bind("http", [entry], server.factory)
    transport = httpx.AsyncHTTPTransport(uds=str(entry.path)) if entry.path else None
    base = "http://obox" if entry.path else f"http://{listeners.addresses('http')[0]}"
    async with asyncio.TaskGroup() as tasks:
        await listeners.start(tasks)
        async with httpx.AsyncClient(transport=transport, base_url=base, timeout=PATIENT_S) as client:
            yield client
            listeners.stop()
            await asyncio.wait_for(server.close(), PATIENT_S)


async def test_probes_and_metrics(log: Any) -> None:
    draining = False
    metrics = Metrics("0.1")
    app = application(metrics=Exposition(metrics).text, draining=lambda: draining)
    async with served(app, Listen("127.0.0.1", 0), log) as client:
        assert (await client.get("/healthz")).text == "ok\n"
        assert (await client.get("/readyz")).status_code == 200
        draining = True
        assert (await client.get("/readyz")).status_code == 503
        assert (await client.get("/healthz")).status_code == 200
        got = await client.get("/metrics")
        assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert 'obox_build_info{version="0.1"} 1.0' in got.text
        assert (await client.get("/other")).status_code == 404


async def test_unix_socket_is_local(log: Any, tmp_path: Path) -> None:
    async def who(request: Request) -> JSONResponse:
        return JSONResponse(request.state.local)

    app = application(routes=[Route("/who", who)])
    async with served(app, Listen(path=tmp_path / "http"), log) as client:
        assert (await client.get("/who")).json() is True
        assert (await client.get("/metrics")).status_code == 404
    async with served(app, Listen("127.0.0.1", 0), log) as client:
        assert (await client.get("/who")).json() is False


def test_names_are_api() -> None:
    metrics = Metrics("0.1", ["imap"])
    numbers: Mapping[tuple[str, str], Requests] = {("put", "mail"): Requests(), ("get", "other"): Requests()}
    metrics.objectstore(lambda: numbers, [0.1, 1])
    cache = {"hits_total": 5.0, "space_bytes": 7.0}
    metrics.source("fscache", lambda: cache)
    metrics.source("metacache", lambda: {"space_bytes": 1})
    metrics.sessions["imap"].inc()
    metrics.lmtp_deliveries.labels("ok").inc()
    metrics.loop_lag.observe(0.02)
    cache["hits_total"] = 6
    text = Exposition(metrics).text().decode()
    for line in (
        'obox_objectstore_requests_total{op="put",kind="mail"} 3.0',
        'obox_objectstore_requests_total{op="head",kind="fts"} 0.0',
        'obox_objectstore_requests_total{op="get",kind="other"} 3.0',
        'obox_objectstore_errors_total{op="put",kind="mail"} 1.0',
        'obox_objectstore_bytes_total{op="put",kind="mail"} 500.0',
        'obox_objectstore_request_seconds_bucket{op="put",kind="mail",le="1.0"} 2.0',
        'obox_objectstore_request_seconds_bucket{op="put",kind="mail",le="+Inf"} 3.0',
        'obox_objectstore_request_seconds_sum{op="put",kind="mail"} 0.25',
        "obox_fscache_hits_total 6.0",
        "obox_fscache_space_bytes 7.0",
        "obox_metacache_space_bytes 1.0",
        "obox_imap_sessions 1.0",
        'obox_lmtp_deliveries_total{result="ok"} 1.0',
        'obox_logins_total{result="failed"} 0.0',
        'obox_loop_lag_seconds_bucket{le="0.025"} 1.0',
    ):
        assert line in text.splitlines(), line
    assert "process_resident_memory_bytes" in text
    # This stands for a second backend in the same process.
    Metrics("0.1")


async def test_a_request_at_hand_is_finished(log: Any) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def slow(request: Request) -> JSONResponse:
        begun.set()
        await go.wait()
        return JSONResponse("done")

    listeners, server = Listeners(log=log), HttpServer(application(routes=[Route("/slow", slow)]))
    listeners.bind("http", [Listen("127.0.0.1", 0)], server.factory)
    async with asyncio.TaskGroup() as tasks, httpx.AsyncClient() as client:
        await listeners.start(tasks)
        answer = asyncio.create_task(client.get(f"http://{listeners.addresses('http')[0]}/slow"))
        await begun.wait()
        listeners.stop()
        closing = asyncio.create_task(server.close())
        await asyncio.sleep(0.1)
        assert not closing.done()
        go.set()
        assert (await answer).json() == "done"
        await asyncio.wait_for(closing, PATIENT_S)


@pytest.mark.parametrize("data", [b"\x16\x03\x01rubbish\r\n\r\n", b"GET / HTTP/1.1\r\nx: " + b"y" * 20000])
async def test_rubbish(data: bytes, log: Any) -> None:
    async with served(application(), Listen("127.0.0.1", 0), log) as client:
        host, _, port = str(client.base_url).removeprefix("http://").rstrip("/").partition(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(data)
        assert b"400" in await asyncio.wait_for(reader.read(100), PATIENT_S)
        writer.close()
