"""oboxadm user: the users of the passwd-file."""

from __future__ import annotations

from typing import Any

import click

from admintool.context import Context, fail
from admintool.pw import ask_password
from admintool.verbs import command, parameters, show
from obox.admin import TABLE
from obox.admin.users import DEFAULT_SCHEME


@click.group()
def user() -> None:
    """Users of the passwd-file."""


command(user, "userList", arguments=("mask",), example="oboxadm user list '*@example.org'")


@user.command()
@click.argument("name")
@click.option(
    "-s", "--scheme", default=DEFAULT_SCHEME, help="Scheme of the hash; oboxadm pw -l lists all.", show_default=True
)
@click.option("-p", "--password", help="Password. If it is left out, it is asked for; other users can see arguments.")
@click.option("--extra", default="", help="Extra fields, such as quota_rule=*:storage=1G.")
@click.pass_obj
def add(obj: Context, name: str, scheme: str, password: str | None, extra: str) -> None:
    """Add a user; the password comes from -p, a terminal, or a line of stdin.

    The exit code is 73 if there is such a user, or if mail under that name belongs to
    another user.

    \b
    Example:
      oboxadm user add anna@example.org --extra quota_rule=*:storage=1G
    """
    given: dict[str, Any] = {"user": name, "scheme": scheme, "extra": extra}
    given["password"] = password if password is not None else ask_password()
    verb = TABLE["userAdd"]
    for event in obj.call(verb, parameters(verb, given)):
        if "row" in event:
            where = "the other backend's passwd-file" if obj.remote else obj.config.auth.passwd_file
            click.echo(f"added {event['row']['user']} to {where}", err=True)
        elif "end" in event and event["end"]["exitCode"]:
            fail(event["end"]["message"], event["end"]["exitCode"])


@user.command()
@click.argument("name")
@click.option(
    "-s", "--scheme", default=DEFAULT_SCHEME, help="Scheme of the hash; oboxadm pw -l lists all.", show_default=True
)
@click.option(
    "-p", "--password", "given", help="Password. If it is left out, it is asked for; other users can see arguments."
)
@click.pass_obj
def password(obj: Context, name: str, scheme: str, given: str | None) -> None:
    """Set a user's password; it comes from -p, a terminal, or a line of stdin.

    \b
    Example:
      oboxadm user password anna@example.org
    """
    params = {"user": name, "scheme": scheme, "password": given if given is not None else ask_password()}
    if code := show(obj, TABLE["userPassword"], params):
        raise SystemExit(code)


command(
    user,
    "userDisable",
    arguments=("user",),
    example="oboxadm user disable anna@example.org --reason gone\n  oboxadm user disable anna@example.org --deliver",
)
command(user, "userEnable", arguments=("user",), example="oboxadm user enable anna@example.org")
command(user, "userRemove", arguments=("user",), example="oboxadm user remove anna@example.org")
