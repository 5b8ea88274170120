"""The index model: what a mailbox and a user's list of mailboxes are, as pure values.

No bucket, no clock, no awaits. Everything is a join-semilattice: two states, or a state and a delta, are joined by
elementwise maximum and union, so that histories written by two backends merge to one state from either side, in any
order, any number of times (docs/format.md, "Delta").
"""

from ._delta import CLAIM_PURGED, KEYWORD_BYTES_MAX, Changed, Delta, Gone, Rows
from ._needles import Finder, Needle, normalise
from ._records import Table, home_of
from ._root import MailboxEntry, Root, RootDelta, Totals
from ._state import DELETED, SEEN, FlagOp, State
from ._uidset import UidArray, pack_ranges, uid_array, unpack_ranges

__all__ = [
    "CLAIM_PURGED",
    "DELETED",
    "KEYWORD_BYTES_MAX",
    "SEEN",
    "Changed",
    "Delta",
    "Finder",
    "FlagOp",
    "Gone",
    "MailboxEntry",
    "Needle",
    "Root",
    "RootDelta",
    "Rows",
    "State",
    "Table",
    "Totals",
    "UidArray",
    "home_of",
    "normalise",
    "pack_ranges",
    "uid_array",
    "unpack_ranges",
]
