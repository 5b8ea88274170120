"""A search program without a session, for an administrator's verb.

The grammar is IMAP's own, so that a query of the command line means what a client's
SEARCH means. Sequence numbers are the present numbers. Nothing is saved (`$`), and
nothing is \\Recent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from obox.errors import Invalid
from obox.imap import _search
from obox.imap._scan import Limits, Malformed, Scan
from obox.imap.meaning import to_query
from obox.imap.sets import SequenceSet
from obox.mailbox.search import Query
from obox.mailbox.view import View
from obox.store.api import Mailbox


def parse_search(program: bytes) -> Callable[[Mailbox], Query]:
    """Parse a search program. Returns a function that makes the query for a mailbox.
    Raises Invalid."""
    try:
        key = _search.search(Scan([b" " + program], 0, Limits()), b"a", True).key
    except Malformed as error:
        raise Invalid(f"search query: {error}") from error

    def evaluate(mailbox: Mailbox) -> Query:
        return to_query(cast(Any, Alone(mailbox)), key)

    return evaluate


class Alone:
    """The part of a session that `to_query` needs, for a mailbox alone."""

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox
        self._view = View(mailbox.state)

    def need_mailbox(self) -> tuple[Mailbox, View]:
        return self._mailbox, self._view

    def uid_ranges(self, sequence: SequenceSet, *, uid: bool) -> tuple[tuple[int, int], ...]:
        """Return the UIDs that a set names."""
        uids = self._view.uids
        if uid:
            return sequence.resolve(int(uids[-1]) if len(uids) else 0)
        return self._view.uid_ranges(sequence.resolve(len(uids)))

    def saved_ranges(self) -> tuple[tuple[int, int], ...]:
        """Return whether nothing is saved."""
        return ()
