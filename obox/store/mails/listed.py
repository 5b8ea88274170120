"""LISTs the objects of a mailbox by UID. Others run meanwhile: a mailbox may have very
many."""

from __future__ import annotations

import structlog

from ...objectstore.keys import mail_prefix, parse_mail_key
from ...types import Guid, StorageId
from ..env import Env

log = structlog.get_logger()


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
