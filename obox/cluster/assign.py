"""Who serves whom: pure functions that give every observer the same answer.

See docs/cluster.md, "Who owns a group" and "Which of two assignments holds".
"""

from __future__ import annotations

import hashlib
import math
import zlib
from collections.abc import Mapping

from .records import Assigned, group_key


def group_of(sid: str, groups: int) -> int:
    """Return the group of a storage id. groups: their number, at least 1."""
    return int.from_bytes(hashlib.sha256(sid.encode()).digest()[:8], "big") % groups


def home_of(sid: str, groups: int) -> str:
    """Return the key of a user's group."""
    return group_key(group_of(sid, groups))


def newer(ours: Assigned, other: Assigned) -> bool:
    """Return whether `other` is the newer of two assignments."""
    return (other.number, other.token) > (ours.number, ours.token)


def digest(units: Mapping[str, tuple[int, int]]) -> int:
    """Return a checksum of the units that a backend serves and of their assignments.
    units: number and token by unit."""
    return sum(zlib.crc32(f"{unit} {number} {token}".encode()) for unit, (number, token) in units.items()) % 2**32


def rank(thing: str, weights: Mapping[str, float]) -> list[str]:
    """Return the backends in the order in which they should serve a group or user.

    thing: a group's or a user's key; weights: load factors by name, those of 0 never
    serve. Weighted rendezvous hashing: each backend gets a share in proportion to its
    weight, and when a backend comes or goes, only what it gets or had moves.
    """
    scored = [(_score(thing, name, weight), name) for name, weight in weights.items() if weight > 0]
    return [name for _, name in sorted(scored)]


def _score(thing: str, backend: str, weight: float) -> float:
    digest = hashlib.sha256(f"{thing}:{backend}".encode()).digest()
    fraction = (int.from_bytes(digest[:8], "big") + 1) / 2.0**64
    return -math.log(fraction) / weight
