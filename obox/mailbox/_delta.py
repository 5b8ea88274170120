"""A change of a mailbox as a value: the journal, local copies and claims consist of
deltas.

A delta is a fragment of a state. Applying a delta is a join: applied twice, late, or
after the deltas of another writer, it gives the same state (docs/format.md, "Delta").
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt

from ..types import Guid
from ._holders import Holders
from ._packs import Pack, Packs
from ._uidset import UidArray, pack_ranges, unpack_ranges

SYSTEM_FLAGS: Final = ("\\Answered", "\\Flagged", "\\Deleted", "\\Seen", "\\Draft")
"""RFC 3501 §2.3.2, in the order of their bits. \\Recent is a property of a session, not
of a mail.
"""

KEYWORD_BYTES_MAX: Final = 255
"""Length of a keyword. Each answer with a mail's flags repeats the keyword."""

KEYWORDS_MAX: Final = 59
"""Keywords that a mailbox can hold: together with the system's five flags they fit the
64 bits of a column.
"""

KEYWORDS_STAMPED_MAX: Final = 128
"""Keywords that the mails of a mailbox have or have had lately. Each costs 8 bytes for
each mail: its stamps decide whether a late change of another writer is older.
"""

CLAIM_PURGED: Final = 1 << 32
"""The count of a claim whose object has been deleted. It is larger than any count, so
that it wins the join.
"""

_COLUMNS: Final = (
    ("uid", "<u4"),
    ("size", "<u4"),
    ("internaldate", "<i8"),
    ("zone", "<i2"),
    ("savedate", "<i8"),
    ("modseq", "<u8"),
    ("home", "<i4"),
    ("home_uid", "<u4"),
)


_U4: Final = np.dtype("<u4")
_U8: Final = np.dtype("<u8")
_I2: Final = np.dtype("<i2")
_I4: Final = np.dtype("<i4")
_I8: Final = np.dtype("<i8")
"""Types of columns. Each delivery makes seven arrays, and numpy takes twice as long to
make one whose type is given by name."""

_AT_HOME: Final = np.array([-1], dtype=_I4)
"""The `home` of a mail whose object lies in its own mailbox."""
_AT_HOME.flags.writeable = False

_ALONE: Final = np.zeros((1, 3), dtype=_U4)
"""The `place` of a single mail that lies alone."""
_ALONE.flags.writeable = False

_RECORD_BYTES: Final = 16 + sum(np.dtype(kind).itemsize for _, kind in _COLUMNS)
"""The bytes of a record without flags, an oid among them."""

BYTES_COPIED_MAX: Final = 1000
"""A column with at most this number of elements is encoded as bytes, which is quicker
than a view."""

PARTS_MIN: Final = 10_000
"""Records of a delta that is encoded in parts: some of the parts are views of its
columns, so that nothing is copied before a thread puts them together."""

Encoded = Sequence[bytes | memoryview]
"""The parts of an encoding, in order."""


class _RawRows(msgspec.Struct):
    """The columns as they were read. They are views of the encoding, so that a delta of
    many mails is not copied while it is decoded."""

    uid: memoryview
    size: memoryview
    internaldate: memoryview
    zone: memoryview
    savedate: memoryview
    modseq: memoryview
    home: memoryview
    home_uid: memoryview
    oid: memoryview
    homes: list[bytes]
    stamps: dict[str, memoryview]
    place: memoryview | None = None


class _Raw(msgspec.Struct):
    """The fields of a delta as they were read; see `Delta`."""

    rows: _RawRows | None = None
    flags: Sequence[Any] = ()
    gone: tuple[Any, Any] | None = None
    holders: Sequence[Any] = ()
    claims: Sequence[Any] = ()
    batches: Sequence[Any] = ()
    packs: dict[str, Any] = {}
    purged: bytes | None = None
    gaps: Sequence[Any] = ()
    uidnext: int = 0
    highestmodseq: int = 0
    recent: int = 0


_decoder = msgspec.msgpack.Decoder(_Raw)


@dataclass(slots=True)
class Rows:
    """Index records in columns, in ascending UID order.

    uid; size (octets, RFC822.SIZE); internaldate (unix seconds) and zone (minutes east
    of UTC); savedate (unix milliseconds); modseq; home (-1: the object lies in this
    mailbox, else an index into `homes`) and home_uid: the object that holds the mail;
    oid: (n, 16) bytes of its envelope; place: (n, 3), where the envelope lies: the
    first UID of its batch in the home mailbox, offset and length there, 0 if the mail
    lies alone; stamps: by flag name, modseq * 2 + value, 0 if the flag was never set.
    """

    uid: UidArray
    size: npt.NDArray[np.uint32]
    internaldate: npt.NDArray[np.int64]
    zone: npt.NDArray[np.int16]
    savedate: npt.NDArray[np.int64]
    modseq: npt.NDArray[np.uint64]
    home: npt.NDArray[np.int32]
    home_uid: npt.NDArray[np.uint32]
    oid: npt.NDArray[np.uint8]
    place: npt.NDArray[np.uint32]
    stamps: dict[str, npt.NDArray[np.uint64]]
    homes: list[Guid] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.uid)

    @classmethod
    def empty(cls) -> Rows:
        columns = {name: np.empty(0, dtype=kind) for name, kind in _COLUMNS}
        oid, place = np.empty((0, 16), dtype=np.uint8), np.empty((0, 3), dtype=_U4)
        return cls(**columns, oid=oid, place=place, stamps={})  # type: ignore[arg-type]  # _COLUMNS has the names of the fields

    @classmethod
    def one(
        cls,
        uid: int,
        *,
        size: int,
        internaldate: int,
        zone: int,
        savedate: int,
        modseq: int,
        oid: bytes,
        flags: tuple[str, ...] = (),
        home: Guid | None = None,
        home_uid: int = 0,
    ) -> Rows:
        """Return the record of a mail that is new at `modseq` and has `flags`."""
        uids = np.array([uid], dtype=_U4)
        return cls(
            uid=uids,
            size=np.array([size], dtype=_U4),
            internaldate=np.array([internaldate], dtype=_I8),
            zone=np.array([zone], dtype=_I2),
            savedate=np.array([savedate], dtype=_I8),
            modseq=np.array([modseq], dtype=_U8),
            home=_AT_HOME if home is None else np.array([0], dtype=_I4),
            home_uid=uids if home_uid in (0, uid) else np.array([home_uid], dtype=_U4),
            oid=np.frombuffer(oid, dtype=np.uint8).reshape(1, 16),
            place=_ALONE,
            stamps={flag: np.array([modseq * 2 + 1], dtype=_U8) for flag in flags},
            homes=[] if home is None else [home],
        )

    def take(self, index: npt.NDArray[np.intp] | npt.NDArray[np.bool_] | slice) -> Rows:
        """The records at `index` (positions, a mask or a slice); a slice gives views,
        all else copies.
        """
        return Rows(
            self.uid[index],
            self.size[index],
            self.internaldate[index],
            self.zone[index],
            self.savedate[index],
            self.modseq[index],
            self.home[index],
            self.home_uid[index],
            self.oid[index],
            self.place[index],
            {flag: stamps[index] for flag, stamps in self.stamps.items()},
            self.homes,
        )

    def parted(self, mask: npt.NDArray[np.bool_]) -> tuple[Rows, Rows]:
        """Return the records that a mask leaves out, and the records that it selects.
        Nothing is copied if one part has all records."""
        if not mask.any():
            return self, self.take(slice(0, 0))
        if mask.all():
            return self.take(slice(0, 0)), self
        return self.take(~mask), self.take(mask)

    def pack(self) -> dict[str, object]:
        """Return the columns as a map of byte strings; all-zero stamps are left out."""
        out: dict[str, object] = {name: _bytes(getattr(self, name).astype(kind, copy=False)) for name, kind in _COLUMNS}
        out["oid"] = _bytes(self.oid)
        if self.place is not _ALONE and self.place.any():
            out["place"] = _bytes(self.place.astype(_U4, copy=False))
        out["homes"] = [bytes.fromhex(guid) for guid in self.homes]
        out["stamps"] = {flag: _bytes(s.astype("<u8", copy=False)) for flag, s in self.stamps.items() if s.any()}
        return out

    @classmethod
    def unpack(cls, raw: _RawRows) -> Rows:
        """Undo `pack`.

        Raises ValueError or TypeError on columns that do not fit each other.
        """
        columns = {name: np.frombuffer(getattr(raw, name), dtype=kind) for name, kind in _COLUMNS}
        count = len(columns["uid"])
        oid = np.frombuffer(raw.oid, dtype=np.uint8).reshape(-1, 16)
        stamps = {flag: np.frombuffer(s, dtype="<u8") for flag, s in raw.stamps.items()}
        place = np.frombuffer(bytes(12 * count) if raw.place is None else raw.place, dtype=_U4).reshape(-1, 3)
        lengths = {len(column) for column in (*columns.values(), oid, place, *stamps.values())}
        if lengths != {count}:
            raise ValueError(f"index columns of different lengths: {sorted(lengths)}")
        homes = [Guid(guid.hex()) for guid in raw.homes]
        uid, home = columns["uid"], columns["home"]
        if not bool((uid[1:] > uid[:-1]).all()):
            raise ValueError("index records are not in UID order")
        if count and not -1 <= int(home.min()) <= int(home.max()) < len(homes):
            raise ValueError("an index record names a home that is not there")
        return cls(**columns, oid=oid, place=place, stamps=stamps, homes=homes)


@dataclass(frozen=True, slots=True)
class Gone:
    """Expunged UIDs, sorted, and the modseq of each expunge."""

    uid: UidArray
    modseq: npt.NDArray[np.uint64]

    @classmethod
    def at(cls, modseq: int, uids: UidArray) -> Gone:
        return cls(uids, np.full(len(uids), modseq, dtype=np.uint64))


@dataclass(slots=True)
class Delta:
    """A fragment of a mailbox's state.

    rows: records that are new (in a bundle: all records). flags: (flag, stamp, uids).
    gone: expunged UIDs. holders: records in other mailboxes that share an object of
    this mailbox; the value is 0 while they do, and then the modseq at which they
    ceased. claims: first UID to count, of ranges that a COPY claimed and of burnt UIDs
    (count 1); CLAIM_PURGED once the object is deleted. batches: first UID to count, of
    objects that have several mails of this mailbox; CLAIM_PURGED is added once the
    object is deleted. packs: by name, see `Pack`. purged:
    expunged UIDs that have no object of their own in the bucket, or none any more, so
    that nothing is left to delete for them. gaps: (low, high] intervals of MODSEQ in
    which a client's value cannot be trusted. uidnext, highestmodseq, recent (the lowest
    UID that no session has seen as recent): each is joined by maximum.
    """

    rows: Rows | None = None
    flags: list[tuple[str, int, UidArray]] = field(default_factory=list)
    gone: Gone | None = None
    holders: Holders = field(default_factory=Holders)
    claims: dict[int, int] = field(default_factory=dict)
    batches: dict[int, int] = field(default_factory=dict)
    packs: Packs = field(default_factory=dict)
    purged: UidArray | None = None
    gaps: list[tuple[int, int]] = field(default_factory=list)
    uidnext: int = 0
    highestmodseq: int = 0
    recent: int = 0

    def slices(self, mails: int) -> Iterator[Delta]:
        """Yield deltas that together are this delta: `mails` of its rows each, in UID
        order, and then the rest."""
        rows = self.rows
        if rows is None or len(rows) <= mails:
            yield self
            return
        for at in range(0, len(rows), mails):
            yield Delta(rows=rows.take(slice(at, at + mails)))
        yield replace(self, rows=None)

    @property
    def least_bytes(self) -> int:
        """The encoding is longer than this."""
        return 0 if self.rows is None else len(self.rows) * _RECORD_BYTES

    def encode(self) -> bytes:
        """Return a MessagePack map of the fields that are not empty. Unknown fields
        belong to newer minor versions."""
        return joined(self.parts())

    def parts(self) -> Encoded:
        """Return the parts of `encode`. Those of many records are views of their
        columns."""
        out = self._packed()
        if self.rows is None or len(self.rows) < PARTS_MIN:
            return [msgspec.msgpack.encode(out)]
        return list(_pieces(out))

    def _packed(self) -> dict[str, object]:
        out: dict[str, object] = {}
        if self.rows is not None and len(self.rows):
            out["rows"] = self.rows.pack()
        if self.flags:
            out["flags"] = [[flag, stamp, pack_ranges(uids)] for flag, stamp, uids in self.flags]
        if self.gone is not None and len(self.gone.uid):
            one = int(self.gone.modseq[0])
            same = bool((self.gone.modseq == one).all())
            out["gone"] = [one if same else self.gone.modseq.astype("<u8").tobytes(), pack_ranges(self.gone.uid)]
        if self.holders:
            out["holders"] = self.holders.pack()
        if self.claims:
            out["claims"] = sorted(self.claims.items())
        if self.batches:
            out["batches"] = sorted(self.batches.items())
        if self.packs:
            out["packs"] = {name: pack.pack() for name, pack in sorted(self.packs.items())}
        if self.purged is not None and len(self.purged):
            out["purged"] = pack_ranges(self.purged)
        if self.gaps:
            out["gaps"] = sorted(self.gaps)
        for name in ("uidnext", "highestmodseq", "recent"):
            if getattr(self, name):
                out[name] = getattr(self, name)
        return out

    @classmethod
    def decode(cls, data: bytes | memoryview) -> Delta:
        """Undo `encode`. Raises ValueError on bytes that are no delta."""
        try:
            raw = _decoder.decode(data)
            return cls(
                rows=None if raw.rows is None else Rows.unpack(raw.rows),
                flags=[(flag, int(stamp), unpack_ranges(uids)) for flag, stamp, uids in raw.flags],
                gone=None if raw.gone is None else _unpack_gone(*raw.gone),
                holders=Holders.unpack(raw.holders),
                claims={int(uid): int(count) for uid, count in raw.claims},
                batches={int(uid): int(count) for uid, count in raw.batches},
                packs={name: Pack.unpack(pack) for name, pack in raw.packs.items()},
                purged=None if raw.purged is None else unpack_ranges(raw.purged),
                gaps=[(int(low), int(high)) for low, high in raw.gaps],
                uidnext=raw.uidnext,
                highestmodseq=raw.highestmodseq,
                recent=raw.recent,
            )
        except (msgspec.DecodeError, TypeError, AttributeError, ValueError) as exc:
            raise ValueError(f"not a mailbox delta: {exc}") from exc


@dataclass(frozen=True, slots=True)
class Changed:
    """The effect of a join: UIDs that are new, whose flags differ, that are gone; each
    sorted.
    """

    new: UidArray
    flags: UidArray
    gone: UidArray

    def __bool__(self) -> bool:
        return bool(len(self.new) or len(self.flags) or len(self.gone))


def largest(column: npt.NDArray[Any]) -> int:
    """Return the largest element. numpy takes 3 µs for that of a single element."""
    return int(column[0] if len(column) == 1 else column.max())


def joined(parts: Encoded) -> bytes:
    """Put the parts of an encoding together. A thread that does it lets others have the
    interpreter between two parts."""
    if len(parts) == 1:
        return bytes(parts[0])
    out = BytesIO()
    for part in parts:
        out.write(part)
    return out.getvalue()


def _pieces(value: object) -> Iterator[bytes | memoryview]:
    """Encode a value as MessagePack, without a copy of its views."""
    if isinstance(value, dict):
        count = len(value)
        yield bytes([0x80 | count]) if count < 16 else b"\xde" + count.to_bytes(2, "big")
        for name, item in value.items():
            yield msgspec.msgpack.encode(name)
            yield from _pieces(item)
    elif isinstance(value, memoryview) and len(value) > 0xFFFF:
        yield b"\xc6" + len(value).to_bytes(4, "big")
        yield value
    else:
        yield msgspec.msgpack.encode(value)


def _bytes(column: npt.NDArray[Any]) -> memoryview | bytes:
    """Return a column for the encoder, which copies it. A long column is not copied
    before."""
    if len(column) < BYTES_COPIED_MAX or not column.flags.c_contiguous:
        return column.tobytes()
    return column.reshape(-1).view(np.uint8).data


def _unpack_gone(modseq: int | bytes, ranges: bytes) -> Gone:
    uids = unpack_ranges(ranges)
    if isinstance(modseq, int):
        return Gone.at(modseq, uids)
    column = np.frombuffer(modseq, dtype="<u8").astype(np.uint64)
    if len(column) != len(uids):
        raise ValueError("expunged UIDs and their modseqs differ in number")
    return Gone(uids, column)
