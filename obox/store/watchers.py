"""Listeners for the changes of a single user, such as a session with NOTIFY.

`log.stage.Log` calls the listeners of a user after each edit. They get only the box
that has changed, and look at its state when they need it.
"""

from __future__ import annotations

from collections.abc import Callable

Listener = Callable[[str], None]


class Watchers:
    """See `api.Changes`. known: the users who are watched, by storage id."""

    def __init__(self, known: dict[str, Watchers], sid: str) -> None:
        self._known, self._sid = known, sid
        self.listeners: tuple[Listener, ...] = ()

    def watch(self, listener: Listener) -> Callable[[], None]:
        """See `api.Changes`."""
        self.listeners = (*self.listeners, listener)
        self._known[self._sid] = self
        return lambda: self._end(listener)

    def _end(self, listener: Listener) -> None:
        self.listeners = tuple(one for one in self.listeners if one is not listener)
        if not self.listeners and self._known.get(self._sid) is self:
            del self._known[self._sid]

    def notify(self, box: str) -> None:
        """Call all listeners, because a box has changed: a mailbox, or "" for the list
        of mailboxes."""
        for listener in self.listeners:
            listener(box)
