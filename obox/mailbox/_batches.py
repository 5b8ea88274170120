"""Batches: objects that have several mails of a mailbox, by the UIDs that they take.

`State.batches` has the first UID of each batch and how many mails it has; CLAIM_PURGED
is added once the object is gone. The range stays known as long as a mail of it may be
looked at, so that nobody takes the key of its first UID for that of a single mail.

This module does not know where in a batch a mail lies: the column `place` says that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ._delta import CLAIM_PURGED
from ._holders import Holders
from ._uidset import UidArray, distinct

Numbers = npt.NDArray[np.int64]


class Batched(Protocol):
    """What is read of a state."""

    batches: dict[int, int]
    gone_uid: UidArray
    gone_modseq: npt.NDArray[np.uint64]
    gone_purged: npt.NDArray[np.bool_]
    holders: Holders

    @property
    def uids(self) -> UidArray:
        """Return the UIDs, ascending."""

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column of the records."""


def dead_batches(state: Batched, before_modseq: int) -> list[int]:
    """Return the first UIDs of batches to none of whose mails anything has referred
    since then: each mail is expunged, and no record elsewhere shares it."""
    first, count, gone = _columns(state)
    if not len(first) or gone.all():
        return []
    long_gone = state.gone_uid[state.gone_modseq < np.uint64(max(before_modseq, 0))]
    needed = state.holders.needed(before_modseq)
    dead = ~gone & (_inside(state.uids, first, count) == 0)
    dead &= (_inside(long_gone, first, count) == count) & (_inside(needed, first, count) == 0)
    out: list[int] = first[dead].tolist()
    return out


def in_batches(state: Batched, uids: UidArray) -> npt.NDArray[np.bool_]:
    """Return which of the UIDs lie in the range of a batch, whose object is, or was,
    under its first UID."""
    first, count, _ = _columns(state)
    if not len(first):
        return np.zeros(len(uids), dtype=np.bool_)
    at = np.searchsorted(first, uids, side="right") - 1
    out: npt.NDArray[np.bool_] = (at >= 0) & (uids < first[at] + count[at])
    return out


def batches_used(state: Batched) -> set[int]:
    """Return the first UIDs of batches of this mailbox that have the mail of a
    record."""
    first = state.column("place")[:, 0]
    if not first.any():
        return set()
    first = first[state.column("home") < 0]
    return set(distinct(first).tolist()) - {0}


def without_object(state: Batched, first: Iterable[int]) -> dict[int, int]:
    """Return the entries of batches for a delta that says that their objects are
    gone."""
    return {uid: state.batches[uid] % CLAIM_PURGED + CLAIM_PURGED for uid in first if uid in state.batches}


def lasting(state: Batched) -> dict[int, int]:
    """Return the batches, without those whose object is gone and of whose mails nothing
    is left to delete."""
    if all(value < CLAIM_PURGED for value in state.batches.values()):
        return dict(state.batches)
    first, count, gone = _columns(state)
    done = gone & (_inside(state.gone_uid[state.gone_purged], first, count) == count)
    return {uid: state.batches[uid] for uid in first[~done].tolist()}


def _columns(state: Batched) -> tuple[Numbers, Numbers, npt.NDArray[np.bool_]]:
    """Return the first UID of each batch, ascending, how many mails it has, and whether
    its object is gone."""
    columns = np.array(sorted(state.batches.items()), dtype=np.int64).reshape(-1, 2)
    return columns[:, 0], columns[:, 1] % CLAIM_PURGED, columns[:, 1] >= CLAIM_PURGED


def _inside(uids: UidArray, first: Numbers, count: Numbers) -> Numbers:
    """Return how many of the ascending UIDs lie in each of the ranges."""
    return np.searchsorted(uids, first + count) - np.searchsorted(uids, first)
