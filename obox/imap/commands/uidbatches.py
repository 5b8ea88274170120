"""UIDBATCHES: ranges of UIDs with equally many mails, from the newest mail down. RFC
10022.

The ranges have no gaps, and the last of all ends with UID 1. So a client that goes
through them meets each mail once, also if mails are expunged meanwhile.
"""

from __future__ import annotations

from typing import Final

from obox.imap import ast, wire
from obox.imap.replies import Reply, no
from obox.imap.session import Session
from obox.mailbox import UidArray

SIZE_MIN: Final = 500
"""Mails of a batch. The extension allows a server to refuse less."""
MAILS_MAX: Final = 100_000
"""Mails of the batches that a command with a range of batches asks for."""


async def uidbatches(session: Session, command: ast.UidBatches) -> Reply:
    size, batches = command.size, command.batches
    if size < SIZE_MIN:
        return no(f"A batch of {size} mails is too small: at least {SIZE_MIN}", "TOOFEW")
    if batches is not None and (batches[1] - batches[0] + 1) * size > MAILS_MAX:
        return no(f"Too many mails in these batches: at most {MAILS_MAX}", "TOOMANY")
    _, view = session.need_mailbox()
    ranges = [b"%d:%d" % one for one in ranges_of(view.uids, size, batches)]
    words = [b"UIDBATCHES", b"(TAG %b)" % wire.quoted(command.tag)]
    if ranges:
        words.append(b",".join(ranges))
    session.write(wire.line(*words))
    return Reply("Uidbatches completed")


def ranges_of(uids: UidArray, size: int, batches: tuple[int, int] | None) -> list[tuple[int, int]]:
    """Return (highest UID, lowest UID) of the batches from the first to the last that
    are asked for."""
    if not len(uids):
        return []
    lows = uids[::-1][size - 1 :: size].tolist()
    if len(uids) % size:
        lows.append(1)
    lows[-1] = 1
    highs = [int(uids[-1]), *(low - 1 for low in lows[:-1])]
    pairs = list(zip(highs, lows, strict=True))
    return pairs if batches is None else pairs[batches[0] - 1 : batches[1]]
