"""Writes several mails as one object (docs/format.md, "Several mails at once").

It is imported when it is needed for the first time (`write`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import msgspec
import numpy as np
import structlog

from ...errors import Temporary
from ...mailbox import Delta, Rows
from ...objectstore.codec import Codec, ObjectKind, envelope_bytes
from ...objectstore.keys import mail_key, owner_of, parse_mail_key
from ...turn import Turn
from ...types import Oid, Uid
from ..box.arrivals import Draft
from ..box.index import Index
from ..box.slots import Fate, Slot
from ..fields import Fields
from .batch import HeadMeta, joined
from .meta import INLINE_MAX, MailMeta, quick_fields, ready_fields
from .put import CLAIM_INLINE, FIELDS_S, decided, meta_of, put_slot

log = structlog.get_logger()


async def put_batch(mailbox: Index, slot: Slot, drafts: list[Draft]) -> tuple[Fate, Delta | None]:
    """PUT several mails as one object. Their fields are made while the bucket works."""
    env, now = mailbox.env, mailbox.env.now()
    uids = range(slot.uid, slot.uid + len(drafts))
    keys = [mail_key(mailbox.user.storage_id, mailbox.guid, Uid(uid)) for uid in uids]
    metas = [meta_of(mailbox, uid, draft, now) for uid, draft in zip(uids, drafts, strict=True)]
    oids, head_oid = [env.new_oid() for _ in drafts], env.new_oid()
    envelopes: list[bytes] = []
    fields: list[tuple[int, bytes]] = []

    def encode(at: int, source: bytes) -> None:
        what = ObjectKind.MAIL, owner_of(keys[at]), oids[at], metas[at].encode(), source
        envelopes.append(env.codec.encode(*what))

    def make(sources: list[bytes]) -> tuple[bytes, Delta]:
        for at, source in enumerate(sources):
            encode(at, source)
        return made(env.codec, keys[0], head_oid, rows_of(metas, oids), envelopes)

    sources = [draft.source for draft in drafts if isinstance(draft.source, bytes)]
    if len(sources) < len(drafts):
        sources = []
        try:
            for at, draft in enumerate(drafts):
                # One at a time: the bytes of such mails are limited for all senders
                # together.
                async with _opened(draft) as source:
                    await asyncio.to_thread(encode, at, source)
                    await _make_fields(mailbox, [(uids[at], source)], fields)
        except Temporary as exc:
            log.error("mail cannot be read back", user=mailbox.user.name, uid=slot.uid, error=str(exc))
            return await decided(mailbox, keys[0], head_oid), None
    small = sum(map(len, sources)) <= INLINE_MAX and len(drafts) <= CLAIM_INLINE
    data, delta = make(sources) if small else await asyncio.to_thread(make, sources)
    putting = mailbox.user.spawn(put_slot(mailbox, slot, data, head_oid))
    await asyncio.sleep(0)  # the request is sent
    await _make_fields(mailbox, list(zip(uids, sources, strict=False)), fields)
    fate = await putting
    if fate != "landed":
        return fate, None
    turn = Turn(env.clock)
    for key, envelope in zip(keys, envelopes, strict=True):
        await env.fscache.put(key, envelope)
        if turn.over():
            await turn.end()
    mailbox.put_fields(fields)
    return fate, delta


@asynccontextmanager
async def _opened(draft: Draft) -> AsyncIterator[bytes]:
    """Read a mail. Raises Temporary."""
    if isinstance(draft.source, bytes):
        yield draft.source
        return
    async with draft.source.open() as source:
        yield source


async def _make_fields(mailbox: Index, mails: list[tuple[int, bytes]], fields: list[tuple[int, bytes]]) -> None:
    """Make the ready fields of mails (UID, source) of a batch. Those that take longer
    than FIELDS_S are made by the first reader."""
    turn, slow = Turn(mailbox.env.clock), dict[int, asyncio.Task[Fields | None]]()
    for uid, source in mails:
        found = quick_fields(source)
        if found is None:
            slow[uid] = mailbox.user.spawn(ready_fields(source, mailbox=mailbox.guid, uid=uid))
        else:
            fields.append((uid, found.packed))
        if turn.over():
            await turn.end()
    if slow:
        await asyncio.wait(slow.values(), timeout=FIELDS_S)
    for uid, task in slow.items():
        made_now = task.result() if task.done() else None
        if made_now is not None:
            fields.append((uid, made_now.packed))


def rows_of(metas: Sequence[MailMeta], oids: Sequence[bytes]) -> Rows:
    """Return the records of several mails in UID order. They get their MODSEQ when they
    become visible, and say with 1 which flags they have."""
    uids = np.array([meta.uid for meta in metas], dtype=np.uint32)
    flags = list(dict.fromkeys(flag for meta in metas for flag in meta.flags))
    return Rows(
        uid=uids,
        size=np.array([meta.size for meta in metas], dtype=np.uint32),
        internaldate=np.array([meta.internaldate for meta in metas], dtype=np.int64),
        zone=np.array([meta.zone for meta in metas], dtype=np.int16),
        savedate=np.array([meta.savedate for meta in metas], dtype=np.int64),
        modseq=np.zeros(len(metas), dtype=np.uint64),
        home=np.full(len(metas), -1, dtype=np.int32),
        home_uid=uids,
        oid=np.frombuffer(b"".join(oids), dtype=np.uint8).reshape(-1, 16),
        place=np.zeros((len(metas), 3), dtype=np.uint32),
        stamps={flag: np.array([flag in meta.flags for meta in metas], dtype=np.uint64) for flag in flags},
    )


def made(codec: Codec, key: str, oid: Oid, rows: Rows, envelopes: Sequence[bytes]) -> tuple[bytes, Delta]:
    """Return a batch under a key, and what it adds to the state of its mailbox.

    rows: the records of the mails; their places are set here. oid: of the head.
    """
    first = parse_mail_key(key).uid
    rooms = [envelope_bytes(envelope)[1] for envelope in envelopes]
    ends = np.cumsum(rooms)
    rows.place = np.empty((len(rows), 3), dtype=np.uint32)
    rows.place[:, 0], rows.place[:, 1], rows.place[:, 2] = first, ends - rooms, rooms
    delta = Delta(rows=rows, batches={first: len(rows)}, uidnext=first + len(rows))
    meta = msgspec.msgpack.encode(HeadMeta(int(ends[-1])))
    head = codec.encode(ObjectKind.CLAIM, owner_of(key), oid, meta, delta.encode())
    room = envelope_bytes(head)[1]
    rows.place[:, 1] += np.uint32(room)
    return joined([head, *envelopes], [room, *rooms]), delta
