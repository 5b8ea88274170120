"""What the copies take: by box, by user, by priority, and in all.

Everything here is as of the last commit, except the last accesses, which are as of now.

Invariant: each batch is a read of its own, so the caller may await between two batches,
and no snapshot stays open for long.
This module does not know what may be cleaned.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from metacache._disk import Disk
from metacache._types import BoxSpace, UserSpace
from metacache.operations import BoxKey

USERS_PER_READ = 64
BOXES_PER_READ = 1000  # a read of a few milliseconds


class UserEntry(NamedTuple):
    """A user for the cleaner: bytes by priority, and the user's boxes."""

    user: str
    groups: dict[int, int]
    boxes: list[BoxSpace]


class Accounts:
    """Reads the accounts. touched: last accesses that are not committed yet."""

    def __init__(self, disk: Disk, touched: Mapping[BoxKey, float]) -> None:
        self._disk = disk
        self._touched = touched

    @property
    def limit(self) -> int:
        """Return the most bytes that may be accounted. It may be set at any time."""
        return self._disk.limit

    @limit.setter
    def limit(self, nbytes: int) -> None:
        self._disk.limit = nbytes

    def space(self) -> int:
        """Return the bytes of all users."""
        return self._disk.space

    def by_priority(self) -> dict[int, int]:
        """Return the bytes of all users by priority."""
        return dict(self._disk.by_priority)

    def boxes(self, user: str) -> list[BoxSpace]:
        """Return what each of the user's boxes takes, sorted by name."""
        with self._disk.snapshot() as txn:
            spaces = self._disk.boxes(txn, user)
        return [self._as_of_now(user, space) for space in sorted(spaces)]

    def users(self) -> Iterator[UserSpace]:
        """Yield what each user takes."""
        after = b""
        while True:
            with self._disk.snapshot() as txn:
                found = self._disk.users(txn, after, USERS_PER_READ)
            for _, user in found:
                yield user
            if len(found) < USERS_PER_READ:
                return
            after = found[-1][0]

    def entries(self) -> Iterator[list[UserEntry]]:
        """Yield batches of users with their boxes."""
        after = b""
        while True:
            with self._disk.snapshot() as txn:
                found = self._disk.entries(txn, after, BOXES_PER_READ)
            if not found:
                return
            yield [
                UserEntry(user.name, user.space, [self._as_of_now(user.name, box) for box in boxes])
                for _, user, boxes in found
            ]
            after = found[-1][0]

    def _as_of_now(self, user: str, space: BoxSpace) -> BoxSpace:
        touched = self._touched.get((user, space.box), 0.0)
        return space._replace(accessed=max(space.accessed, touched))

    def check(self) -> list[str]:
        """Recount the committed bytes. Returns a line for each difference.

        Reads the whole environment, in the caller's thread.
        """
        return self._disk.check()
