"""When a backend counts as dead; docs/cluster.md has the rules.

The judgement depends only on what the observer passes in: polls of the directory,
greetings, and processes that are gone. This module has no clock and no socket.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from .records import Beat

READS_MIN: Final = 5
"""At least five polls must show the same beat, and at least five of them must show that
the observer's own beat has changed."""

GREETING_S: Final = 1.0
"""A backend that lives greets within this time."""


class Observation(NamedTuple):
    """One successful poll.

    at: monotonic seconds; beats: the newest beat of each member; own_read: the
    observer's own counter as this poll read it, None if it was not there; watched: the
    backends whose beats matter, with their sites; gone: backends of this host whose
    process is known to have ended.
    """

    at: float
    beats: Mapping[str, Beat]
    own_read: int | None
    watched: Mapping[str, str]
    gone: Collection[str] = ()


@dataclass
class _Silence:
    """The polls since a beat has changed. own_changes: how many of them have read a
    changed beat of the observer."""

    beat: tuple[str, int] | None
    since: float
    reads: int = 1
    own_changes: int = 0


@dataclass
class DeadWatch:
    """The judgement of an observer. name, site: those of the observer.

    Call `observe` after each successful poll. It names a backend that must be greeted
    now. Pass the result to `greeted`. A backend stays in `dead` until its beat changes.
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
        """Return the backend that looks dead and must be greeted, if there is one."""
        own_changed = seen.own_read is not None and self._own is not None and seen.own_read != self._own
        if seen.own_read is not None:
            self._own = seen.own_read
        if own_changed:
            self._own_changed_at = seen.at
        if self._read_at is not None and seen.at - self._read_at > self.dead_after_s / 2:
            # Nothing was seen meanwhile, so the count of all backends begins again. A
            # dead backend stays dead only if its beat is still the same.
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
        """Return whether the backend that `observe` named is dead. at: monotonic
        seconds."""
        if self._asked is None or self._silent.get(name) is not self._asked:
            return False  # its beat has changed while it was greeted
        if answered:
            del self._silent[name]  # its count begins again
            return False
        self.dead.add(name)
        self._taken_at = at
        return True

    def boots(self, beats: Mapping[str, Beat]) -> dict[str, str]:
        """Return the boot of each dead backend that was seen dying, "" where the
        backend had no beat.

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
