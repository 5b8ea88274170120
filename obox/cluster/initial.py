"""The directory's settings. They are made once. This code refuses newer settings."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection
from typing import Final

from obox.errors import ConfigError
from obox.forms import beyond, reads, spelled

from .directory import Directory, Kind, Row, next_timestamp
from .records import GROUP_DIGITS, MAJOR, SETTINGS_KEY, Settings, decode, encode

GROUPS_LOCAL: Final = 64
"""The groups of a directory that a backend makes by itself, for the workers of one
machine."""

GROUPS_MAX: Final = 10_000
"""These are 100 backends of 100 groups. A member reads all groups every second."""

READ_BACK_S: Final = 0.05
"""A writer reads its row back after this time. By then the row of the last writer is
there."""


def settings_in(row: Row | None) -> Settings | None:
    """Return the settings in a row; None without a row.

    Raises ConfigError: the settings have a newer version, or cannot be read.
    """
    if row is None:
        return None
    try:
        found = decode(row.value, Settings)
    except ValueError as error:
        raise ConfigError(f"cluster.directory: its settings cannot be read ({error})") from error
    if found.major > MAJOR:
        raise ConfigError(
            f"cluster.directory: it has version {found.major} since `cluster upgrade`, and this obox reads version "
            f"{MAJOR}; install the version of obox that the other members have"
        )
    return found


def refuse_newer_forms(settings: Settings | None, names: Collection[str] | None = None) -> None:
    """Raise ConfigError if the other members may write what this code cannot read.
    names: the forms that matter; None: all."""
    wanted = settings.forms if settings is not None else {}
    unread = beyond({name: version for name, version in wanted.items() if names is None or name in names}, reads())
    if unread:
        ours = {name: reads().get(name, 0) for name in unread}
        raise ConfigError(
            f"cluster.directory: members may write {spelled(unread)} since `cluster upgrade`, and this obox reads "
            f"{spelled(ours)}; install the version of obox that the other members have"
        )


async def read_settings(directory: Directory) -> Settings | None:
    """Read the settings. Raises ConfigError as `settings_in` does; Unavailable."""
    return settings_in(await directory.get(Kind.SETTINGS, SETTINGS_KEY))


async def make_settings(
    directory: Directory,
    groups: int,
    *,
    now: Callable[[], float],
    sleep: Callable[[float], Awaitable[object]],
    random_bytes: Callable[[int], bytes],
) -> Settings:
    """Return the settings of the directory. If there are none, make them with `groups`
    groups.

    If two members do this at the same time, both get the settings of one of them.
    Raises: ConfigError; ValueError (a bad number of groups); Unavailable.
    """
    if not 1 <= groups <= min(GROUPS_MAX, 10**GROUP_DIGITS):
        raise ValueError(f"a directory has 1 to {GROUPS_MAX} groups, not {groups}")
    while (found := await read_settings(directory)) is None:
        made = Settings(groups=groups, id=random_bytes(16).hex(), made=now())
        await directory.put(Kind.SETTINGS, SETTINGS_KEY, encode(made), next_timestamp(now, None))
        await sleep(READ_BACK_S)
    return found
