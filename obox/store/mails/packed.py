"""Finds mails in packs (docs/packs.md).

What a mailbox knows of its packs is a hint, which saves requests. An object that is not
where the hint says is no lost mail: `find` LISTs the packs, reads the tables of those
that were unknown, and tries each place.

Invariant: what `find` returns is an envelope under the oid that the index names. This
module expunges nothing, and asks nothing of a bucket that may have no packs.

Diagnostics: a pack whose head does not decode is logged and left alone. The mails in it
are looked for elsewhere.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Final

import structlog

from metacache import Change

from ...errors import Corrupt, NotFound
from ...mailbox import Delta, Packs, spots
from ...objectstore import CorruptObject, NewerFormat, ObjectInfo, ShortPrefix
from ...objectstore.keys import bundles_prefix, is_pack, mail_prefix, parse_mail_key
from ...types import Guid
from ..box.index import Index
from ..env import Env
from ..stamp import name_of
from .pack import FORM, PACKS, Packed, table
from .places import Place, envelope_at

log = structlog.get_logger()

HEAD_BYTES: Final = 256 << 10
"""Bytes of a pack that are read for its table at first: enough for 8,000 mails."""

HEAD_BYTES_MAX: Final = 8 << 20
"""The largest head that is read. 64 MiB of mails of 300 bytes have 6 MiB."""

_OID: Final = slice(16, 32)
"""Where an envelope has its oid."""


def possible(env: Env) -> bool:
    """Return whether the bucket may have packs."""
    return env.forms.writes(FORM) >= PACKS


async def known(mailbox: Index, homes: Iterable[Guid]) -> dict[str, Packs]:
    """Return the packs that home mailboxes know of, by the prefix of their mails.
    Raises Unavailable."""
    out: dict[str, Packs] = {}
    for guid in homes:
        home = await _home(mailbox, guid)
        if home is not None and home.state.packs:
            out[mail_prefix(mailbox.sid, guid)] = home.state.packs
    return out


def hinted(places: Iterable[Place], packs: Mapping[str, Packs]) -> dict[str, Place]:
    """Return, by the keys of the mails, the places of those that lie in packs."""
    wanted: dict[str, dict[int, Place]] = {}
    for place in places:
        prefix, uid = place.key[:-8], int(place.key[-8:], 16)
        if prefix in packs:
            wanted.setdefault(prefix, {})[uid] = place.recorded or place
    out: dict[str, Place] = {}
    for prefix, uids in wanted.items():
        _, guid, _ = parse_mail_key(f"{prefix}{min(uids):08x}")
        beside = prefix[: -len(f"m/{guid}/")] + f"x/{guid}/"
        for uid, (name, start, length) in spots(packs[prefix], uids).items():
            recorded = uids[uid]
            out[recorded.key] = Place(recorded.key, beside + name, start, length, recorded)
    return out


def fits(place: Place, oid: bytes, data: bytes | None) -> bool:
    """Return whether the bytes at a place are an envelope under an oid."""
    return data is not None and envelope_at(place, data)[_OID] == oid


async def find(mailbox: Index, tried: Place, oid: bytes, *, sure: bool = False) -> tuple[Place, bytes] | None:
    """Look for a mail that is not at the place where it was `tried`: in all packs, in
    its batch and under its key. Returns its place and its envelope, None if it is
    nowhere.

    sure: whether the bucket is LISTed in any case. Requests: a LIST, a GET for each
    pack that was unknown, and one for each place; what another reader has found
    meanwhile costs a GET. Raises Unavailable.
    """
    key = tried.key
    sid, guid, uid = parse_mail_key(key)
    env, home = mailbox.env, await _home(mailbox, guid)
    prefix = bundles_prefix(sid, guid)
    async with mailbox.finding if home is None else home.finding:
        known_now = {} if home is None or sure else hinted([tried], {key[:-8]: home.state.packs})
        if (place := known_now.get(key)) is not None and place.under != tried.under:
            data = await _get(env, place)
            if data is not None and fits(place, oid, data):
                return place, envelope_at(place, data)
        infos = [info for info in await env.listing(prefix, kind="index") if is_pack(info.key)]
        there = await _joined(env, home, infos)
    recorded = tried.recorded or tried
    places = [
        Place(key, prefix + name, *spot, recorded)
        for name in sorted(there, reverse=True)
        if (spot := there[name].find(uid)) is not None
    ]
    for place in dict.fromkeys([*places, recorded, Place(key, key)]):
        data = await _get(env, place)
        if data is not None and fits(place, oid, data):
            return place, envelope_at(place, data)
    return None


async def _get(env: Env, place: Place) -> bytes | None:
    end = place.start + place.length if place.length else None
    return await env.get(place.under, kind="mail", start=place.start, end=end)


async def _joined(env: Env, home: Index | None, infos: list[ObjectInfo]) -> Packs:
    """Return the packs of a LIST. Those that the mailbox does not know are read, and
    join what it knows."""
    mine = {} if home is None else home.state.packs
    unknown = {name_of(info.key): info for info in infos if name_of(info.key) not in mine}
    there = {name: mine[name] for info in infos if (name := name_of(info.key)) in mine}
    fresh: Packs = {}
    for name, info in unknown.items():
        try:
            found = await read_table(env, info)
        except (CorruptObject, NewerFormat) as exc:
            log.error("pack damaged", key=info.key, error=str(exc))
            continue
        if found is not None:
            fresh[name] = found.pack
    if fresh and home is not None:
        # It is no change that the journal must have: the LIST has it.
        home.apply(Delta(packs=fresh), Change.UNIMPORTANT, journal=False)
        home.stamp = home.stamp.for_new_base()
    return there | fresh


async def read_table(env: Env, info: ObjectInfo) -> Packed | None:
    """Read the head of a pack out of a LIST; None if it has been deleted since. Raises
    CorruptObject, NewerFormat, Unavailable."""
    need = HEAD_BYTES
    while True:
        data = await env.get(info.key, kind="mail", end=need)
        if data is None:
            return None
        try:
            found = await asyncio.to_thread(table, env.codec, info.key, data)
        except ShortPrefix as short:
            if len(data) < need or not need < short.need <= HEAD_BYTES_MAX:
                raise CorruptObject(f"a head of {short.need} bytes in {info.size}") from None
            need = short.need
            continue
        if found.size != info.size:
            raise CorruptObject(f"a pack of {info.size} bytes, {found.size} expected")
        return found


async def _home(mailbox: Index, guid: Guid) -> Index | None:
    """Return a mailbox of the same user, None if it cannot be read."""
    if guid == mailbox.guid:
        return mailbox
    try:
        return await mailbox.user.box(guid)
    except (Corrupt, NotFound):
        return None
