"""oboxadm pw: hash a password for a passwd-file, or check a password."""

from __future__ import annotations

import sys

import click

from admintool import exits

DEFAULT_SCHEME = "ARGON2ID"
SCHEMES_HINT = "ARGON2ID, BLF-CRYPT, SHA512-CRYPT, …; -l lists all."


def ask_password(confirm: bool = True) -> str:
    """Ask on a terminal, or read a line of stdin."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    text: str = click.prompt("Password", hide_input=True, confirmation_prompt=confirm, err=True)
    return text


@click.command()
@click.option("-s", "--scheme", default=DEFAULT_SCHEME, help=SCHEMES_HINT, show_default=True)
@click.option("-p", "--password", help="Password. If it is left out, it is asked for; other users can see arguments.")
@click.option("-r", "--rounds", type=int, help="Cost of the scheme. If it is left out, a good default is used.")
@click.option(
    "-t", "--test", "secret", metavar="SECRET", help="Say whether the password matches; the exit code is 77 if not."
)
@click.option("-l", "--list", "list_", is_flag=True, help="List the schemes.")
def pw(scheme: str, password: str | None, rounds: int | None, secret: str | None, list_: bool) -> None:
    """Print {SCHEME}hash of a password from -p, a terminal, or a line of stdin.

    \b
    Example:
      oboxadm pw -s SHA512-CRYPT
    """
    from obox.auth import SCHEMES, hash_password
    from obox.auth.schemes import verify_secret

    if list_:
        click.echo(" ".join(sorted(SCHEMES)))
        return
    given = password if password is not None else ask_password(confirm=secret is None)
    if secret is None:
        click.echo(hash_password(scheme, given, rounds=rounds))
        return
    try:
        fits = verify_secret(secret, given)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    click.echo("(verified)" if fits else "password does not match", err=not fits)
    if not fits:
        sys.exit(exits.NO_PERM)
