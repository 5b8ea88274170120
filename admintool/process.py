"""oboxadm reload, stop, log errors, auth test: the process itself."""

from __future__ import annotations

import time
from typing import Any

import click

from admintool.context import Context
from admintool.pw import ask_password
from admintool.verbs import command, show
from obox.admin import TABLE
from obox.errors import Temporary
from obox.statelock import is_locked

POLL_S = 0.1
END_S = 60.0
"""Time for the last flush and the end of the process, after the steps of the stop."""


@click.group()
def log() -> None:
    """Warnings and errors of the backend."""


@click.group()
def auth() -> None:
    """Passwords."""


def _until_gone(obj: Context, params: dict[str, Any]) -> None:
    """Wait until the process has released its state directory."""
    if obj.remote:
        return
    deadline = time.monotonic() + params.get("timeLimit", 60) + END_S
    while is_locked(obj.config.state_dir):
        if time.monotonic() > deadline:
            raise Temporary("the backend still runs")
        time.sleep(POLL_S)
    click.echo("stopped", err=True)


@auth.command("test")
@click.argument("user")
@click.option("-p", "--password", help="Password. If it is left out, it is asked for; other users can see arguments.")
@click.pass_obj
def auth_test(obj: Context, user: str, password: str | None) -> None:
    """Try a login as IMAP does; the exit code is 77 if it is refused.

    \b
    Example:
      oboxadm auth test anna@example.org
    """
    given = password if password is not None else ask_password(confirm=False)
    raise SystemExit(show(obj, TABLE["authTest"], {"user": user, "password": given}))


def add_to(root: click.Group) -> None:
    command(root, "reload", example="oboxadm reload")
    command(root, "stop", short={"time_limit": "t"}, example="oboxadm stop -y -t 120", after=_until_gone)
    command(log, "logErrors", short={"since": "s", "limit": "n"}, example="oboxadm log errors -n 20")
    root.add_command(log)
    root.add_command(auth)
