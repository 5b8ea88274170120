"""LISTs the objects of a mailbox by UID. Others run meanwhile: a mailbox may have very
many."""

from __future__ import annotations

from typing import Final

import structlog

from ...objectstore.keys import mail_key, mail_prefix, parse_mail_key
from ...types import Guid, StorageId, Uid
from ..env import Env

log = structlog.get_logger()

UIDS_AHEAD_MAX: Final = 1 << 25
"""How far a UID may be above the one before it. A claim takes as many UIDs as a COPY
has mails, or as an operator skips."""


async def listed_uids(env: Env, sid: StorageId, guid: Guid, *, after: int = 0) -> dict[int, int]:
    """Return the size of each object above the UID `after`. Raises Unavailable."""
    prefix, turn = mail_prefix(sid, guid), env.turn(sid)
    out: dict[int, int] = {}
    for info in await env.listing(prefix, kind="mail", after=f"{prefix}{after:08x}" if after else ""):
        try:
            out[parse_mail_key(info.key).uid] = info.size
        except ValueError:
            log.warning("foreign object among the mails ignored", key=info.key)
        if turn.over():
            await turn.end()
    return out


def near(found: dict[int, int], sid: StorageId, guid: Guid, after: int) -> dict[int, int]:
    """Return the objects in UID order, without those whose UID is so far above `after`
    and all others that no writer can have taken it. Such a foreign object would take
    all UIDs below it from the mailbox."""
    if max(found, default=after) - after <= UIDS_AHEAD_MAX:
        return found
    out: dict[int, int] = {}
    for uid in sorted(found):
        if uid - after > UIDS_AHEAD_MAX:
            key = mail_key(sid, guid, Uid(uid))
            log.warning("foreign object among the mails ignored", key=key, count=len(found) - len(out))
            break
        out[uid] = found[uid]
        after = uid
    return out
