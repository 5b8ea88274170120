"""`[server] workers = 2`: the unit has a single command and a single port. Users are
served at once when a worker is killed."""

from __future__ import annotations

import imaplib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENT_S
from ports import free_port
from processes import PASSWORD, USERS, Backend, lmtp
from prometheus_client.parser import text_string_to_metric_families
from test_backends import PATIENCE_S, until

MAIL = b"From: a@example.org\r\nSubject: hello\r\n\r\nText\r\n"
OBOXADM = Path(sys.executable).with_name("oboxadm")
NAMES = [f"user{number}@example.org" for number in range(8)]
"""The number of users is large enough that each worker serves some of them: the hash of
a name decides."""
USERS_FILE = "".join(f"{name}:{{PLAIN}}{PASSWORD}\n" for name in NAMES)
KEY = "a key of sixteen or more characters"


class Unit:
    """A supervisor with its workers, on the ports of `backend`."""

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    def who_serves(self, user: str) -> str:
        """Return the worker that has logged the last login of a user."""
        found = [line for line in self.backend.events("imap login") if line["user"] == user]
        return str(found[-1]["worker"])

    def pid(self, worker: str) -> int:
        """Return the process id of a worker, found by the arguments of the process."""
        assert self.backend.process is not None
        listed = subprocess.run(
            ["ps", "-o", "pid=,args=", "--ppid", str(self.backend.process.pid)],
            capture_output=True,
            text=True,
            check=False,
        )
        (found,) = [line for line in listed.stdout.splitlines() if line.endswith(f" worker {worker}")]
        return int(found.split()[0])

    def restarted(self, worker: str, before: int) -> None:
        """Assert that the worker has a new process."""
        try:
            assert self.pid(worker) != before
        except ValueError as error:
            raise AssertionError from error

    def workers_listen(self) -> bool:
        return all((self.backend.state / f"worker-{number}/imap.sock").exists() for number in (1, 2))

    def serves(self) -> bool:
        """Return whether the workers together have all groups."""
        with suppress(AssertionError):
            groups = self.admin("cluster", "status")[0]["groups"]
            return sum(row["groups"] for row in self.admin("cluster", "backend", "status")) == groups
        return False

    def has_user(self, user: str, worker: str) -> None:
        """Assert that the directory gives a user to a worker."""
        (status,) = self.admin("cluster", "user", "status", "-u", user)
        assert status["backend"] == worker

    def deliver(self, user: str) -> None:
        assert lmtp(("127.0.0.1", self.backend.lmtp), MAIL, [user])[0][0] == 250

    def count(self, user: str) -> int:
        with imaplib.IMAP4("127.0.0.1", self.backend.imap) as client:
            client.login(user, PASSWORD)
            return int(client.select("INBOX")[1][0] or 0)

    def admin(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        got = subprocess.run(
            [str(OBOXADM), "-c", str(self.backend.config), "-f", "json", *arguments],
            capture_output=True,
            text=True,
            check=False,
        )
        assert got.returncode == code, (got.stdout, got.stderr)
        return json.loads(got.stdout or "[]")

    def events_of_workers(self, event: str) -> set[str]:
        return {line["worker"] for line in self.backend.events(event) if "worker" in line}


@pytest.fixture
def unit(make: Callable[..., Backend]) -> Iterator[Unit]:
    backend = make(sections={"server": {"workers": 2}, "http": {"api_key": KEY}}, users=USERS_FILE)
    backend.spawn()
    backend.wait_listening()
    deadline = time.monotonic() + PATIENT_S
    while not Unit(backend).serves():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield Unit(backend)
    assert backend.process is not None
    workers = []
    for name in ("first-1", "first-2"):
        with suppress(ValueError):
            workers.append(Unit(backend).pid(name))
    if backend.process.poll() is None:
        backend.kill()
    for pid in workers:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_worker_that_is_killed_is_started_again_and_keeps_its_users(unit: Unit) -> None:
    for name in NAMES:
        unit.deliver(name)
        assert unit.count(name) == 1
    served = {name: unit.who_serves(name) for name in NAMES}
    assert set(served.values()) == {"first-1", "first-2"}, "both have users"
    for worker in ("first-1", "first-2"):
        os.kill(unit.pid(worker), signal.SIGKILL)
        # The first attempt must succeed, with IMAP as well as with LMTP.
        for name in NAMES:
            assert worker == "first-1" or unit.count(name) == 2
            unit.deliver(name)
    assert {name: unit.count(name) for name in NAMES} == dict.fromkeys(NAMES, 3)
    assert {name: unit.who_serves(name) for name in NAMES} == served
    ends = [row for row in unit.admin("log", "errors") if ENDED in row["text"]]
    assert [row["worker"] for row in ends] == ["", ""]
    assert len(unit.backend.events("worker has ended and is started again")) == 2
    assert unit.backend.stop() == 0
    state: Path = unit.backend.state
    assert not list(state.glob("worker-*/*.sock")) or all(path.name == "notify.sock" for path in state.glob("*/*.sock"))


def test_oboxadm_treats_the_workers_as_one_server(unit: Unit) -> None:
    for name in NAMES:
        unit.deliver(name)
    clients = {name: imaplib.IMAP4("127.0.0.1", unit.backend.imap) for name in NAMES}
    for name, client in clients.items():
        client.login(name, PASSWORD)
    assert {unit.who_serves(name) for name in NAMES} == {"first-1", "first-2"}
    assert {row["username"] for row in unit.admin("who")} == set(NAMES)
    assert {row["username"] for row in unit.admin("metacache", "list")} == set(NAMES)
    (row,) = unit.admin("mailbox", "status", "-u", NAMES[0], "messages", "INBOX")
    assert int(row["messages"]) == 1
    rows = unit.admin("mailbox", "status", "-A", "messages", "INBOX")
    assert {row["username"]: int(row["messages"]) for row in rows} == dict.fromkeys(NAMES, 1)
    unit.admin("metacache", "flush", "-u", NAMES[0])
    assert {row["worker"] for row in unit.admin("fscache", "status")} == {"first-1", "first-2"}
    unit.admin("kick", NAMES[0])
    until(lambda: _gone(unit, NAMES[0]))
    unit.admin("kick", NAMES[0], code=68)
    unit.admin("mailbox", "list", "-u", "nobody@example.org", code=67)
    (row,) = unit.admin("obox", "user", "rename", NAMES[0], "renamed")
    assert (row["storage_id"], row["connections"]) == (NAMES[0], 0)
    unit.deliver("renamed")
    assert unit.count("renamed") == 2
    assert unit.admin("stop", "-y", "-t", "20")[-1]["step"] == "end"
    assert unit.backend.process is not None
    assert unit.backend.process.wait(20) == 0


def _gone(unit: Unit, name: str) -> None:
    assert name not in {row["username"] for row in unit.admin("who")}


def test_oboxadm_shows_the_cluster_of_the_workers(unit: Unit) -> None:
    workers = unit.admin("cluster", "backend", "status")
    assert sum(row["groups"] for row in workers) == unit.admin("cluster", "status")[0]["groups"]
    assert all(row["alive"] for row in workers)
    (status,) = unit.admin("cluster", "user", "status", "-u", NAMES[0])
    assert status["backend"] in {row["backend"] for row in workers}
    unit.admin("cluster", "user", "kick", "-u", NAMES[0], code=68)
    with imaplib.IMAP4("127.0.0.1", unit.backend.imap) as client:
        client.login(NAMES[0], PASSWORD)
        assert unit.admin("cluster", "user", "kick", "-u", NAMES[0])[0]["connections"] == 1


def test_a_reload_is_all_or_none(unit: Unit, tmp_path: Path) -> None:
    backend = unit.backend
    backend.sections["log"] = {"level": "debug"}
    backend.write()
    assert unit.admin("reload") == [{"setting": "log.level", "used": "now"}]
    until(lambda: _all_have(unit, "configuration reloaded"))
    # A worker cannot read this key, and the supervisor does not use it.
    backend.sections["log"] = {"level": "warning"}
    backend.sections["storage"] = {"encryption_keys": {"k1": str(tmp_path / "missing")}}
    backend.write()
    unit.admin("reload", code=78)
    backend.wait_event("reload failed, the old configuration stays")
    assert [line["settings"] for line in backend.events("configuration reloaded") if line["settings"]] == [
        ["log.level"]
    ] * 3
    unit.deliver(NAMES[0])


def _all_have(unit: Unit, event: str) -> None:
    assert unit.events_of_workers(event) == {"first-1", "first-2"}


def test_users_of_a_worker_that_ends_again_and_again_are_served_by_others(unit: Unit) -> None:
    for name in NAMES:
        unit.deliver(name)
    for _ in range(3):
        pid = unit.pid("first-2")
        os.kill(pid, signal.SIGKILL)
        until(lambda pid=pid: unit.restarted("first-2", pid) if len(unit.backend.events(ENDED)) < 3 else None)
    for name in NAMES:
        unit.deliver(name)
        assert unit.count(name) == 2
        assert unit.who_serves(name) == "first-1"
    assert unit.backend.stop() == 0


ENDED = "worker has ended and is started again"


def test_the_supervisor_alone_notifies_and_replaces_a_worker_that_hangs(
    make: Callable[..., Backend], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    manager.bind(str(tmp_path / "manager"))
    manager.settimeout(PATIENCE_S)
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "manager"))
    monkeypatch.setenv("WATCHDOG_USEC", str(20_000_000))
    backend = make(sections={"server": {"workers": 2}})
    backend.spawn()
    assert manager.recv(4096).startswith(b"READY=1")
    assert Unit(backend).workers_listen(), "systemd hears of it once all workers serve"
    backend.wait_listening()
    unit = Unit(backend)
    pid = unit.pid("first-1")
    os.kill(pid, signal.SIGSTOP)
    backend.wait_event("worker does not answer and is killed")
    until(lambda: unit.restarted("first-1", pid))
    until(lambda: unit.count(USERS[0]))
    assert backend.stop() == 0
    manager.setblocking(False)
    heard = b""
    with suppress(BlockingIOError):
        while True:
            heard += manager.recv(4096) + b"\n"
    assert b"WATCHDOG=1" in heard
    assert heard.count(b"STOPPING=1") == 1, "workers stop too, and say so to the supervisor"


def test_metrics_name_the_worker(unit: Unit) -> None:
    unit.deliver(NAMES[0])
    families = list(text_string_to_metric_families(unit.backend.get("/metrics")[1]))
    assert len({family.name for family in families}) == len(families), "samples of a metric are together"
    (users,) = [family for family in families if family.name == "obox_store_users"]
    assert {sample.labels["worker"] for sample in users.samples} == {"first-1", "first-2"}
    (deliveries,) = [family for family in families if family.name == "obox_lmtp_deliveries"]
    counts = {sample.labels["worker"]: sample.value for sample in deliveries.samples if sample.labels["result"] == "ok"}
    assert sorted(counts.values()) == [0, 1, 1], "the supervisor and one worker"


def test_the_number_of_workers_may_change(unit: Unit) -> None:
    for name in NAMES:
        unit.deliver(name)
    for number, workers in enumerate((3, 1, 2), 2):
        assert unit.backend.stop() == 0
        unit.backend.sections["server"] = {"workers": workers}
        unit.backend.write()
        unit.backend.spawn()
        unit.backend.wait_listening()
        for name in NAMES:
            until(lambda name=name: unit.deliver(name))
        assert {name: unit.count(name) for name in NAMES} == dict.fromkeys(NAMES, number)
    assert unit.backend.stop() == 0


def test_a_first_start_that_a_worker_refuses_ends_with_78(make: Callable[..., Backend], tmp_path: Path) -> None:
    backend = make(sections={"server": {"workers": 2}, "storage": {"encryption_keys": {"k1": str(tmp_path / "none")}}})
    backend.spawn()
    assert backend.process is not None
    assert backend.process.wait(PATIENCE_S) == 78
    lines = backend.log.read_text().splitlines()
    assert any(line.startswith("obox: ") and line.endswith("none: No such file or directory") for line in lines), lines
    assert any(line.startswith("obox: worker first-") for line in lines), lines


def test_workers_end_with_a_supervisor_that_is_killed_and_the_next_one_waits_for_them(unit: Unit) -> None:
    for name in NAMES:
        unit.deliver(name)
    before = {name: unit.pid(name) for name in ("first-1", "first-2")}
    # A stopped process cannot end yet.
    os.kill(before["first-1"], signal.SIGSTOP)
    unit.backend.kill()
    unit.backend.spawn()
    unit.backend.wait_event("worker of an earlier supervisor still runs")
    os.kill(before["first-1"], signal.SIGCONT)
    unit.backend.wait_listening()
    for name in NAMES:
        until(lambda name=name: unit.deliver(name))
    assert {name: unit.count(name) for name in NAMES} == dict.fromkeys(NAMES, 2)
    assert unit.events_of_workers("supervisor has ended, the worker stops") == {"first-1", "first-2"}
    assert unit.backend.stop() == 0


def test_postfix_hears_where_all_users_are_served(unit: Unit) -> None:
    assert unit.backend.stop() == 0
    port = free_port()
    unit.backend.sections["socketmap"] = {"listen": [f"127.0.0.1:{port}"]}
    unit.backend.write()
    unit.backend.spawn()
    unit.backend.wait_listening()
    answers = set()
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as asking:
        for name in NAMES:
            question = f"transport {name}".encode()
            asking.sendall(b"%d:%b," % (len(question), question))
            answers.add(asking.recv(1000))
    (answer,) = answers
    assert f"lmtp:inet:[127.0.0.1]:{unit.backend.lmtp}".encode() in answer or b"%d" % unit.backend.lmtp in answer, (
        answer
    )


def test_nginx_is_answered_with_the_common_address(unit: Unit) -> None:
    """All users log in at the port of the unit, with the token, whichever worker serves
    them. tests/proxy/test_nginx.py tests the nginx-auth of a proxy."""
    backend = unit.backend
    for name in NAMES:
        headers = {"X-Obox-Key": KEY, "Auth-Method": "plain", "Auth-Protocol": "imap", "Client-IP": "192.0.2.7"}
        headers |= {"Auth-User": name, "Auth-Pass": PASSWORD}
        asking = urllib.request.Request(f"http://127.0.0.1:{backend.http}/nginx-auth", headers=headers)
        with urllib.request.urlopen(asking, timeout=PATIENCE_S) as got:
            answer = got.headers
        assert (answer["Auth-Status"], answer["Auth-Port"]) == ("OK", str(backend.imap))
        with imaplib.IMAP4("127.0.0.1", backend.imap) as client:
            client.login(answer["Auth-User"], answer["Auth-Pass"])
            assert client.select("INBOX")[0] == "OK"
        logins = [line for line in backend.events("imap login") if line["user"] == name]
        assert [line["remote"] for line in logins] == ["192.0.2.7"]
    assert {unit.who_serves(name) for name in NAMES} == {"first-1", "first-2"}


def test_local_copies_are_pulled_from_and_to_workers(unit: Unit, make: Callable[..., Backend]) -> None:
    """The unit is a source and a destination as a server without workers is. A worker
    is a source for the other workers, by its name."""
    for name in NAMES:
        unit.deliver(name)
        assert unit.count(name) == 1
    (moved, *_) = (name for name in NAMES if unit.who_serves(name) == "first-1")
    unit.admin("cluster", "user", "move", "-u", moved, "first-2")
    pull = ("metacache", "pull", "-u", moved)
    until(lambda: unit.has_user(moved, "first-2"))
    rows: list[list[dict[str, Any]]] = []
    # The supervisor may not have read the user's row yet, and asks first-1.
    until(lambda: rows.append(unit.admin(*pull, "first-1", "--clean")))
    ((row,),) = rows
    assert (row["result"], row["cleaned"] > 0) == ("pulled", True)
    (row,) = unit.admin(*pull, "first-1")
    assert row["result"] == "nothing there"
    unit.admin(*pull, "first-2", code=65)
    # The host without a port is the unit itself, with its own port and key.
    unit.admin(*pull, "127.0.0.1", code=65)
    unit.admin(*pull, f"127.0.0.1:{free_port()}", code=69)

    other = make(sections={"http": {"api_key": KEY}}, users=USERS_FILE, name="second")
    there = Unit(other)
    other.spawn()
    other.wait_listening()
    until(lambda: there.admin("mailbox", "list", "-u", moved))
    from_unit = there.admin("metacache", "pull", "-A", f"127.0.0.1:{unit.backend.http}")
    results = {row["username"]: row["result"] for row in from_unit}
    assert results == {**dict.fromkeys(NAMES, "pulled"), moved: results[moved]}
    assert {there.count(name) for name in NAMES} == {1}
    from_other = unit.admin("metacache", "pull", "-A", "--clean", f"127.0.0.1:{other.http}")
    assert {row["username"]: row["cleaned"] > 0 for row in from_other} == dict.fromkeys(NAMES, True)
    assert {unit.count(name) for name in NAMES} == {1}


def test_the_demo_is_a_cluster_whose_workers_may_be_killed(tmp_path: Path) -> None:
    """The test runs the commands of README.md."""
    imap = free_port()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("OBOX_")}
    environ |= {"OBOX_IMAP__LISTEN": f"127.0.0.1:{imap}", "OBOX_LMTP__LISTEN": f"127.0.0.1:{free_port()}"}
    environ |= {"OBOX_HTTP__LISTEN": f"127.0.0.1:{free_port()}", "OBOX_CLUSTER__BACKEND": "demo"}
    program = [str(OBOXADM.with_name("obox")), "serve", "--demo", str(tmp_path / "demo"), "--workers", "3"]
    with (
        (tmp_path / "log").open("w") as log,
        subprocess.Popen(program, env=environ, stdout=subprocess.PIPE, stderr=log, text=True) as serving,
    ):
        try:
            assert serving.stdout is not None
            (line,) = [line for line in _until_ready(serving.stdout) if line.startswith("  workers")]
            found = re.findall(r"demo-\d is process (\d+)", line)
            assert len(found) == 3
            for pid in map(int, found):
                os.kill(pid, signal.SIGKILL)
                # A login must succeed at once.
                with imaplib.IMAP4("127.0.0.1", imap) as client:
                    client.login("demo@example.org", "demo")
                    assert client.select("INBOX")[1] == [b"3"]
            serving.terminate()
            assert serving.wait(PATIENCE_S) == 0
        finally:
            serving.kill()


def _until_ready(lines: Iterable[str]) -> Iterator[str]:
    """Yield the lines that the demo prints, up to the line that ends its start."""
    for line in lines:
        yield line
        if line.startswith("Stop with Ctrl-C"):
            return
