"""What the keys of a search mean in a session: a query of `obox.mailbox.search`.
Sequence numbers and \\Recent, which depend on the session, become sets of UIDs."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import MappingProxyType

from obox.imap import searchkeys
from obox.imap.objectid import oid_of
from obox.imap.searchkeys import SearchKey
from obox.imap.session import Session
from obox.imap.sets import SequenceSet
from obox.mailbox import search as query
from obox.mailbox.search import Query


def to_query(session: Session, key: SearchKey) -> Query:
    """Return the query for a search key in this session now."""
    return Meaning(session).of(key)


def sets_in(key: SearchKey) -> Iterator[searchkeys.InSet]:
    if isinstance(key, searchkeys.InSet):
        yield key
    elif isinstance(key, searchkeys.Not):
        yield from sets_in(key.key)
    elif isinstance(key, searchkeys.And | searchkeys.Or):
        for one in key.keys:
            yield from sets_in(one)


async def query_of(meaning: Meaning, key: SearchKey, pause: Callable[[], Awaitable[None]]) -> Query:
    """Return the query for a search key. Others run meanwhile, because thousands of
    sets take 20 ms, and thousands of keys some more."""
    for one in sets_in(key):
        meaning.note(one)
        await pause()
    wanted = meaning.of(key)
    await pause()
    return wanted


class Meaning:
    """What keys mean to a session. Large values that many keys of a command may ask for
    are made once."""

    def __init__(self, session: Session, fixed: Mapping[int, Query] = MappingProxyType({})) -> None:
        """fixed: what some sets mean, by the identity of the key."""
        self._session = session
        self._sets = dict(fixed)
        self._saved: Query | None = None
        self._recent: Query | None = None

    def note(self, key: searchkeys.InSet) -> None:
        """Resolve a set before `of` is called, because thousands of sets take 20 ms."""
        if id(key) not in self._sets:
            self._sets[id(key)] = self._set(key.sequence, uid=key.uid)

    def of(self, key: SearchKey) -> Query:
        match key:
            case searchkeys.InSet(sequence, uid):
                return self._sets.get(id(key)) or self._set(sequence, uid=uid)
            case searchkeys.HasFlag("\\Recent", present):
                return self.recent() if present else query.Not(self.recent())
            case searchkeys.HasFlag(flag, present):
                return query.Flag(flag, present)
            case searchkeys.Header(name, value):
                return query.Header(name, value)
            case searchkeys.Text(value, body_only):
                return query.Body(value) if body_only else query.Text(value)
            case searchkeys.Not(inner):
                return query.Not(self.of(inner))
            case searchkeys.And(keys):
                return query.And(tuple(map(self.of, keys)))
            case searchkeys.Or(keys):
                return query.Or(tuple(map(self.of, keys)))
            case searchkeys.OnDate(field, test, date):
                return query.OnDate(field, test, date)
            case searchkeys.Size(larger, size):
                return query.Larger(size) if larger else query.Smaller(size)
            case searchkeys.ModSeqFrom():
                return query.ModSeqFrom(key.modseq)
            case searchkeys.ObjectId(value, thread):
                oid = None if thread else oid_of(value)
                return query.Or(()) if oid is None else query.ObjectOid(oid)
            case searchkeys.Within(older, seconds):
                return query.Older(seconds) if older else query.Younger(seconds)
            case searchkeys.All() | searchkeys.SaveDateSupported():
                return query.All()

    def _set(self, sequence: SequenceSet, *, uid: bool) -> Query:
        if not sequence.saved:
            return query.UidSet(self._session.uid_ranges(sequence, uid=uid))
        if self._saved is None:
            self._saved = query.UidSet(self._session.saved_ranges())
        return self._saved

    def recent(self) -> Query:
        """Return the mails that are recent in this session."""
        if self._recent is None:
            _, view = self._session.need_mailbox()
            self._recent = query.UidSet(view.recent_ranges())
        return self._recent
