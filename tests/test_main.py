"""The program `obox`: its options and exit codes."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from obox.main import EX_CONFIG, EX_USAGE, cli


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "obox.toml"
    path.write_text('state_dir = "state"\n[storage]\nurl = "memory://"\n[imap]\nidle_timeout = "1h"\n')
    return path


def test_config_without_defaults(config: Path) -> None:
    got = CliRunner().invoke(cli, ["config", "-n", "-c", str(config)])
    assert got.exit_code == 0
    shown = [line for line in got.stdout.splitlines() if line and not line.startswith("#")]
    assert [line.partition(" #")[0].strip() for line in shown] == [
        f'state_dir = "{config.parent}/state"', "[storage]", 'url = "memory://"', "[imap]", 'idle_timeout = "1h"'
    ]  # fmt: skip
    assert len(CliRunner().invoke(cli, ["config", "-c", str(config)]).stdout.splitlines()) > 50


def test_config_reports_a_passwd_file_that_is_not_there(config: Path) -> None:
    got = CliRunner().invoke(cli, ["config", "-c", str(config)])
    assert got.exit_code == 0
    assert f"auth.passwd_file = {config.parent}/users: no such file" in got.stderr
    (config.parent / "users").touch()
    assert CliRunner().invoke(cli, ["config", "-c", str(config)]).stderr == ""


def doubts(path: Path, text: str) -> str:
    path.write_text(text)
    got = CliRunner().invoke(cli, ["config", "-c", str(path)])
    assert got.exit_code == 0, got.stderr
    return "".join(line for line in got.stderr.splitlines(keepends=True) if "passwd_file" not in line)


def test_config_reports_what_serve_could_not_use(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    memory = '[storage]\nurl = "memory://"\n'
    assert doubts(config, f'state_dir = "state"\n{memory}') == ""
    for text, reported in (
        (f'state_dir = "file/state"\n{memory}', f"state_dir = {tmp_path}/file/state: {tmp_path}/file is no directory"),
        ('state_dir = "s"\n[storage]\nurl = "file:///proc/version/mail"\n', "storage.url = /proc/version/mail: "),
        ('state_dir = "s"\n[storage]\nurl = "s3://Mail_Bucket"\n', '"Mail_Bucket" is no bucket name'),
        ('state_dir = "s"\n[storage]\nurl = "s3://10.0.0.1"\n', '"10.0.0.1" is no bucket name'),
        (
            'state_dir = "s"\n[storage]\nurl = "s3://mail"\nendpoint_url = "http://store.invalid:9000"\n',
            'storage.endpoint_url: "store.invalid" does not resolve',
        ),
        (
            f'state_dir = "s"\n{memory}[imap]\nlisten = ["nowhere.invalid:143", "127.0.0.1:1143"]\n',
            'imap.listen nowhere.invalid:143: "nowhere.invalid" does not resolve',
        ),
        (f'state_dir = "s"\n{memory}[lmtp]\nlisten = ["192.0.2.1:24"]\n', "is no address of this machine"),
        (f'state_dir = "s"\n{memory}[lmtp]\nlisten = ["unix:no/lmtp"]\n', f"{tmp_path}/no is not there"),
    ):
        lines = doubts(config, text).splitlines()
        assert len(lines) == 1, (text, lines)
        assert reported in lines[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "obox.toml"], "nothing was made"
    # root may write anywhere.
    monkeypatch.setattr(os, "access", lambda *_: False)
    reported = doubts(config, f'state_dir = "state"\n{memory}')
    assert reported == f"obox: state_dir = {tmp_path}/state: {tmp_path} cannot be written by this user\n"


def test_a_directory_is_no_configuration(tmp_path: Path) -> None:
    for command in ("serve", "config"):
        got = CliRunner().invoke(cli, [command, "-c", str(tmp_path)])
        assert got.exit_code == EX_CONFIG
        assert "is a directory" in got.stderr


def test_config_names_an_endpoint_that_is_none(config: Path) -> None:
    text = config.read_text()
    config.write_text(
        text.replace(
            "[storage]\n", '[storage]\nendpoint_url = "http://127.0.0.1:9000"\naddressing = "virtual"\n'
        ).replace('url = "memory://"', 'url = "s3://bucket"')
    )
    result = CliRunner().invoke(cli, ["config", "-c", str(config)])
    assert result.exit_code == EX_CONFIG, result.output
    assert 'obox: storage.addressing = "virtual": http://127.0.0.1:9000 has no host name' in result.stderr


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
