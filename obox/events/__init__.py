"""Events: what has changed, for listeners that hear of each change at least once.

The journal is the log of what happened. Groups of listeners follow it, with cursors in
the bucket, so that no crash loses an event. docs/events.md has the guarantees.
"""

from .event import Event, Format, Place
from .hub import Events, EventSettings
from .listener import Context, Delivery, Group, Listener, Usage

__all__ = [
    "Context",
    "Delivery",
    "Event",
    "EventSettings",
    "Events",
    "Format",
    "Group",
    "Listener",
    "Place",
    "Usage",
]
