"""When a backend counts as dead; docs/cluster.md has the rules.

A pure function of what its owner observes: polls of the directory, greetings, and
processes that are gone. No clock, no socket.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .records import Beat

READS_MIN: Final = 5
"""Polls that show the same beat, and polls that show our own beat changed meanwhile."""

GREETING_S: Final = 1.0
"""A backend that lives greets within this time."""


class Observation(NamedTuple):
    """One successful poll.

    at: monotonic seconds; beats: the newest beat of each member; own_read: our own
    counter as this poll read it, None if it was not there; watched: backends that
    matter, such as those that own something, with their sites; gone: backends whose
    process is known to have ended (of this host alone).
    """

    at: float
    beats: Mapping[str, Beat]
    own_read: int | None
    watched: Mapping[str, str]
    gone: Collection[str] = ()


@dataclass
class _Silence:
    """Polls since a beat has changed. own_changes: those that read our beat changed."""

    beat: tuple[str, int] | None
    since: float
    reads: int = 1
    own_changes: int = 0


@dataclass
class DeadWatch:
    """The judgement of an observer. name, site: those of the observer.

    `observe` each successful poll. It names a backend that must be greeted now; report
    the result with `greeted`. `dead` holds until a backend's beat changes.
    """

    name: str
    site: str
    dead_after_s: float
    dead: set[str] = field(default_factory=set)
    _silent: dict[str, _Silence] = field(default_factory=dict)
    _own: int | None = None
    _own_changed_at: float | None = None
    _taken_at: float | None = None
    _read_at: float | None = None
    _asked: _Silence | None = None

    def observe(self, seen: Observation) -> str | None:
        """The backend that looks dead and must be greeted, if there is one."""
        own_changed = seen.own_read is not None and self._own is not None and seen.own_read != self._own
        if seen.own_read is not None:
            self._own = seen.own_read
        if own_changed:
            self._own_changed_at = seen.at
        if self._read_at is not None and seen.at - self._read_at > self.dead_after_s / 2:
            self._silent.clear()  # nothing was seen meanwhile: all are watched anew
        self._read_at = seen.at
        self._count(seen, own_changed)
        self.dead |= {name for name in seen.gone if name != self.name}
        if self._taken_at is not None and seen.at - self._taken_at < self.dead_after_s:
            return None
        suspect = min(filter(lambda name: self._looks_dead(name, seen), self._silent), default=None)
        self._asked = self._silent.get(suspect or "")
        return suspect

    def greeted(self, name: str, answered: bool, at: float) -> bool:
        """Whether the backend that `observe` named is dead. at: monotonic seconds."""
        if self._asked is None or self._silent.get(name) is not self._asked:
            return False  # its beat has changed while it was greeted
        if answered:
            del self._silent[name]  # it is watched anew
            return False
        self.dead.add(name)
        self._taken_at = at
        return True

    def _count(self, seen: Observation, own_changed: bool) -> None:
        watched = {*seen.watched, *self.dead}
        for name in set(self._silent) - watched:
            del self._silent[name]
        for name in watched:
            beat = seen.beats.get(name)
            mark = None if beat is None else (beat.boot, beat.counter)
            silence = self._silent.get(name)
            if silence is None or silence.beat != mark:
                if silence is not None:
                    self.dead.discard(name)
                self._silent[name] = _Silence(mark, seen.at)
            else:
                silence.reads += 1
                silence.own_changes += own_changed

    def _looks_dead(self, name: str, seen: Observation) -> bool:
        silence = self._silent[name]
        recently = self._own_changed_at is not None and seen.at - self._own_changed_at <= self.dead_after_s / 2
        return (
            name != self.name
            and name not in self.dead
            and seen.watched.get(name) == self.site
            and silence.reads >= READS_MIN
            and seen.at - silence.since >= self.dead_after_s
            and silence.own_changes >= READS_MIN
            and recently
        )
