"""oboxadm from outside: what it prints on stdout and stderr, and its exit codes."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from admintool import cli, exits
from obox import errors

USERS = "bob:{PLAIN}x:::::\nanna:{PLAIN}y::::::quota_rule=*:storage=1G\nold:{PLAIN}z::::::nologin\n"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "users").write_text(USERS)
    (tmp_path / "obox.toml").write_text('[storage]\nurl = "memory://"\n')
    monkeypatch.delenv("OBOX_CONFIG", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nowhere"))

    def invoke(*arguments: str, stdin: str = "", config: bool = True) -> Result:
        first = ["-c", str(tmp_path / "obox.toml")] if config else []
        return CliRunner().invoke(cli, [*first, *arguments], input=stdin)

    return invoke


def test_user_list(run: Any) -> None:
    got = run("-f", "json", "user", "list")
    assert got.exit_code == 0
    assert json.loads(got.stdout) == [
        {"user": "anna", "login": True, "delivery": True, "quota_bytes": 1 << 30, "quota_messages": None},
        {"user": "bob", "login": True, "delivery": True, "quota_bytes": None, "quota_messages": None},
        {"user": "old", "login": False, "delivery": True, "quota_bytes": None, "quota_messages": None},
    ]
    table = run("user", "list", "b*").stdout.splitlines()
    assert table[0].split() == ["user", "login", "delivery", "quota_bytes", "quota_messages"]
    assert table[1].split() == ["bob", "yes", "yes"]
    assert run("-f", "tab", "user", "list", "bob").stdout.splitlines()[1] == "bob\tyes\tyes\t\t"
    assert run("-f", "flow", "user", "list", "bob").stdout.startswith("user=bob login=yes")
    none = run("user", "list", "zoe*")
    assert none.exit_code == exits.NO_USER
    assert "no user matches zoe*" in none.stderr


def test_user_add(run: Any, tmp_path: Path) -> None:
    got = run("user", "add", "Zoe", "-s", "SHA512-CRYPT", "--extra", "quota_rule=*:storage=1M", stdin="secret\n")
    assert got.exit_code == 0, got.stderr
    assert got.stdout == ""
    assert "added zoe" in got.stderr
    assert (tmp_path / "users").read_text().splitlines()[-1].startswith("zoe:{SHA512-CRYPT}$6$")
    assert json.loads(run("-f", "json", "user", "list", "zoe").stdout)[0]["quota_bytes"] == 1 << 20
    again = run("user", "add", "zoe", "-p", "x", "-s", "PLAIN")
    assert again.exit_code == exits.CANNOT_CREATE
    assert again.stderr == "oboxadm: user zoe exists already\n"
    assert run("user", "add", "a/b", "-p", "x", "-s", "PLAIN").exit_code == exits.DATA
    assert run("user", "add", "new", "-s", "PLAIN", stdin="").exit_code == exits.DATA, "no password"


def test_pw_needs_no_configuration(run: Any) -> None:
    secret = run("pw", "-p", "open sesame", "-s", "BLF-CRYPT", "-r", "5", config=False).stdout.strip()
    assert secret.startswith("{BLF-CRYPT}$2")
    fits = run("pw", "-t", secret, stdin="open sesame\n", config=False)
    assert (fits.exit_code, fits.stdout) == (0, "(verified)\n")
    assert run("pw", "-t", secret, "-p", "other", config=False).exit_code == exits.NO_PERM
    assert run("pw", "-t", "{NOSUCH}x", "-p", "other", config=False).exit_code == exits.DATA
    assert run("pw", "-s", "NOSUCH", "-p", "x", config=False).exit_code == exits.DATA
    assert "ARGON2ID" in run("pw", "-l", config=False).stdout
    assert run("pw", stdin="x\n", config=False).stdout.startswith("{ARGON2ID}$argon2id$")


def test_ends(run: Any, tmp_path: Path) -> None:
    assert run("--version").exit_code == 0
    assert run("nosuch").exit_code == exits.USAGE
    assert run("user", "add").exit_code == exits.USAGE
    assert run("-f", "xml", "user", "list").exit_code == exits.USAGE
    assert run("--help").exit_code == 0
    missing = run("-c", "/nowhere/obox.toml", "user", "list", config=False)
    assert missing.exit_code == exits.CONFIG
    assert missing.stderr == 'oboxadm: -c = "/nowhere/obox.toml": no such file\n'
    assert "Traceback" not in missing.output
    (tmp_path / "users").unlink()
    assert run("user", "list").exit_code == exits.DATA


def test_every_kind_of_failure_has_an_exit_code() -> None:
    assert set(exits.OF) == set(errors.KINDS)
    assert all(64 <= code <= 78 for code in exits.OF.values())
