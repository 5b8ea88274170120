"""VANISHED (EARLIER), compared with plain sets."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from obox.imap.earlier import vanished_earlier
from obox.imap.sets import parse_set
from obox.mailbox import Delta, Gone, Rows, State, uid_array
from obox.types import Guid

TOP = 30
NUMBERS = st.sets(st.integers(1, TOP))


def mailbox(uids: list[int]) -> State:
    """Make a mailbox of mails with these UIDs. All have the modseq 5."""
    state = State(Guid("a" * 32))
    for uid in uids:
        row = Rows.one(uid, size=1, internaldate=0, zone=0, savedate=0, modseq=5, oid=uid.to_bytes(16, "big"))
        state.join(Delta(rows=row))
    state.join(Delta(uidnext=TOP + 1, highestmodseq=100))
    return state


def numbers(text: bytes) -> set[int]:
    out: set[int] = set()
    for low, high in parse_set(text).ranges if text else ():
        assert not out & set(range(low, high + 1))
        out |= set(range(low, high + 1))
    return out


@given(NUMBERS, NUMBERS, st.none() | NUMBERS.filter(bool), st.integers(0, TOP), NUMBERS)
def test_like_sets(there: set[int], expunged: set[int], known: set[int] | None, above: int, shown: set[int]) -> None:
    state = mailbox(sorted(there))
    state.join(Delta(gone=Gone.at(50, uid_array(sorted(expunged)))))
    there -= expunged
    asked = set(range(1, TOP + 1)) if known is None else known
    asked = {uid for uid in asked if uid > above} - shown
    text = None if known is None else parse_set(",".join(map(str, sorted(known))).encode())
    still = uid_array(sorted(shown))

    def reported(modseq: int) -> set[int]:
        return numbers(vanished_earlier(state, modseq, text, above=above, shown=still))

    assert reported(49) == expunged & asked
    assert reported(50) == set()
    assert reported(101) == asked - there, "above what there is: the client knows a mailbox that is no more"
    state.join(Delta(gaps=[(60, 90)]))
    assert reported(70) == asked - there
    assert reported(60) == set()


def test_a_long_way_without_mails() -> None:
    state = mailbox([1, 3])
    state.join(Delta(uidnext=2**32 - 1))
    assert vanished_earlier(state, 1000, None) == b"2,4:4294967294"
    assert vanished_earlier(state, 1000, parse_set(b"1:7,4000000000")) == b"2,4:7,4000000000"
    assert vanished_earlier(mailbox([]), 1000, None) == b"1:%d" % TOP
    assert vanished_earlier(State(Guid("a" * 32)), 1000, None) == b""
