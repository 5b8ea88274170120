"""The nightly flush: everything is uploaded at a quiet hour, so that little is left to
do at a stop or a loss of the machine.

Invariant: it runs once a day, also if the hour passes while the machine is suspended.
It does not run at a start after the hour.
"""

from __future__ import annotations

from datetime import datetime, timedelta


class Nightly:
    """The time of the flush. at: "HH:MM" in local time, "" for never. now: unix
    seconds."""

    def __init__(self, at: str, now: float) -> None:
        self._at = at
        self.next_at = self._after(now) if at else float("inf")

    def _after(self, now: float) -> float:
        hour, minute = map(int, self._at.split(":"))
        today = datetime.fromtimestamp(now)
        moment = today.replace(hour=hour, minute=minute, second=0, microsecond=0)
        return (moment if moment > today else moment + timedelta(days=1)).timestamp()

    def due(self, now: float) -> bool:
        """Return whether the time has come. It returns True once a day."""
        if now < self.next_at:
            return False
        self.next_at = self._after(now)
        return True
