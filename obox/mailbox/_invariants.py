"""The invariants of a mailbox's state, and the parts in which equal states agree, for
`State`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..types import Guid
from ._flags import NARROW
from ._holders import Holders
from ._uidset import UidArray

Stamps = Mapping[str, npt.NDArray[np.uint64]]
Early = Mapping[str, Mapping[int, int]]


class Model(Protocol):
    """The part of a `State` that is read here."""

    uidnext: int
    highestmodseq: int
    recent: int
    bytes: int
    unseen: int
    gone_uid: UidArray
    gone_modseq: npt.NDArray[np.uint64]
    gone_purged: npt.NDArray[np.bool_]
    holders: Holders
    claims: dict[int, int]
    gaps: list[tuple[int, int]]

    def __len__(self) -> int: ...

    @property
    def uids(self) -> UidArray: ...

    @property
    def bits(self) -> npt.NDArray[np.uint64]: ...

    @property
    def modseqs(self) -> npt.NDArray[np.uint64]: ...

    @property
    def flag_names(self) -> list[str]: ...

    def column(self, name: str) -> npt.NDArray[Any]: ...

    def home_of(self, position: int) -> tuple[Guid, int]: ...

    def flag_bits(self, where: slice) -> list[int]: ...

    def flags_of_bits(self, bits: int) -> list[str]: ...

    def has_flag(self, flag: str, where: slice) -> npt.NDArray[np.bool_]: ...


def fingerprint(state: Model, stamps: Stamps, early_flags: Early, early_purged: Set[int]) -> tuple[object, ...]:
    """See `State.fingerprint`."""
    mails: dict[int, Any] = {}
    flags = state.flag_bits(slice(0, len(state)))
    for position, uid in enumerate(state.uids.tolist()):
        mails[uid] = (
            tuple(sorted(name.lower() for name in state.flags_of_bits(flags[position]))),
            tuple(sorted((f.lower(), int(s[position])) for f, s in stamps.items() if s[position])),
            tuple(int(state.column(name)[position]) for name in ("size", "internaldate", "zone", "savedate")),
            int(state.modseqs[position]),
            state.home_of(position),
            bytes(state.column("oid")[position]),
        )
    early: dict[tuple[str, int], int] = {}
    for flag, waiting in early_flags.items():
        for uid, stamp in waiting.items():
            early[flag.lower(), uid] = max(early.get((flag.lower(), uid), 0), stamp)
    gone = tuple(zip(state.gone_uid.tolist(), state.gone_modseq.tolist(), state.gone_purged.tolist(), strict=True))
    rest = (tuple(sorted(state.holders.items())), tuple(sorted(state.claims.items())), tuple(state.gaps))
    late = (tuple(sorted(early.items())), tuple(sorted(early_purged)))
    return state.uidnext, state.highestmodseq, state.recent, mails, gone, rest, late


def check(state: Model, stamps: Stamps, early_flags: Early, early_purged: Set[int]) -> None:
    """See `State.check`."""
    uids, count = state.uids, len(state)
    assert bool((uids[1:] > uids[:-1]).all()), "rows are not sorted by UID"
    assert bool((state.gone_uid[1:] > state.gone_uid[:-1]).all()), "expunged UIDs are not sorted"
    assert len(state.gone_uid) == len(state.gone_modseq) == len(state.gone_purged), "expunged UIDs: columns"
    assert not len(uids) or int(uids[-1]) < state.uidnext, "a UID at or above UIDNEXT"
    assert not len(state.gone_uid) or int(state.gone_uid[-1]) < state.uidnext, "an expunged UID at or above UIDNEXT"
    assert not np.isin(uids, state.gone_uid).any(), "a UID is both live and gone"
    assert not len(uids) or int(state.modseqs.max()) <= state.highestmodseq, "a modseq above HIGHESTMODSEQ"
    assert not len(state.gone_uid) or int(state.gone_modseq.max()) <= state.highestmodseq, "an expunge beyond it"
    assert state.bytes == int(state.column("size").sum(dtype=np.uint64)), "byte count"
    seen = state.has_flag("\\Seen", slice(0, count))
    assert state.unseen == count - int(np.count_nonzero(seen)), "unseen count"
    assert len({name.lower() for name in state.flag_names}) == len(state.flag_names), "a flag has two bits"
    bits = np.zeros(count, dtype=np.uint64)
    for i, name in enumerate(state.flag_names[:NARROW]):
        if name in stamps:
            bits |= (stamps[name][:count] & np.uint64(1)) << np.uint64(i)
    assert bool((bits == state.bits).all()), "flags differ from their stamps"
    for name, column in stamps.items():
        assert name in state.flag_names or not (column[:count] & np.uint64(1)).any(), "a mail's keyword has no place"
    early = {uid for waiting in early_flags.values() for uid in waiting}
    assert not early & {*uids.tolist(), *state.gone_uid.tolist()}, "a flag still waits for a mail that has come"
    assert not early_purged & {*state.gone_uid.tolist()}, "a purge still waits for an expunge that has come"
