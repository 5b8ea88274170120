"""The Protocol of a listener: one method (docs/events.md, "A listener of your own")."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal, NamedTuple, Protocol

from .event import Event

Mode = Literal["sync", "async"]
Delivery = Literal["sync", "async", "mixed"]


class Listener(Protocol):
    """Handles the events of a group."""

    async def handle(self, event: Event) -> None:
        """Handle an event. It may come more than once, with the same identity. Raise an
        exception if it must be called again. It must not hold the loop: work that takes
        longer than some milliseconds belongs into a thread."""


class Group(NamedTuple):
    """A listener with its name, which is part of keys: at most 64 letters, digits,
    dashes and dots. mode: what it asks for if the delivery is "mixed"."""

    name: str
    listener: Listener
    mode: Mode = "async"


class Usage(NamedTuple):
    """What the quota of a user counts, and the limits; None: no limit."""

    storage_bytes: int
    messages: int
    storage_bytes_max: int | None
    messages_max: int | None


class Context(NamedTuple):
    """What a listener may ask of the backend. usage: the present sums of a user by
    storage id; None if there is no such user any more."""

    usage: Callable[[str], Awaitable[Usage | None]]


def is_sync(group: Group, delivery: Delivery) -> bool:
    """Return whether an acknowledgement waits for a group."""
    return delivery == "sync" or (delivery == "mixed" and group.mode == "sync")
