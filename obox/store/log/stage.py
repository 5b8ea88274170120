"""The only writer: every change of a box of a user is made by `Log.stage`.

Theory of operation. An `Edit` collects the deltas of one user that belong together: the
two mailboxes of a MOVE, an expunge and the holder that it releases, a DELETE and its
expunges. `stage` takes an edit in one turn of the loop:

    every delta encoded -> local copies -> journal -> memory
    -> sessions woken -> listeners called

Local copies and journal only have it staged; `User.commit` or `Journal.sync` waits
until it is durable. `stage` awaits nothing and the journal takes all that is staged of
a user into one object, so a reader of the bucket sees all of an edit or nothing of it.

A box need not be in memory. For the log it is a `Target`: a mailbox, a user's list of
mailboxes, or an object that keeps the delta until the mailbox has been loaded.

Listeners get values, `Altered`, that say what each edit did. `altered_by` makes the
same values from a journal line, so that listeners also get edits before a crash.

Invariant: no other file passes a change to the journal or appends a change to a local
copy.

This module does not know how a box is loaded or flushed. Diagnostics: a local copy that
cannot be written is dropped (`Env.keep`). A failure of a listener is logged, and the
other listeners are called.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeVar

import numpy as np
import structlog

from metacache import Change

from ...mailbox import Changed, Delta, RootDelta, united
from ...objectstore.keys import ROOT
from ...types import StorageId
from ..env import Env
from ..watchers import Watchers
from .journal import DELETED, Journal, Line

log = structlog.get_logger()

_NONE: Final = np.empty(0, dtype=np.uint32)

D_contra = TypeVar("D_contra", Delta, RootDelta, contravariant=True)
D = TypeVar("D", Delta, RootDelta)


@dataclass(frozen=True, slots=True)
class ListChanged:
    """What a change did to a list of mailboxes: GUIDs of entries, names of
    subscriptions, keys of annotations and of rights."""

    mailboxes: tuple[str, ...]
    subscriptions: tuple[str, ...]
    annotations: tuple[str, ...] = ()
    rights: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.mailboxes or self.subscriptions or self.annotations or self.rights)

    @classmethod
    def by(cls, delta: RootDelta) -> ListChanged:
        """Return what a delta of a list names."""
        guids = tuple(entry.guid for entry in delta.entries)
        return cls(guids, tuple(delta.subscriptions), tuple(delta.annotations), tuple(delta.rights))


@dataclass(frozen=True, slots=True)
class Altered:
    """What an edit did to a box of a user; see `mailbox.Changed` and `ListChanged`."""

    sid: str
    box: str
    what: Changed | ListChanged


class Target(Protocol[D_contra]):
    """What the log needs of a box. box: a GUID, or `root`. priority: the priority of
    its local copy."""

    @property
    def box(self) -> str: ...

    @property
    def priority(self) -> int: ...

    def join_staged(self, delta: D_contra, change: Change) -> Changed | ListChanged | None:
        """Join a delta that copy and journal have. Only `Log.stage` calls it. Returns
        None if it is joined later.

        change: the importance of what the bucket lacks of the box from now on, at
        least.
        """

    def wake(self) -> None:
        """Wake the box's sessions."""


@dataclass(frozen=True, slots=True)
class Absent:
    """A mailbox that is not in memory, as a `Target`. remember: called to keep a delta
    until the mailbox has been loaded."""

    box: str
    priority: int
    remember: Callable[[Delta], None]

    def join_staged(self, delta: Delta, change: Change) -> None:
        """See `Target`."""
        self.remember(delta)

    def wake(self) -> None:
        """Do nothing, because no session watches it."""


@dataclass(slots=True)
class _Part:
    """A delta of an edit. target: None if memory has the delta already. copied: whether
    the local copy gets it. journal: what the journal does with it; "carry" is for
    `Edit.carry`, and "again" for a change that it had before."""

    box: str
    delta: Delta | RootDelta
    target: Target[Any] | None = None
    change: Change = Change.NONE
    copied: bool = False
    journal: Literal["add", "again", "carry", "nothing"] = "add"


@dataclass(slots=True)
class Edit:
    """Deltas of one user that belong together, in the order in which readers join them.

    It is made and staged in one turn of the loop: its deltas continue the state that
    its targets have now.
    """

    sid: StorageId
    parts: list[_Part] = field(default_factory=list)

    def add(self, target: Target[D], delta: D, change: Change) -> None:
        """Add a change of a box for local copy, journal and memory."""
        self.parts.append(_Part(target.box, delta, target, change, copied=True))

    def add_local(self, target: Target[D], delta: D, change: Change) -> None:
        """Add a change that the journal need not get, because it has the change or a
        crash may undo it."""
        self.parts.append(_Part(target.box, delta, target, change, copied=True, journal="nothing"))

    def add_loading(self, target: Target[D], delta: D, change: Change) -> None:
        """Add a change of a box that is being loaded. Its whole local copy is written
        after the load."""
        self.parts.append(_Part(target.box, delta, target, change))

    def add_journal_only(self, box: str, delta: Delta | RootDelta, *, again: bool = False) -> None:
        """Add a change only for the journal. Local copy and memory have it already, or
        get it before a session sees it. again: whether an earlier boot of this process
        has it in its journal."""
        self.parts.append(_Part(box, delta, journal="again" if again else "add"))

    def carry(self, box: str, delta: Delta | RootDelta) -> None:
        """Write to the journal again all that no bundle has of a box, so that readers
        need no older line of it."""
        self.parts.append(_Part(box, delta, journal="carry"))


class Log:
    """The journal and the local copies of a backend, for code that changes
    something."""

    def __init__(self, env: Env, journal: Journal) -> None:
        self._env = env
        self.journal = journal
        self.listeners: list[Callable[[tuple[Altered, ...]], None]] = []
        """Each is called once for an edit, in the turn in which it is staged. The edit
        may not be durable yet."""
        self.watchers: dict[str, Watchers] = {}

    def stage(self, edit: Edit) -> list[Changed | ListChanged | None]:
        """Stage an edit. Returns for each of its parts what it altered in memory. See
        the module's text."""
        sid, parts = edit.sid, edit.parts
        # This may fail, before anything is changed.
        encoded = [part.delta.encode() for part in parts]
        for part, data in zip(parts, encoded, strict=True):
            if part.copied and part.target is not None:
                self._append(sid, part.box, data, part.change, part.target.priority)
        for part, data in zip(parts, encoded, strict=True):
            if part.journal == "carry":
                self.journal.carry(sid, part.box, data)
            elif part.journal != "nothing":
                self.journal.add(sid, part.box, data, again=part.journal == "again")
        done = [None if part.target is None else part.target.join_staged(part.delta, part.change) for part in parts]
        for part in parts:
            if part.target is not None:
                part.target.wake()
        if self.listeners:
            self._notify(tuple(Altered(sid, part.box, what) for part, what in zip(parts, done, strict=True) if what))
        if (watchers := self.watchers.get(sid)) is not None:
            for part, what in zip(parts, done, strict=True):
                if what:
                    watchers.notify("" if part.box == ROOT else part.box)
        return done

    def append_replaced(self, sid: str, box: str, deltas: list[bytes], change: Change, priority: int) -> None:
        """Append deltas of the replaced copy to a new local copy. The journal has them
        already."""
        for data in deltas:
            self._append(sid, box, data, change, priority)

    def _append(self, sid: str, box: str, data: bytes, change: Change, priority: int) -> None:
        self._env.keep(sid, box, lambda cache: cache.append(sid, box, data, change, priority=priority))

    def _notify(self, altered: tuple[Altered, ...]) -> None:
        for listener in self.listeners if altered else ():
            try:
                listener(altered)
            except Exception as exc:
                log.error("listener failed", error=repr(exc), exc_info=exc)


def altered_by(line: Line) -> list[Altered]:
    """Return what a journal line altered, in order. It may return more than the edit
    altered, because a carried delta includes older changes. Raises ValueError if a
    delta does not decode."""
    found = []
    for box, data in line.changes:
        if box == DELETED:
            continue
        what = ListChanged.by(RootDelta.decode(data)) if box == ROOT else _changed_by(Delta.decode(data))
        if what:
            found.append(Altered(line.sid, box, what))
    return found


def _changed_by(delta: Delta) -> Changed:
    gone = _NONE if delta.gone is None else delta.gone.uid
    new = _NONE if delta.rows is None else np.setdiff1d(delta.rows.uid, gone, assume_unique=True)
    touched = united(_NONE, *(uids for _, _, uids in delta.flags))
    return Changed(new, np.setdiff1d(touched, united(new, gone), assume_unique=True), gone)
