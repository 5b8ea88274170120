"""Counts how the mails of the whole bucket lie in objects, for `storage check`.

It reads the beginning of each object below m/, and the heads of batches. The bundles of
a mailbox say which mails of its batches nobody needs any more.

Invariant: it changes nothing. One mailbox at a time is in memory. Diagnostics: objects
and bundles that do not decode are counted, and logged by name.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Final

import numpy as np
import structlog

from ...errors import Corrupt
from ...mailbox import Delta, State
from ...objectstore import ObjectInfo, ShortPrefix, StoreError
from ...objectstore.codec import ObjectKind
from ...objectstore.keys import MailKey, owner_of, parse_mail_key
from ...types import Guid, StorageId
from ..box.bundles import Bundles
from ..mails.batch import claimed, is_head

if TYPE_CHECKING:
    from ..backend.store import MailStore
    from ..env import Env

log = structlog.get_logger()

HEAD_BYTES: Final = 4096
"""Bytes that are read of each object: the header of a mail, or the head of a small
batch."""

READ_AT_ONCE: Final = 1000
"""Objects whose beginnings are in memory at once: 4 MiB."""


@dataclass
class Counted:
    """single: mails that are objects of their own. batches, mails: several in one
    object. bytes: of the batches; dead: those of them that are mails which nobody needs
    any more. claims: ranges of UIDs without mails. burnt: UIDs that nobody has.
    damaged: objects that do not decode, and mailboxes whose bundles do not."""

    single: int = 0
    batches: int = 0
    mails: int = 0
    bytes: int = 0
    dead: int = 0
    claims: int = 0
    burnt: int = 0
    damaged: int = 0

    @property
    def objects(self) -> int:
        return self.single + self.batches + self.claims + self.burnt + self.damaged


async def count(store: MailStore) -> AsyncIterator[Counted]:
    """Count all objects below m/ of all users. Yields what has been counted so far,
    after each mailbox. Raises Unavailable."""
    out = Counted()
    for prefix in (f"{number:02x}/" for number in range(256)):
        listed = await store.env.listing(prefix, kind="mail")
        keyed = [(found, info) for info in listed if (found := _mail_key(info)) is not None]
        for (sid, guid), part in groupby(keyed, key=lambda pair: (pair[0].sid, pair[0].guid)):
            await _mailbox(store.env, sid, guid, [info for _, info in part], out)
            yield out
    yield out


def _mail_key(info: ObjectInfo) -> MailKey | None:
    try:
        return parse_mail_key(info.key)
    except ValueError:
        return None


async def _mailbox(env: Env, sid: StorageId, guid: Guid, infos: list[ObjectInfo], out: Counted) -> None:
    there = [info for info in infos if info.size]
    out.burnt += len(infos) - len(there)
    turn, state = env.turn(sid), None
    for at in range(0, len(there), READ_AT_ONCE):
        some = there[at : at + READ_AT_ONCE]
        heads = await env.get_all([info.key for info in some], kind="mail", end=HEAD_BYTES)
        for info, head in zip(some, heads, strict=True):
            if turn.over():
                await turn.end()
            if head is None:
                continue
            try:
                batch = await _batch(env, info.key, head, out)
            except (StoreError, Corrupt, ShortPrefix, ValueError) as error:
                out.damaged += 1
                log.error("object does not decode and is ignored", key=info.key, error=str(error))
                continue
            if batch is not None:
                state = await _indexed(env, sid, guid, out) if state is None else state
                out.batches, out.bytes = out.batches + 1, out.bytes + info.size
                out.mails += 0 if batch.rows is None else len(batch.rows)
                out.dead += _dead(state, batch)


async def _batch(env: Env, key: str, head: bytes, out: Counted) -> Delta | None:
    """Count an object, and return what it adds to its mailbox if it is a batch."""
    owner = owner_of(key)
    try:
        header = env.codec.decode_header(head, owner, lenient=True)
    except ShortPrefix as short:
        head = await env.get(key, kind="mail", end=short.need) or b""
        header = env.codec.decode_header(head, owner, lenient=True)
    if header.kind == ObjectKind.MAIL:
        out.single += 1
        return None
    if not is_head(header):
        out.claims += 1
        return None
    if len(head) < header.object_bytes:
        head = await env.get(key, kind="mail", end=header.object_bytes) or b""
    head = head[: header.object_bytes]
    return claimed(key, head, env.codec.decode(head, owner, lenient=True))


async def _indexed(env: Env, sid: StorageId, guid: Guid, out: Counted) -> State:
    """Return what the bundles of a mailbox say."""
    state, bundles = State(guid), Bundles(env, sid, guid)
    try:
        for payload in (await bundles.load(await bundles.listing())).payloads:
            state.join(Delta.decode(payload))
    except (Corrupt, ValueError) as error:
        out.damaged += 1
        log.error("bundles do not decode and are ignored", user=sid, mailbox=guid, error=str(error))
    return state


def _dead(state: State, batch: Delta) -> int:
    """Return the bytes of the mails of a batch that are expunged everywhere. A mail
    that no bundle knows yet counts as needed."""
    rows = batch.rows
    if rows is None:
        return 0
    _, there = state.positions(rows.uid)
    gone = ~there & (rows.uid < state.uidnext) & ~np.isin(rows.uid, state.holders.needed())
    return int(rows.place[gone, 2].sum())
