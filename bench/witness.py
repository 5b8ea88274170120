"""What servers answered to clients of a cluster, and what is there at the end.

A mail has an id of its own in the header X-Bench, also each new attempt to deliver it.
So a place (user, mailbox, UID) that shows another id has been used twice, whatever the
servers say of themselves. A change is judged only where its outcome is known: what was
sent and not answered may have happened or not.

This module does not know how the cluster is built or what disturbs it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

MARGIN_S: Final = 1.0
"""A change may be lost if the backend was killed within `journal_interval` and this
time after the answer: the journal's request takes time, too.
"""


OUTAGE_S: Final = 0.2
"""What a user waits for longer is noted."""


class Place(NamedTuple):
    user: str
    box: str
    uid: int


class Shown(NamedTuple):
    """A mailbox as a client sees it. mails: by UID, the id and the keywords."""

    uidvalidity: int
    mails: Mapping[int, tuple[str, frozenset[str]]]


class _Flag(NamedTuple):
    is_set: bool
    at: float


@dataclass
class Verdict:
    """Each finding is a line of text for a human."""

    mails: list[str] = field(default_factory=list)
    """Acknowledged, not expunged, and not there."""
    flags: list[str] = field(default_factory=list)
    """Flags and expunges that are not there, beyond the journal's interval."""
    flags_within: list[str] = field(default_factory=list)
    """The same, acknowledged just before a backend was killed."""
    uids: list[str] = field(default_factory=list)
    """Moved, or used twice."""
    twice: list[str] = field(default_factory=list)
    """A mail of one delivery that a mailbox shows under two UIDs."""

    @property
    def lost(self) -> list[str]:
        return [*self.mails, *self.flags, *self.uids]


class Witness:
    """Hears each answer from the clients. clock: seconds; interval_s:
    `journal_interval`."""

    def __init__(self, clock: Callable[[], float], interval_s: float) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self.began = clock()
        self.mails: dict[str, dict[str, float]] = defaultdict(dict)
        """By user: ids of mails that were acknowledged, and when."""
        self.places: dict[Place, str] = {}
        self._validities: dict[tuple[str, str], int] = {}
        self._leaving: set[Place] = set()
        """A move or an expunge was asked for."""
        self._left: dict[Place, float] = {}
        self._expunged_ids: set[tuple[str, str]] = set()
        self._flags: dict[tuple[Place, str], _Flag] = {}
        self._kills: list[tuple[float, float]] = []
        self.found = Verdict()
        """What was seen while the cluster ran."""
        self.old: list[str] = []
        """A mailbox was shown without mails that had been acknowledged before."""
        self.outages: list[tuple[float, float, str]] = []
        """Seconds without service, when they ended, and whose; the longer."""
        self._served: dict[tuple[str, str], float] = {}
        self.times: dict[str, list[float]] = defaultdict(list)
        self.complaints: list[str] = []

    def now(self) -> float:
        return self._clock()

    # -- what clients say --------------------------------------------------------------

    def accepted(self, user: str, ident: str) -> None:
        """A delivery or an APPEND was acknowledged."""
        self.mails[user][ident] = self.now()

    def seen(self, place: Place, ident: str) -> None:
        """A client was shown a mail at a place."""
        before = self.places.setdefault(place, ident)
        if before != ident:
            self.found.uids.append(f"{self.stamp()} {_text(place)} was {before}, is {ident}")

    def validity(self, user: str, box: str, value: int) -> None:
        before = self._validities.setdefault((user, box), value)
        if before != value:
            self.found.uids.append(f"{self.stamp()} UIDVALIDITY of {user} {box} was {before}, is {value}")
            self._validities[user, box] = value

    def known(self, user: str, box: str) -> frozenset[int]:
        """UIDs that have to be there."""
        return frozenset(place.uid for place in self.places if place[:2] == (user, box) and place not in self._leaving)

    def shown(self, user: str, box: str, had_to: frozenset[int], uids: Iterable[int]) -> None:
        """A client that asked for all UIDs got these. had_to: `known` before it
        asked."""
        for uid in sorted(had_to - frozenset(uids)):
            place = Place(user, box, uid)
            if place not in self._leaving:
                self.old.append(f"{self.stamp()} {_text(place)} {self.places[place]} was not shown")

    def leaves(self, place: Place, *, expunged: bool) -> None:
        """A client is about to move or expunge a mail."""
        self._leaving.add(place)
        if expunged:
            self._expunged_ids.add((place.user, self.places[place]))

    def has_left(self, place: Place) -> None:
        self._left[place] = self.now()

    def flagging(self, place: Place, keyword: str) -> None:
        """A client is about to change a keyword; nobody knows until it is answered."""
        self._flags.pop((place, keyword), None)

    def flagged(self, place: Place, keyword: str, *, is_set: bool) -> None:
        self._flags[place, keyword] = _Flag(is_set, self.now())

    def served(self, user: str, since: float, kind: str) -> None:
        """A user who has tried since then has got what it asked for: a "delivery" or a
        "session". Another that was served meanwhile shows that there was service.
        """
        now = self.now()
        took = now - max(since, self._served.get((user, kind), since))
        self._served[user, kind] = now
        if took > OUTAGE_S:
            self.outages.append((took, now, f"{kind} of {user}"))

    def killed(self, since: float) -> None:
        """A backend was killed that answered nothing since then."""
        self._kills.append((since - self._interval_s - MARGIN_S, self.now()))

    def stamp(self) -> str:
        return f"{self.now() - self.began:7.2f}"

    # -- judgement ---------------------------------------------------------------------

    def judge(self, user: str, boxes: Mapping[str, Shown]) -> None:
        """Compare what a user has at the end with the answers."""
        there = defaultdict(list)
        for box, shown in boxes.items():
            self.validity(user, box, shown.uidvalidity)
            for uid, (ident, _) in shown.mails.items():
                there[ident].append((box, uid))
        for ident, at in self.mails[user].items():
            if ident not in there and (user, ident) not in self._expunged_ids:
                self.found.mails.append(f"{at - self.began:7.2f} {user} {ident} was acknowledged, is nowhere")
        for place, ident in self.places.items():
            if place.user == user:
                self._judge_place(place, ident, boxes[place.box], there[ident])
        for ident, at_places in there.items():
            in_box = [uid for box, uid in at_places if box == "INBOX"]
            if len(in_box) > 1:
                self.found.twice.append(f"{user} {ident} in INBOX as {in_box}")
        for (place, keyword), flag in self._flags.items():
            if place.user == user and place not in self._leaving:
                mail = boxes[place.box].mails.get(place.uid)
                if mail is not None and (keyword in mail[1]) != flag.is_set:
                    self._undone(flag.at, f"{_text(place)} {keyword} should be {flag.is_set}")

    def _judge_place(self, place: Place, ident: str, shown: Shown, there: list[tuple[str, int]]) -> None:
        mail = shown.mails.get(place.uid)
        if mail is not None and mail[0] != ident:
            self.found.uids.append(f"{_text(place)} was {ident}, is {mail[0]}")
        elif mail is not None and place in self._left:
            self._undone(self._left[place], f"{_text(place)} {ident} was expunged, is there")
        elif mail is None and place not in self._leaving:
            elsewhere = [
                uid for box, uid in there if box == place.box and Place(place.user, box, uid) not in self.places
            ]
            if elsewhere:
                self.found.uids.append(f"{_text(place)} {ident} is at {elsewhere}")
            else:
                self.found.mails.append(f"{_text(place)} {ident} was shown, is not there")

    def _undone(self, at: float, text: str) -> None:
        line = f"{at - self.began:7.2f} {text}"
        within = any(since <= at <= until for since, until in self._kills)
        (self.found.flags_within if within else self.found.flags).append(line)


def _text(place: Place) -> str:
    return f"{place.user} {place.box} {place.uid}"
