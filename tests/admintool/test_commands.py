"""oboxadm with a real `obox serve`, and with a state directory that no process uses."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from patience import PATIENT_S
from toolhome import ANNA, BEN, KEY, ROOT, Home

from admintool import cli, exits
from admintool.verbs import made
from obox.admin import TABLE

MANUAL = (ROOT / "docs/cli.md").read_text()
# -- where verbs run ---------------------------------------------------------------------------------------------------


def test_over_the_socket(served: Home) -> None:
    assert served("mailbox", "create", "-u", ANNA, "Work").exit_code == 0
    rows = served.json("mailbox", "list", "-u", ANNA, "W*")
    assert rows == [{"mailbox": "Work"}]
    assert served.json("who") == []
    assert served("kick", "zoe").exit_code == exits.NO_HOST
    assert served("mailbox", "list", "-u", "zoe").exit_code == exits.NO_USER
    again = served("mailbox", "create", "-u", ANNA, "Work")
    assert (again.exit_code, again.stdout) == (exits.CANNOT_CREATE, "")
    assert again.stderr == "oboxadm: mailbox 'Work' exists already\n"


def test_over_http(served: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    url = ["--url", f"http://127.0.0.1:{served.port}"]
    assert served(*url, "who").exit_code == 0, "the key of the configuration"
    key = tmp_path / "key"
    key.write_text(KEY + "\n")
    assert served(*url, "--key-file", str(key), "who", config=False).exit_code == 0
    monkeypatch.setenv("OBOXADM_API_KEY", KEY)
    assert served(*url, "who", config=False).exit_code == 0
    monkeypatch.setenv("OBOXADM_URL", url[1] + "/doveadm/v1")
    assert served("user", "list", config=False).stdout.splitlines()[1].startswith(ANNA)
    monkeypatch.setenv("OBOXADM_API_KEY", "other")
    wrong = served("who", config=False)
    assert wrong.exit_code == exits.NO_PERM
    assert "the key is not accepted" in wrong.stderr
    assert served("--url", "ftp://x", "who").exit_code == exits.CONFIG
    assert served("--url", "http://127.0.0.1:1", "who").exit_code == exits.UNAVAILABLE


def test_where_nobody_runs(alone: Home) -> None:
    assert alone("mailbox", "create", "-A", "-s", "Work").exit_code == 0
    assert [row["username"] for row in alone.json("mailbox", "list", "-A", "Work")] == [ANNA, BEN]
    who = alone("who")
    assert who.exit_code == exits.UNAVAILABLE
    assert "no backend listens" in who.stderr
    assert alone.json("metacache", "boots")[0]["before"] in ("clean", "unknown")


def test_pull(served: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Home(tmp_path / "other")
    text = other.config.read_text().replace(f"file://{other.path}/bucket", f"file://{served.path}/bucket")
    other.config.write_text(text + '[cluster]\nbackend = "other"\n')
    served("mailbox", "create", "-u", BEN, "Pulled")
    source = f"127.0.0.1:{served.port}"
    assert other("metacache", "pull", "-u", BEN, source).exit_code == exits.UNAVAILABLE, "it needs a backend"
    other.start()
    try:
        wrong = tmp_path / "key"
        wrong.write_text("another\n")
        got = other("metacache", "pull", "-A", "--api-key-file", str(wrong), source)
        assert (got.exit_code, got.stdout) == (exits.NO_PERM, "")
        assert "another" not in got.stderr
        monkeypatch.setenv("OBOXADM_SOURCE_API_KEY_FILE", str(wrong))
        assert other("metacache", "pull", "-u", BEN, source).exit_code == exits.NO_PERM
        wrong.write_text(KEY + "\n")
        row = other.json("metacache", "pull", "-u", BEN, f"http://{source}")[0]
        assert set(row) == {"mailboxes", "kept", "bytes", "cleaned", "result"}
        assert row["result"] in ("pulled", "nothing newer there")
        monkeypatch.delenv("OBOXADM_SOURCE_API_KEY_FILE")
        old = other("metacache", "pull", "-A", "--latest-only", source)
        assert old.exit_code == exits.OUTDATED, "the later start took over the journal, and uploaded what it said"
        assert served("metacache", "refresh", "-A").exit_code == 0
        rows = other.json("metacache", "pull", "-A", "--latest-only", source)
        assert [row["username"] for row in rows] == [ANNA, BEN]
        assert {"mailbox": "Pulled"} in other.json("mailbox", "list", "-u", BEN)
        assert other("metacache", "pull", "-u", BEN, "127.0.0.1:1").exit_code == exits.UNAVAILABLE
        assert other("metacache", "pull", "-u", BEN, "no-such-host.invalid").exit_code == exits.NO_HOST
        assert other("metacache", "pull", "-u", BEN, f"127.0.0.1:{other.port}").exit_code == exits.DATA, "itself"
        kept = other("metacache", "pull", "-u", BEN, "--clean", source)
        assert kept.exit_code in (0, exits.TEMPFAIL), kept.stderr
    finally:
        other.stop()


def test_rename_where_nobody_runs(alone: Home) -> None:
    assert alone("mailbox", "create", "-u", ANNA, "Work").exit_code == 0
    row = alone.json("obox", "user", "rename", ANNA, "Smith@example.org")[0]
    assert (row["user"], row["storage_id"]) == ("smith@example.org", ANNA)
    assert alone.json("mailbox", "list", "-u", "smith@example.org", "W*") == [{"mailbox": "Work"}]
    assert alone("mailbox", "list", "-u", ANNA).exit_code == exits.NO_USER
    assert alone("user", "add", ANNA, "-p", "x").exit_code == exits.CANNOT_CREATE
    assert alone("obox", "user", "rename", "smith@example.org", BEN).exit_code == exits.CANNOT_CREATE


def test_a_state_that_is_locked(alone: Home) -> None:
    import fcntl

    (alone.path / "state").mkdir()
    with (alone.path / "state/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        got = alone("mailbox", "list", "-A")
    assert got.exit_code == exits.TEMPFAIL
    assert "socket does not answer" in got.stderr


def test_stop_waits_for_the_end(tmp_path: Path) -> None:
    home = Home(tmp_path)
    home.start()
    try:
        got = home("-f", "json", "stop", "-y", "-t", "20")
        assert got.exit_code == 0, got.stderr
        assert json.loads(got.stdout)[-1]["step"] == "end"
        assert home.process is not None
        assert home.process.wait(PATIENT_S) == 0
        assert home.json("mailbox", "list", "-u", ANNA, "INBOX") == [{"mailbox": "INBOX"}]
    finally:
        home.stop()


def test_a_deep_directory(tmp_path: Path) -> None:
    """The kernel allows 108 bytes for the name of a socket. The tool accepts longer
    paths."""
    home = Home(tmp_path / ("d" * 100) / ("e" * 60))
    home.start()
    try:
        assert home("who").exit_code == 0
    finally:
        home.stop()


# -- which users, what format ------------------------------------------------------------------------------------------


def test_reload_says_what_waits(served: Home) -> None:
    """The table is for people. The exit code is 0, since nothing is wrong."""
    text = served.config.read_text()
    try:
        changed = text.replace("[imap]", "[imap]\nidle_timeout = '1h'")
        served.config.write_text(changed + "[metacache]\nmax_space = '9M'\n")
        got = served("reload")
        assert got.exit_code == 0, got.stderr
        assert [line.split(maxsplit=1) for line in got.stdout.splitlines()] == [
            ["setting", "used"],
            ["imap.idle_timeout", "now"],
            ["metacache.max_space", "after a restart"],
        ]
        assert served.json("reload") == [{"setting": "metacache.max_space", "used": "after a restart"}]
        served.config.write_text(text + "[imap2]\n")
        wrong = served("reload")
        assert (wrong.exit_code, wrong.stdout) == (exits.CONFIG, "")
        assert "imap2" in wrong.stderr
    finally:
        served.config.write_text(text)
    assert served.json("reload") == [{"setting": "imap.idle_timeout", "used": "now"}]


def test_which_users(served: Home, tmp_path: Path) -> None:
    def names(*arguments: str) -> list[str]:
        return [row.get("username", "") for row in served.json("quota", "get", *arguments)][::2]

    assert names("-u", ANNA) == [""]
    assert names("-u", "*@example.org") == [ANNA, BEN]
    assert names("-A") == [ANNA, BEN]
    assert names("-u", BEN, "-u", ANNA) == [BEN, ANNA]
    file = tmp_path / "file"
    file.write_text(f"\n{BEN}\n{ANNA}\n")
    assert names("-F", str(file)) == [BEN, ANNA]
    piped = served("-f", "json", "quota", "get", "-F", "-", stdin=f"{ANNA}\n")
    assert piped.exit_code == 0
    for wrong in ([], ["-A", "-u", ANNA], ["-F", str(file), "-A"]):
        assert served("quota", "get", *wrong).exit_code == exits.USAGE
    assert served("quota", "get", "-F", "/nowhere/file").exit_code == exits.USAGE


def test_some_fail(served: Home) -> None:
    assert served("mailbox", "create", "-u", ANNA, "Twice").exit_code == 0
    got = served("mailbox", "create", "-A", "Twice")
    assert got.exit_code == exits.PARTIAL
    assert f"oboxadm: {ANNA}: mailbox 'Twice' exists already" in got.stderr
    assert served("mailbox", "create", "-A", "Twice").exit_code == exits.CANNOT_CREATE


def test_formats(served: Home) -> None:
    table = served("mailbox", "status", "-A", "messages uidnext", "INBOX").stdout.splitlines()
    assert table[0].split() == ["username", "mailbox", "messages", "uidnext"]
    assert table[1].split() == [ANNA, "INBOX", "0", "1"]
    tab = served("-f", "tab", "mailbox", "status", "-A", "messages", "INBOX").stdout
    assert tab == f"username\tmailbox\tmessages\n{ANNA}\tINBOX\t0\n{BEN}\tINBOX\t0\n"
    flow = served("-f", "flow", "mailbox", "status", "-u", ANNA, "messages", "INBOX").stdout
    assert flow == "mailbox=INBOX messages=0\n"
    assert served("-f", "json", "search", "-A", "ALL").stdout == "[]\n"
    assert served("search", "-A", "ALL").stdout.split() == ["mailbox-guid", "uid"]
    assert served("-f", "tab", "search", "-A", "ALL").stdout == "mailbox-guid\tuid\n"


def test_mails_are_shown_for_reading(served: Home) -> None:
    import imaplib

    port = _imap_port(served)
    with imaplib.IMAP4("127.0.0.1", port) as client:
        client.login(BEN, "secret")
        client.append("INBOX", "(\\Seen)", None, b"Subject: caf\xc3\xa9\r\n\r\nline 1\r\n\x1b[31mline 2\r\n")
    got = served("fetch", "-u", BEN, "uid flags hdr.subject text", "MAILBOX", "INBOX", "SEEN")
    assert got.exit_code == 0, got.stderr
    lines = got.stdout.splitlines()
    assert lines[:3] == ["uid: 1", "flags: \\Seen", "hdr.subject: café"]
    assert "\x1b" not in got.stdout
    assert "\\x1b[31mline 2" in got.stdout
    assert served("flags", "add", "-u", BEN, "(\\Flagged $Label1)", "mailbox", "inbox", "all").exit_code == 0
    assert served("flags", "replace", "-u", BEN, "", "mailbox", "inbox", "all").exit_code == 0
    assert served.json("fetch", "-u", BEN, "flags", "ALL") == [{"flags": ""}]
    assert served("expunge", "-y", "-u", BEN, "MAILBOX", "INBOX", "ALL").exit_code == 0


def _imap_port(home: Home) -> int:
    """Return the port that the system chose for port 0. It is found in the kernel's
    table, as the other listener of the process."""
    assert home.process is not None
    import psutil

    ports = [one.laddr.port for one in psutil.Process(home.process.pid).net_connections() if one.status == "LISTEN"]
    return next(port for port in ports if port != home.port)


# -- asking, settings, the rest ----------------------------------------------------------------------------------------


def test_what_destroys_asks(served: Home) -> None:
    served("mailbox", "create", "-u", ANNA, "Doomed")
    no = served("mailbox", "delete", "-u", ANNA, "Doomed", stdin="n\n")
    assert no.exit_code == exits.TEMPFAIL
    assert "Delete these mailboxes" in no.stderr
    assert no.stdout == ""
    assert served("mailbox", "delete", "-u", ANNA, "Doomed", stdin="").exit_code == exits.TEMPFAIL
    assert served.json("mailbox", "list", "-u", ANNA, "Doomed")
    assert served("mailbox", "delete", "-u", ANNA, "Doomed", stdin="y\n").exit_code == 0
    served("mailbox", "create", "-u", ANNA, "Doomed")
    assert served("-y", "mailbox", "delete", "-u", ANNA, "Doomed").exit_code == 0
    for verb in TABLE.values():
        assert bool(verb.asks) == (verb.name in ASK), verb.name


ASK = {
    "eventsDeadLettersPurge",
    "clusterBalance",
    "userRemove",
    "mailboxDelete",
    "expunge",
    "stop",
    "metacacheRemove",
    "oboxUserDelete",
    "rebuild",
}


def test_settings_of_one_command(alone: Home, tmp_path: Path) -> None:
    (tmp_path / "others").write_text("zoe:{PLAIN}x:::::\n")
    got = alone("-o", f"auth.passwd_file={tmp_path}/others", "user", "list")
    assert got.stdout.split()[-3:] == ["zoe", "yes", "yes"]
    wrong = alone("-o", "auth.passwd_fil=x", "user", "list")
    assert wrong.exit_code == exits.CONFIG
    assert "did you mean auth.passwd_file?" in wrong.stderr
    assert alone("-o", "nonsense", "user", "list").exit_code == exits.USAGE


def test_auth_test(alone: Home) -> None:
    fits = alone("auth", "test", ANNA, stdin="secret\n")
    assert fits.exit_code == 0, fits.stderr
    assert alone("auth", "test", ANNA, "-p", "other").exit_code == exits.NO_PERM


def test_users_are_edited(alone: Home) -> None:
    assert alone("user", "disable", ANNA, "--reason", "gone").stdout.split()[-3:] == [ANNA, "no", "no"]
    refused = alone("auth", "test", ANNA, stdin="secret\n")
    assert refused.exit_code == exits.NO_PERM
    assert "gone" in refused.stderr
    assert alone("user", "disable", ANNA, "--deliver").stdout.split()[-3:] == [ANNA, "no", "yes"]
    assert (alone.path / "users").read_text().splitlines()[0] == f"{ANNA}:{{PLAIN}}secret::::::nologin"
    assert alone("user", "enable", ANNA).stdout.split()[-3:] == [ANNA, "yes", "yes"]
    assert alone("user", "password", ANNA, "-s", "PLAIN", stdin="other\n").exit_code == 0
    assert (alone.path / "users").read_text() == f"{ANNA}:{{PLAIN}}other:::::\n{BEN}:{{PLAIN}}secret:::::\n"
    assert alone("user", "remove", "-y", ANNA).exit_code == 0
    assert (alone.path / "users").read_text() == f"{BEN}:{{PLAIN}}secret:::::\n"
    assert alone("user", "remove", "-y", ANNA).exit_code == exits.NO_USER
    assert alone("user", "disable", ANNA).exit_code == exits.NO_USER
    assert alone("user", "disable", BEN, "--reason", "two words").exit_code == exits.DATA


def test_user_delete(alone: Home) -> None:
    assert alone("mailbox", "create", "-A", "Work").exit_code == 0
    rows = alone.json("-y", "obox", "user", "delete", "-u", ANNA)
    assert {"index", "local copies", "backups"} <= {row["what"] for row in rows}
    left = [path for path in (alone.path / "bucket").rglob("*") if path.is_file() and "anna" in str(path)]
    assert left == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str) -> None:
    got = CliRunner().invoke(cli, ["completion", shell])
    assert got.exit_code == 0
    assert "_OBOXADM_COMPLETE" in got.stdout


def test_as_a_program(served: Home) -> None:
    """The program runs as from a shell: the test looks at stdout, stderr, the exit
    code, and the completion."""
    program = [str(Path(sys.executable).parent / "oboxadm")]
    environ = {**os.environ, "NO_COLOR": "1", "OBOX_CONFIG": str(served.config)}
    got = subprocess.run(
        [*program, "-f", "json", "quota", "get", "-A"], check=False, capture_output=True, text=True, env=environ
    )
    assert (got.returncode, got.stderr) == (0, "")
    assert len(json.loads(got.stdout)) == 4
    got = subprocess.run([*program, "kick", "zoe"], check=False, capture_output=True, text=True, env=environ)
    assert (got.returncode, got.stdout, got.stderr) == (68, "", "oboxadm: no session of zoe\n")
    words = {**environ, "_OBOXADM_COMPLETE": "bash_complete", "COMP_WORDS": "oboxadm metacache fl", "COMP_CWORD": "2"}
    got = subprocess.run(program, check=False, capture_output=True, text=True, env=words)
    assert got.stdout.split() == ["plain,flush", "plain,flushall"]


# -- the manual --------------------------------------------------------------------------------------------------------


def commands(group: click.Group, path: tuple[str, ...] = ("oboxadm",)) -> Iterator[tuple[str, click.Command]]:
    for name, one in sorted(group.commands.items()):
        if isinstance(one, click.Group):
            yield from commands(one, (*path, name))
        else:
            yield " ".join((*path, name)), one


COMMANDS = dict(commands(cli))


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_is_in_the_manual(name: str) -> None:
    assert f"### {name}\n" in MANUAL
    part = MANUAL.split(f"### {name}\n", 1)[1].split("\n### ", 1)[0]
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option) and parameter.name not in (
            "user", "all_users", "user_file", "no_userdb_lookup", "yes", "help"
        ):  # fmt: skip
            for option in parameter.opts:
                assert f"`{option}`" in part, option


@pytest.mark.parametrize("name", COMMANDS)
def test_the_manual_says_what_the_help_says(name: str) -> None:
    part = MANUAL.split(f"### {name}\n", 1)[1].split("\n### ", 1)[0]
    manual = " ".join(re.sub(r" \(\[[^]]*\]\([^)]*\)\)", "", part).split())
    prose = (COMMANDS[name].help or "").split("\b")[0]
    assert prose.strip()
    for paragraph in re.split(r"\n\s*\n", prose):
        assert " ".join(paragraph.split()) in manual


def test_the_manual_names_nothing_else() -> None:
    assert sorted(re.findall(r"^### (oboxadm .*)$", MANUAL, flags=re.M)) == sorted(COMMANDS)


def test_each_verb_has_its_command() -> None:
    by_hand = {
        "userAdd": "oboxadm user add",
        "userPassword": "oboxadm user password",
        "authTest": "oboxadm auth test",
        "clusterDump": "oboxadm cluster dump",
        "clusterLoad": "oboxadm cluster load",
    }
    assert set(made()) | set(by_hand) == set(TABLE)
    for name, command in by_hand.items():
        assert command in COMMANDS, name
    for name in TABLE:
        assert f"`{name}`" in MANUAL, name


def examples() -> list[str]:
    return [line for line in re.findall(r"^(oboxadm .*)$", MANUAL, flags=re.M) if "[OPTIONS]" not in line]


@pytest.mark.parametrize("line", [line for line in examples() if "[-c FILE]" not in line])
def test_examples_parse(line: str) -> None:
    words = shlex.split(line.partition(" > ")[0])[1:]
    context = cli.make_context("oboxadm", list(words), resilient_parsing=False)
    command: click.Command = cli
    while isinstance(command, click.Group):
        name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert found is not None, name
        command = found
        context = command.make_context(name, rest, parent=context)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_worth_reading(name: str) -> None:
    got = CliRunner().invoke(cli, [*name.split()[1:], "--help"])
    assert got.exit_code == 0
    assert "Example:" in got.stdout
    for parameter in COMMANDS[name].params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
