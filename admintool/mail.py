"""oboxadm fetch, search, flags, expunge, copy, move: mails that match a search
query."""

from __future__ import annotations

import click

from admintool.verbs import command


@click.group()
def flags() -> None:
    """Flags and keywords of mails."""


def add_to(root: click.Group) -> None:
    command(
        root,
        "fetch",
        arguments=("field", "query"),
        joined="field",
        usual="pager",
        example="oboxadm fetch -u anna@example.org 'uid flags hdr.subject' MAILBOX INBOX SINCE 2w\n"
        "  oboxadm -f json fetch -A 'mailbox uid size.physical' LARGER 20M",
    )
    command(
        root, "search", arguments=("query",), example="oboxadm search -u anna@example.org MAILBOX INBOX UNSEEN FROM bob"
    )
    command(
        flags,
        "flagsAdd",
        arguments=("flag", "query"),
        joined="flag",
        example="oboxadm flags add -u anna@example.org '\\Seen' MAILBOX INBOX BEFORE 4w",
    )
    command(
        flags,
        "flagsRemove",
        arguments=("flag", "query"),
        joined="flag",
        example="oboxadm flags remove -u anna@example.org '\\Deleted' MAILBOX INBOX ALL",
    )
    command(
        flags,
        "flagsReplace",
        arguments=("flag", "query"),
        joined="flag",
        example="oboxadm flags replace -u anna@example.org '\\Seen $Label1' MAILBOX INBOX UID 7",
    )
    command(
        root,
        "expunge",
        arguments=("query",),
        short={"delete_empty_mailbox": "d"},
        example="oboxadm expunge -A MAILBOX Trash SAVEDBEFORE 30d",
    )
    command(
        root,
        "copy",
        arguments=("destination_mailbox", "query"),
        example="oboxadm copy -u anna@example.org Archive MAILBOX INBOX FLAGGED",
    )
    command(
        root,
        "move",
        arguments=("destination_mailbox", "query"),
        example="oboxadm move -u anna@example.org Archive/2025 MAILBOX INBOX BEFORE 2026-01-01",
    )
    root.add_command(flags)
