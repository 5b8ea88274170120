"""Certificates and a protocol to listen with."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from certificates import certificate
from listening import LOOPS, Log

from obox.config import Listen
from obox.net import Via


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS


Make = Callable[..., tuple[Path, Path]]


@pytest.fixture
def make_cert(tmp_path: Path) -> Make:
    """Write a self-signed certificate for names, return (cert, key)."""
    return lambda stem, *names: certificate(tmp_path, stem, *names)


class Greeter(asyncio.Protocol):
    """A driver that greets with what it knows of the client, and then echoes."""

    def __init__(self, entry: Listen, via: Via | None) -> None:
        self.via = via

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(f"hello {self.via.client if self.via else 'direct'}\r\n".encode())

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def greeter() -> type[Greeter]:
    return Greeter
