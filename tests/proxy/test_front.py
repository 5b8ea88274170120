"""`obox proxy`: a process without a store, in front of the backends that the directory
names."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from members import ADDRESS, SECRET, Cluster, Member, Rows, cluster, until
from patience import PATIENT_S
from pop3_members import Pop3
from structlog.testing import capture_logs

from obox.auth import PasswdFile
from obox.cluster import (
    Assigned,
    Beat,
    Here,
    Kind,
    MemoryDirectory,
    MemoryReplica,
    Settings,
    There,
    View,
    decode,
    encode,
    group_key,
    group_of,
)
from obox.cluster import Member as MemberRow
from obox.cluster.records import SETTINGS_KEY
from obox.config import load
from obox.errors import ConfigError, Unavailable
from obox.front import Front, unused_sections
from obox.proxy import ViewRouter
from obox.proxy import waiting as waiting_module
from obox.store.user.user import User
from obox.types import StorageId
from tests.imap.harness import Client
from tests.pop3.pop3_harness import Client as Pop3Client

BEN = StorageId("ben")


def directory_of_a_test() -> MemoryDirectory:
    return MemoryDirectory(MemoryReplica(time.monotonic), sleep=asyncio.sleep)


async def put(directory: MemoryDirectory, kind: Kind, key: str, record: object, at: int = 1) -> None:
    await directory.put(kind, key, encode(record), at)


async def written(rows: Rows, directory: MemoryDirectory) -> None:
    """Write the rows of a test to the directory. All users are in the same group."""
    await put(directory, Kind.SETTINGS, SETTINGS_KEY, Settings(1, "0" * 32, 1.0))
    for name, (address, ports) in rows.places.items():
        await put(directory, Kind.MEMBERS, name, MemberRow("backend", "default", address, ports))
    for user, assigned in rows.owners.items():
        await put(directory, Kind.PINS, user, assigned)


def config_file(path: Path, more: str = "") -> Path:
    (path / "secret").write_bytes(SECRET)
    (path / "secret").chmod(0o600)
    file = path / "proxy.toml"
    file.write_text(
        f"""state_dir = "{path}/proxy"
[imap]
listen = ["127.0.0.1:0"]
[lmtp]
listen = ["127.0.0.1:0"]
[http]
listen = ["127.0.0.1:0"]
[auth]
passwd_file = "users"
failure_delay = "0s"
[cluster]
backend = "p1"
secret_file = "secret"
{more}"""
    )
    return file


@asynccontextmanager
async def running(file: Path, directory: MemoryDirectory) -> AsyncIterator[Front]:
    front = Front(load(str(file), {}, proxy=True), environ={}, directory=directory)
    listening = asyncio.Event()
    task = asyncio.create_task(front.run(signals=False, started=lambda _: listening.set()))
    await asyncio.wait([task, asyncio.ensure_future(listening.wait())], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield front
    finally:
        front.lifecycle.stop()
        assert await task == 0


def port_of(front: Front, name: str) -> int:
    return int(front.listeners.addresses(name)[0].partition("/")[0].rpartition(":")[2])


async def client(front: Front) -> Client:
    reader, writer = await asyncio.open_connection(ADDRESS, port_of(front, "imap"))
    made = Client(reader, writer)
    await made.line()
    return made


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[tuple[Cluster, Member, MemoryDirectory]]:
    async with cluster(tmp_path) as made:
        made.rows.own("ben", "b2")
        member = await made.member("b2")
        directory = directory_of_a_test()
        await written(made.rows, directory)
        yield made, member, directory


async def test_a_proxy_serves_pop3(backend: tuple[Cluster, Member, MemoryDirectory], tmp_path: Path) -> None:
    made, b2, directory = backend
    pop3 = Pop3(b2)
    await pop3.listen()
    made.stack.push_async_callback(pop3.stop)
    address, ports = made.rows.places["b2"]
    await put(directory, Kind.MEMBERS, "b2", MemberRow("backend", "default", address, ports), 2)
    async with running(config_file(tmp_path, '[pop3]\nlisten = ["127.0.0.1:0"]\n'), directory) as front:
        assert front.unused() == []
        await until(lambda: front.view.settings is not None)
        ben = Pop3Client(*await asyncio.open_connection(ADDRESS, port_of(front, "pop3")))
        await ben.line()
        await ben.ok("USER ben")
        assert await ben.ok("PASS secret") == b"+OK 0 mails of 0 octets"
        assert [(who.user, who.service) for who in front.admin.server.sessions()] == [("ben", "pop3")]
        assert [who.user for who in pop3.server.who()] == ["ben"]
        await ben.ok("QUIT")
        await ben.close()


async def test_a_proxy_serves_logins_mails_probes_and_metrics(
    backend: tuple[Cluster, Member, MemoryDirectory], tmp_path: Path
) -> None:
    _, b2, directory = backend
    async with running(config_file(tmp_path), directory) as front:
        await until(lambda: front.view.settings is not None)
        ben = await client(front)
        await ben.ok("LOGIN ben secret")
        await ben.ok("SELECT INBOX")
        assert (await (await client(front)).cmd("LOGIN ben wrong"))[-1].startswith(b"NO [AUTHENTICATIONFAILED]")
        reader, writer = await asyncio.open_connection(ADDRESS, port_of(front, "lmtp"))
        writer.write(b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<ben>\r\nDATA\r\n\r\nhello\r\n.\r\nQUIT\r\n")
        assert b"\r\n250 2.0.0 <ben> " in await asyncio.wait_for(reader.read(), PATIENT_S)
        assert (await ben.ok("NOOP"))[0] == b"* 1 EXISTS"
        where = f"http://{ADDRESS}:{port_of(front, 'http')}"

        def get(path: str) -> str:
            with urllib.request.urlopen(where + path) as answer:
                return str(answer.read().decode())

        assert await asyncio.to_thread(get, "/readyz") == "ready\n"
        metrics = await asyncio.to_thread(get, "/metrics")
        assert 'obox_forwards_total{protocol="imap",result="ok"} 1.0' in metrics
        assert 'obox_forwards_total{protocol="lmtp",result="ok"} 1.0' in metrics
        assert "obox_splices 1.0" in metrics
        assert "obox_directory_age_seconds" in metrics
        assert [who.user for who in b2.imap.who()] == ["ben"]
        await until(lambda: "p1" in front.view.beats)
        row = await directory.get(Kind.MEMBERS, "p1")
        assert row is not None
        assert decode(row.value, MemberRow).role == "proxy"
        assert front.view.beats["p1"].site == "default"
        assert isinstance(front.view.beats["p1"], Beat)
    assert b2.counts.open == 0


async def test_two_names_of_one_mail_are_one_user(tmp_path: Path) -> None:
    """The storage id decides about the group, and not the name. All other groups belong
    to a backend that does not run."""
    async with cluster(tmp_path) as made:
        names = ("ben", "benjamin")
        lines = "".join(f"{name}:{{PLAIN}}secret::::::storage_id=ben\n" for name in names)
        (tmp_path / "users").write_text(lines)
        made.users = PasswdFile(tmp_path / "users", "")
        made.rows.own("ben", "b2")
        b2, directory = await made.member("b2"), directory_of_a_test()
        ours = group_of(BEN, 8)
        assert group_of(StorageId("benjamin"), 8) != ours, "the name alone leads elsewhere"
        await put(directory, Kind.SETTINGS, SETTINGS_KEY, Settings(8, "0" * 32, 1.0))
        address, ports = made.rows.places["b2"]
        await put(directory, Kind.MEMBERS, "b2", MemberRow("backend", "default", address, ports))
        for group in range(8):
            row = made.rows.owners["ben"] if group == ours else Assigned("b9", 1, 1)
            await put(directory, Kind.GROUPS, group_key(group), row)
        async with running(config_file(tmp_path), directory) as front:
            await until(lambda: front.view.settings is not None)
            clients = [await client(front) for _ in names]
            for name, one in zip(names, clients, strict=True):
                await one.ok(f"LOGIN {name} secret")
                await one.append("INBOX", b"Subject: by %b\r\n\r\n" % name.encode())
                reader, writer = await asyncio.open_connection(ADDRESS, port_of(front, "lmtp"))
                writer.write(b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<%b>\r\n" % name.encode())
                writer.write(b"DATA\r\n\r\nhello\r\n.\r\nQUIT\r\n")
                assert b"\r\n250 2.0.0 <%b> " % name.encode() in await asyncio.wait_for(reader.read(), PATIENT_S)
                writer.close()
            for one in clients:
                assert (await one.ok("STATUS INBOX (MESSAGES)"))[0] == b"* STATUS INBOX (MESSAGES 4)"
            assert {who.user for who in b2.imap.who()} == set(names)


async def test_clients_of_users_who_have_another_backend_are_let_go(
    backend: tuple[Cluster, Member, MemoryDirectory], tmp_path: Path
) -> None:
    """The old backend may have died, so it may not close its sessions. The proxy closes
    them. Sessions of other users stay open."""
    made, _, directory = backend
    made.rows.own("anna", "b2")
    await written(made.rows, directory)
    async with running(config_file(tmp_path), directory) as front:
        await until(lambda: len(front.view.pins) == 2)
        ben, anna = await client(front), await client(front)
        await ben.ok("LOGIN ben secret")
        await anna.ok("LOGIN anna secret")
        await put(directory, Kind.MEMBERS, "b3", MemberRow("backend", "", "192.0.2.3", {"imap": 1}, {}, ""), 2)
        await put(directory, Kind.PINS, "ben", Assigned("b3", 9, 1), 2)
        assert await asyncio.wait_for(ben.reader.read(), PATIENT_S) == b""
        await anna.ok("NOOP")


async def test_a_directory_that_was_once_read_is_kept(
    backend: tuple[Cluster, Member, MemoryDirectory], tmp_path: Path
) -> None:
    _, _, directory = backend
    file = config_file(tmp_path)
    async with running(file, directory) as front:
        await until((tmp_path / "proxy/directory").exists)
    empty = directory_of_a_test()

    async def down(*_: object) -> object:
        raise Unavailable("down")

    empty.get = empty.all = empty.put = down
    async with running(file, empty) as front:
        await (await client(front)).ok("LOGIN ben secret")


async def test_without_any_word_of_the_directory_logins_are_unavailable(
    backend: tuple[Cluster, Member, MemoryDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiting_module, "PATIENCE_S", 0.0)
    async with running(config_file(tmp_path), directory_of_a_test()) as front:
        assert (await (await client(front)).cmd("LOGIN ben secret"))[-1].startswith(b"NO [UNAVAILABLE]")


async def test_a_reload_takes_new_secrets_and_a_bad_one_changes_nothing(
    backend: tuple[Cluster, Member, MemoryDirectory], tmp_path: Path
) -> None:
    _, _, directory = backend
    file = config_file(tmp_path)
    async with running(file, directory) as front:
        (tmp_path / "secret").write_bytes(b"n" * 32 + b"\n" + SECRET)
        await front.lifecycle.reloaded()
        assert front.forwarder.secrets == (b"n" * 32, SECRET)
        (tmp_path / "secret").write_bytes(b"")
        with pytest.raises(ConfigError, match="secret_file"):
            await front.lifecycle.reloaded()
        assert front.forwarder.secrets == (b"n" * 32, SECRET)


async def test_what_a_proxy_has_no_use_for_is_named_once(tmp_path: Path) -> None:
    file = config_file(tmp_path, '[storage]\nurl = "s3://bucket"\n[fscache]\nmax_size = "1G"\n')
    (tmp_path / "users").write_text("")
    config = load(str(file), {}, proxy=True)
    assert unused_sections(config) == ["fscache", "storage"]
    with capture_logs() as logs:
        async with running(file, directory_of_a_test()):
            pass
    assert [line["sections"] for line in logs if "sections" in line] == [["fscache", "storage"]]


async def test_a_proxy_without_a_secret_does_not_start(tmp_path: Path) -> None:
    file = config_file(tmp_path)
    file.write_text(file.read_text().replace('secret_file = "secret"', ""))
    with pytest.raises(ConfigError, match="secret_file"):
        await Front(load(str(file), {}, proxy=True), environ={}, directory=directory_of_a_test()).run(signals=False)


def test_the_command(tmp_path: Path) -> None:
    """`obox proxy` runs as a process of its own, with an LMDB directory, from its start
    to SIGTERM."""
    file = config_file(tmp_path)
    (tmp_path / "users").write_text("ben:{PLAIN}secret::::::\n")
    with socket.socket() as free:
        free.bind((ADDRESS, 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "obox.main", "proxy", "-c", str(file)],
        env={**os.environ, "OBOX_IMAP__LISTEN": f"{ADDRESS}:{port}"},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        for _ in range(int(PATIENT_S * 20)):
            try:
                connection = socket.create_connection((ADDRESS, port), PATIENT_S)
                break
            except OSError:
                assert process.poll() is None
                signal.sigtimedwait([], 0.05)
        with connection, connection.makefile("rwb", buffering=0) as stream:
            assert stream.readline().startswith(b"* OK ")
            stream.write(b"a LOGIN ben secret\r\n")
            assert stream.readline().startswith(b"a NO [UNAVAILABLE]")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENT_S)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "stopping" in {json.loads(line)["event"] for line in errors.splitlines()}


async def test_a_proxy_that_drains_lets_a_mail_and_a_command_end(
    backend: tuple[Cluster, Member, MemoryDirectory], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """/readyz says so, nobody else may connect, and what has begun gets its answer."""
    _, b2, directory = backend
    begun, go_on, append = asyncio.Event(), asyncio.Event(), User.append

    async def slow(*words: Any, **named: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await append(*words, **named)

    async with running(config_file(tmp_path), directory) as front:
        await until(lambda: front.view.settings is not None)
        where, imap = f"http://{ADDRESS}:{port_of(front, 'http')}", port_of(front, "imap")
        idle, busy = await client(front), await client(front)
        for ben in (idle, busy):
            await ben.ok("LOGIN ben secret")
        reader, writer = await asyncio.open_connection(ADDRESS, port_of(front, "lmtp"))
        monkeypatch.setattr(User, "append", slow)
        busy.send(b"a APPEND INBOX {6+}\r\nhello!\r\n")
        await begun.wait()
        begun.clear()
        writer.write(b"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<ben>\r\nDATA\r\n\r\nhello\r\n.\r\n")
        await begun.wait()
        front.lifecycle.stop()
        assert await idle.reader.read() == b""
        async with httpx.AsyncClient() as asking:
            probe = await asking.get(where + "/readyz")
        assert (probe.status_code, probe.text) == (503, "draining\n")
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(ADDRESS, imap)
        go_on.set()
        assert b"a OK [APPENDUID " in await asyncio.wait_for(busy.reader.read(), PATIENT_S)
        assert b"\r\n250 2.0.0 <ben> " in await asyncio.wait_for(reader.read(), PATIENT_S)
    assert len(await b2.mails("ben")) == 2


# -- the router --------------------------------------------------------------------------------------------------------


async def view_of(directory: MemoryDirectory) -> View:
    view = View(directory, clock=lambda: 0.0, now=lambda: 0.0, sleep=asyncio.sleep)
    await view.poll()
    return view


async def test_a_pin_goes_before_the_group() -> None:
    directory = directory_of_a_test()
    await put(directory, Kind.SETTINGS, SETTINGS_KEY, Settings(1, "0" * 32, 1.0))
    for name, port in (("b1", 1), ("b2", 2)):
        await put(directory, Kind.MEMBERS, name, MemberRow("backend", "default", "192.0.2.1", {"imap": port}))
    await put(directory, Kind.GROUPS, group_key(0), Assigned("b1", 1, 1))
    router = ViewRouter(await view_of(directory), directory)
    route = await router.route(BEN)
    assert route == There("b1", "192.0.2.1", {"imap": 1}, Assigned("b1", 1, 1))
    await put(directory, Kind.PINS, "ben", Assigned("b2", 1, 1))
    # The proxy has not read the new row yet.
    assert await router.route(BEN) == route
    again = await router.reread(BEN, Assigned("b2", 2, 0))
    assert not isinstance(again, Here)
    assert again.backend == "b2"
    await put(directory, Kind.PINS, "ben", Assigned("b2", 2, 1, removed=True), 2)
    again = await router.reread(BEN, Assigned("", 3, 0))
    assert not isinstance(again, Here)
    assert again.backend == "b2", "the user stays a unit, which b2 gives to the group's owner"
    await put(directory, Kind.PINS, "ben", Assigned("b1", 3, 1, removed=True), 3)
    again = await router.reread(BEN, Assigned("", 4, 0))
    assert not isinstance(again, Here)
    assert again.backend == "b1"


async def test_a_row_that_is_new_enough_is_not_read_again() -> None:
    directory = directory_of_a_test()
    await put(directory, Kind.SETTINGS, SETTINGS_KEY, Settings(1, "0" * 32, 1.0))
    await put(directory, Kind.MEMBERS, "b1", MemberRow("backend", "default", "192.0.2.1", {"imap": 1}))
    await put(directory, Kind.GROUPS, group_key(0), Assigned("b1", 5, 1))
    await put(directory, Kind.PINS, "ben", Assigned("b1", 5, 1))
    router = ViewRouter(await view_of(directory), directory)

    async def read(*_: object) -> None:
        raise AssertionError("asked")

    directory.get = read
    await router.reread(BEN, Assigned("b2", 5, 0))


async def test_nobody_is_unavailable() -> None:
    directory = directory_of_a_test()
    router = ViewRouter(await view_of(directory), directory)
    with pytest.raises(Unavailable, match="not answered"):
        await router.route(BEN)
    await put(directory, Kind.SETTINGS, SETTINGS_KEY, Settings(1, "0" * 32, 1.0))
    router = ViewRouter(await view_of(directory), directory)
    with pytest.raises(Unavailable, match="No backend"):
        await router.route(BEN)
    await put(directory, Kind.GROUPS, group_key(0), Assigned("b1", 5, 1))
    router = ViewRouter(await view_of(directory), directory)
    with pytest.raises(Unavailable, match="not known"):
        await router.route(BEN)


async def test_a_proxy_answers_for_the_cluster_and_its_sessions(
    backend: tuple[Cluster, Member, MemoryDirectory], tmp_path: Path
) -> None:
    _, _, directory = backend
    async with running(config_file(tmp_path), directory) as front:
        await until(lambda: front.view.settings is not None)
        ben = await client(front)
        await ben.ok("LOGIN ben secret")
        transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / "proxy/admin.sock"))
        async with httpx.AsyncClient(transport=transport, base_url="http://obox", timeout=PATIENT_S) as api:

            async def ask(name: str, at: str = "", **params: object) -> Any:
                got = await api.post("/doveadm/v1", params={"backend": at}, json=[[name, params, "t"]])
                ((_, result, _),) = got.json()
                return result

            me = front.config.cluster.backend
            assert [row["backend"] for row in await ask("clusterBackendList")] == ["b2"]
            assert (await ask("clusterStatus"))[0]["groups"] == front.view.settings.groups
            assert [row["username"] for row in await ask("who", me)] == ["ben"]
            # The backend b2 has no [http].
            for name in ("who", "mailboxList"):
                failed = await ask(name, **({"user": "ben"} if name != "who" else {}))
                assert (failed["exitCode"], "b2" in failed["message"]) == (75, True)
            assert (await ask("kick", me, user="ben"))[0]["connections"] == 1
