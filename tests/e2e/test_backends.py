"""Two backends on the same host and the same bucket: a client may connect to either of
them, and users are served while either of them is away."""

from __future__ import annotations

import imaplib
import json
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import PASSWORD, USERS, Backend

from obox.cluster.balance import SHIFT_MAX

ROOT = Path(__file__).parent.parent.parent
PATIENCE_S = 60.0
MAIL = b"From: a@example.org\r\nSubject: hello\r\n\r\nText\r\n"


@pytest.fixture
def pair(
    request: pytest.FixtureRequest, make: Callable[..., Backend], tmp_path: Path
) -> Iterator[tuple[Backend, Backend]]:
    """Start two members of a cluster that serve users. The parameter is
    `dead_after`."""
    secret = tmp_path / "secret"
    secret.write_text(secrets.token_hex(32) + "\n")
    secret.chmod(0o600)
    cluster = {"directory": f"lmdb://{tmp_path}/cluster", "secret_file": str(secret)}
    cluster["dead_after"] = getattr(request, "param", "5s")
    first = make(sections={"cluster": cluster, "http": {"api_key": secrets.token_hex(8)}})
    second = first.moved(tmp_path / "second", "second")
    second.spawn()
    first.spawn()
    yield first, second
    if second.process is not None and second.process.poll() is None:
        second.kill()


def until(work: Callable[[], object], patience_s: float = PATIENCE_S) -> float:
    """Repeat a call until it succeeds. Return how many seconds that took."""
    began = time.monotonic()
    while True:
        try:
            work()
        except (OSError, imaplib.IMAP4.error, AssertionError, pytest.fail.Exception):
            if time.monotonic() - began > patience_s:
                raise
            time.sleep(0.1)
        else:
            return time.monotonic() - began


def has(backend: Backend, user: str, count: int) -> None:
    """Assert that a client at this backend sees `count` mails, and that all of them are
    flagged."""
    with imaplib.IMAP4("127.0.0.1", backend.imap) as client:
        client.login(user, PASSWORD)
        assert client.select("INBOX")[1] == [b"%d" % count]
        assert len(client.search(None, "FLAGGED")[1][0].split()) == count


def write(backend: Backend, user: str) -> None:
    with imaplib.IMAP4("127.0.0.1", backend.imap) as client:
        client.login(user, PASSWORD)
        assert client.append("INBOX", "(\\Flagged)", None, MAIL)[0] == "OK"


def test_a_client_may_connect_to_either_and_a_dead_backend_is_replaced(pair: tuple[Backend, Backend]) -> None:
    first, second = pair
    for user in USERS:
        until(lambda user=user: write(first, user))
        until(lambda user=user: write(second, user))
        has(first, user, 2)
        has(second, user, 2)
    second.kill()
    for user in USERS:
        until(lambda user=user: has(first, user, 2))
        write(first, user)
    second.lose_state()
    second.start()
    for user in USERS:
        until(lambda user=user: has(second, user, 3))
        until(lambda user=user: has(first, user, 3))
    assert first.stop() == 0
    assert second.stop() == 0


@pytest.mark.parametrize("pair", ["5min"], indirect=True)
def test_a_stop_gives_the_users_to_the_others_and_a_start_brings_them_back(pair: tuple[Backend, Backend]) -> None:
    first, second = pair
    for user in USERS:
        until(lambda user=user: write(first, user))

    def served() -> dict[str, int]:
        return {row["backend"]: row["groups"] for row in answer(first, "backend", "status")}

    def shared() -> None:
        assert sum(served().values()) == 64

    until(shared)
    # The backend that started first may have acquired all groups.
    if not served()["second"]:
        answer(first, "balance", "-y")
        until(lambda: _has_groups(first, "second"))
    before = served()
    at_second = imaplib.IMAP4("127.0.0.1", second.imap)
    at_second.login(USERS[0], PASSWORD)
    assert second.stop() == 0
    over(at_second)
    stopped = [line["event"] for line in second.events()]
    assert stopped.index("groups released") < stopped.index("stopped")
    # This happens long before `second` would count as dead.
    until(lambda: _serves_all(first))
    assert first.metric("obox_cluster_fences_total") == 0
    for user in USERS:
        has(first, user, 1)
    second.start()
    # No backend had to count as dead for this.
    until(lambda: _same(served, before))
    second.signal(signal.SIGUSR1)
    assert second.process is not None
    assert second.process.wait(PATIENCE_S) == 0
    second.start()
    assert served() == before, "a stop for a restart moves nothing"
    for user in USERS:
        until(lambda user=user: has(second, user, 1))
    assert second.stop() == 0
    assert first.stop() == 0


def _serves_all(backend: Backend) -> None:
    assert backend.metric("obox_cluster_groups") == 64


def _has_groups(backend: Backend, name: str) -> None:
    assert {row["backend"]: row["groups"] for row in answer(backend, "backend", "status")}[name] > 0


def _same(found: Callable[[], dict[str, int]], wanted: dict[str, int]) -> None:
    assert found() == wanted


def adm(backend: Backend, *arguments: str) -> subprocess.Popen[str]:
    """Start `oboxadm` for this backend."""
    program = [Path(sys.executable).parent / "oboxadm", "-c", str(backend.config), "-f", "json", "cluster", *arguments]
    return subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def copies_left(backend: Backend) -> list[str]:
    """Return the users of whom this backend has local copies."""
    program = [Path(sys.executable).parent / "oboxadm", "-c", str(backend.config), "-f", "json"]
    program += ["--backend", backend.name, "metacache", "list"]
    ended = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False)
    assert ended.returncode == 0, ended.stderr
    return [row["username"] for row in json.loads(ended.stdout)]


def over(client: imaplib.IMAP4) -> None:
    """Assert that the backend has ended this session."""
    with pytest.raises((imaplib.IMAP4.abort, OSError)):
        client.noop()


def answer(backend: Backend, *arguments: str) -> list[dict[str, Any]]:
    process = adm(backend, *arguments)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0, err
    return list(json.loads(out))


def come_back(source: Backend, other: Backend, user: str) -> None:
    """Give the evacuated backend its share of the groups again. Then kick the user
    through a backend that does not serve the user."""
    assert answer(source, "backend", "update", source.name, "--status", "online")[0]["evacuate"] is False
    moves = answer(source, "balance", "-y")
    assert {row["to"] for row in moves} == {source.name}
    # Groups with users count for more, and a backend whose CPU is busier gets less.
    assert abs(len(moves) - 32) <= 32 * SHIFT_MAX + len(USERS)

    def balanced() -> None:
        groups = [row["groups"] for row in answer(source, "backend", "status")]
        assert sum(groups) == 64
        assert len(moves) in groups

    until(balanced)
    for backend in (source, other):
        until(lambda backend=backend: has(backend, user, 2))
    (status,) = answer(source, "user", "status", "-u", user)
    owner, elsewhere = (source, other) if status["backend"] == source.name else (other, source)
    client = imaplib.IMAP4("127.0.0.1", elsewhere.imap)
    client.login(user, PASSWORD)
    assert answer(elsewhere, "user", "kick", "-u", user) == [{"backend": owner.name, "connections": 1}]
    until(lambda: over(client))


def test_a_backend_is_evacuated_under_clients(pair: tuple[Backend, Backend]) -> None:
    first, second = pair
    until(lambda: write(first, USERS[0]))
    until(lambda: write(second, USERS[1]))
    user = USERS[0]
    (status,) = answer(first, "user", "status", "-u", user)
    source, other = (first, second) if status["backend"] == "first" else (second, first)
    at_source, at_other = (imaplib.IMAP4("127.0.0.1", one.imap) for one in (source, other))
    for client in (at_source, at_other):
        client.login(user, PASSWORD)
        client.select("INBOX")
        assert client.store("1", "+FLAGS", "\\Seen")[0] == "OK"
    probes = answer(other, "check", "--login", user)
    assert {row["where"]: row["detail"] for row in probes if row["check"] == "login"} == {
        f"members {source.name}": f"{user} can log in",
        f"members {other.name}": f"answers, and says that {source.name} serves {user}",
    }
    evacuation = adm(other, "backend", "evacuate", source.name)
    # The user can write while the evacuation goes on.
    until(lambda: write(other, user))
    out, err = evacuation.communicate(timeout=PATIENCE_S)
    assert evacuation.returncode == 0, err
    assert json.loads(out)[0] == {"backend": source.name, "groups": 0, "status": "standby", "result": "evacuated"}
    # Both sessions were ended with a BYE.
    for client in (at_source, at_other):
        until(lambda client=client: over(client))
    for backend in pair:
        until(lambda backend=backend: has(backend, user, 2))
        until(lambda backend=backend: has(backend, USERS[1], 1))
    rows = {row["backend"]: row for row in answer(source, "backend", "status")}
    assert (rows[source.name]["groups"], rows[other.name]["groups"]) == (0, 64)

    def copies_came() -> None:
        assert copies_left(source) == []

    until(copies_came)
    assert set(copies_left(other)) == set(USERS)
    assert source.metric("obox_cluster_groups") == 0
    # When two backends start at the same time, each may lose some groups that it has
    # just acquired.
    for backend in pair:
        of = {
            name: backend.metric(f"obox_cluster_{name}") for name in ("gains_total", "releases_total", "losses_total")
        }
        left = of["gains_total"] - of["releases_total"] - of["losses_total"]
        assert left == backend.metric("obox_cluster_groups")
    assert source.metric("obox_cluster_releases_total") > 0
    assert other.metric("obox_cluster_fences_total") == other.metric("obox_cluster_fenced_total") == 0
    assert other.metric("obox_cluster_directory_age_seconds") < PATIENCE_S
    (kicked,) = answer(source, "user", "status", "-u", user)
    assert kicked["backend"] == other.name
    come_back(source, other, user)
    assert source.stop() == 0
    assert other.stop() == 0
    states = {(row["backend"], row["state"]) for row in answer(first, "reboots")}
    assert states == {("first", "clean"), ("second", "clean")}


def test_a_single_user_moves_and_is_taken_over(pair: tuple[Backend, Backend]) -> None:
    first, second = pair
    user = USERS[0]
    for name in USERS[:2]:
        until(lambda name=name: write(first, name))
    (status,) = answer(first, "user", "status", "-u", user)
    source, other = (first, second) if status["backend"] == "first" else (second, first)
    client = imaplib.IMAP4("127.0.0.1", source.imap)
    client.login(user, PASSWORD)
    assert answer(first, "user", "move", "-u", user, other.name)[0]["result"] == "asked"
    until(lambda: over(client))

    def arrived(name: str) -> None:
        (status,) = answer(first, "user", "status", "-u", user)
        assert (status["backend"], status["pinned"], status["to"]) == (name, True, "")

    until(lambda: arrived(other.name))
    for backend in pair:
        until(lambda backend=backend: write(backend, user))
        until(lambda backend=backend: has(backend, USERS[1], 1))
    for backend in pair:
        until(lambda backend=backend: has(backend, user, 3))
    (group,) = answer(first, "group", "list", status["group"])
    assert group["backend"] == source.name, "the group has stayed"
    assert other.metric("obox_cluster_single_users") == 1
    other.kill()
    until(lambda: has(source, user, 3))
    until(lambda: arrived(source.name))
    until(lambda: write(source, user))
    other.start()
    until(lambda: has(other, user, 4))
    assert answer(first, "user", "move", "-u", user, "--unpin")[0]["result"] == "unpinned"

    def together() -> None:
        (status,) = answer(first, "user", "status", "-u", user)
        (group,) = answer(first, "group", "list", status["group"])
        assert (status["backend"], status["pinned"]) == (group["backend"], False)

    until(together)
    for backend in pair:
        until(lambda backend=backend: has(backend, user, 4))
    assert source.stop() == 0
    assert other.stop() == 0
