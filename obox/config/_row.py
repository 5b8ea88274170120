"""Makes a row of the table of settings: a field of one of its dataclasses."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Any

from obox.config._values import Kind


def row(kind: Kind, default: str, doc: str, *, remote: bool = False, restart: bool = False) -> Any:
    """Return a row of the table.

    default: the text that an operator would write in the environment.
    remote: a [remote] section may have another value for some clients.
    restart: a change waits for a restart; a reload (`obox.reload`) uses changes of
    all other settings.
    """
    return field(
        default_factory=lambda: kind.parse(default, Path()),
        metadata={"kind": kind, "default": default, "doc": doc, "remote": remote, "restart": restart},
    )
