"""The table of all settings as rows, made of the dataclasses in `_settings`; and a
configuration as text.
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
"""Of the environment's names."""
REMOTE: Final = "remote"
"""The first word of the sections that hold for the clients of one network."""
_MARKS: Final = '# "; restart": a change waits for one; all others are used at a reload'


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table, for those who check documents against it."""

    section: str
    name: str
    kind: Kind
    default: str
    doc: str
    remote: bool
    restart: bool
    """A change of it waits for one."""

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def env(self) -> str:
        return PREFIX + self.key.upper().replace(".", "__")

    def default_toml(self) -> str:
        """The default as a line of `obox.toml` would say it."""
        if self.key == "storage.url":
            return '""'
        return self.kind.show(self.kind.parse(self.default, Path()))


def _sections() -> dict[str, tuple[type[Any], bool]]:
    """Section name -> (dataclass, whether it may be absent)."""
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
    """Every setting, in the order of the table."""
    return tuple(TABLE.values())


def remote_section(network: object) -> str:
    """The name of a [remote] section."""
    return f"{REMOTE}.{kinds.quote(str(network))}"


def describe(config: Config, *, changed_only: bool = False) -> str:
    """The effective configuration as TOML that `load` reads again, each line with its
    origin; secrets masked.

    changed_only: without settings that have their default value, and without sections
    that are off.
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
        # A section that is there turns its protocol on.
        if found or may_be_off or not changed_only:
            out += ["", f"[{name}]", *found]
    for remote in config.remotes:
        shown = remote_section(remote.network)
        out += ["", f"[{shown}]"]
        for key, value in remote.values.items():
            out.append(f"{key} = {TABLE[key].kind.show(value)}  # {config.origins.get(f'{shown}.{key}', 'default')}")
    return "\n".join(out) + "\n"
