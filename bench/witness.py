"""What the servers of a cluster answered to clients, and what is there at the end.

Each mail has an id of its own in the header X-Bench, and so has each new attempt to
deliver it. So a place (user, mailbox, UID) that shows another id has been used twice,
whatever the servers say. A change is judged only if its outcome is known: a change that
was sent and not answered may have happened or not. This module does not know how the
cluster is built or what disturbs it.
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


READ_S: Final = 0.5
"""An answer that a backend sent before it was killed is read within this time. No other
backend serves its users so soon."""

OUTAGE_S: Final = 0.2
"""The wait of a user is recorded if it is longer than this."""


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
    """The findings. Each is a line of text for a human."""

    mails: list[str] = field(default_factory=list)
    """Mails that were acknowledged, not expunged, and are not there."""
    flags: list[str] = field(default_factory=list)
    """Flags and expunges that are not there, although they are older than the journal's
    interval."""
    flags_within: list[str] = field(default_factory=list)
    """Such changes that were acknowledged just before a backend was killed."""
    uids: list[str] = field(default_factory=list)
    """UIDs that have moved, or were used twice."""
    twice: list[str] = field(default_factory=list)
    """A mail of one delivery that a mailbox shows under two UIDs."""

    @property
    def lost(self) -> list[str]:
        return [*self.mails, *self.flags, *self.uids]


class Witness:
    """A witness of the answers that clients get. clock: seconds; interval_s:
    `journal_interval`."""

    def __init__(self, clock: Callable[[], float], interval_s: float) -> None:
        self._clock = clock
        self._interval_s = interval_s
        self.began = clock()
        self.mails: dict[str, dict[str, float]] = defaultdict(dict)
        """The ids of mails that were acknowledged, and when, by user."""
        self.places: dict[Place, str] = {}
        self._validities: dict[tuple[str, str], int] = {}
        self._leaving: set[Place] = set()
        """Places for which a client has requested a move or an expunge."""
        self._left: dict[Place, float] = {}
        self._expunged_ids: set[tuple[str, str]] = set()
        self._flags: dict[tuple[Place, str], _Flag] = {}
        self._kills: list[tuple[float, float]] = []
        self.found = Verdict()
        """The findings while the cluster ran."""
        self.old: list[str] = []
        """Mailboxes that were shown without mails that had been acknowledged before."""
        self.outages: list[tuple[float, float, str]] = []
        """The longer times without service: seconds, the end, and the user."""
        self._served: dict[tuple[str, str], float] = {}
        self.times: dict[str, list[float]] = defaultdict(list)
        self.complaints: list[str] = []

    def now(self) -> float:
        return self._clock()

    # -- what clients say --------------------------------------------------------------

    def accepted(self, user: str, ident: str) -> None:
        """Note that a delivery or an APPEND was acknowledged."""
        self.mails[user][ident] = self.now()

    def seen(self, place: Place, ident: str) -> None:
        """Note that a client saw a mail at a place."""
        before = self.places.setdefault(place, ident)
        if before != ident:
            self.found.uids.append(f"{self.stamp()} {_text(place)} was {before}, is {ident}")

    def validity(self, user: str, box: str, value: int) -> None:
        before = self._validities.setdefault((user, box), value)
        if before != value:
            self.found.uids.append(f"{self.stamp()} UIDVALIDITY of {user} {box} was {before}, is {value}")
            self._validities[user, box] = value

    def known(self, user: str, box: str) -> frozenset[int]:
        """Return the UIDs that have to be there."""
        return frozenset(place.uid for place in self.places if place[:2] == (user, box) and place not in self._leaving)

    def shown(self, user: str, box: str, had_to: frozenset[int], uids: Iterable[int]) -> None:
        """Note that a client requested all UIDs and got these. had_to: the result of
        `known` before the request."""
        for uid in sorted(had_to - frozenset(uids)):
            place = Place(user, box, uid)
            if place not in self._leaving:
                self.old.append(f"{self.stamp()} {_text(place)} {self.places[place]} was not shown")

    def leaves(self, place: Place, *, expunged: bool) -> None:
        """Note that a client is about to move or expunge a mail."""
        self._leaving.add(place)
        if expunged:
            self._expunged_ids.add((place.user, self.places[place]))

    def has_left(self, place: Place) -> None:
        self._left[place] = self.now()

    def flagging(self, place: Place, keyword: str) -> None:
        """Note that a client is about to change a keyword. The outcome is unknown until
        the answer."""
        self._flags.pop((place, keyword), None)

    def flagged(self, place: Place, keyword: str, *, is_set: bool) -> None:
        self._flags[place, keyword] = _Flag(is_set, self.now())

    def served(self, user: str, since: float, kind: str) -> None:
        """Note that a user was served. since: when the first attempt began. kind:
        "delivery" or "session"."""
        now = self.now()
        took = now - max(since, self._served.get((user, kind), since))
        self._served[user, kind] = now
        if took > OUTAGE_S:
            self.outages.append((took, now, f"{kind} of {user}"))

    def killed(self, since: float) -> None:
        """Note that a backend was killed. It has answered nothing since `since`."""
        self._kills.append((since - self._interval_s - MARGIN_S, self.now() + READ_S))

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
