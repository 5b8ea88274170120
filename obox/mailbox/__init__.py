"""The index model: a mailbox and a user's list of mailboxes, as pure values.

The model has no bucket, no clock and no awaits. Everything is a join-semilattice: two
states, or a state and a delta, are joined by elementwise maximum and union. Histories
that two backends wrote therefore merge to the same state from either side, in any
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
