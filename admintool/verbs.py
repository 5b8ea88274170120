"""It makes commands of the table of verbs. A call of `command` gives a verb its place
in the tree of commands, its arguments and its short options.

The options of a command are its verb's parameters, with their descriptions as help. A
command that selects users has `-u`, `-A` and `-F`. A command that destroys something
first shows what it would do, and asks, unless `-y` is given.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, get_args, get_origin

import click
import msgspec

import obox.admin  # noqa: F401 - fills the table
from admintool import exits
from admintool.client import Event
from admintool.context import Context
from admintool.output import flowing, print_message, printable
from obox.admin import TABLE, Verb
from obox.admin.params import Selection
from obox.errors import Invalid

_SELECTION = {field.name for field in msgspec.structs.fields(Selection)}
LOOKED_MAX = 20
"""At most 20 rows are shown before a question. Further rows are only counted."""

_MADE: dict[str, click.Command] = {}
"""Commands by API name. Each verb has a command."""


def made() -> Mapping[str, click.Command]:
    return _MADE


def command(  # noqa: PLR0913 - one call describes a command; all but two by keyword
    group: click.Group,
    name: str,
    *,
    arguments: Sequence[str] = (),
    joined: str = "",
    short: Mapping[str, str] | None = None,
    secrets: Sequence[str] = (),
    example: str,
    usual: str = "table",
    called: str = "",
    before: Callable[[Context, dict[str, Any]], None] | None = None,
    after: Callable[[Context, dict[str, Any]], None] | None = None,
) -> click.Command:
    """Give a verb its command.

    arguments: parameters by position. joined: the parameter among them that is a single
    argument with several words, as doveadm's "uid flags". short: parameter -> option
    letter. secrets: parameters that are read from a file, because all users of the
    machine see a command line. example: shown in the help. usual: the output format.
    before, after: what this process does before and after the verb.
    """
    verb = TABLE[name]

    def run(obj: Context, **given: Any) -> None:
        for one in secrets:
            if (file := given.pop(one)) is not None:
                given[one] = file.read().strip()
        if joined:
            given[joined] = tuple(given[joined].strip("()").split()) or ("",)
        params = parameters(verb, given)
        if before is not None:
            before(obj, params)
        if verb.asks and not given.get("yes") and not obj.yes and not given["dry_run"]:
            _preview(obj, verb, params)
            click.confirm(f"{verb.asks} ({_about(params)})", abort=True, err=True)
        code = show(obj, verb, params, usual)
        if after is not None and code == 0 and not given.get("dry_run"):
            after(obj, params)
        if code:
            sys.exit(code)

    options = _parameters(verb, arguments, joined, short or {}, secrets)
    made_ = click.Command(
        called or verb.words.split()[-1],
        params=options,
        callback=click.pass_obj(run),
        help=verb.doc,
        short_help=verb.summary,
        epilog=f"\b\nExample:\n  {example}{_columns(verb)}",
    )
    _MADE[name] = made_
    group.add_command(made_)
    return made_


def _parameters(
    verb: Verb, arguments: Sequence[str], joined: str, short: Mapping[str, str], secrets: Sequence[str]
) -> list[click.Parameter]:
    """Return the options and arguments of a verb's command."""
    options: list[click.Parameter] = _user_options() if verb.per_user else []
    letters = dict(short)
    fields = {field.name: field for field in msgspec.structs.fields(verb.params)}
    for field in fields.values():
        if verb.per_user and field.name in _SELECTION:
            continue
        if field.name in secrets:
            options.append(_secret(field))
        elif field.name not in arguments:
            options.append(_option(field, letters.pop(field.name, "")))
    options += [_argument(fields[one], joined=one == joined) for one in arguments]
    if verb.asks:
        options.append(click.Option(["-y", "--yes", "yes"], is_flag=True, help="Do not ask for a confirmation."))
    assert not letters, f"{verb.name}: no such parameters: {letters}"
    return options


def show(obj: Context, verb: Verb, params: Mapping[str, Any], usual: str = "table") -> int:
    """Run a verb, and print its rows, progress and failures. Returns the exit code."""
    output = obj.output
    output.begin(verb.columns, usual)
    code = 0
    with _Progress() as progress:
        for event in obj.call(verb, params):
            if (row := event.get("row")) is not None:
                progress.hide()
                output.row(row)
            elif "progress" in event:
                progress.show(event["progress"])
            elif "failure" in event:
                progress.hide()
                failure = event["failure"]
                print_message(f"{failure['user']}: {failure['message']}")
            elif "end" in event:
                code = int(event["end"]["exitCode"])
                message = str(event["end"]["message"])
    output.end(failed=bool(code))
    if code and message:
        print_message(message)
    if not code and not output.count:
        print_none(verb, params)
    return code


def print_none(verb: Verb, params: Mapping[str, Any]) -> None:
    """Print on stderr that there are no rows, so that silence is not taken for a
    failure."""
    if verb.none:
        about = f" ({_about(params)})" if params else ""
        click.echo(f"oboxadm: {verb.none}{about}", err=True)


def _preview(obj: Context, verb: Verb, params: Mapping[str, Any]) -> None:
    """Show what the verb would do, before the question. Exit if there is nothing to do,
    or if it cannot be done.
    """
    count, code, message = 0, 0, ""
    for event in obj.call(verb, {**params, "dryRun": True}):
        if (row := event.get("row")) is not None:
            count += 1
            if count <= LOOKED_MAX:
                click.echo(f"  {flowing(list(row), list(row.values()))}", err=True)
        elif "failure" in event:
            click.echo(f"oboxadm: {event['failure']['user']}: {event['failure']['message']}", err=True)
        elif "end" in event:
            code, message = int(event["end"]["exitCode"]), str(event["end"]["message"])
    if count > LOOKED_MAX:
        click.echo(f"  and {count - LOOKED_MAX} more", err=True)
    if code not in (0, exits.PARTIAL):
        click.echo(f"oboxadm: {message}", err=True)
        sys.exit(code)
    if not count:
        print_none(verb, params)
        sys.exit(code)


class _Progress:
    """A progress bar on stderr while a long command runs on a terminal."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> _Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.hide()

    def show(self, event: Event) -> None:
        if not sys.stderr.isatty():
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
            self._task = self._bar.add_task("")
        self._bar.update(
            self._task, description=printable(event["what"]), completed=event["done"], total=event["total"] or None
        )

    def hide(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def parameters(verb: Verb, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters of a call from what click has parsed, without defaults."""
    out: dict[str, Any] = {}
    for field in msgspec.structs.fields(verb.params):
        if verb.per_user and field.name in _SELECTION:
            continue
        value = given.get(field.name)
        if value is None or value is False or value == ():
            continue
        out[field.encode_name] = list(value) if isinstance(value, tuple) else value
    if verb.per_user:
        out |= _selected(given)
    return out


def _selected(given: Mapping[str, Any]) -> dict[str, Any]:
    users: tuple[str, ...] = given["user"]
    ways = bool(users) + bool(given["all_users"]) + (given["user_file"] is not None)
    if ways != 1:
        raise click.UsageError("Which users? Give -u USER, -A or -F FILE.")
    more = {"noUserdbLookup": True} if given["no_userdb_lookup"] else {}
    if given["all_users"]:
        return {"allUsers": True, **more}
    if given["user_file"] is not None:
        names = [line.strip() for line in given["user_file"] if line.strip()]
        if not names:
            raise Invalid(f"{given['user_file'].name}: the file names no user")
        return {"users": names, **more}
    return {"user": users[0], **more} if len(users) == 1 else {"users": list(users), **more}


def _user_options() -> list[click.Parameter]:
    return [
        click.Option(["-u", "--user", "user"], multiple=True, metavar="USER", help="A user, or a mask with * and ?."),
        click.Option(["-A", "--all-users", "all_users"], is_flag=True, help="All users of the user database."),
        click.Option(
            ["-F", "--user-file", "user_file"],
            type=click.File("r", encoding="utf-8"),
            metavar="FILE",
            help="The users in this file, a name on each line; - for stdin.",
        ),
        click.Option(
            ["--no-userdb-lookup", "no_userdb_lookup"],
            is_flag=True,
            help="Use names as they are, also names that are not in the user database.",
        ),
    ]


def _kind(field: msgspec.structs.FieldInfo) -> tuple[type, bool, str]:
    """Return (type, whether it is a list, description) of a parameter."""
    kind, doc = field.type, ""
    if get_origin(kind) is Annotated:
        kind, *metas = get_args(kind)
        doc = next((str(meta.description) for meta in metas if meta.description), "")
    bare = [get_args(one)[0] if get_origin(one) is Annotated else one for one in get_args(kind)]
    arguments = [one for one in bare if one is not type(None)]
    if get_origin(kind) is list:
        return arguments[0], True, doc
    return (arguments[0] if arguments else kind), False, doc


def _option(field: msgspec.structs.FieldInfo, letter: str) -> click.Option:
    kind, several, doc = _kind(field)
    names = [f"-{letter}"] * bool(letter) + [f"--{field.name.rstrip('_').replace('_', '-')}", field.name]
    if kind is bool:
        return click.Option(names, is_flag=True, help=f"{doc}.")
    required = field.required
    default = field.default
    text = f"{doc}." if default in ("", None, msgspec.NODEFAULT) else f"{doc}; {default} if left out."
    return click.Option(names, type=kind, multiple=several, required=required, help=text)


def _secret(field: msgspec.structs.FieldInfo) -> click.Option:
    _, _, doc = _kind(field)
    dashed = field.name.replace("_", "-")
    return click.Option(
        [f"--{dashed}-file", field.name],
        type=click.File("r", encoding="utf-8"),
        metavar="FILE",
        envvar=f"OBOXADM_SOURCE_{field.name.upper()}_FILE",
        help=f"A file with this: {doc[0].lower()}{doc[1:]}.",
    )


def _argument(field: msgspec.structs.FieldInfo, *, joined: bool) -> click.Argument:
    kind, several, _ = _kind(field)
    if joined:
        return click.Argument([field.name], metavar=f"{field.name.upper()}S")
    return click.Argument(
        [field.name],
        type=kind,
        nargs=-1 if several else 1,
        required=field.required,
        metavar=field.name.upper() if field.required else f"[{field.name.upper()}]" + "..." * several,
    )


def _columns(verb: Verb) -> str:
    """Return the meaning of the columns for the help, each on a line of any length."""
    width = max(map(len, verb.explained), default=0)
    lines = [f"  {name.ljust(width)}  {text}" for name, text in verb.explained.items()]
    return "\n\n\b\nColumns:\n" + "\n".join(lines) if lines else ""


def _about(params: Mapping[str, Any]) -> str:
    """Describe in a line what a question is about."""
    shown = []
    for name, value in params.items():
        text = "all users" if name == "allUsers" else _joined(value)
        shown.append(text if len(text) <= 200 else text[:200] + "…")
    return ", ".join(shown) or "this backend"


def _joined(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, Iterable) and not isinstance(value, str) else str(value)
