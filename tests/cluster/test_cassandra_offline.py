"""The Cassandra engine without a server: statements, URLs, files, and servers that do
not answer."""

from __future__ import annotations

import asyncio
import builtins
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import structlog.testing
from fleet import FakeStore
from patience import PATIENT_S

from obox.cluster import (
    BackendMember,
    DeadWatch,
    Kind,
    Member,
    Myself,
    State,
    View,
    World,
    make_settings,
    open_cassandra,
)
from obox.cluster import cassandra as engine
from obox.errors import ConfigError, Unavailable


async def test_a_server_that_accepts_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call ends at the deadline although the driver's thread still waits. A call
    behind it waits no longer than the deadline either."""
    monkeypatch.setattr(engine, "DEADLINE_S", 0.2)
    silent = await asyncio.start_server(lambda reader, writer: None, "127.0.0.1", 0)
    directory = open_cassandra(f"cassandra://127.0.0.1:{silent.sockets[0].getsockname()[1]}/obox")
    for _ in range(3):
        with pytest.raises(Unavailable):
            await directory.all(Kind.GROUPS)
    await directory.close()
    silent.close()


def test_replicas_of_the_own_data_centre_are_asked_and_the_driver_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    from cassandra import ConsistencyLevel
    from cassandra.cluster import EXEC_PROFILE_DEFAULT
    from cassandra.policies import DCAwareRoundRobinPolicy, ExponentialReconnectionPolicy, TokenAwarePolicy

    made: dict[str, Any] = {}
    monkeypatch.setattr("cassandra.cluster.Cluster", lambda hosts, **settings: made.update(settings, hosts=hosts))
    open_cassandra("cassandra://c1,c2/obox?datacenter=north").new_cluster()
    profile = made["execution_profiles"][EXEC_PROFILE_DEFAULT]
    assert made["hosts"] == ["c1", "c2"]
    assert profile.consistency_level == ConsistencyLevel.LOCAL_QUORUM
    policy = profile.load_balancing_policy
    assert isinstance(policy, TokenAwarePolicy)
    assert isinstance(policy._child_policy, DCAwareRoundRobinPolicy)
    assert policy._child_policy.local_dc == "north"
    again = made["reconnection_policy"]
    assert isinstance(again, ExponentialReconnectionPolicy)
    assert again.max_delay == engine.RECONNECT_MAX_S


def test_all_statements_are_three_without_transaction_and_delete() -> None:
    assert len(engine.STATEMENTS) == 3
    source = Path(engine.__file__).read_text()
    written = re.findall(
        r'"{1,3}\s*((?:SELECT|INSERT|UPDATE|DELETE|BEGIN|TRUNCATE|ALTER|DROP|CREATE|GRANT) [^"]+)', source
    )
    assert {" ".join(text.split()) for text in written} == {
        *(" ".join(text.split()) for text in (*engine.STATEMENTS, engine.TABLE))
    }
    for statement in engine.STATEMENTS:
        assert re.match(r"SELECT|INSERT", statement)
        assert not re.search(r"\b(IF|DELETE|BATCH|TTL|ALLOW|TOKEN)\b", statement, re.I)
    assert "USING TIMESTAMP ?" in engine.INSERT
    assert "SERIAL" not in source


URLS = [
    ("cassandra://host", "a keyspace"),
    ("cassandra://a:1,b:2/obox", "one port"),
    ("cassandra://a,,b/obox", "hosts"),
    ("cassandra://[::1/obox", "hosts"),
    ("cassandra://a/obox/rows", "a keyspace"),
    ("cassandra://a/obox?dc=here", "unknown option 'dc'.*datacenter"),
    ("cassandra://a/obox?tls=yes", "tls=off or verify or chain"),
    ("cassandra://a/obox?tls=off&ca=/ca.pem", "tls"),
    ("cassandra://a/obox?tls=verify&cert=/c.pem", "together"),
    ("cassandra://u:hush@a/obox?", None),
]


@pytest.mark.parametrize(("url", "reason"), URLS)
def test_bad_urls_say_what_is_allowed(url: str, reason: str | None) -> None:
    if reason is None:
        assert "hush" not in repr(engine.read_url(url))
        return
    with pytest.raises(ConfigError, match=f"cluster.directory: .*{reason}") as refusal:
        engine.read_url(url.replace("://", "://u:hush@"))
    assert "hush" not in str(refusal.value)
    assert "allowed: " in str(refusal.value)


def test_a_url_with_everything() -> None:
    url = "cassandra://o%40box@10.0.0.1,b.example.org:19042/mail?datacenter=dc%201&ca=/ca.pem&cert=c.pem&key=k.pem"
    place = engine.read_url(url)
    assert (place.hosts, place.port) == (("10.0.0.1", "b.example.org"), 19042)
    assert (place.keyspace, place.user) == ("mail", "o@box")
    assert (place.datacenter, place.tls, place.ca) == ("dc 1", "verify", "/ca.pem")
    assert engine.read_url("cassandra://a/obox").port == engine.PORT
    assert engine.read_url("cassandra://[2001:db8::1]:19042/obox").hosts == ("2001:db8::1",)


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    there = builtins.__import__

    def without(name: str, *arguments: Any, **words: Any) -> Any:
        if name.startswith("cassandra"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return there(name, *arguments, **words)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ConfigError, match=r"obox\[cluster\]"):
        open_cassandra("cassandra://a/obox")


@pytest.mark.parametrize(
    ("options", "password", "named"),
    [("?ca=/none.pem", None, "cluster.directory: ca"), ("", Path("/none"), "cluster.password_file: /none")],
)
def test_files_are_read_at_the_start(options: str, password: Path | None, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        open_cassandra("cassandra://u@a/obox" + options, password)


async def test_nobody_listens_is_unavailable_in_time() -> None:
    began = time.monotonic()
    directory = open_cassandra("cassandra://127.0.0.1:1/obox")
    with structlog.testing.capture_logs() as logs, pytest.raises(Unavailable):
        await directory.all(Kind.GROUPS)
    assert "127.0.0.1" in logs[0]["hosts"]
    await directory.close()
    assert time.monotonic() - began < PATIENT_S
    with pytest.raises(Unavailable):
        await directory.all(Kind.GROUPS)


async def test_a_server_that_does_not_answer_is_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Members ask each second, also while they wait at their start."""
    now = time.monotonic()
    clock = SimpleNamespace(monotonic=lambda: now)
    monkeypatch.setattr("obox.cluster.cassandra.time", clock)
    directory = open_cassandra("cassandra://127.0.0.1:1/obox")
    lines = []
    for _ in range(3):
        with structlog.testing.capture_logs() as logs, pytest.raises(Unavailable):
            await directory.all(Kind.GROUPS)
        lines.append([line["event"] for line in logs])
        now += 31
    await directory.close()
    assert lines == [["directory does not answer"], [], ["directory does not answer"]]


class FakeCassandra:
    """The driver's cluster and session. It refuses connections until it is up."""

    def __init__(self) -> None:
        self.up = False
        self.rows: dict[tuple[str, str], tuple[bytes, int]] = {}

    def connect(self, keyspace: str) -> FakeCassandra:
        if not self.up:
            raise ConnectionRefusedError("Connection refused")
        return self

    def shutdown(self) -> None: ...

    def prepare(self, statement: str) -> SimpleNamespace:
        return SimpleNamespace(bind=lambda values: (statement, *values))

    def execute_async(self, bound: tuple[Any, ...]) -> SimpleNamespace:
        statement, *values = bound
        found = []
        if statement == engine.INSERT:
            kind, key, value, stamp = values
            self.rows[kind, key] = value, stamp
        else:
            found = [(key, *row) for (kind, key), row in self.rows.items() if values in ([kind], [kind, key])]
        return SimpleNamespace(has_more_pages=False, add_callbacks=lambda page, failed: page(found))


async def test_a_start_waits_for_cassandra_with_a_line_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend starts 150 s before Cassandra answers. Then it joins the cluster."""
    now, server = 1_800_000_000.0, FakeCassandra()

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        await asyncio.sleep(0)

    monkeypatch.setattr("obox.cluster.cassandra.time", SimpleNamespace(monotonic=lambda: now))
    directory = open_cassandra("cassandra://c1/obox")
    monkeypatch.setattr(directory, "new_cluster", lambda: server)
    view = View(directory, clock=lambda: now, now=lambda: now, sleep=sleep)

    async def greets(member: Member | None) -> bool:
        return True

    async def begin() -> None:
        await make_settings(directory, 4, now=lambda: now, sleep=sleep, random_bytes=bytes)

    world = World(lambda: now, lambda: now, sleep, bytes, dict, greets)
    member = BackendMember(view, FakeStore(), DeadWatch("a", "default", 15.0), world)
    until = now + 150
    with structlog.testing.capture_logs() as logs:
        running = asyncio.ensure_future(member.run(Myself(Member("backend", "default", "c1"), State.STANDBY, begin)))
        async with asyncio.timeout(PATIENT_S):
            while now < until:  # noqa: ASYNC110 - the clock is the test's own
                await asyncio.sleep(0)
            logged = [(line["event"], line["error"]) for line in logs if line["log_level"] != "debug"]
            server.up = True
            while (Kind.BEATS.value, "a") not in server.rows:
                assert not running.done()
                await asyncio.sleep(0)
    assert logged == 3 * [("directory does not answer", "Connection refused")]
    assert (Kind.MEMBERS.value, "a") in server.rows
    running.cancel()
    await asyncio.wait([running])
    await directory.close()


async def test_the_reason_is_a_note_of_the_error() -> None:
    """Clients see the text of the error, so it must not name a host."""
    directory = open_cassandra("cassandra://127.0.0.1:1/obox")
    try:
        with pytest.raises(Unavailable) as failure:
            await directory.get(Kind.SETTINGS, "directory")
    finally:
        await directory.close()
    assert str(failure.value) == "the directory does not answer"
    assert "127.0.0.1" in " ".join(failure.value.__notes__)
