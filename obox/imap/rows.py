"""Makes FETCH lines from columns: a single format string makes the bytes of many mails,
without a Python loop over them.

A line is a template such as `* %d FETCH (UID %d FLAGS %b)`, with a list of values for
each gap. `lines` repeats the template and fills it in a single operation. Lists of
flags are made once for each combination that occurs. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from obox.imap import wire
from obox.mailbox import State, Table, UidArray
from obox.mailbox.view import View

ANSWER_BYTES: Final = 1 << 20
"""At most a megabyte of lines is made at a time. A slow client may leave as much in the
transport."""
LINE_BYTES: Final = 128
"""The numbers and dates of a line take 128 bytes. The bytes of flags, strings and names
of sections are counted in addition."""

Where = npt.NDArray[np.intp]
Recent = npt.NDArray[np.bool_]
FlagsOf = Callable[[Table, Where], list[bytes]]
"""Makes the flag lists of the rows of a table. `updates.flags_of` of a session first
reports new names."""


def part_of(numbers: npt.NDArray[Any], partial: tuple[int, int] | None) -> npt.NDArray[Any]:
    """Return the results that a range names. RFC 9394 §3.1."""
    if partial is None:
        return numbers
    low, high = sorted(map(abs, partial))
    if partial[0] > 0:
        return numbers[low - 1 : high]
    count = len(numbers)
    return numbers[max(0, count - high) : max(0, count - low + 1)]


class FlagLists(dict[int, bytes]):
    """Bits of a mail -> `(\\Seen $Label)`, each made at its first use. Holds for as
    long as no keyword is added.

    recent: the bit, beyond those of the names, of a mail that is recent to this
    session.
    """

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__()
        self._names = (*names, "\\Recent")
        self.recent = 1 << len(names)

    def __missing__(self, bits: int) -> bytes:
        made = self[bits] = wire.flags([name for i, name in enumerate(self._names) if bits >> i & 1])
        return made


def flag_rows(state: State, most: int) -> int:
    """Return how many mails to take at a time, at most `most`, so that their flags stay
    below ANSWER_BYTES.

    Most mailboxes have few and short keywords. Then it is `most`.
    """
    return max(1, min(most, ANSWER_BYTES // (LINE_BYTES + sum(map(len, state.flags.names)))))


def parts(names: Sequence[bytes], columns: Sequence[Sequence[Any]], count: int) -> Iterator[slice]:
    """Split `count` lines into runs of about ANSWER_BYTES. There is a single run,
    unless values are long."""
    wide = [column for column in columns if isinstance(column[0], bytes)]
    size = count * (LINE_BYTES + sum(map(len, names))) + sum(sum(map(len, column)) for column in wide)
    if size <= ANSWER_BYTES:
        yield slice(0, count)
        return
    begin, size = 0, 0
    for at in range(count):
        size += LINE_BYTES + sum(map(len, names)) + sum(len(column[at]) for column in wide)
        if size > ANSWER_BYTES and at > begin:
            yield slice(begin, at)
            begin, size = at, size - ANSWER_BYTES
    yield slice(begin, count)


def flag_column(names: Sequence[str], table: Table, where: Where, recent: Recent | None) -> list[bytes]:
    """Return the flag lists of the rows at `where`. names: by bit. recent: which of the
    rows are recent in this session; None if no mail is.
    """
    made = FlagLists(names)
    bits = table.flag_bits(where)
    if recent is not None:
        return [made[b | made.recent if r else b] for b, r in zip(bits, recent.tolist(), strict=True)]
    return list(map(made.__getitem__, bits))


def lines(
    names: Sequence[bytes], seqs: Sequence[int], columns: Sequence[Sequence[Any]], *, uidonly: bool = False
) -> bytes:
    """Return a FETCH line for each of `seqs`.

    names: items as format strings, `UID %d`; columns: a list for each gap. uidonly: the
    numbers are UIDs. RFC 9586.
    """
    template = lead(uidonly=uidonly) + b" ".join(names) + b")\r\n"
    return (template * len(seqs)) % tuple(chain.from_iterable(zip(seqs, *columns, strict=True)))


def lead(*, uidonly: bool) -> bytes:
    """Return the beginning of a FETCH line, with a gap for the number."""
    return b"* %d UIDFETCH (" if uidonly else b"* %d FETCH ("


def flag_lines(
    state: State, view: View, uids: UidArray, *, uid: bool, modseq: bool, flags: FlagsOf | None, uidonly: bool = False
) -> bytes:
    """FETCH lines with the flags of those of `uids` that exist, all of which the client
    knows.

    uid, modseq: with these items; flags None: without the flags, for a silent STORE
    under CONDSTORE.
    """
    where, there = state.positions(uids)
    if not there.all():
        uids, where = uids[there], where[there]
    if len(uids) == 0 or not (flags or modseq or uid):
        return b""
    names: list[bytes] = []
    columns: list[Sequence[Any]] = []
    if uid:
        names.append(b"UID %d")
        columns.append(uids.tolist())
    if flags:
        names.append(b"FLAGS %b")
        columns.append(flags(state, where))
    if modseq:
        names.append(b"MODSEQ (%d)")
        columns.append(state.modseqs[where].tolist())
    numbers = uids if uidonly else view.seqs(uids)
    return lines(names, numbers.tolist(), columns, uidonly=uidonly)
