"""A real Cassandra for tests, started once for the session. Maven fetches its jars. It
is a single node on free loopback ports, and requires passwords.

OBOX_TEST_CASSANDRA=host or host:port names another server, and OBOX_TEST_CASSANDRA_USER
and OBOX_TEST_CASSANDRA_PASSWORD its superuser (both are "cassandra" by default). A test
that needs the fixture is skipped if Java or Maven is missing, and the skip names the
missing program.
"""

from __future__ import annotations

import os
import shutil
import signal
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

START_S = 240.0
"""The first start takes 10 s on an idle machine, and a minute on a loaded machine."""
SUPERUSER = "cassandra"
"""Name and password of a new server's first role."""

KEYSTORE = "obox-test"
"""Password of the server's key."""

GIVEN = os.environ.get("OBOX_TEST_CASSANDRA", "")
PROGRAMS = () if GIVEN else ("java", "mvn")
"""For the marker `needs`."""

POM = Path(__file__).parent / "cassandra" / "pom.xml"
JARS = Path(__file__).parent.parent / "build" / "cassandra"
FETCH = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"

EXPORTS = [
    "java.base/jdk.internal.misc", "java.base/jdk.internal.ref", "java.base/java.lang.ref", "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi", "java.rmi/sun.rmi.registry", "java.rmi/sun.rmi.server",
    "java.rmi/sun.rmi.transport.tcp", "java.sql/java.sql", "jdk.unsupported/sun.misc",
]  # fmt: skip
OPENS = [
    "java.lang", "java.lang.reflect", "java.lang.module", "java.io", "java.nio", "java.util", "java.util.concurrent",
    "java.util.concurrent.atomic", "jdk.internal.loader", "jdk.internal.ref", "jdk.internal.reflect",
    "jdk.internal.math", "jdk.internal.module", "jdk.internal.util.jar", "sun.nio.ch",
]  # fmt: skip

SETTINGS = """\
cluster_name: test
num_tokens: 1
partitioner: org.apache.cassandra.dht.Murmur3Partitioner
data_file_directories: [{home}/data]
commitlog_directory: {home}/commitlog
saved_caches_directory: {home}/saved
hints_directory: {home}/hints
cdc_raw_directory: {home}/cdc
commitlog_sync: periodic
commitlog_sync_period: 10000ms
commitlog_segment_size: 8MiB
commitlog_total_space: 128MiB
memtable_heap_space: 64MiB
memtable_offheap_space: 64MiB
file_cache_size: 32MiB
concurrent_compactors: 1
seed_provider:
  - class_name: org.apache.cassandra.locator.SimpleSeedProvider
    parameters: [{{seeds: "127.0.0.1:{storage}"}}]
listen_address: 127.0.0.1
storage_port: {storage}
rpc_address: 127.0.0.1
native_transport_port: {port}
endpoint_snitch: SimpleSnitch
auto_bootstrap: false
auto_snapshot: false
authenticator: PasswordAuthenticator
authorizer: CassandraAuthorizer
role_manager: CassandraRoleManager
client_encryption_options:
  enabled: true
  optional: true
  keystore: {home}/keystore.p12
  keystore_password: {secret}
  store_type: PKCS12
  require_client_auth: false
permissions_validity: 100ms
roles_validity: 100ms
credentials_validity: 100ms
"""

LOGBACK = """\
<configuration>
  <appender name="OUT" class="ch.qos.logback.core.ConsoleAppender">
    <encoder><pattern>%-5level %date{ISO8601} %F:%L - %msg%n</pattern></encoder>
  </appender>
  <root level="WARN"><appender-ref ref="OUT"/></root>
</configuration>
"""


@dataclass(frozen=True)
class CassandraServer:
    """A running server and its superuser.

    ca: the CA of the server's certificate, which is for 127.0.0.1; None if it is not
    known.
    """

    host: str
    port: int
    user: str = SUPERUSER
    password: str = SUPERUSER
    ca: Path | None = None

    def connect(self, user: str = "", password: str = "") -> Any:
        """Return a Cluster of the driver. Without a user it logs in as the superuser.
        The caller shuts it down."""
        from cassandra.auth import PlainTextAuthProvider
        from cassandra.cluster import Cluster

        provider = PlainTextAuthProvider(user or self.user, password or self.password)
        return Cluster(
            [self.host], port=self.port, auth_provider=provider, connect_timeout=60, control_connection_timeout=60
        )

    def run(self, *statements: str) -> None:
        """Run statements as the superuser."""
        cluster = self.connect()
        try:
            session = cluster.connect()
            for statement in statements:
                session.execute(statement, timeout=PATIENT_S)
        finally:
            cluster.shutdown()

    def run_patiently(self, statement: str) -> None:
        """Run statements until the server accepts them: a password may be changed every
        5 s."""
        deadline = time.monotonic() + PATIENT_S
        while True:
            try:
                self.run(statement)
                return
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def fetched() -> Path:
    """Return the folder of the jars. Maven is called once for each version of the
    pom."""
    mark = JARS / "pom.xml"
    if mark.exists() and mark.read_bytes() == POM.read_bytes():
        return JARS
    fresh = JARS.with_name(f"{JARS.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.parent.mkdir(parents=True, exist_ok=True)
    arguments = ["mvn", "-q", "-B", "-f", str(POM), FETCH, "-DincludeScope=runtime", f"-DoutputDirectory={fresh}"]
    got = subprocess.run(arguments, capture_output=True, text=True, check=False)
    if got.returncode:
        pytest.fail("Maven cannot fetch Cassandra: " + (got.stdout + got.stderr)[-2000:])
    shutil.copy(POM, fresh)
    shutil.rmtree(JARS, ignore_errors=True)
    fresh.rename(JARS)
    return JARS


def _arguments(jars: Path, home: Path, jmx: int) -> list[str]:
    (jamm,) = jars.glob("jamm-*.jar")
    return [
        *("java", "-Xms256m", "-Xmx512m", "-XX:+UseSerialGC", "-XX:MaxDirectMemorySize=128m", "-Xss512k"),
        *("-XX:TieredStopAtLevel=1", f"-javaagent:{jamm}", "-Djdk.attach.allowAttachSelf=true"),
        *(word for name in EXPORTS for word in ("--add-exports", f"{name}=ALL-UNNAMED")),
        *(word for name in OPENS for word in ("--add-opens", f"java.base/{name}=ALL-UNNAMED")),
        *("--add-opens", "jdk.management/com.sun.management.internal=ALL-UNNAMED"),
        f"-Dcassandra.config=file://{home}/cassandra.yaml",
        f"-Dcassandra.storagedir={home}",
        f"-Dcassandra.logdir={home}/log",
        f"-Dlogback.configurationFile={home}/logback.xml",
        "-Dcassandra-foreground=yes",
        "-Dcassandra.ring_delay_ms=100",
        "-Dcassandra.skip_wait_for_gossip_to_settle=0",
        "-Dcassandra.superuser_setup_delay_ms=0",
        f"-Dcassandra.jmx.local.port={jmx}",
        *("-cp", f"{home}:{jars}/*", "org.apache.cassandra.service.CassandraDaemon"),
    ]


def _keystore(home: Path) -> Path:
    """Make the server's certificate and its key, for Java. Return the certificate,
    which is its own CA."""
    from certificates import certificate
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, load_pem_private_key, pkcs12

    cert, key = certificate(home)
    private: Any = load_pem_private_key(key.read_bytes(), None)
    store = pkcs12.serialize_key_and_certificates(
        b"node",
        private,
        x509.load_pem_x509_certificate(cert.read_bytes()),
        None,
        BestAvailableEncryption(KEYSTORE.encode()),
    )
    (home / "keystore.p12").write_bytes(store)
    return cert


@contextmanager
def run_cassandra() -> Iterator[CassandraServer]:
    """Start a server in a directory of its own, wait until its superuser can log in,
    kill it at the end."""
    if gone := [program for program in PROGRAMS if shutil.which(program) is None]:
        pytest.skip(f"needs {gone[0]}")
    jars = fetched()
    home = Path(tempfile.mkdtemp(prefix="obox-cassandra-"))
    log = home / "out.log"
    process: subprocess.Popen[bytes] | None = None
    try:
        port, storage, jmx = free_port(), free_port(), free_port()
        (home / "cassandra.yaml").write_text(SETTINGS.format(home=home, port=port, storage=storage, secret=KEYSTORE))
        ca = _keystore(home)
        (home / "logback.xml").write_text(LOGBACK)
        with log.open("wb") as out:
            process = subprocess.Popen(
                _arguments(jars, home, jmx),
                cwd=home,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        server = CassandraServer("127.0.0.1", port, ca=ca)
        if not _wait_ready(process, server):
            pytest.fail("Cassandra does not start: " + log.read_text(errors="replace")[-3000:])
        yield server
    finally:
        if process is not None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENT_S)
        shutil.rmtree(home, ignore_errors=True)


def _wait_ready(process: subprocess.Popen[bytes], server: CassandraServer) -> bool:
    """Return True once the superuser can log in: the server makes the role after the
    port is open."""
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            server.run("SELECT key FROM system.local")
            return True
        # A server that is starting answers with many kinds of errors.
        except Exception:
            time.sleep(0.5)
    return False


@pytest.fixture(scope="session")
def cassandra_server() -> Iterator[CassandraServer]:
    """Yield a Cassandra for the whole session."""
    pytest.importorskip("cassandra", reason="needs PyPI package cassandra-driver (make install)")
    if GIVEN:
        host, _, port = GIVEN.partition(":")
        user = os.environ.get("OBOX_TEST_CASSANDRA_USER", SUPERUSER)
        password = os.environ.get("OBOX_TEST_CASSANDRA_PASSWORD", SUPERUSER)
        yield CassandraServer(host, int(port or 9042), user, password)
        return
    with run_cassandra() as server:
        yield server


# `python -m tests.cassandra_server` fetches the jars, so that a test run need not do
# that.
if __name__ == "__main__":
    sys.stdout.write(f"{fetched()}\n")
