"""The index model: what a mailbox and a user's list of mailboxes are, as pure values.

No bucket, no clock, no awaits. Everything is a join-semilattice: two states, or a state and a delta, are joined by
elementwise maximum and union, so that histories written by two backends merge to one state from either side, in any
order, any number of times (docs/format.md, "Delta").
"""

from ._delta import KEYWORD_BYTES_MAX, Changed, Delta, Rows
from ._records import Table, home_of
from ._root import MailboxEntry, Root, RootDelta, Totals
from ._state import State
from ._uidset import pack_ranges, unpack_ranges

__all__ = [
    "KEYWORD_BYTES_MAX",
    "Changed",
    "Delta",
    "MailboxEntry",
    "Root",
    "RootDelta",
    "Rows",
    "State",
    "Table",
    "Totals",
    "home_of",
    "pack_ranges",
    "unpack_ranges",
]
