"""Certificates and a protocol to listen with."""

import asyncio
import datetime
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from obox.config import Listen
from obox.server.proxy import Via


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Both loops: sockets and TLS are where they differ."""
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}


Make = Callable[..., tuple[Path, Path]]


@pytest.fixture
def make_cert(tmp_path: Path) -> Make:
    """Write a self-signed certificate for names, return (cert, key)."""

    def make(stem: str, *names: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, names[0])])
        now = datetime.datetime.now(datetime.UTC)
        cert = (
            x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
            .sign(key, hashes.SHA256())
        )
        paths = tmp_path / f"{stem}.pem", tmp_path / f"{stem}.key"
        paths[0].write_bytes(cert.public_bytes(serialization.Encoding.PEM))
        pem, pkcs8, plain = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        paths[1].write_bytes(key.private_bytes(pem, pkcs8, plain))
        return paths

    return make


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
