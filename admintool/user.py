"""oboxadm user: who is in the passwd-file."""

from __future__ import annotations

import fnmatch
import sys

import click

from admintool import exits
from admintool.context import Context
from admintool.pw import DEFAULT_SCHEME, SCHEMES_HINT, ask_password


@click.group()
def user() -> None:
    """Users of the passwd-file."""


@user.command("list")
@click.argument("mask", default="*")
@click.pass_obj
def list_(obj: Context, mask: str) -> None:
    """List users; MASK may have * and ?. Exit 67 if none fits."""
    from obox.auth import list_users

    auth = obj.config.auth
    everyone = list_users(auth.passwd_file, auth.default_domain)
    entries = [entry for entry in everyone if fnmatch.fnmatchcase(entry.user, mask.lower())]
    columns = ("user", "login", "delivery", "quota_bytes", "quota_messages")
    rows = [
        (e.user, not (e.nologin or e.disabled), not e.disabled, e.quota.storage_bytes, e.quota.messages)
        for e in entries
    ]
    obj.output.rows(columns, rows)
    if not entries and mask != "*":
        click.echo(f"oboxadm: no user fits {mask}", err=True)
        sys.exit(exits.NO_USER)


@user.command()
@click.argument("name")
@click.option("-s", "--scheme", default=DEFAULT_SCHEME, help=SCHEMES_HINT, show_default=True)
@click.option("-p", "--password", help="Better left out: other users of the machine see it.")
@click.option("--extra", default="", help="Extra fields, such as quota_rule=*:storage=1G.")
@click.pass_obj
def add(obj: Context, name: str, scheme: str, password: str | None, extra: str) -> None:
    """Add a user; the password comes from -p, a terminal, or one line of stdin. Exit 73 if there is one."""
    from obox.auth import add_user, hash_password

    auth = obj.config.auth
    secret = hash_password(scheme, password if password is not None else ask_password())
    entry = add_user(auth.passwd_file, name, secret, default_domain=auth.default_domain, extra=extra)
    click.echo(f"added {entry.user} to {auth.passwd_file}", err=True)
