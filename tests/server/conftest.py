"""Certificates and a protocol to listen with."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from certificates import certificate

from obox.config import Listen
from obox.server.proxy import Via


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops: sockets and TLS are where they differ."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


Make = Callable[..., tuple[Path, Path]]


@pytest.fixture
def make_cert(tmp_path: Path) -> Make:
    """Write a self-signed certificate for names, return (cert, key)."""
    return lambda stem, *names: certificate(tmp_path, stem, *names)


class Greeter(asyncio.Protocol):
    """Greets with what it knows of the client, then echoes."""

    def __init__(self, entry: Listen, via: Via | None) -> None:
        self.via = via

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(f"hello {self.via.client if self.via else 'direct'}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Log:
    """Keeps what was logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, object]]] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda event, **values: self.lines.append((level, event, values))


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def greeter() -> type[Greeter]:
    return Greeter
