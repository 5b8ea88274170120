"""The directory in a real Cassandra: the conformance suite, the roles of
docs/cassandra.md, outages, and statements."""

from __future__ import annotations

import asyncio
import re
import threading
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog.testing
from cassandra_server import PROGRAMS, CassandraServer, cassandra_server
from certificates import certificate
from patience import PATIENT_S
from test_directory import *  # noqa: F403 - every test of the conformance suite runs here, too

from obox.cluster import CassandraDirectory, Directory, Kind, open_cassandra
from obox.cluster import cassandra as engine
from obox.errors import Unavailable

__all__ = ["cassandra_server"]

pytestmark = pytest.mark.needs(*PROGRAMS)

NOW = 1_800_000_000_000_000
KEYSPACE = ROLE = "obox_test"
"""The test uses another name than "obox" of the page, because a user of the server may
have a keyspace of that name."""
PAGE = (Path(__file__).parent.parent.parent / "docs/cassandra.md").read_text()


GONE = ("DROP KEYSPACE IF EXISTS obox", "DROP ROLE IF EXISTS obox", "DROP ROLE IF EXISTS obox_init")


@dataclass
class Site:
    """A keyspace with the roles that docs/cassandra.md makes."""

    server: CassandraServer
    folder: Path

    def open(self, role: str = ROLE) -> CassandraDirectory:
        return open_cassandra(
            f"cassandra://{role}@{self.server.host}:{self.server.port}/{KEYSPACE}", self.folder / role
        )


@pytest.fixture(scope="module")
def site(cassandra_server: CassandraServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("passwords")
    for role in (ROLE, f"{ROLE}_init"):
        (folder / role).write_text(f"password of {role}\n")
    cassandra_server.run(*map(for_one_node, GONE))
    site = Site(cassandra_server, folder)
    for block in re.findall(r"```cql\n(.*?)```", PAGE, flags=re.S):
        for statement in re.sub(r"--.*", "", block).split(";"):
            if "SELECT ON TABLE" in statement:
                asyncio.run(made(site))
            if statement.strip():
                cassandra_server.run(for_one_node(statement))
    yield site
    cassandra_server.run(*map(for_one_node, GONE))


def for_one_node(statement: str) -> str:
    """Adapt a statement of the page to the test's server: one replica, and the names
    and passwords of the test."""
    statement = re.sub(r"\bobox", ROLE, statement)
    one = "{'class': 'SimpleStrategy', 'replication_factor': 1}"
    statement = re.sub(r"\{'class': 'NetworkTopologyStrategy'.*?\}", one, statement)
    return re.sub(r"(CREATE ROLE (\w+) WITH PASSWORD = )'…'", r"\1'password of \2'", statement)


async def made(site: Site) -> None:
    """Do what `oboxadm cluster init` does."""
    directory = site.open(f"{ROLE}_init")
    await patiently(directory, directory.make)
    await directory.close()


async def patiently(directory: Directory, work: Callable[[], Awaitable[object]] | None = None) -> None:
    """Wait until the directory answers."""
    async with asyncio.timeout(PATIENT_S):
        while True:
            try:
                await (work() if work else directory.all(Kind.GROUPS))
                return
            except Unavailable:
                await asyncio.sleep(0.1)


@pytest.fixture(scope="module", autouse=True)
def patience() -> Iterator[None]:
    """Lengthen the deadlines, because the machine may be loaded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "DEADLINE_S", PATIENT_S)
        patch.setattr(engine, "REQUEST_S", PATIENT_S - 1)
        patch.setattr(engine, "CONNECT_S", PATIENT_S / 2)
        yield


@pytest.fixture(scope="module")
def members(site: Site) -> Iterator[tuple[CassandraDirectory, CassandraDirectory]]:
    """Yield two members that are connected once for all tests of the module, because
    they belong to no event loop."""
    both = (site.open(), site.open())
    for member in both:
        # The server may take a moment until it knows a new role and its grants.
        asyncio.run(patiently(member))
    yield both
    for member in both:
        asyncio.run(member.close())


@pytest.fixture(scope="module")
def superuser(site: Site) -> Iterator[Any]:
    cluster = site.server.connect()
    yield cluster.connect(KEYSPACE)
    cluster.shutdown()


@pytest.fixture
async def pair(superuser: Any, members: tuple[CassandraDirectory, CassandraDirectory]) -> tuple[Directory, Directory]:
    await asyncio.to_thread(superuser.execute, "TRUNCATE rows", timeout=PATIENT_S)
    return members


async def refused(site: Site, role: str, statement: str) -> bool:
    """Return whether the server answers that a role may not run a statement."""
    from cassandra import Unauthorized

    def run() -> bool:
        cluster = site.server.connect(role, f"password of {role}")
        try:
            cluster.connect(KEYSPACE).execute(for_one_node(statement))
        except Unauthorized:
            return True
        finally:
            cluster.shutdown()
        return False

    return await asyncio.to_thread(run)


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE obox.other (a text PRIMARY KEY)",
        "ALTER TABLE obox.rows WITH comment = 'x'",
        "DROP TABLE obox.rows",
        "DROP KEYSPACE obox",
        "CREATE KEYSPACE other WITH replication = {'class': 'SimpleStrategy', 'replication_factor': 1}",
        "SELECT * FROM system_auth.roles",
        "CREATE ROLE other",
        "GRANT ALL ON KEYSPACE obox TO obox",
    ],
)
async def test_the_role_of_a_member_may_read_and_write_rows_alone(site: Site, statement: str) -> None:
    assert await refused(site, ROLE, statement)


@pytest.mark.parametrize(
    "statement", ["SELECT * FROM obox.rows", "DROP KEYSPACE obox", "INSERT INTO rows (kind, key) VALUES ('a', 'b')"]
)
async def test_the_role_of_init_makes_the_table_and_reads_nothing(site: Site, statement: str) -> None:
    assert await refused(site, f"{ROLE}_init", statement)


async def test_the_table_has_the_options_of_the_page(site: Site) -> None:
    cluster = site.server.connect()
    try:
        options = await asyncio.to_thread(
            lambda: (
                cluster.connect()
                .execute(
                    f"SELECT * FROM system_schema.tables WHERE keyspace_name = '{KEYSPACE}' AND table_name = 'rows'"
                )
                .one()
                ._asdict()
            )
        )
    finally:
        cluster.shutdown()
    assert options["compaction"]["class"].endswith("LeveledCompactionStrategy")
    assert options["compression"]["chunk_length_in_kb"] == "4"
    assert dict(options["caching"]) == {"keys": "ALL", "rows_per_partition": "NONE"}
    assert options["default_time_to_live"] == 0
    assert options["read_repair"] == "BLOCKING"
    assert options["bloom_filter_fp_chance"] == 0.01
    for name, value in re.findall(r"^AND (\w+) = (.+)$", engine.TABLE, flags=re.M):
        assert f"| `{name} = {value}` |" in PAGE


async def test_a_wrong_password_is_unavailable_and_the_log_has_the_reason(site: Site, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("wrong")
    url = f"cassandra://{ROLE}@{site.server.host}:{site.server.port}/{KEYSPACE}"
    directory = open_cassandra(url, tmp_path / "password")
    with structlog.testing.capture_logs() as logs:
        for _ in range(3):
            with pytest.raises(Unavailable, match="does not answer"):
                await directory.all(Kind.GROUPS)
    assert len(logs) == 1, "once a minute"
    assert "Bad credentials" in logs[0]["error"] or "incorrect" in logs[0]["error"]
    (tmp_path / "password").write_text(f"password of {ROLE}")
    await patiently(directory)
    await directory.close()


async def test_a_keyspace_without_a_table_names_the_command(site: Site) -> None:
    empty = f"{KEYSPACE}_empty"
    site.server.run(f"DROP KEYSPACE IF EXISTS {empty}")
    site.server.run(
        f"CREATE KEYSPACE {empty} WITH replication = {{'class': 'SimpleStrategy', 'replication_factor': 1}}"
    )
    server = site.server
    directory = open_cassandra(f"cassandra://{server.user}:{server.password}@{server.host}:{server.port}/{empty}")
    with structlog.testing.capture_logs() as logs, pytest.raises(Unavailable):
        await directory.all(Kind.GROUPS)
    assert "oboxadm cluster init" in logs[0]["error"]
    await directory.make()
    assert await directory.all(Kind.GROUPS) == {}
    await directory.close()
    site.server.run(f"DROP KEYSPACE {empty}")


class Relay:
    """A TCP relay to the server. A test can cut it and start it again."""

    def __init__(self, host: str, port: int, *, at: str = "127.0.0.1") -> None:
        self._to, self._at = (host, port), at
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._serve, self._at, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def cut(self) -> None:
        assert self._server
        self._server.close()
        for writer in self._open:
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._to)
        self._open |= {writer, back}
        await asyncio.gather(self._copy(reader, back), self._copy(there, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                writer.write(data)
        except OSError:
            pass
        writer.close()


async def test_it_starts_without_cassandra_and_reconnects_after_a_cut(site: Site) -> None:
    relay = Relay(site.server.host, site.server.port)
    await relay.start()
    await relay.cut()
    directory = open_cassandra(f"cassandra://{ROLE}@127.0.0.1:{relay.port}/{KEYSPACE}", site.folder / ROLE)
    with pytest.raises(Unavailable):
        await directory.all(Kind.GROUPS)
    await relay.start()
    await patiently(directory)
    await relay.cut()
    async with asyncio.timeout(PATIENT_S):
        with pytest.raises(Unavailable):
            await until_it_fails(directory)
    await relay.start()
    await patiently(directory)
    await directory.close()


async def test_a_password_that_is_changed_while_it_runs(
    site: Site, superuser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver stops trying when the server refuses a password. The engine must then
    connect again with the password that the file has by now."""
    monkeypatch.setattr(engine, "RENEW_S", 1.0)
    await asyncio.to_thread(
        site.server.run,
        f"DROP ROLE IF EXISTS {ROLE}_changed",
        f"CREATE ROLE {ROLE}_changed WITH PASSWORD = 'first' AND LOGIN = true",
        f"GRANT SELECT ON TABLE {KEYSPACE}.rows TO {ROLE}_changed",
    )
    (tmp_path / "password").write_text("first")
    relay = Relay(site.server.host, site.server.port)
    await relay.start()
    directory = open_cassandra(f"cassandra://{ROLE}_changed@127.0.0.1:{relay.port}/{KEYSPACE}", tmp_path / "password")
    await patiently(directory)
    await asyncio.to_thread(site.server.run_patiently, f"ALTER ROLE {ROLE}_changed WITH PASSWORD = 'second'")
    await relay.cut()
    async with asyncio.timeout(PATIENT_S):
        with pytest.raises(Unavailable):
            await until_it_fails(directory)
    await relay.start()
    for _ in range(20):
        with pytest.raises(Unavailable):
            await directory.all(Kind.GROUPS)
        await asyncio.sleep(0.1)
    (tmp_path / "password").write_text("second")
    await patiently(directory)
    await directory.close()
    await relay.cut()
    await asyncio.to_thread(site.server.run, f"DROP ROLE {ROLE}_changed")


async def test_tls(site: Site, tmp_path: Path) -> None:
    """The certificate of the server is valid only for 127.0.0.1."""
    if site.server.ca is None:
        pytest.skip("needs java: the certificate of another server is not known")
    relay = Relay(site.server.host, site.server.port, at="127.0.0.2")
    await relay.start()
    other, _ = certificate(tmp_path)
    ca = site.server.ca
    direct, elsewhere = f"127.0.0.1:{site.server.port}", f"127.0.0.2:{relay.port}"
    for where, options, reason in [
        (direct, f"ca={ca}", ""),
        (direct, f"ca={ca}&tls=chain", ""),
        (direct, f"ca={other}", "CERTIFICATE_VERIFY_FAILED"),
        (direct, f"ca={other}&tls=chain", "CERTIFICATE_VERIFY_FAILED"),
        (direct, "tls=verify", "CERTIFICATE_VERIFY_FAILED"),
        (elsewhere, f"ca={ca}", "IP address mismatch"),
    ]:
        directory = open_cassandra(f"cassandra://{ROLE}@{where}/{KEYSPACE}?{options}", site.folder / ROLE)
        with structlog.testing.capture_logs() as logs:
            if not reason:
                await patiently(directory)
            else:
                with pytest.raises(Unavailable):
                    await directory.all(Kind.GROUPS)
        assert all(reason in line["error"] for line in logs)
        assert bool(logs) == bool(reason)
        await directory.close()
    await relay.cut()


async def until_it_fails(directory: Directory) -> None:
    while True:
        await directory.all(Kind.GROUPS)


async def test_the_driver_never_runs_on_the_loop(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that connect, prepare and send may block, so they must run in a
    thread."""
    from cassandra.cluster import Cluster, Session

    threads: dict[str, set[int]] = {}

    def watch(of: type, name: str) -> None:
        there = getattr(of, name)

        def noted(*arguments: Any, **words: Any) -> Any:
            threads.setdefault(name, set()).add(threading.get_ident())
            return there(*arguments, **words)

        monkeypatch.setattr(of, name, noted)

    watch(Cluster, "__init__")
    watch(Cluster, "connect")
    watch(Cluster, "shutdown")
    watch(Session, "prepare")
    watch(Session, "execute_async")
    directory = site.open()
    await patiently(directory)
    await directory.put(Kind.MOVES, "loop", b"a", NOW)
    await directory.get(Kind.MOVES, "loop")
    await directory.close()
    assert set(threads) == {"__init__", "connect", "shutdown", "prepare", "execute_async"}
    assert threading.get_ident() not in set().union(*threads.values())
