"""What a backend knows of a box's bundles (`Stamp`), and what its local copy is worth (`trust`).

A stamp lies beside each local copy. It names the bundles whose content the copy has, and the
generation under which the copy was last compared with the bucket. A start that finds an unclean
end, and a fence, begin a new generation: each copy is then compared once when its box is opened.

Pure: no bucket, no clock. Both are values: two stamps are compared field by field, and whoever
knows more makes a new one.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

import msgspec
from msgspec.structs import replace

from metacache import STAMP_BYTES_MAX, Copy

from ..objectstore import ObjectInfo

PACKED: Final = b"Z"
"""Begins a stamp that is compressed; one that is not begins as a MessagePack map, with 0x80 or above."""

PACKED_BYTES: Final = 4096
"""From here on: names of bundles repeat their writer, and a month of uploads each minute has thousands."""


class Stamp(msgspec.Struct, frozen=True, omit_defaults=True):
    """What this backend knows of a box's bundles.

    generation: under which the copy was last compared with the bucket, None if it never was here; version: the highest
    of a bundle; heads: names, the base first; base_modseq, base_bytes: of that base; known_uidnext: bundles have known
    of all UIDs below it since known_at; need_base: the next bundle is a base; superseded: (name, unix seconds when it
    became so); segments: cache segments by name; cached_uid: fields up to here are in segments; flushed_uidnext:
    UIDNEXT of the newest bundle; clean: of a root, its totals are exact; checked: when the bundles were LISTed last,
    listed: when the mails were, unix seconds.
    """

    generation: int | None = None
    version: int = 0
    heads: tuple[str, ...] = ()
    base_modseq: int = 0
    known_uidnext: int = 0
    known_at: float = 0.0
    base_bytes: int = 0
    need_base: bool = True
    superseded: tuple[tuple[str, float], ...] = ()
    segments: tuple[str, ...] = ()
    cached_uid: int = 0
    flushed_uidnext: int = 1
    clean: bool = False
    checked: float = 0.0
    listed: float = 0.0

    @property
    def base_next(self) -> bool:
        """Whether the next bundle is a base: the heads are of two histories, or there are none."""
        return self.need_base or not self.heads

    @property
    def merged(self) -> bool:
        """Whether the copy joins histories that no bundle has joined yet."""
        return self.need_base and bool(self.heads)

    def names(self) -> set[str]:
        """All bundles whose content is in the copy."""
        return {*self.heads, *(name for name, _ in self.superseded)}

    def knows(self, infos: Iterable[ObjectInfo]) -> bool:
        """Whether nobody else has written any of these bundles."""
        return {name_of(info.key) for info in infos if info.size and not info.key.endswith(".cache")} <= self.names()

    def uncompared(self) -> Stamp:
        """The same of a copy that whoever opens the box compares with the bucket."""
        return replace(self, generation=None)

    def encode(self) -> bytes:
        """At most STAMP_BYTES_MAX: a bundle, superseded, or segment that finds no room is found by a LIST again."""
        data, stamp = msgspec.msgpack.encode(self), self
        if len(data) <= PACKED_BYTES:
            return data
        while len(packed := PACKED + zlib.compress(msgspec.msgpack.encode(stamp), 1)) > STAMP_BYTES_MAX:
            old, segments = stamp.superseded, stamp.segments
            stamp = replace(
                stamp, superseded=old[len(old) // 2 + 1 :], segments=segments if old else segments[len(segments) // 2 :]
            )
        return packed

    @classmethod
    def decode(cls, data: bytes) -> Stamp | None:
        """None: there is no stamp, or it is damaged."""
        try:
            if data.startswith(PACKED):
                data = zlib.decompress(data[len(PACKED) :])
            stamp = msgspec.msgpack.decode(data, type=cls)
        except (msgspec.MsgspecError, zlib.error):
            return None
        if stamp.generation is not None and stamp.generation < FIRST_GENERATION:
            return stamp.uncompared()  # as earlier versions wrote it
        return stamp


FIRST_GENERATION: Final = 1
"""Of a backend without local state."""


def name_of(key: str) -> str:
    """A bundle's name: the last element of its key."""
    return key.rsplit("/", 1)[1]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Under which this backend has a user at present.

    generation: copies that were compared under it are the user's whole state, but for what is in flight;
    compared_since: unix seconds, copies that were compared earlier are compared again.
    """

    generation: int
    compared_since: float = 0.0

    def covers(self, stamp: Stamp) -> bool:
        """Whether nobody else can have written since the copy was compared."""
        return stamp.generation == self.generation


class Trust(Enum):
    """What a local copy is worth."""

    TRUSTED = "trusted"
    """It is the state: nothing is asked."""
    COMPARE = "compare"
    """It has all that was acknowledged here, and perhaps not all that is in the bucket: bundles are LISTed."""
    REBUILD = "rebuild"
    """There is none: the state is read from the bundles in the bucket, then from the mails that they do not know."""
    NEW = "new"
    """This process made the box, and it is empty: nothing is asked."""


def trust(copy: Copy | None, stamp: Stamp | None, assignment: Assignment, *, made_here: bool) -> Trust:
    """What a local copy is worth; the table of cases is in docs/format.md, "Opening a mailbox".

    stamp: of the copy, None where the copy has none (then it has no more than holders that were noted while the box was
    not in memory) or does not decode; made_here: this process made the box and has not loaded it.
    """
    if copy is None or stamp is None:
        return Trust.NEW if made_here else Trust.REBUILD
    if not assignment.covers(stamp) or stamp.checked < assignment.compared_since:
        return Trust.COMPARE
    return Trust.TRUSTED
