"""What all commands share: the configuration, the place where verbs run, and the
output.
"""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from admintool.client import Event, Local, NoBackend, Remote, state_is_free
from admintool.output import Output, print_message
from obox.admin.table import Needs, Verb
from obox.config import Config, load
from obox.errors import ConfigError

if TYPE_CHECKING:
    from obox.admin import Admin

SOCKET = "admin.sock"


class Context:
    """What commands share. config: it is read at the first use, so that `pw` needs
    none."""

    def __init__(
        self,
        config_path: str | None,
        output: Output,
        *,
        overrides: Sequence[tuple[str, object]] = (),
        url: str = "",
        key_file: str = "",
        backend: str = "",
        yes: bool = False,
    ) -> None:
        """overrides: settings for this command. They override file and environment.
        backend: the backend of the cluster that runs the command."""
        self._config_path = config_path
        self._config: Config | None = None
        self._overrides = tuple(overrides)
        self._url = url
        self._key_file = key_file
        self._backend = backend
        self.yes = yes
        self.output = output

    @property
    def config(self) -> Config:
        if self._config is None:
            self._config = self._read()
        return self._config

    def _read(self, *, proxy: bool = False) -> Config:
        """proxy: the configuration may be a proxy's, which has no bucket."""
        return load(self._config_path, os.environ, overrides=self._overrides, proxy=proxy)

    @property
    def remote(self) -> bool:
        """Return whether the command asks a backend by URL."""
        return bool(self._url)

    def call(self, verb: Verb, params: Mapping[str, Any]) -> Iterator[Event]:
        """Run a verb where it can run, and yield its events.

        Raises OboxError and ConfigError. Raises UsageError if a setting was given for
        this command, but a backend with its own settings answers it.
        """
        if self._url:
            key_given = self._key_file or os.environ.get("OBOXADM_API_KEY")
            self._refuse_settings("" if key_given else "http.api_key", where=f"the backend at {self._url}")
            yield from Remote(self._url, self._key(), self._backend).call(verb.name, params)
            return
        if verb.needs is not Needs.CONFIG:
            # A proxy passes on what it cannot do itself.
            self._config = self._config or self._read(proxy=True)
        config = self.config
        if verb.needs is Needs.CONFIG:
            if self._backend:
                raise click.UsageError("--backend: this command uses the configuration alone")
            yield from Local(self._configured).call(verb.name, params)
            return
        backend = Remote(config.state_dir / SOCKET, backend=self._backend)
        if self._given("state_dir") and verb.needs is not Needs.BACKEND and not backend.listens():
            # A backend that starts at this moment has other settings, and is not asked.
            pass
        else:
            self._refuse_settings("state_dir", where=f"the backend in {config.state_dir}")
            try:
                yield from backend.call(verb.name, params)
                return
            except NoBackend:
                if verb.needs is Needs.BACKEND or self._backend:
                    raise
        if verb.needs is Needs.DIRECTORY:
            yield from Local(self._configured).call(verb.name, params)
            return
        self._config = self._read()
        with state_is_free(config.state_dir):
            alone = self._bucket_alone if verb.needs is Needs.BUCKET else self._offline
            yield from Local(alone).call(verb.name, params)

    def _given(self, used: str) -> list[str]:
        """Return the settings that were given for this command, except `used`, which
        takes effect wherever the command runs.
        """
        return sorted({key for key, _ in self._overrides} - {used})

    def _refuse_settings(self, used: str, *, where: str) -> None:
        """Raise UsageError if settings that were given for this command would have no
        effect.
        """
        if given := self._given(used):
            raise click.UsageError(
                f"-o {', '.join(given)}: {where} answers this command, with its own settings; "
                "stop it, or change its configuration and reload it"
            )

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
    print_message(message)
    sys.exit(code)
