"""The root of all commands: options that every one has, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click

from admintool import exits
from admintool.context import Context
from admintool.output import FORMATS, Output
from admintool.pw import pw
from admintool.user import user
from obox import __version__
from obox.errors import ConfigError, OboxError


class Root(click.Group):
    """Ends the process with the exit codes of doveadm instead of click's."""

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **kwargs)
        try:
            sys.exit(run(*args, standalone_mode=False, **kwargs) or 0)
        except click.UsageError as error:
            error.show()
            sys.exit(exits.USAGE)
        except click.exceptions.Abort:
            _fail("aborted", exits.TEMPFAIL)
        except click.ClickException as error:
            _fail(error.format_message(), exits.DATA)
        except ConfigError as error:
            _fail(str(error), exits.CONFIG)
        except OboxError as error:
            _fail(str(error), exits.of(error))
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - so that its flush at exit is quiet
            sys.exit(exits.IO)
        except OSError as error:
            _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "), exits.IO)


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"oboxadm: {message}", err=True)
    sys.exit(code)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-c", "--config", "config_path", metavar="FILE", help="Configuration; else as for obox serve.")
@click.option("-f", "--format", "format_", type=click.Choice(FORMATS), default="table", help="Of what goes to stdout.")
@click.version_option(__version__, prog_name="oboxadm")
@click.pass_context
def cli(context: click.Context, config_path: str | None, format_: str) -> None:
    """Look after a mail backend."""
    context.obj = Context(config_path, Output(format_))


cli.add_command(pw)
cli.add_command(user)
