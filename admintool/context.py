"""What all commands share: the configuration, read when a command asks for it, where verbs run, and the output."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from admintool.client import Event, Local, NoBackend, Remote, state_is_free
from admintool.output import Output
from obox.admin.table import Needs, Verb
from obox.config import Config, load
from obox.errors import ConfigError

if TYPE_CHECKING:
    from obox.admin import Admin

SOCKET = "admin.sock"


class Context:
    """What commands share. config: read at the first use, so that `pw` needs none."""

    def __init__(
        self,
        config_path: str | None,
        output: Output,
        *,
        overrides: Sequence[tuple[str, object]] = (),
        url: str = "",
        key_file: str = "",
        yes: bool = False,
    ) -> None:
        self._config_path = config_path
        self._config: Config | None = None
        self._overrides = tuple(overrides)
        self._url = url
        self._key_file = key_file
        self.yes = yes
        self.output = output

    @property
    def config(self) -> Config:
        if self._config is None:
            self._config = load(self._config_path, os.environ, overrides=self._overrides)
        return self._config

    @property
    def remote(self) -> bool:
        """Another machine is asked."""
        return bool(self._url)

    def call(self, verb: Verb, params: Mapping[str, Any]) -> Iterator[Event]:
        """Run a verb where it can run; its events. Raises OboxError, ConfigError."""
        if self._url:
            yield from Remote(self._url, self._key()).call(verb.name, params)
            return
        config = self.config
        if verb.needs is Needs.CONFIG:
            yield from Local(self._configured).call(verb.name, params)
            return
        try:
            yield from Remote(config.state_dir / SOCKET).call(verb.name, params)
            return
        except NoBackend:
            if verb.needs is Needs.BACKEND:
                raise
        with state_is_free(config.state_dir):
            alone = self._bucket_alone if verb.needs is Needs.BUCKET else self._offline
            yield from Local(alone).call(verb.name, params)

    def _key(self) -> str:
        if self._key_file:
            return Path(self._key_file).read_text(encoding="utf-8").strip()
        if key := os.environ.get("OBOXADM_API_KEY"):
            return key
        try:
            http = self.config.http
        except ConfigError:
            return ""
        return http.api_key.reveal() if http is not None else ""

    @asynccontextmanager
    async def _configured(self) -> AsyncIterator[Admin]:
        from obox import wiring

        wiring.quiet_logging()
        yield wiring.of_config(self.config)

    @asynccontextmanager
    async def _offline(self) -> AsyncIterator[Admin]:
        from obox import wiring

        wiring.quiet_logging()
        async with wiring.offline(self.config) as admin:
            yield admin

    @asynccontextmanager
    async def _bucket_alone(self) -> AsyncIterator[Admin]:
        from obox import wiring

        wiring.quiet_logging()
        async with wiring.bucket_alone(self.config) as admin:
            yield admin


def fail(message: str, code: int) -> None:
    """End with a message and an exit code."""
    click.echo(f"oboxadm: {message}", err=True)
    sys.exit(code)
