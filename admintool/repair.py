"""oboxadm force-resync, rebuild: repair indexes."""

from __future__ import annotations

import click

from admintool.verbs import command


def add_to(root: click.Group) -> None:
    command(
        root,
        "forceResync",
        arguments=("mailbox_mask",),
        example="oboxadm force-resync -u anna@example.org INBOX\n  oboxadm force-resync -A '*' --keep-lost\n"
        "  oboxadm force-resync -A '*' --skip-uids 10000",
    )
    command(root, "rebuild", arguments=("mailbox_mask",), example="oboxadm rebuild -u anna@example.org")
