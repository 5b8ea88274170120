"""`oboxadm` has the same effect at each member of a cluster as at the backend of the
user."""

from __future__ import annotations

import imaplib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from processes import PASSWORD, USERS, Backend
from test_backends import ROOT, answer, has, over, pair, until, write
from test_obox_proxy import Proxy, proxy

__all__ = ["pair", "proxy"]

PATIENCE_S = 60.0


def admin(config: Path, *arguments: str) -> tuple[int, list[dict[str, Any]], str]:
    """Run `oboxadm`. Return the exit code, the rows, and the text on stderr."""
    program = [Path(sys.executable).parent / "oboxadm", "-y", "-c", str(config), "-f", "json", *arguments]
    ended = subprocess.run(program, capture_output=True, text=True, cwd=ROOT, timeout=PATIENCE_S, check=False)
    return ended.returncode, list(json.loads(ended.stdout or "[]")), ended.stderr


@pytest.mark.parametrize("pair", ["5min"], indirect=True)
def test_oboxadm_works_for_the_whole_cluster_from_anywhere(pair: tuple[Backend, Backend], proxy: Proxy) -> None:
    first, second = pair
    config = proxy.log.parent / "proxy.toml"
    for user in USERS:
        until(lambda user=user: write(first, user))
        until(lambda user=user: write(second, user))
    user = USERS[0]
    (status,) = answer(first, "user", "status", "-u", user)
    owner, other = (first, second) if status["backend"] == "first" else (second, first)
    other_user = USERS[1]
    until(lambda: answer(first, "user", "move", "-u", other_user, other.name))
    until(lambda: _served_by(first, other_user, other.name))
    until(lambda: has(other, other_user, 2))

    # The wrong backend and the proxy run verbs for the user.
    for where in (other.config, config):
        code, rows, err = admin(where, "mailbox", "status", "-u", user, "messages", "INBOX")
        assert (code, [row["messages"] for row in rows]) == (0, [2]), err
        code, rows, err = admin(where, "mailbox", "status", "-u", user, "-u", other_user, "messages", "INBOX")
        assert (code, {row["username"]: row["messages"] for row in rows}) == (0, {user: 2, other_user: 2}), err
    assert [line["member"] for line in owner.events("admin command of a member")] == [other.name, other.name] + [
        "proxy"
    ] * 2

    # Each session is listed once, also a session that is forwarded to another backend.
    clients = {name: imaplib.IMAP4("127.0.0.1", other.imap) for name in (user, other_user)}
    for name, client in clients.items():
        client.login(name, PASSWORD)
    wanted = {(user, owner.name, 1), (other_user, other.name, 1)}
    for where in (first.config, second.config):
        code, rows, err = admin(where, "who")
        assert (code, {(row["username"], row["backend"], row["connections"]) for row in rows}) == (0, wanted), err
    code, rows, err = admin(config, "--backend", owner.name, "who")
    assert (code, [row["username"] for row in rows]) == (0, [user]), err
    code, rows, err = admin(config, "kick", user)
    assert (code, rows) == (0, [{"backend": owner.name, "username": user, "connections": 1}]), err
    until(lambda: over(clients[user]))
    assert clients[other_user].noop()[0] == "OK"
    assert admin(other.config, "kick", user)[0] == 68

    # Verbs for local copies, and the deletion of a user.
    for where in (other.config, config):
        code, rows, err = admin(where, "metacache", "list", "*")
        assert code == 0, err
        assert {(user, owner.name), (other_user, other.name)} <= {(row["username"], row["backend"]) for row in rows}
        code, rows, err = admin(where, "metacache", "status")
        assert (code, {row["backend"] for row in rows}) == (0, {"first", "second"}), err
    code, rows, err = admin(other.config, "obox", "user", "delete", "-u", user)
    assert code == 0, err
    assert "mails" in {row["what"] for row in rows}
    assert admin(owner.config, "mailbox", "status", "-u", user, "messages", "INBOX")[1][0]["messages"] == 0

    # The answer names a backend that does not answer.
    owner.kill()
    code, rows, err = admin(other.config, "who")
    assert (code, {row["backend"] for row in rows}) == (75, {other.name})
    assert owner.name in err
    code, rows, err = admin(config, "mailbox", "status", "-u", user, "messages", "INBOX")
    assert (code, rows) == (75, [])
    assert owner.name in err


def _served_by(backend: Backend, user: str, name: str) -> None:
    (status,) = answer(backend, "user", "status", "-u", user)
    assert status["backend"] == name
