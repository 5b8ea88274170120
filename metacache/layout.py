"""The byte layout of the environment: keys, records, and what an entry is charged.

Users and boxes are named by a 16-byte hash (BLAKE2b), because a name may be longer than
LMDB's keys of 511 bytes; the full names are in the records. All integers are
big-endian, so that keys sort by number.

    database  key                                        value
    users     user hash 16                               user record
    boxes     user hash 16, box hash 16                  box record
    blobs     user hash 16, box hash 16, "B", chunk 4    base, in chunks of CHUNK_BYTES
              user hash 16, box hash 16, "D", n 4, chunk 4
                                                         delta number n, in chunks
    fields    user hash 16, box hash 16, uid 4           record of a uid: chunk 0
              user hash 16, box hash 16, uid 4, chunk 4  further chunks, if the chunk
                                                         before has CHUNK_BYTES
    state     "s", name in UTF-8                         backend-wide record
              "\\0format"                                 layout version 4
              "\\0space"                                  accounted bytes 8

    user record:  name length 2, entries 1, then per entry priority 1, bytes 8;
                  then the name
    box record:   change 1, priority 1, bits 1 (1 has a copy, 2 has a base), reserved 1,
                  last access 8 (double), bytes of blobs and fields 8, base length 8,
                  next delta 4, stamp length 2, name length 2, stamp, name

Invariant: `cost` is a function of lengths alone, so a recount gives what was accounted.
This module does not know transactions.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hashlib import blake2b

from metacache._types import Change, MetacacheError

FORMAT = 1

# 16 pages of 4 KiB less LMDB's 16-byte page header: the largest value without a partly
# used page. Larger values need longer runs of free pages, and a map that has been in
# use for long does not have them.
CHUNK_BYTES = 16 * 4096 - 16

PAGE_BYTES = 4096
NODE_BYTES = 10  # LMDB: node header 8, slot 2
NODE_MAX = 2038  # LMDB: a larger node has its value on pages of its own

# Of user and box names. A user name of 255 characters has at most 1020 bytes before
# escaping.
NAME_BYTES_MAX = 8192
STAMP_BYTES_MAX = 32768  # so that a box record stays a single value
STATE_KEY_BYTES_MAX = 500  # LMDB: keys up to 511 bytes
UID_MAX = 0xFFFFFFFF

_BOX = struct.Struct(">BBBBdQQIHH")  # 4 + 8 + 8 + 8 + 4 + 2 + 2 = 36
_HAS_COPY = 1
_HAS_BASE = 2

BASE, DELTA = b"B", b"D"  # kinds of blobs
SPACE_KEY = b"\0space"

u32 = struct.Struct(">I").pack
u64 = struct.Struct(">Q")


def encode_name(name: str) -> bytes:
    """Return the UTF-8 of a user or box name; surrogates are allowed.

    Raises: ValueError if it is too long.
    """
    raw = name.encode("utf-8", "surrogatepass")
    if len(raw) > NAME_BYTES_MAX:
        raise ValueError(f"name of {len(raw)} bytes, at most {NAME_BYTES_MAX}")
    return raw


def decode_name(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogatepass")


def user_key(user: str) -> bytes:
    return blake2b(encode_name(user), digest_size=16).digest()


def box_key(user: str, box: str) -> bytes:
    return user_key(user) + blake2b(encode_name(box), digest_size=16).digest()


def state_key(name: str) -> bytes:
    raw = b"s" + name.encode("utf-8", "surrogatepass")
    if len(raw) > STATE_KEY_BYTES_MAX:
        raise ValueError(f"state key of {len(raw)} bytes, at most {STATE_KEY_BYTES_MAX}")
    return raw


def cost(key_len: int, value_len: int) -> int:
    """Return the bytes that an entry is charged.

    A value on pages of its own is charged whole pages. A small value is charged half as
    much again as it has: LMDB splits a full page in halves, so its pages are between
    half and completely full.
    """
    if NODE_BYTES + key_len + value_len > NODE_MAX:
        return -(-(value_len + 16) // PAGE_BYTES) * PAGE_BYTES + NODE_BYTES + 8 + key_len
    return (NODE_BYTES + key_len + value_len) * 3 // 2


@dataclass(slots=True)
class BoxRecord:
    """What is known about a box beside its bytes."""

    name: str
    change: Change = Change.NONE
    priority: int = 3
    has_copy: bool = False  # false: only fields were put
    has_base: bool = False
    accessed: float = 0.0
    data_bytes: int = 0  # sum of cost() over its blobs and fields
    base_len: int = 0
    next_delta: int = 0
    stamp: bytes = b""

    def encode(self) -> bytes:
        name = encode_name(self.name)
        bits = (_HAS_COPY if self.has_copy else 0) | (_HAS_BASE if self.has_base else 0)
        head = _BOX.pack(
            self.change, self.priority, bits, 0, self.accessed, self.data_bytes, self.base_len, self.next_delta,
            len(self.stamp), len(name),
        )  # fmt: skip
        return head + self.stamp + name

    @classmethod
    def decode(cls, raw: bytes) -> BoxRecord:
        try:
            change, priority, bits, _, accessed, data, base_len, next_delta, stamp_len, name_len = _BOX.unpack_from(raw)
            if len(raw) != _BOX.size + stamp_len + name_len:
                raise MetacacheError("metacache: damaged box record: wrong length; remove the environment")
            stamp = raw[_BOX.size : _BOX.size + stamp_len]
            name = decode_name(raw[_BOX.size + stamp_len :])
            return cls(
                name, Change(change), priority, bool(bits & _HAS_COPY), bool(bits & _HAS_BASE), accessed, data,
                base_len, next_delta, stamp,
            )  # fmt: skip
        except (struct.error, ValueError) as error:
            raise MetacacheError("metacache: damaged box record; remove the environment") from error

    def space(self, user: str) -> int:
        """Return what the box is charged.

        That is its data, its record, and its share of the user's record.
        """
        own = _BOX.size + len(self.stamp) + len(encode_name(self.name))
        return self.data_bytes + cost(32, own) + cost(16, 3 + len(encode_name(user)))


@dataclass(slots=True)
class UserRecord:
    """A user's full name, and what the user's boxes are charged by priority."""

    name: str
    space: dict[int, int]

    def encode(self) -> bytes:
        name = encode_name(self.name)
        used = sorted((p, n) for p, n in self.space.items() if n)
        return b"".join([struct.pack(">HB", len(name), len(used)), *(struct.pack(">BQ", p, n) for p, n in used), name])

    @classmethod
    def decode(cls, raw: bytes) -> UserRecord:
        try:
            name_len, count = struct.unpack_from(">HB", raw)
            space = dict(struct.iter_unpack(">BQ", raw[3 : 3 + 9 * count]))
            name = raw[3 + 9 * count :]
            if len(name) != name_len:
                raise MetacacheError("metacache: damaged user record: wrong length; remove the environment")
            return cls(decode_name(name), space)
        except (struct.error, ValueError) as error:
            raise MetacacheError("metacache: damaged user record; remove the environment") from error
