"""What all sessions of a POP3 server share: the locks of maildrops, and the times of
logins."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Final

from obox import login
from obox.errors import InUse
from obox.pop3.settings import Pop3Settings
from obox.types import StorageId

LOGINS_MAX: Final = 10_000
"""Logins whose time is remembered. With more, the oldest is forgotten."""


@dataclass(slots=True, kw_only=True)
class Context(login.Context[Pop3Settings]):
    """locked: users whose session has the only right to the maildrop. logins: the
    loop's time of the last login of users."""

    locked: set[StorageId] = field(default_factory=set)
    logins: OrderedDict[StorageId, float] = field(default_factory=OrderedDict)

    def lock(self, user: StorageId) -> None:
        """Raises: InUse."""
        if user in self.locked:
            raise InUse("Another POP3 session has the maildrop")
        self.locked.add(user)

    def check_delay(self, user: StorageId, least_s: float) -> None:
        """least_s: the least time between two logins. Raises: TooSoon."""
        left_s = self.logins.get(user, float("-inf")) + least_s - self.hub.clock()
        if left_s > 0:
            raise login.TooSoon(f"The next login is possible in {int(left_s) + 1} seconds")

    def note_login(self, user: StorageId) -> None:
        """Remember the time of a login."""
        self.logins[user] = self.hub.clock()
        self.logins.move_to_end(user)
        if len(self.logins) > LOGINS_MAX:
            self.logins.popitem(last=False)
