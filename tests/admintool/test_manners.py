"""Mistakes of an operator. The tool must not mislead anybody who makes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from toolhome import ANNA, BEN, KEY, ROOT, Home

from admintool import exits
from obox.admin import TABLE, rows
from obox.admin.table import Needs, Verb

MANUAL = (ROOT / "docs/cli.md").read_text()
NOBODY = "zoe@example.org"


# -- settings that cannot take effect ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        ["storage", "check"],
        ["who"],
        ["mailbox", "list", "-A"],
        ["-y", "mailbox", "delete", "-u", ANNA, "Archive"],
        ["mailbox", "delete", "-u", ANNA, "Archive"],
        ["reload"],
    ],
)
def test_settings_beside_a_backend_that_runs(served: Home, command: list[str]) -> None:
    got = served("-o", "storage.url=memory://", "-o", "log.level=debug", *command)
    assert got.exit_code == exits.USAGE
    assert got.stdout == ""
    assert "-o log.level, storage.url: the backend in" in got.stderr
    assert {"mailbox": "Archive"} in served.json("mailbox", "list", "-u", ANNA)


def test_settings_that_take_effect(served: Home, alone: Home, tmp_path: Path) -> None:
    state = f"state_dir={served.path}/state"
    assert alone("-o", state, "who").exit_code == 0, "it says which backend is asked"
    assert alone("-o", state, "-o", "log.level=debug", "who").exit_code == exits.USAGE
    (tmp_path / "others").write_text("zoe:{PLAIN}x:::::\n")
    got = served.json("-o", f"auth.passwd_file={tmp_path}/others", "user", "list")
    assert [row["user"] for row in got] == ["zoe"], "this process reads the file"
    assert alone("-o", f"storage.url=file://{tmp_path}/other", "mailbox", "create", "-u", ANNA, "X").exit_code == 0
    assert list((tmp_path / "other").rglob("*.base")), "no backend runs"
    assert alone("-o", "log.level=debug", "who").exit_code == exits.USAGE, "a backend alone can answer it"


def test_settings_for_another_machine(served: Home, tmp_path: Path) -> None:
    url = ["--url", f"http://127.0.0.1:{served.port}"]
    assert served(*url, "-o", f"http.api_key={KEY}", "who").exit_code == 0
    wrong = served(*url, "-o", "imap.max_user_sessions=1", "user", "list")
    assert wrong.exit_code == exits.USAGE
    assert "-o imap.max_user_sessions: the backend at http://127.0.0.1" in wrong.stderr
    key = tmp_path / "key"
    key.write_text(KEY)
    assert served(*url, "--key-file", str(key), "-o", "http.api_key=x", "who").exit_code == exits.USAGE
    alone = served("--key-file", str(key), "who")
    assert alone.exit_code == exits.USAGE
    assert "allowed with --url only" in alone.stderr


@pytest.mark.parametrize("option", [["-o", "log.level=debug"], ["-c", "obox.toml"], ["-f", "json"]])
@pytest.mark.parametrize("command", [["pw", "-l"], ["completion", "bash"]])
def test_options_that_a_command_does_not_use(alone: Home, option: list[str], command: list[str]) -> None:
    got = alone(*option, *command, config=False)
    assert got.exit_code == exits.USAGE
    assert f"{option[0]}: oboxadm {command[0]} does not use it" in got.stderr


# -- nothing to show ---------------------------------------------------------------------------------------------------


ALWAYS_ROWS = {
    "authTest", "clusterBackendAdd", "clusterBackendEvacuate", "clusterBackendRemove", "clusterBackendUpdate",
    "clusterGroupMove", "clusterInit", "clusterLoad", "clusterSiteAdd", "clusterSiteEvacuate", "clusterSiteRemove",
    "clusterSiteUpdate", "clusterStatus", "clusterUpgrade",
    "clusterUserKick", "clusterUserMove", "clusterUserStatus", "eventsDeadLettersShow",
    "fscacheRescan", "fscacheStatus", "kick", "metacacheClean", "metacacheFlush", "metacachePull",
    "metacacheRefresh", "metacacheRescan", "metacacheStatus", "metacacheUnpack", "oboxUserDelete", "oboxUserRename",
    "quotaGet", "quotaRecalc", "stop", "storageCheck",
    "storageFinishUpgrade", "storageUpgrade", "userAdd", "userDisable", "userEnable", "userPassword",
}  # fmt: skip


def test_each_verb_shows_something_or_says_that_there_is_nothing() -> None:
    assert set(TABLE) == ALWAYS_ROWS | set(rows.NONE) | rows.SILENT
    assert not ALWAYS_ROWS & set(rows.NONE)


@pytest.mark.parametrize("format_", ["table", "json", "tab"])
def test_nothing_is_said_on_stderr(served: Home, format_: str) -> None:
    for words, said in (
        (["who"], "nobody is logged in\n"),
        (["who", "zoe*"], "nobody is logged in (zoe*)\n"),
        (["search", "-u", BEN, "subject", "nosuch"], f"no mail matches (subject nosuch, {BEN})\n"),
        (["fetch", "-u", BEN, "uid", "subject", "nosuch"], "no mail matches"),
        (["mailbox", "list", "-u", BEN, "nosuch*"], "no such mailbox"),
        (["mailbox", "status", "-u", BEN, "messages", "nosuch*"], "no such mailbox"),
        (["flags", "add", "-u", BEN, "\\Seen", "subject", "nosuch"], "no mail matches"),
        (["metacache", "list", "zoe*"], "no user has local copies (zoe*)\n"),
        (["-y", "metacache", "remove", "zoe*"], "no user has local copies (zoe*)\n"),
        (["obox", "user", "wait", "-u", BEN], "nobody has the mail open"),
        (["reload"], "no setting has changed\n"),
    ):
        got = served("-f", format_, *words)
        assert got.exit_code == 0, (words, got.stderr)
        assert f"oboxadm: {said}" in got.stderr, words
        assert said not in got.stdout
    shown = served("-f", format_, "metacache", "list")
    assert shown.stderr == "", "there is something"


# -- what destroys looks first -----------------------------------------------------------------------------------------


def test_what_is_not_there_is_not_asked_about(served: Home) -> None:
    served("mailbox", "create", "-u", ANNA, "There")
    for words, code, said in (
        (["mailbox", "delete", "-u", ANNA, "nosuch"], exits.DATA, "no mailbox 'nosuch'"),
        (["mailbox", "delete", "-u", ANNA, "There", "nosuch"], exits.DATA, "no mailbox 'nosuch'"),
        (["mailbox", "delete", "-u", NOBODY, "There"], exits.NO_USER, NOBODY),
        (["expunge", "-u", ANNA, "MAILBOX", "INBOX", "subject", "nosuch"], 0, "no mail matches"),
        (["expunge", "-u", ANNA, "MAILBOX", "INBOX"], exits.DATA, "the query must name MAILBOX and select mails"),
        (["expunge", "-u", ANNA, "MAILBOX", "INBOX", "since", "notadate"], exits.DATA, "allowed: 2026-01-31"),
        (["obox", "user", "delete", "-u", NOBODY], exits.NO_USER, NOBODY),
        (["metacache", "remove", "nosuch"], exits.DATA, "no local copies"),
        (["rebuild", "-u", NOBODY], exits.NO_USER, NOBODY),
        (["user", "remove", NOBODY], exits.NO_USER, NOBODY),
    ):
        got = served(*words, stdin="y\n")
        assert "[y/N]" not in got.stderr, words
        assert got.exit_code == code, (words, got.stderr)
        assert said in got.stderr, words
    assert {"mailbox": "There"} in served.json("mailbox", "list", "-u", ANNA), "nothing was deleted before it was seen"
    assert served("-y", "mailbox", "delete", "-u", ANNA, "There", "nosuch").exit_code == exits.DATA
    assert {"mailbox": "There"} in served.json("mailbox", "list", "-u", ANNA)


def test_stop_is_not_asked_about_where_nobody_runs(alone: Home) -> None:
    got = alone("stop", stdin="y\n")
    assert (got.exit_code, "[y/N]" in got.stderr) == (exits.UNAVAILABLE, False)


def test_the_question_shows_what_would_be_done(served: Home) -> None:
    served("mailbox", "create", "-u", ANNA, "Doomed", "Doomed/Too")
    got = served("mailbox", "delete", "-u", ANNA, "-r", "Doomed", stdin="n\n")
    before, question, _ = got.stderr.partition("Delete these mailboxes")
    assert before == "  mailbox=Doomed/Too messages=0\n  mailbox=Doomed messages=0\n"
    assert question
    for words in (
        ["obox", "user", "delete", "-u", ANNA],
        ["metacache", "remove", ANNA],
        ["rebuild", "-u", ANNA, "INBOX"],
        ["user", "remove", ANNA],
        ["stop"],
    ):
        assert "=" in served(*words, stdin="n\n").stderr.partition("[y/N]")[0], words
    assert served("stop", "--dry-run").exit_code == 0, "it goes on"


def test_a_dry_run_changes_nothing(served: Home) -> None:
    served("mailbox", "create", "-u", BEN, "Kept")
    before = served.json("mailbox", "list", "-A"), (served.path / "users").read_text()
    for words in (
        ["mailbox", "delete", "-u", BEN, "Kept"],
        ["obox", "user", "delete", "-u", BEN],
        ["metacache", "remove", BEN, "--force"],
        ["rebuild", "-u", BEN, "Kept"],
        ["user", "remove", BEN],
    ):
        got = served("-f", "json", *words, "--dry-run")
        assert got.exit_code == 0, got.stderr
        assert got.stdout != "[]\n", words
        assert "[y/N]" not in got.stderr
    assert (served.json("mailbox", "list", "-A"), (served.path / "users").read_text()) == before
    for verb in TABLE.values():
        assert not verb.asks or "dry_run" in verb.params.__struct_fields__, verb.name


# -- columns -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", TABLE.values(), ids=lambda verb: verb.name)
def test_each_column_is_explained(verb: Verb) -> None:
    assert set(verb.columns) <= set(verb.explained)
    part = next(part for part in re.split(r"^### ", MANUAL, flags=re.M) if f"API: `{verb.name}`" in part)
    shown = re.findall(r"^\| `([^`]+)` \| (.*) \|$", part.partition("| Column | Meaning |")[2], flags=re.M)
    assert dict(shown) == verb.explained
    assert verb.explained or verb.name in rows.SILENT


def test_columns_are_in_the_help(alone: Home) -> None:
    text = alone("metacache", "list", "--help").stdout
    assert "cleanup-weight" in text
    assert "the cleaner drops the lowest first" in text


def test_columns_of_real_rows(served: Home) -> None:
    """tests/admin checks the rows of each verb that it calls. This test checks the rows
    of `fetch` and of similar verbs."""
    assert rows.names("metacacheList", "bytes-used(2)") == "bytes-used(N)"
    assert rows.names("fetch", "hdr.subject") == "hdr.NAME"
    assert not rows.names("who", "nosuch")
    for row in served.json("metacache", "list"):
        assert all(rows.names("metacacheList", name) for name in row)
    assert {verb.needs for verb in TABLE.values()} == set(Needs)
