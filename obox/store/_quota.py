"""The quota of one user, which parallel APPENDs, deliveries and COPYs keep together.

Room is taken before the first PUT and becomes usage when the mail is visible, in the same turn of the loop: a mail is
counted once at any moment. What fails gives its room back; what is undecided (a bucket that does not answer) keeps it.

Invariant: usage and room taken together never exceed the quota by a mail that is written here. Another backend that
serves the same user at the same time counts for itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..errors import InUse, OverQuota
from .api import Usage
from .mails.slots import Slot


class Counted(Protocol):
    """The user, as the quota sees it."""

    def usage(self) -> Usage:
        """What is visible of the user's mails."""


class Quota:
    """What a user may store, and what is under way."""

    def __init__(self, user: Counted) -> None:
        self._user = user
        self.bytes_max: int | None = None
        self.messages_max: int | None = None
        self.bytes = 0
        self.messages = 0

    def take(self, size: int, messages: int) -> Room:
        """Room for mails of so many bytes in all. Raises OverQuota; InUse where it depends on what is under way."""
        if self.bytes_max is not None or self.messages_max is not None:
            usage = self._user.usage()
            self._check("bytes", usage.storage_bytes, self.bytes, size, self.bytes_max)
            self._check("mails", usage.messages, self.messages, messages, self.messages_max)
        self.bytes += size
        self.messages += messages
        return Room(self, size, messages)

    @staticmethod
    def _check(what: str, used: int, taken: int, more: int, most: int | None) -> None:
        if most is None or used + taken + more <= most:
            return
        if used + more > most:
            raise OverQuota(f"quota exceeded: {used} of {most} {what} are in use")
        raise InUse(f"quota: {taken} of {most} {what} are just being stored beside {used}, try again later")


class Room:
    """Room that was taken for mails. `used` for each that has become visible, `end` when its writer is done."""

    def __init__(self, quota: Quota, size: int, messages: int) -> None:
        self._quota = quota
        self._bytes = size
        self._messages = messages
        self.slots: Sequence[Slot] = ()
        """Where the mails are being written; what is not decided at the end keeps its room until it is."""

    def used(self, size: int, messages: int = 1) -> None:
        """It counts as usage from now on."""
        self._bytes -= size
        self._messages -= messages
        self._quota.bytes -= size
        self._quota.messages -= messages

    def end(self) -> None:
        """Give the rest back."""
        waiting = [slot.done for slot in self.slots if not slot.done.done()]
        if waiting:
            waiting[-1].add_done_callback(lambda _: self.end())
        else:
            self.used(self._bytes, self._messages)
