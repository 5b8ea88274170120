"""The quota of a user, which parallel APPENDs, deliveries and COPYs share.

Space is reserved before the first PUT. It becomes usage in the turn of the loop in
which the mail becomes visible, so a mail is always counted exactly once. A write that
fails releases its reservation. An undecided write (the bucket does not answer) keeps
it.

Invariant: mails that are written here never make usage plus reservations exceed the
quota, except that a mail which replaces another has the room of both until the other
is gone. Another backend that serves the same user at the same time counts separately.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ...errors import InUse, OverQuota
from ..api import Usage
from ..box.slots import Slot


class Counted(Protocol):
    """What the quota needs of the user."""

    def usage(self) -> Usage:
        """Return the usage of the user's visible mails."""


class Reservations:
    """A user's limits, and the reservations of writes under way."""

    def __init__(self, user: Counted) -> None:
        self._user = user
        self.bytes_max: int | None = None
        self.messages_max: int | None = None
        self.bytes = 0
        self.messages = 0

    def take(self, size: int, messages: int, freed_bytes: int = 0, freed_messages: int = 0) -> Room:
        """Reserve space for mails of this size in total. Raises OverQuota; InUse if
        it depends on writes under way.

        freed_bytes, freed_messages: what the caller expunges right afterwards.
        """
        if self.bytes_max is not None or self.messages_max is not None:
            usage = self._user.usage()
            self._check("bytes", usage.storage_bytes - freed_bytes, self.bytes, size, self.bytes_max)
            self._check("mails", usage.messages - freed_messages, self.messages, messages, self.messages_max)
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
    """A reservation for mails. Call `used` for each mail that becomes visible, and
    `end` when the writer is done."""

    def __init__(self, quota: Reservations, size: int, messages: int) -> None:
        self._quota = quota
        self._bytes = size
        self._messages = messages
        self.slots: Sequence[Slot] = ()
        """The slots of the mails. A slot that is undecided at `end` keeps its
        reservation until it is resolved."""

    def used(self, size: int, messages: int = 1) -> None:
        """Count a mail as usage from now on."""
        self._bytes -= size
        self._messages -= messages
        self._quota.bytes -= size
        self._quota.messages -= messages

    def end(self) -> None:
        """Release the rest."""
        waiting = [slot.done for slot in self.slots if not slot.done.done()]
        if waiting:
            waiting[-1].add_done_callback(lambda _: self.end())
        else:
            self.used(self._bytes, self._messages)
            self.slots = ()  # they refer to this object, and it would be a cycle
