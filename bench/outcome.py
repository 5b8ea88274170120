"""The results of a run of `python -m bench.cluster`: figures, faults, and their
table."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Final

from .members import LAG_S, Lag
from .patient import Patient
from .witness import Witness

OUTAGE_MAX_S: Final = 15.0
"""A user may be without service for at most 15 s."""
EVACUATION_MAX_S: Final = 1.0
"""The limit while a backend is evacuated and nothing else happens."""
AFTER_S: Final = 5.0
"""An action may still have an effect for this time after its end."""
_EVACUATIONS: Final = frozenset({"evacuate", "evacuate and stop"})


@dataclass
class Event:
    """An action that happened. began, ended: times on the clock of the witness."""

    began: float
    name: str
    ended: float = math.inf


@dataclass
class Outcome:
    """The figures of a run. lags: the delays of the members' event loops, for each
    process. ours: the delays of the timers of this process, in seconds. at_once: how
    many members were disturbed at the same time."""

    witness: Witness
    clients: Patient
    actions: list[Event]
    errors: list[str]
    lags: list[Lag] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    at_once: int = 1

    @property
    def lost(self) -> list[str]:
        return self.witness.found.lost

    @property
    def in_time(self) -> float:
        """Return the share of timers that were less than LAG_S late. There is a share
        of the members and a share of this process: the smaller counts."""
        count, short = sum(lag.timers for lag in self.lags), sum(lag.short for lag in self.lags)
        part = sum(late < LAG_S for late in self.ours) / max(1, len(self.ours))
        return min(part, short / max(1, count))

    @property
    def judged(self) -> bool:
        """Return whether times are judged: the machine was quick enough, and no two
        members were disturbed at the same time."""
        return self.in_time >= 0.99 and self.at_once == 1

    @property
    def late(self) -> list[str]:
        """Return a line for each time that a user was without service for too long."""
        out = [(took, at, who) for took, at, who in self.witness.outages if took > OUTAGE_MAX_S]
        out += [one for one in self.evacuations() if OUTAGE_MAX_S >= one[0] > EVACUATION_MAX_S]
        began = self.witness.began
        return [f"{at - began:7.2f} {who} was without service for {took:.1f} s" for took, at, who in out]

    def evacuations(self) -> list[tuple[float, float, str]]:
        """Return the times without service that lie within an evacuation, and that no
        other action can explain."""
        others = [one for one in self.actions if one.name not in _EVACUATIONS]
        ours = [one for one in self.actions if one.name == "evacuate"]
        return [
            (took, at, who)
            for took, at, who in self.witness.outages
            if any(one.began <= at - took and at <= one.ended for one in ours)
            and not any(one.began <= at and at - took <= one.ended + AFTER_S for one in others)
        ]

    def by_action(self) -> dict[str, list[float]]:
        """Return a list for the name of each action. For each time that the action
        happened, it has the longest time without service that began between this
        action and the next."""
        out: dict[str, list[float]] = {}
        ends = [*(one.began for one in self.actions[1:]), math.inf]
        for one, until in zip(self.actions, ends, strict=True):
            after = [took for took, at, _ in self.witness.outages if one.began - 0.5 <= at - took < until - 0.5]
            out.setdefault(one.name, []).append(max(after, default=0.0))
        return out

    def table(self) -> str:
        witness, found = self.witness, self.witness.found
        longest, at, user = max(witness.outages, default=(0.0, witness.began, "nobody"))
        rows: list[tuple[str, object]] = [
            ("mails acknowledged", sum(map(len, witness.mails.values()))),
            ("places seen", len(witness.places)),
            ("acknowledged mails lost", len(found.mails)),
            ("flags and expunges lost beyond the journal's interval", len(found.flags)),
            ("flags and expunges lost within it", len(found.flags_within)),
            ("UIDs moved or used twice", len(found.uids)),
            ("deliveries shown twice", len(found.twice)),
            ("mails missing from a SELECT, there later", len(witness.old)),
            ("longest time without service, s", f"{longest:.1f} ({user} at {at - witness.began:.0f} s)"),
            ("longest while a backend was evacuated, s", f"{max(self.evacuations(), default=(0.0,))[0]:.1f}"),
            (
                f"timers less than {LAG_S * 1000:.0f} ms late",
                f"{self.in_time:.2%}; times are {'' if self.judged else 'not '}judged",
            ),
            ("complaints", len(witness.complaints)),
            ("errors in logs", len(self.errors)),
        ]
        rows += [
            (f"{name}: {len(outages)} times, longest without service, s", f"{max(outages):.1f}")
            for name, outages in sorted(self.by_action().items())
        ]
        for name, times in sorted(witness.times.items()):
            ordered = sorted(times)
            p99 = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
            rows.append((f"{name}: p99 of {len(ordered)}, ms", f"{p99 * 1000:.0f}"))
        width = max(len(name) for name, _ in rows)
        lines = [f"{name.ljust(width)}  {value}" for name, value in rows]
        for title, details in (
            ("lost", found.lost),
            ("without service for too long", self.late if self.judged else []),
            ("lost within the interval", found.flags_within),
            ("twice", found.twice),
            ("missing from a SELECT", witness.old),
            ("complaints", witness.complaints),
            ("errors", self.errors),
        ):
            if details:
                lines += ["", f"{title}:", *details[:40]]
        failures = sorted(self.clients.failures.items(), key=lambda item: -item[1])
        lines += ["", "attempts that failed:", *(f"{count:6} {text}" for text, count in failures[:25])]
        return "\n".join(lines)
