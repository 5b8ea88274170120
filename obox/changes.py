"""Compares the configuration in use with a configuration that was read, and finds what
can change without a restart.

Invariant: the configuration that comes out has two sources. A value that the table
marks `restart` comes from the configuration in use; every other value comes from the
configuration that was read. If a protocol is added or removed, its whole section needs
a restart. Turning TLS on or off needs a restart too. Pure. This module does not know
what the settings are used for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final, NamedTuple

from obox.config import SECTIONS, Config, Setting, remote_section, settings

__all__ = ["Changes", "changes"]

_TURNS_ON: Final = ("listen", "cert", "key")
"""The settings that turn a section on. A report names them if a section is added or
removed."""


class Changes(NamedTuple):
    """config: the configuration to use. applied, waiting: keys of changed settings; the
    latter need a restart.
    """

    config: Config
    applied: tuple[str, ...]
    waiting: tuple[str, ...]


def changes(used: Config, read: Config) -> Changes:
    """Compare the configuration in use with the configuration that was read."""
    applied: list[str] = []
    waiting: list[str] = []
    for row in settings():
        if _same(_value(used, row), _value(read, row)):
            continue
        if _stays(used, read, row.section):
            (waiting if row.restart else applied).append(row.key)
        elif row.name in _TURNS_ON:
            waiting.append(row.key)
    applied += _remotes(used, read)
    parts: dict[str, Any] = {name: _section(used, read, name) for name in ("", *SECTIONS)}
    origins = {**read.origins, **{key: used.origins.get(key, "default") for key in waiting}}
    config = replace(parts.pop(""), **parts, remotes=read.remotes, file=read.file, origins=origins)
    return Changes(config, tuple(applied), tuple(waiting))


def _part(config: Config, section: str) -> Any:
    return getattr(config, section) if section else config


def _value(config: Config, row: Setting) -> Any:
    return getattr(_part(config, row.section), row.name, None)


def _same(old: Any, new: Any) -> bool:
    """Compare two values. In a table the order counts as well, because the first key
    encrypts."""
    return bool(old == new) and (not isinstance(old, Mapping) or list(old) == list(new))


def _on(config: Config, section: str) -> bool:
    found = _part(config, section)
    return found is not None and (section != "tls" or bool(found.cert))


def _stays(used: Config, read: Config, section: str) -> bool:
    """Return whether the section is neither new nor removed."""
    return _on(used, section) == _on(read, section)


def _section(used: Config, read: Config, section: str) -> Any:
    """Return a section of the configuration to use; "" means settings outside of
    sections."""
    old = _part(used, section)
    if old is None or not _stays(used, read, section):
        return old
    live = {row.name: _value(read, row) for row in settings() if row.section == section and not row.restart}
    return replace(old, **live)


def _remotes(used: Config, read: Config) -> list[str]:
    """Return keys of changed [remote] settings, as `obox config` names them. None of
    them needs a restart.
    """
    old, new = _by_key(used), _by_key(read)
    return [key for key in {**new, **old} if key not in old or key not in new or old[key] != new[key]]


def _by_key(config: Config) -> dict[str, Any]:
    return {
        f"{remote_section(remote.network)}.{key}": value
        for remote in config.remotes
        for key, value in remote.values.items()
    }
