"""Entry points: `obox serve`, `obox proxy` and `obox config`.

Exit codes are those of sysexits: 0, 64 usage, 69 an address cannot be bound, 70 a bug,
78 configuration.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click

from . import __version__
from .config import Config, describe, load
from .errors import ConfigError, NameTaken

if TYPE_CHECKING:
    from .backend import Backend
    from .front import Front

EX_USAGE: Final = 64
EX_UNAVAILABLE: Final = 69
EX_TEMPFAIL: Final = 75
EX_CONFIG: Final = 78
GC_THRESHOLD: Final = (20_000, 20, 50)
"""The threshold of the garbage collector. Almost no garbage of obox is cyclic. With
Python's defaults, a delivery would spend a 25th of its time in collections."""

_config_option = click.option(
    "-c", "--config", "path", metavar="FILE", help="Configuration file. Without it: the usual places (docs/config.md)."
)


class _Root(click.Group):
    """Exits with the code of sysexits if the command line is wrong, instead of click's
    2."""

    def main(self, *args: Any, standalone_mode: bool = True, **kwargs: Any) -> Any:
        run: Any = super().main
        if not standalone_mode:
            return run(*args, standalone_mode=False, **kwargs)
        try:
            sys.exit(run(*args, standalone_mode=False, **kwargs) or 0)
        except click.UsageError as error:
            error.show()
            sys.exit(EX_USAGE)
        except click.exceptions.Abort:
            sys.exit(130)  # the code that a shell gives to a process ended by Ctrl-C


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="obox")
def cli() -> None:
    """A mail backend that keeps mails and indexes in a bucket."""


def _fail(message: str, code: int) -> NoReturn:
    click.echo(f"obox: {message}", err=True)
    sys.exit(code)


def _load(path: str | None, overrides: Sequence[tuple[str, object]] = ()) -> Config:
    try:
        return load(path, os.environ, overrides=overrides)
    except ConfigError as exc:
        _fail(str(exc), EX_CONFIG)


@cli.command()
@_config_option
@click.option("--workers", type=click.IntRange(1, 1024), help="Number of workers, in place of server.workers.")
@click.option(
    "--demo",
    type=click.Path(file_okay=False, path_type=Path),
    help="Serve a demo user from this directory, which is created if it does not exist.",
)
def serve(path: str | None, workers: int | None, demo: Path | None) -> None:
    """Run one backend until SIGTERM, or as many as `server.workers` says."""
    if demo is not None:
        if path is not None:
            raise click.UsageError("-c: --demo uses the configuration in its directory")
        from . import demo as demonstration

        path = str(demonstration.prepare(demo))
    overrides = () if workers is None else (("server.workers", workers),)
    config = _load(path, overrides)
    if config.server.workers > 1:
        _supervise(config, overrides, demo is not None)
    # Imports create objects but no garbage; `_run` turns collection on again.
    gc.disable()
    from .backend import Backend
    from .server import set_up_logging

    set_up_logging(config.log.level, config.log.format)
    started: Callable[[Backend], None] | None = None
    if demo is not None:
        started = demonstration.begin

    async def run() -> int:
        return await Backend(config).run(started=started)

    _serve(run)


def _supervise(config: Config, overrides: Sequence[tuple[str, object]], demo: bool) -> NoReturn:
    from .server import set_up_logging
    from .workers import supervisor

    set_up_logging(config.log.level, config.log.format)
    started: Callable[[Front], None] | None = None
    if demo:
        from .workers.demo import begin as started

    async def run() -> int:
        return await supervisor.Supervisor(config, environ=os.environ, overrides=overrides).run(started=started)

    _serve(run)


@cli.command(hidden=True)
@click.argument("name")
def worker(name: str) -> None:
    """Run a worker, as `obox serve` starts it. NAME is for those who list processes."""
    gc.disable()
    from .server import set_up_logging
    from .workers import child

    try:
        start = child.start_given()
    except ConfigError as exc:
        _fail(str(exc), EX_CONFIG)
    set_up_logging(start.config.log.level, start.config.log.format, worker=start.name)

    async def run() -> int:
        return await child.run(start)

    _serve(run)


@cli.command()
@_config_option
def proxy(path: str | None) -> None:
    """Run one proxy, which forwards clients to the backends of their users."""
    try:
        config = load(path, os.environ, proxy=True)
    except ConfigError as exc:
        _fail(str(exc), EX_CONFIG)
    from .front import Front
    from .server import set_up_logging

    set_up_logging(config.log.level, config.log.format)

    async def run() -> int:
        return await Front(config).run()

    _serve(run)


def _serve(run: Callable[[], Coroutine[Any, Any, int]]) -> NoReturn:
    """Run a process to its end, with sysexits' code."""
    from .net import ListenError, TlsError

    try:
        sys.exit(_run(run))
    except (ConfigError, TlsError) as exc:
        _fail(str(exc), _code(exc))
    except ListenError as exc:
        _fail(str(exc), EX_UNAVAILABLE)
    except BaseExceptionGroup as group:
        matched, rest = group.split((ConfigError, TlsError))
        if rest is not None or matched is None:
            raise
        first = _first(matched)
        _fail(str(first), _code(first))


def _code(error: BaseException) -> int:
    return EX_TEMPFAIL if isinstance(error, NameTaken) else EX_CONFIG


def _first(group: BaseException) -> BaseException:
    while isinstance(group, BaseExceptionGroup):
        group = group.exceptions[0]
    return group


def _run(main: Callable[[], Coroutine[Any, Any, int]]) -> int:
    """Run on uvloop if it is installed."""
    from .server.memory import one_arena

    one_arena()
    try:
        import uvloop
    except ImportError:
        factory = None
    else:
        factory = uvloop.new_event_loop
    gc.freeze()  # imported objects stay, so collections need not examine them
    gc.set_threshold(*GC_THRESHOLD)
    gc.enable()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(main())


@cli.command("config")
@_config_option
@click.option("-n", "changed_only", is_flag=True, help="Only what differs from the defaults.")
def show_config(path: str | None, changed_only: bool) -> None:
    """Check the configuration and print its effective values.

    Each line says where its value came from. Secrets are masked. Warnings on stderr
    name what `obox serve` could probably not use on this machine.
    """
    config = _load(path)
    click.echo(describe(config, changed_only=changed_only), nl=False)
    if not config.auth.passwd_file.exists():
        click.echo(f"obox: auth.passwd_file = {config.auth.passwd_file}: no such file; nobody can log in yet", err=True)
    from .config.doubts import doubts

    for line in doubts(config):
        click.echo(f"obox: {line}", err=True)
    from .backend import Backend
    from .net import TlsError

    try:
        Backend(config).check()
    except (ConfigError, TlsError) as exc:
        _fail(str(exc), EX_CONFIG)


if __name__ == "__main__":
    cli()
