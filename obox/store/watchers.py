"""Who is told that something of a user has changed, such as a session with NOTIFY.

`log.stage.Log` tells the watchers of a user of each edit. They get no more than the box
that has changed, so that they can wait until they look.
"""

from __future__ import annotations

from collections.abc import Callable

Told = Callable[[str], None]


class Watchers:
    """See `api.Changes`. known: the users who are watched, by storage id."""

    def __init__(self, known: dict[str, Watchers], sid: str) -> None:
        self._known, self._sid = known, sid
        self.told: tuple[Told, ...] = ()

    def watch(self, told: Told) -> Callable[[], None]:
        """See `api.Changes`."""
        self.told = (*self.told, told)
        self._known[self._sid] = self
        return lambda: self._end(told)

    def _end(self, told: Told) -> None:
        self.told = tuple(one for one in self.told if one is not told)
        if not self.told and self._known.get(self._sid) is self:
            del self._known[self._sid]

    def tell(self, box: str) -> None:
        """Tell all watchers that a box has changed: a mailbox, or "" for the list of
        mailboxes."""
        for told in self.told:
            told(box)
