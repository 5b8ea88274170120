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
            # Nothing was seen meanwhile, so all are watched anew. Who is dead stays so
            # only if its beat is still the same.
            self._silent = {name: silence for name, silence in self._silent.items() if name in self.dead}
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

    def boots(self, beats: Mapping[str, Beat]) -> dict[str, str]:
        """The boot of each dead backend that was seen dying, "" where the backend had
        no beat.

        beats: the newest. A backend whose beat has changed since the last `observe` is
        left out, so that the boot of a backend that has started again is never named.
        """
        found = {}
        for name in self.dead:
            silence = self._silent.get(name)
            if silence is None or silence.beat == _mark(beats.get(name)):
                found[name] = beats[name].boot if name in beats else ""
        return found

    def _count(self, seen: Observation, own_changed: bool) -> None:
        watched = {*seen.watched, *self.dead}
        for name in set(self._silent) - watched:
            del self._silent[name]
        for name in watched:
            mark = _mark(seen.beats.get(name))
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


def _mark(beat: Beat | None) -> tuple[str, int] | None:
    return None if beat is None else (beat.boot, beat.counter)
