"""What all commands share: the configuration, read when a command asks for it, and the output."""

from __future__ import annotations

import os

from admintool.output import Output
from obox.config import Config, load


class Context:
    """What commands share. config: read at the first use, so that `pw` needs none."""

    def __init__(self, config_path: str | None, output: Output) -> None:
        self._config_path = config_path
        self._config: Config | None = None
        self.output = output

    @property
    def config(self) -> Config:
        if self._config is None:
            self._config = load(self._config_path, os.environ)
        return self._config
