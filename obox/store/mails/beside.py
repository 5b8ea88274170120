"""Looks for another writer beside a writer of batches (docs/format.md, "Turns").

A batch takes the UIDs behind its first UID. So a mail that another writer has put ahead
may become void, and the writer of batches loses no UID and learns nothing. Therefore a
writer whose batches follow each other without a pause LISTs what lies between them, and
takes turns when it finds an object that it has not written.

Invariant: no mail waits for this LIST. A writer whose batches are seldom never makes
it: another writer has time enough for its own PUTs then.

Diagnostics: a LIST that fails is made again later.
"""

from __future__ import annotations

from typing import Final

import structlog

from ...errors import Unavailable
from ...objectstore.keys import mail_prefix, parse_mail_key
from ..box.index import Index
from ..box.slots import YIELD_S, Noted

log = structlog.get_logger()

LOOK_BATCHES: Final = 32
"""Batches between two LISTs: they cost a thirtieth of the PUTs at most."""

LOOK_S: Final = 1.0
"""The shortest time between two LISTs, and so about how long another writer waits for
its first mail. A sender waits for 15 s at most."""

KEYS_MAX: Final = 1000
"""Keys of a LIST: one page. A writer that needs 2 ms for an object writes 500 a
second."""


def wrote_batch(mailbox: Index) -> None:
    """Note that a batch has been written, and LIST if it is time for it."""
    now, noted = mailbox.env.clock(), mailbox.slots.noted
    if noted is None or now - noted.at > YIELD_S:
        mailbox.slots.noted = Noted(mailbox.slots.end, now)
        return
    noted.at, noted.batches = now, noted.batches + 1
    if noted.batches >= LOOK_BATCHES and now - noted.since >= LOOK_S and not noted.looking:
        noted.looking = True
        mailbox.user.spawn(_look(mailbox, noted))


async def _look(mailbox: Index, noted: Noted) -> None:
    """Take turns if an object lies between ours that we have not written."""
    prefix = mail_prefix(mailbox.sid, mailbox.guid)
    end = mailbox.slots.end
    try:
        infos = await mailbox.env.listing(prefix, kind="mail", after=f"{prefix}{noted.first - 1:08x}", limit=KEYS_MAX)
    except Unavailable:
        noted.looking, noted.since = False, mailbox.env.clock()
        return
    if mailbox.slots.noted is not noted:
        return  # all of it has been LISTed meanwhile
    for info in infos:
        try:
            uid = int(parse_mail_key(info.key).uid)
        except ValueError:
            continue
        if uid not in noted.uids:
            log.info("another writer in the mailbox", user=mailbox.user.name, mailbox=mailbox.guid, uid=uid)
            mailbox.slots.noted = None
            mailbox.slots.meet()
            return
    mailbox.slots.noted = Noted(end, noted.at, uids={uid for uid in noted.uids if uid >= end})
