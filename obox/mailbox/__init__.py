"""The index model: a mailbox and a user's list of mailboxes, as pure values.

The model has no bucket, no clock and no awaits. Everything is a join-semilattice: two
states, or a state and a delta, are joined by elementwise maximum and union. Histories
that two backends wrote therefore merge to the same state from either side, in any
order, any number of times (docs/format.md, "Delta").
"""

from ._batches import batches_used, dead_batches, in_batches, without_object
from ._changes import FlagOp, expunge_delta, flag_delta, renewal, takeover_delta
from ._delta import (
    CLAIM_PURGED,
    KEYWORD_BYTES_MAX,
    KEYWORDS_MAX,
    KEYWORDS_STAMPED_MAX,
    Changed,
    Delta,
    Encoded,
    Gone,
    Rows,
    joined,
    largest,
)
from ._holders import Holders
from ._needles import Finder, Needle, collated, collated_octets, normalise
from ._packs import Pack, Packs, counting, spots
from ._records import Table, by_home, home_of
from ._root import Annotation, MailboxEntry, Root, RootDelta, Totals, annotation_key, rights_key
from ._state import DELETED, MODSEQ_MAX, SEEN, State
from ._uidset import UIDS_MAX, UidArray, distinct, pack_ranges, uid_array, united, unpack_ranges, within

__all__ = [
    "CLAIM_PURGED",
    "DELETED",
    "KEYWORDS_MAX",
    "KEYWORDS_STAMPED_MAX",
    "KEYWORD_BYTES_MAX",
    "MODSEQ_MAX",
    "SEEN",
    "UIDS_MAX",
    "Annotation",
    "Changed",
    "Delta",
    "Encoded",
    "Finder",
    "FlagOp",
    "Gone",
    "Holders",
    "MailboxEntry",
    "Needle",
    "Pack",
    "Packs",
    "Root",
    "RootDelta",
    "Rows",
    "State",
    "Table",
    "Totals",
    "UidArray",
    "annotation_key",
    "batches_used",
    "by_home",
    "collated",
    "collated_octets",
    "counting",
    "dead_batches",
    "distinct",
    "expunge_delta",
    "flag_delta",
    "home_of",
    "in_batches",
    "joined",
    "largest",
    "normalise",
    "pack_ranges",
    "renewal",
    "rights_key",
    "spots",
    "takeover_delta",
    "uid_array",
    "united",
    "unpack_ranges",
    "within",
    "without_object",
]
