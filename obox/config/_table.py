"""The rows of the table of settings, made from the dataclasses of `_settings`. Also
shows a configuration as text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from obox.config import _settings
from obox.config import _values as kinds
from obox.config._settings import Config
from obox.config._values import Kind

PREFIX: Final = "OBOX_"
"""Prefix of names in the environment."""
REMOTE: Final = "remote"
"""The first word of the sections that hold for the clients of one network."""
_MARKS: Final = '# "; restart": a change needs a restart; other changes are used at a reload'


@dataclass(frozen=True, slots=True)
class Setting:
    """A row of the table, as checks of documents use it."""

    section: str
    name: str
    kind: Kind
    default: str
    doc: str
    remote: bool
    restart: bool
    """Whether a change needs a restart."""

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def env(self) -> str:
        return PREFIX + self.key.upper().replace(".", "__")

    def default_toml(self) -> str:
        """Return the default as it is written in `obox.toml`."""
        if self.key == "storage.url":
            return '""'
        return self.kind.show(self.kind.parse(self.default, Path()))


def _sections() -> dict[str, tuple[type[Any], bool]]:
    """Return section name -> (dataclass, whether the section may be absent)."""
    out = {}
    for name, hint in get_type_hints(Config, vars(_settings)).items():
        classes = [cls for cls in get_args(hint) or (hint,) if hasattr(cls, "__dataclass_fields__")]
        if classes:
            out[name] = (classes[0], type(None) in get_args(hint))
    return out


def rows_of(section: str, cls: type[Any]) -> Iterator[Setting]:
    for row in fields(cls):
        if "kind" in row.metadata:
            yield Setting(section, row.name, **row.metadata)


SECTIONS = _sections()
TABLE = {row.key: row for section, cls in [("", Config), *((s, c) for s, (c, _) in SECTIONS.items())]
          for row in rows_of(section, cls)}  # fmt: skip


def settings() -> tuple[Setting, ...]:
    """Return every setting, in the order of the table."""
    return tuple(TABLE.values())


def remote_section(network: object) -> str:
    """Return the name of a [remote] section."""
    return f"{REMOTE}.{kinds.quote(str(network))}"


def describe(config: Config, *, changed_only: bool = False) -> str:
    """Return the effective configuration as TOML that `load` can read, each line with
    its origin. Secrets are masked.

    changed_only: leave out settings with their default value, and sections that are
    off.
    """

    def lines(section: str, cls: type[Any], found: Any) -> list[str]:
        out = []
        for row in rows_of(section, cls):
            origin, shown = config.origins.get(row.key, "default"), row.kind.show(getattr(found, row.name))
            if changed_only and (origin == "default" or shown == row.default_toml()):
                continue
            out.append(f"{row.name} = {shown}  # {origin}{'; restart' if row.restart else ''}")
        return out

    out = [f"# file: {config.file or 'none'}", _MARKS]
    out += lines("", Config, config)
    for name, (cls, may_be_off) in SECTIONS.items():
        section = getattr(config, name)
        if section is None:
            out += [] if changed_only else ["", f"# [{name}] is off"]
            continue
        found = lines(name, cls, section)
        # An existing section turns its protocol on, so it is shown even if it is empty.
        if found or may_be_off or not changed_only:
            out += ["", f"[{name}]", *found]
    for remote in config.remotes:
        shown = remote_section(remote.network)
        out += ["", f"[{shown}]"]
        for key, value in remote.values.items():
            out.append(f"{key} = {TABLE[key].kind.show(value)}  # {config.origins.get(f'{shown}.{key}', 'default')}")
    return "\n".join(out) + "\n"
