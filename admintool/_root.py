"""The root of all commands: options that all have, and how errors become exit codes."""

from __future__ import annotations

import os
import sys
from typing import Any, NoReturn

import click
from click.core import ParameterSource

from admintool import cache, cluster, events, exits, mail, mailbox, obox, process, repair, who
from admintool.completion import completion
from admintool.context import Context
from admintool.output import FORMATS, Output, print_message
from admintool.pw import pw
from admintool.user import user
from obox import __version__
from obox.errors import ConfigError, OboxError

WITHOUT_BACKEND = ("pw", "completion")
"""Commands that read no configuration, ask no backend and print no rows."""


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
        except (click.exceptions.Abort, KeyboardInterrupt):
            _fail("aborted", exits.TEMPFAIL)
        except click.ClickException as error:
            _fail(error.format_message(), exits.DATA)
        except (ConfigError, OboxError) as error:
            _fail(str(error), exits.of(error))
        except BrokenPipeError:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - so that its flush at exit is quiet
            sys.exit(exits.IO)
        except OSError as error:
            _fail(f"{error.filename or ''}: {error.strerror or error}".removeprefix(": "), exits.IO)


def _fail(message: str, code: int) -> NoReturn:
    print_message(message)
    sys.exit(code)


def _override(context: click.Context, parameter: click.Parameter, given: tuple[str, ...]) -> list[tuple[str, object]]:
    """Return `section.key=value` as a setting of the configuration.

    An unknown setting is refused later, when the configuration is read.
    """
    out: list[tuple[str, object]] = []
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise click.BadParameter(f"{text!r}; allowed: section.key=value")
        out.append((key, value))
    return out


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.option(
    "-c",
    "--config",
    "config_path",
    metavar="FILE",
    help="Configuration file. Without it: the file that obox serve finds.",
)
@click.option("-o", "--option", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", callback=_override,
              help="A setting for this command. It overrides the file and the environment.")  # fmt: skip
@click.option(
    "-f",
    "--format",
    "format_",
    type=click.Choice(FORMATS),
    help="Format of stdout. Most commands have table as default.",
)
@click.option("--url", default="", envvar="OBOXADM_URL", metavar="URL",
              help="Ask the backend at this URL, instead of the backend of this machine.")  # fmt: skip
@click.option("--key-file", default="", envvar="OBOXADM_KEY_FILE", metavar="FILE",
              help="File with the API key for --url. Without it: OBOXADM_API_KEY, then http.api_key.")  # fmt: skip
@click.option("--backend", default="", metavar="NAME",
              help="The backend of the cluster that runs the command. Without it: the user's, or all.")  # fmt: skip
@click.option("-y", "--yes", is_flag=True, help="Answer every question with yes.")
@click.version_option(__version__, prog_name="oboxadm")
@click.pass_context
def cli(
    context: click.Context,
    *,
    config_path: str | None,
    overrides: list[tuple[str, object]],
    format_: str | None,
    url: str,
    key_file: str,
    backend: str,
    yes: bool,
) -> None:
    """Look after a mail backend.

    Commands ask the backend of the configuration over its socket, state_dir/admin.sock.
    If no backend runs, most commands open its state themselves. Rows go to stdout,
    everything else to stderr. Exit codes are doveadm's (sysexits); 2 means that a
    command failed for some of the users.
    """
    if context.get_parameter_source("key_file") is ParameterSource.COMMANDLINE and not url:
        raise click.UsageError("--key-file: allowed with --url only; the backend of this machine needs no key")
    if context.invoked_subcommand in WITHOUT_BACKEND:
        for option, given in (("-c", config_path), ("-o", overrides), ("-f", format_)):
            if given:
                raise click.UsageError(f"{option}: oboxadm {context.invoked_subcommand} does not use it")
    context.obj = Context(
        config_path,
        Output(format_ or ""),
        overrides=overrides,
        url=url,
        key_file=key_file,
        backend=backend,
        yes=yes,
    )


cli.add_command(pw)
cli.add_command(user)
cli.add_command(completion)
for noun in (who, process, mailbox, mail, cache, repair, obox, cluster, events):
    noun.add_to(cli)
