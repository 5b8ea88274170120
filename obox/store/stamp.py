"""What a backend knows of a box's bundles (`Stamp`), and how far its local copy can be
trusted (`trust`).

Each local copy has a stamp. It names the bundles whose content the copy has, and the
generation under which the copy was last compared with the bucket. A start that finds an
unclean end, and a fence, begin a new generation: each copy is then compared once when
its box is opened.

Pure: no bucket, no clock. Both are values: stamps are compared field by field, and new
knowledge makes a new stamp.
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
"""First byte of a compressed stamp. A stamp that is not compressed begins as a
MessagePack map, with 0x80 or above."""

PACKED_BYTES: Final = 4096
"""Stamps of this size are compressed. Names of bundles repeat their writer, and a month
of uploads each minute has thousands of names."""


class Stamp(msgspec.Struct, frozen=True, omit_defaults=True):
    """What this backend knows of a box's bundles.

    generation: under which the copy was last compared with the bucket, None if it never
    was compared here. version: the highest version of a bundle. heads: names, the base
    first. base_modseq, base_bytes: of that base. known_uidnext: bundles have had all
    UIDs below it since known_at. need_base: the heads do not continue one another, so
    that the next bundle is a base; read it by `base_next`, `merged` and `since`.
    superseded: (name, unix seconds when it was superseded). segments: cache segments by
    name. cached_uid: fields up to this UID are in segments. flushed_uidnext: UIDNEXT of
    the newest bundle. clean: only of a root; its totals are exact. checked: unix
    seconds of the last LIST of bundles. listed: unix seconds of the last LIST of mails.
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
        """Return whether the next bundle is a base: the heads are of two histories, or
        there are none."""
        return self.need_base or not self.heads

    @property
    def merged(self) -> bool:
        """Return whether the copy joins histories that no bundle has joined yet."""
        return self.need_base and bool(self.heads)

    @property
    def since(self) -> int:
        """Return the MODSEQ after which the next bundle must have all changes: that of
        the base, or 0 if the next bundle is a base."""
        return 0 if self.base_next else self.base_modseq

    def for_new_base(self) -> Stamp:
        """Return the stamp for a state that has joined what other writers or a journal
        have. The next bundle is a base."""
        return replace(self, need_base=True)

    def names(self) -> set[str]:
        """Return all bundles whose content is in the copy."""
        return {*self.heads, *(name for name, _ in self.superseded)}

    def knows(self, infos: Iterable[ObjectInfo]) -> bool:
        """Return whether the stamp has all these bundles, so that no other backend has
        written."""
        return {name_of(info.key) for info in infos if info.size and not info.key.endswith(".cache")} <= self.names()

    def uncompared(self) -> Stamp:
        """Return the stamp for a copy that must be compared with the bucket at the next
        open."""
        return replace(self, generation=None)

    def encode(self) -> bytes:
        """Encode in at most STAMP_BYTES_MAX. A superseded bundle or a segment that does
        not fit is found again by a LIST."""
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
        """Decode a stamp. Returns None if there is none, or if it is damaged."""
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
"""The generation of a backend without local state."""


def name_of(key: str) -> str:
    """Return a bundle's name, the last element of its key."""
    return key.rsplit("/", 1)[1]


@dataclass(frozen=True, slots=True)
class Assignment:
    """The assignment under which this backend has a user at present.

    generation: copies that were compared under it have the user's whole state, except
    what is in flight; None if another backend has the user. compared_since: unix
    seconds; copies that were compared earlier are compared again.
    """

    generation: int | None
    compared_since: float = 0.0

    def covers(self, stamp: Stamp) -> bool:
        """Return whether no other backend can have written since the copy was
        compared."""
        return self.generation is not None and stamp.generation == self.generation


class Trust(Enum):
    """How far a local copy can be trusted."""

    TRUSTED = "trusted"
    """The copy is the state. No request is needed."""
    COMPARE = "compare"
    """The copy has all that was acknowledged here, but perhaps not all that is in the
    bucket. Bundles are LISTed."""
    REBUILD = "rebuild"
    """There is no usable copy. The state is read from the bundles in the bucket, and
    then from mails that they do not have."""
    NEW = "new"
    """This process created the box, and it is empty. No request is needed."""


def trust(copy: Copy | None, stamp: Stamp | None, assignment: Assignment, *, made_here: bool) -> Trust:
    """Return how far a local copy can be trusted. docs/format.md, "Opening a mailbox",
    has the table of cases.

    stamp: the stamp of the copy, None if it does not decode or the copy has none. A
    copy without a stamp has only holders that were noted while the box was not in
    memory. made_here: whether this process created the box and has not loaded it.
    """
    if copy is None or stamp is None:
        return Trust.NEW if made_here else Trust.REBUILD
    if not assignment.covers(stamp) or stamp.checked < assignment.compared_since:
        return Trust.COMPARE
    return Trust.TRUSTED
