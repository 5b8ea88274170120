"""What the rows of the directory say: one record for each kind, as a MessagePack map.

A reader ignores keys that it does not know, because newer members may write more. It
takes the default for a key that is missing. `decode` raises ValueError for what is no
record of the kind. Evolution: code does not read a directory with a higher major
version (`Settings.major`).
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, TypeVar

import msgspec

from .directory import Kind

MAJOR: Final = 1
"""A directory with a higher major version is not read."""

MINOR: Final = 0
"""`cluster upgrade` raises it for changes that older code may ignore."""

GROUP_DIGITS: Final = 5
"""The key of a group is its number, written with five digits."""


class State(StrEnum):
    """The state of a backend. online: it serves and takes groups; standby: it runs and
    takes no groups; offline: it is not used, and others take its groups; removed: it
    counts as if it had never been there.
    """

    ONLINE = "online"
    STANDBY = "standby"
    OFFLINE = "offline"
    REMOVED = "removed"


class Settings(msgspec.Struct, frozen=True):
    """The settings of the directory. groups: the number of groups, which never changes;
    id: random, 32 hex digits; made: unix seconds; forms: the versions above the first
    that all members can read since `cluster upgrade` (`obox.forms`).
    """

    groups: int
    id: str
    made: float
    major: int = MAJOR
    minor: int = MINOR
    forms: dict[str, int] = {}


class Site(msgspec.Struct, frozen=True):
    """A site. state: the state that the operator has last set for all its backends, or
    removed."""

    state: State = State.ONLINE
    comment: str = ""


class Member(msgspec.Struct, frozen=True):
    """What a member registers about itself.

    role: "backend" or "proxy"; address: a host, or "unix:/directory"; ports: by
    listener, such as "imap", "imaps", "lmtp", "http"; reads: the highest version of
    each form that its code reads (`obox.forms`); version: the version of obox.
    """

    role: str
    site: str
    address: str
    ports: dict[str, int] = {}
    reads: dict[str, int] = {}
    version: str = ""


class Orders(msgspec.Struct, frozen=True):
    """What the operator wants of a backend. load_factor: 0 to 100."""

    state: State = State.ONLINE
    load_factor: int = 100
    evacuate: bool = False


class Beat(msgspec.Struct, frozen=True):
    """A sign that a member lives: `counter` grows by 1 each second.

    boot: the journal's boot, "" of a proxy; started: unix seconds; load: by name
    ("cpu" and "memory" as fractions of 1); ending: the member is stopping, or has
    stopped, so that nobody gives it groups; units: how many units it serves, None if
    it is an older version; digest: the checksum of their assignments (`assign.digest`).
    """

    counter: int
    boot: str = ""
    site: str = ""
    started: float = 0.0
    load: dict[str, float] = {}
    ending: bool = False
    units: int | None = None
    digest: int = 0


class BootRow(msgspec.Struct, frozen=True):
    """One boot of a backend, for operators. ended: unix seconds, 0 while it runs or if
    it did not end in order; clean: bundles have everything that its journal says.
    """

    began: float
    ended: float = 0.0
    clean: bool = False


class Assigned(msgspec.Struct, frozen=True):
    """Who serves a group, or a pinned user.

    See docs/cluster.md, "Which of two assignments holds".

    number: higher than every number that the writer has seen of any unit; token:
    random, 64 bits; released: the earlier owner has released the unit in order, so that
    bundles have everything; removed: the pin was removed, and the user stays a unit of
    its own, which follows the user's group; home: the backend that released the unit
    only because it stopped, and gets it again when it is back.
    """

    backend: str
    number: int
    token: int
    released: bool = False
    removed: bool = False
    home: str = ""


class Move(msgspec.Struct, frozen=True):
    """A request to move a group or a single user to backend `to`.

    since: unix seconds; by: who requested it, for operators; done: the move is over.
    """

    to: str
    since: float
    by: str = ""
    done: bool = False


class Merge(msgspec.Struct, frozen=True):
    """A note that a backend has lost units whose users it may have changed lately. What
    it had of them is uploaded. The owner then compares its copies with the bucket.

    by: that backend; at: unix seconds; users: of how many users it had changes that no
    bundle had.
    """

    by: str
    at: float
    users: int = 0


Record = TypeVar("Record", Settings, Site, Member, Orders, Beat, BootRow, Assigned, Move, Merge)


RECORDS: Final[dict[Kind, type[msgspec.Struct]]] = {
    Kind.SETTINGS: Settings,
    Kind.SITES: Site,
    Kind.MEMBERS: Member,
    Kind.ORDERS: Orders,
    Kind.BEATS: Beat,
    Kind.BOOTS: BootRow,
    Kind.GROUPS: Assigned,
    Kind.PINS: Assigned,
    Kind.MOVES: Move,
    Kind.MERGES: Merge,
}
"""The record of each kind of row."""

SETTINGS_KEY: Final = "directory"


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(record)


def decode(value: bytes, kind: type[Record]) -> Record:
    """Raises ValueError: this is no record of the kind."""
    return msgspec.msgpack.decode(value, type=kind)


def group_key(group: int) -> str:
    """Return a group's key among the rows of kind `groups`, and of `moves`."""
    return f"{group:0{GROUP_DIGITS}}"


def group_number(key: str) -> int | None:
    """Return the group that a key names, None if it names none."""
    return int(key) if len(key) == GROUP_DIGITS and key.isascii() and key.isdigit() else None


USER_PREFIX: Final = "u:"


def user_key(sid: str) -> str:
    """Return the unit of a pinned user, and its key among the rows of kind `moves`."""
    return USER_PREFIX + sid


def user_of(unit: str) -> str | None:
    """Return the storage id of the user who is a unit, None for a group."""
    return unit.removeprefix(USER_PREFIX) if unit.startswith(USER_PREFIX) else None


def place_of(unit: str) -> tuple[Kind, str]:
    """Return kind and key of the row that assigns a unit."""
    sid = user_of(unit)
    return (Kind.GROUPS, unit) if sid is None else (Kind.PINS, sid)
