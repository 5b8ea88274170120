"""STORE and UID STORE. RFC 9051 §6.4.6; UNCHANGEDSINCE: RFC 7162 §3.1.3.

The new flags of every mail of the set are sent, unless `.SILENT`. The poll does not
report the changes of a silent STORE, if the client can derive the result itself. A mail
that another session changed at the same time is reported in full.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from obox.imap import ast
from obox.imap.ast import StoreMode
from obox.imap.commands.auth import enable_condstore
from obox.imap.commands.expunge import READ_ONLY
from obox.imap.replies import Reply
from obox.imap.session import NO_UIDS, Session
from obox.imap.sets import format_set
from obox.imap.updates import write_flags
from obox.mailbox import FlagOp, State, UidArray, within

Bits = npt.NDArray[np.uint64]

OPS: Final[dict[StoreMode, FlagOp]] = {
    StoreMode.ADD: "add",
    StoreMode.REMOVE: "remove",
    StoreMode.REPLACE: "replace",
}


async def store(session: Session, command: ast.Store) -> Reply:
    if session.read_only:
        return READ_ONLY
    if command.unchanged_since is not None:
        enable_condstore(session)
    mailbox, view = session.need_mailbox()
    state = mailbox.state
    uids = session.resolve(command.sequence, uid=command.uid)
    where, there = state.positions(uids)
    missed = not there.all()
    if missed:
        uids, where = uids[there], where[there]
    op = OPS[command.mode]
    before = state.bits[where]
    # The client derives the result from what was reported to it; the words of `bits`
    # hold all of it but for wide keywords.
    guess = command.silent and op != "replace"
    known = ~view.unreported(state, uids) if guess else np.ones(len(uids), dtype=np.bool_)
    stored = await mailbox.store_flags(uids, op, command.flags, command.unchanged_since, committed=False)
    if stored.modseq:
        session.uncommitted = (*session.uncommitted, stored.changed)
    state = mailbox.state
    refused = stored.refused
    done = uids if len(refused) == 0 else uids[~within(uids, refused)]
    reported = stored.changed
    if command.silent and state.flags.wide:
        reported = NO_UIDS
    elif command.silent:
        expected = _apply(before, op, state.flags.mask(command.flags))
        reported = reported[within(reported, _as_expected(state, uids, expected, known))]
    view.note_own(stored.modseq, reported)
    if not command.silent:
        await write_flags(session, done, uid=command.uid)
    elif session.condstore:
        await write_flags(session, done, uid=command.uid, flags=False)
    if len(refused):
        return Reply("Store completed", b"MODIFIED " + format_set(refused if command.uid else view.seqs(refused)))
    # RFC 2180 §4.2.1: the remaining mails have been changed and reported.
    if missed and not command.uid:
        return Reply("Store completed, some of the mails no longer exist", "EXPUNGEISSUED")
    return Reply("Store completed")


def _apply(bits: Bits, op: FlagOp, mask: int) -> Bits:
    """Return what a STORE makes of flags, as the client derives it."""
    flags = np.uint64(mask)
    if op == "add":
        return bits | flags
    if op == "remove":
        return bits & ~flags
    return np.full_like(bits, flags)


def _as_expected(state: State, uids: UidArray, expected: Bits, known: npt.NDArray[np.bool_]) -> UidArray:
    """Return mails whose flags are what the client takes them to be."""
    where, there = state.positions(uids)
    same = known & there
    same[same] = state.bits[where[same]] == expected[same]
    return uids[same]
