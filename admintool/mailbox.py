"""oboxadm mailbox, quota: a user's mailboxes and their total size."""

from __future__ import annotations

import click

from admintool.verbs import command


@click.group()
def mailbox() -> None:
    """Mailboxes of users."""


@click.group()
def quota() -> None:
    """Storage used by users, and their limits."""


def add_to(root: click.Group) -> None:
    command(
        mailbox,
        "mailboxList",
        arguments=("mailbox_mask",),
        short={"subscriptions": "s"},
        example="oboxadm mailbox list -u anna@example.org\n  oboxadm mailbox list -A 'Archive/*'",
    )
    command(
        mailbox,
        "mailboxStatus",
        arguments=("field", "mailbox_mask"),
        joined="field",
        short={"total_sum": "t"},
        example="oboxadm mailbox status -u anna@example.org 'messages unseen' INBOX\n"
        "  oboxadm mailbox status -A -t all",
    )
    command(
        mailbox,
        "mailboxCreate",
        arguments=("mailbox",),
        short={"subscriptions": "s"},
        example="oboxadm mailbox create -u anna@example.org -s Projects Projects/Obox",
    )
    command(
        mailbox,
        "mailboxDelete",
        arguments=("mailbox",),
        short={"recursive": "r", "require_empty": "e", "subscriptions": "s"},
        example="oboxadm mailbox delete -u anna@example.org -r Projects",
    )
    command(
        mailbox,
        "mailboxRename",
        arguments=("mailbox", "new_name"),
        short={"subscriptions": "s"},
        example="oboxadm mailbox rename -u anna@example.org Projects Work",
    )
    command(
        mailbox,
        "mailboxSubscribe",
        arguments=("mailbox",),
        example="oboxadm mailbox subscribe -u anna@example.org Work",
    )
    command(
        mailbox,
        "mailboxUnsubscribe",
        arguments=("mailbox",),
        example="oboxadm mailbox unsubscribe -u anna@example.org Work",
    )
    command(quota, "quotaGet", example="oboxadm quota get -A")
    command(quota, "quotaRecalc", example="oboxadm quota recalc -u anna@example.org")
    root.add_command(mailbox)
    root.add_command(quota)
