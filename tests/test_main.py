"""The program `obox`: its options and exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from obox.main import EX_CONFIG, EX_USAGE, cli


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "obox.toml"
    path.write_text('[storage]\nurl = "memory://"\n[imap]\nidle_timeout = "1h"\n')
    return path


def test_config_without_defaults(config: Path) -> None:
    got = CliRunner().invoke(cli, ["config", "-n", "-c", str(config)])
    assert got.exit_code == 0
    shown = [line for line in got.stdout.splitlines() if line and not line.startswith("#")]
    assert [line.partition(" #")[0].strip() for line in shown] == [
        "[storage]", 'url = "memory://"', "[imap]", 'idle_timeout = "1h"'
    ]  # fmt: skip
    assert len(CliRunner().invoke(cli, ["config", "-c", str(config)]).stdout.splitlines()) > 50


def test_config_tells_of_a_passwd_file_that_is_not_there(config: Path) -> None:
    got = CliRunner().invoke(cli, ["config", "-c", str(config)])
    assert got.exit_code == 0
    assert f"auth.passwd_file = {config.parent}/users: no such file" in got.stderr
    (config.parent / "users").touch()
    assert CliRunner().invoke(cli, ["config", "-c", str(config)]).stderr == ""


def test_exit_codes(config: Path, tmp_path: Path) -> None:
    for words, code in (
        (["nosuch"], EX_USAGE),
        (["serve", "--nosuch"], EX_USAGE),
        (["serve", "-c", "/nowhere/obox.toml"], EX_CONFIG),
        (["serve", "-c", str(config), "--demo", str(tmp_path / "demo")], EX_USAGE),
        (["config", "--help"], 0),
        (["--version"], 0),
    ):
        assert CliRunner().invoke(cli, words).exit_code == code, words
    assert not (tmp_path / "demo").exists(), "a configuration that would have no effect is refused"
