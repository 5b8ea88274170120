"""Makes the events of a line of the journal. No other file makes them.

A line has the bytes of all deltas of a user in an object of the journal. The backend
that wrote the line has the same bytes in memory, so its events are the same as those
that another backend reads after a takeover.

Invariant: a change that was staged again makes no event. This module does not know who
hears of an event. Diagnostics: a delta that does not decode is logged and left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any, Final

import numpy as np
import structlog
from msgspec import structs

from ..mailbox import Delta, MailboxEntry, RootDelta, UidArray, by_home, distinct, largest, uid_array
from ..objectstore.keys import ROOT
from ..store.log.journal import DELETED, JournalObject, Line
from ..types import Guid
from .event import Event, Kind, Place, Ranges

log = structlog.get_logger()

MOVED_MAX: Final = 50_000
"""Most mails of one `Moved`. A MOVE of more mails is made in parts of this size."""


def events_by_user(written: JournalObject) -> dict[str, list[Event]]:
    """Return the events of an object of the journal by storage id, in order."""
    place = Place(written.backend, written.boot, written.seq)
    found = {}
    for line in written.lines:
        if events := events_of(place, line, written.again.get(line.sid, ())):
            found[line.sid] = events
    return found


def is_deletion(line: Line) -> bool:
    """Return whether a line says that its user was deleted."""
    return any(box == DELETED for box, _ in line.changes)


def events_of(place: Place, line: Line, again: Collection[int] = ()) -> list[Event]:
    """Return the events of a line. again: positions of changes that were staged
    again."""
    events: list[Event] = []
    moves = _Moves()
    counted = False
    for at, (box, data) in enumerate(line.changes):
        if at in again or box == DELETED:
            continue
        try:
            if box == ROOT:
                events.extend(_of_root(place, line.sid, RootDelta.decode(data)))
                continue
            delta = Delta.decode(data)
        except ValueError as exc:
            log.error("change in the journal makes no event", user=line.sid, mailbox=box, error=str(exc))
            continue
        found = list(_of_mailbox(place, line.sid, box, delta))
        counted = counted or any(event.kind != "FlagsUpdated" for event in found)
        _extend(events, found)
        moves.add(box, delta)
    events.extend(moves.events(place, line.sid))
    if counted:
        stamp = max(event.stamp for event in events)
        events.append(_event(place, line.sid, "QuotaUsageUpdated", stamp=stamp))
    return events


def _event(place: Place, sid: str, kind: Kind, **more: Any) -> Event:
    """Make an event of the line at a place. more: the other fields of `Event`."""
    return Event(kind=kind, user=sid, backend=place.backend, boot=place.boot, seq=place.seq, **more)


def _extend(events: list[Event], found: list[Event]) -> None:
    """Add events. Neighbouring deliveries to a mailbox become one event."""
    if events and found and events[-1].kind == found[0].kind == "Added":
        last, first = events[-1], found[0]
        if last.mailbox == first.mailbox and last.uids[-1][1] < first.uids[0][0]:
            uids = [*last.uids, *first.uids]
            at = len(last.uids) - 1
            if uids[at][1] + 1 == uids[at + 1][0]:
                uids[at : at + 2] = [(uids[at][0], uids[at + 1][1])]
            stamp, size = max(last.stamp, first.stamp), last.size + first.size
            events[-1] = structs.replace(last, uids=tuple(uids), stamp=stamp, size=size)
            found = found[1:]
    events += found


def ranges_of(uids: UidArray) -> Ranges:
    """Return sorted UIDs as ranges."""
    if len(uids) == 1:
        uid = int(uids[0])
        return ((uid, uid),)
    breaks = np.flatnonzero(np.diff(uids) != 1)
    firsts = np.concatenate((uids[:1], uids[breaks + 1])).tolist()
    lasts = np.concatenate((uids[breaks], uids[-1:])).tolist()
    return tuple(zip(firsts, lasts, strict=True))


def _of_mailbox(place: Place, sid: str, box: str, delta: Delta) -> Iterator[Event]:
    event = partial(_event, place, sid, mailbox=box)
    rows, gone = delta.rows, delta.gone
    if rows is not None and len(rows):
        yield event(
            "Added",
            uids=ranges_of(rows.uid),
            stamp=largest(rows.modseq),
            size=int(rows.size[0]) if len(rows) == 1 else int(rows.size.sum(dtype=np.uint64)),
        )
    if flags := _flags_of(delta):
        uids = flags[0][2] if len(flags) == 1 else distinct(np.concatenate([uids for _, _, uids in flags]))
        yield event(
            "FlagsUpdated",
            uids=ranges_of(uids),
            stamp=max(stamp for _, stamp, _ in flags) >> 1,
            flags=tuple((flag, bool(stamp & 1), ranges_of(uids)) for flag, stamp, uids in flags),
        )
    if gone is not None and len(gone.uid):
        yield event("Expunged", uids=ranges_of(gone.uid), stamp=largest(gone.modseq))


def _flags_of(delta: Delta) -> list[tuple[str, int, UidArray]]:
    """Return the changes of flags: flag, the newest stamp, UIDs. What a crash left may
    be in the records themselves. Flags at delivery have the stamp of the save date."""
    found = [(flag, stamp, uids) for flag, stamp, uids in delta.flags if len(uids)]
    if delta.rows is None or not delta.rows.stamps:
        return found
    saved = delta.rows.savedate.astype(np.uint64)
    for flag, stamps in delta.rows.stamps.items():
        later = (stamps != 0) & (stamps >> np.uint64(1) != saved)
        if not later.any():
            continue
        for on in (0, 1):
            mask = later & (stamps & np.uint64(1) == on)
            if mask.any():
                found.append((flag, largest(stamps[mask]), delta.rows.uid[mask]))
    return found


def _of_root(place: Place, sid: str, delta: RootDelta) -> Iterator[Event]:
    for entry in delta.entries:
        if entry.cleared:
            continue
        stamp = entry.deleted or entry.stamp
        yield _event(place, sid, _kind_of(entry, delta), mailbox=entry.guid, stamp=stamp, name=entry.name)
    for name, subscribed in delta.subscriptions.items():
        yield _event(place, sid, "Subscribed", stamp=subscribed >> 1, name=name, on=bool(subscribed & 1))
    for key, (stamp, rights) in delta.rights.items():
        guid, _, identifier = key.partition("/")
        if guid:
            text = (rights or b"").decode(errors="replace")
            yield _event(place, sid, "AclUpdated", mailbox=guid, stamp=stamp, name=identifier, rights=text)


def _kind_of(entry: MailboxEntry, delta: RootDelta) -> Kind:
    if entry.deleted:
        return "MailboxDeleted"
    # Only a creation says the largest UIDVALIDITY that was given so far.
    return "MailboxAdded" if entry.uidvalidity == delta.uidvalidity else "MailboxRenamed"


class _Moves:
    """Finds the MOVEs of a line: mails of a mailbox that are gone, and new records of
    another mailbox that share their objects."""

    def __init__(self) -> None:
        self._copied: list[tuple[str, Delta]] = []
        self._gone: list[tuple[str, Delta]] = []
        self._released: dict[tuple[str, int], tuple[str, int]] = {}

    def add(self, box: str, delta: Delta) -> None:
        """Add a delta of the line."""
        if delta.rows is not None and delta.claims and 0 < len(delta.rows) <= MOVED_MAX:
            self._copied.append((box, delta))
        if delta.gone is not None and 0 < len(delta.gone.uid) <= MOVED_MAX:
            self._gone.append((box, delta))
        if delta.holders and self._copied:
            for (home_uid, guid, uid), modseq in delta.holders.items():
                if modseq:
                    self._released[guid, uid] = box, home_uid

    def events(self, place: Place, sid: str) -> Iterator[Event]:
        """Yield an event for each MOVE."""
        if not self._copied or not self._gone:
            return
        there: dict[tuple[str, int], tuple[str, int]] = {}
        stamps: dict[str, int] = {}
        for box, delta in self._copied:
            assert delta.rows is not None
            for home, (uids, home_uids) in by_home(
                delta.rows.uid, delta.rows.home, delta.rows.home_uid, Guid(box), delta.rows.homes
            ).items():
                there.update(
                    ((home, old), (box, new)) for old, new in zip(home_uids.tolist(), uids.tolist(), strict=True)
                )
            stamps[box] = largest(delta.rows.modseq)
        for source, delta in self._gone:
            assert delta.gone is not None
            moved: dict[str, tuple[list[int], list[int]]] = {}
            for uid in delta.gone.uid.tolist():
                target = there.get(self._released.get((source, uid), (source, uid)))
                if target is not None:
                    old, new = moved.setdefault(target[0], ([], []))
                    old.append(uid)
                    new.append(target[1])
            for box, (old, new) in moved.items():
                yield _event(
                    place,
                    sid,
                    "Moved",
                    mailbox=source,
                    uids=ranges_of(uid_array(old)),
                    stamp=stamps[box],
                    target=box,
                    target_uids=ranges_of(uid_array(new)),
                )
