"""Reads mails and their ready fields: from the local copy, then from segments, then
from the mails.

Expunged mails can be read as long as their record is retained for a session that still
counts them, and their object exists. An expunged mail whose object is deleted is
expunged, not lost.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Final

import msgspec
import numpy as np
import structlog

from ...errors import Corrupt, Expunged, NotFound
from ...loading import loaded
from ...mailbox import Packs, home_of
from ...objectstore import CorruptObject, Header, NewerFormat, ShortPrefix, StoreError
from ...objectstore.codec import OLD_MAJOR, Decoded
from ...objectstore.keys import mail_prefix, owner_of
from ..api import Unreadable
from ..box.bundles import segment_range
from ..box.index import Index
from ..env import INLINE_DECODED_BYTES
from ..fields import Fields, opened
from ..recent import name_of
from .meta import MailMeta, check_meta, opaque_fields, ready_fields
from .packed import find, fits, hinted, known, possible
from .places import Place, Ranges, envelope_at, place_of

log = structlog.get_logger()

AHEAD: Final = 64
"""Mails that are read at a time: a single call in the disk's thread, or as many GETs,
some in parallel."""

AHEAD_PACKED: Final = 1024
"""Mails that are read at a time if some of them lie in packs, where a GET has many."""

AHEAD_BYTES: Final = 4 << 20
"""Octets of mails that are read at a time, if they are several."""

INLINE_BYTES: Final = 32 << 10
"""Octets of encoded mails that are decoded on the loop. It takes 0.2 ms, hardly more
than a call in a thread."""

WHOLE_MAX: Final = 1 << 20
"""Octets up to which a part is cut out of the whole mail. Of a larger mail only the
frames needed are read."""

SLICE: Final = 200
"""Records that are unpacked before the turn's time is checked. They take well below a
millisecond."""


async def fields(
    mailbox: Index, uids: Sequence[int], *, autofix: bool, bytes_max: int = sys.maxsize
) -> list[Fields | Unreadable | None]:
    """See `api.Mailbox.fields`."""
    sid, guid, metacache = mailbox.user.storage_id, mailbox.guid, mailbox.env.metacache
    records = metacache.get_fields(sid, guid, uids, bytes_max=bytes_max)
    out: list[Fields | Unreadable | None] = [*opened(records)]
    missing = _recorded(mailbox, uids, [at for at, record in enumerate(out) if record is None])
    if missing and await _load_segments(mailbox, [uids[at] for at in missing]):
        records = metacache.get_fields(sid, guid, [uids[at] for at in missing], bytes_max=bytes_max)
        for at, one in zip(missing, opened(records), strict=False):
            out[at] = one
        if len(records) < len(missing):
            del out[missing[len(records)] :]
        _shorten(out, sum(map(_bytes_of, out)), bytes_max)
        missing = [at for at in missing if at < len(out) and out[at] is None]
    if missing:
        where = {uids[at]: at for at in missing}
        made: list[tuple[int, bytes]] = []
        size = sum(map(_bytes_of, out))
        async with aclosing(mails(mailbox, list(where), autofix=autofix)) as sources:
            async for uid, source in sources:
                if not isinstance(source, bytes):
                    out[where[uid]] = source
                    continue
                ready = await ready_fields(source, mailbox=guid, uid=uid)
                if ready is None:
                    ready = opaque_fields(source)
                elif mailbox.state.position(uid) is not None:
                    made.append((uid, ready.packed))
                out[where[uid]] = ready
                size = _shorten(out, size + len(ready.packed), bytes_max)
                while missing[-1] >= len(out):
                    missing.pop()
                if missing[-1] == where[uid]:
                    break
        mailbox.put_fields(made)
    return out


def _bytes_of(one: Fields | Unreadable | None) -> int:
    return len(one.packed) if isinstance(one, Fields) else 0


def _shorten(out: list[Fields | Unreadable | None], size: int, bytes_max: int) -> int:
    """Drop mails from the end, so that `out` ends with the mail that reaches
    `bytes_max`.

    size: how many bytes `out` has. Returns how many bytes are left.
    """
    while size - (last := _bytes_of(out[-1])) > bytes_max:
        out.pop()
        size -= last
    return size


def _recorded(mailbox: Index, uids: Sequence[int], at: list[int]) -> list[int]:
    """Return the positions `at` whose UID has an index record, live or retained."""
    if not at:
        return at
    known = set(mailbox.state.records(np.array([uids[one] for one in at], dtype=np.uint32))[2].tolist())
    return [one for one in at if uids[one] in known]


async def _load_segments(mailbox: Index, uids: list[int]) -> bool:
    """Read the cache segments that have some of `uids` and were not read before.
    Returns True if any was read."""
    names = [
        name
        for name in mailbox.stamp.segments
        if name not in mailbox.segments_read
        and any(low <= uid <= high for low, high in (segment_range(name),) for uid in uids)
    ]
    if not names:
        return False
    mailbox.segments_read.update(names)
    for payload in await mailbox.bundles.get_segments(names):
        if payload is not None:
            try:
                pairs = msgspec.msgpack.decode(payload, type=list[tuple[int, bytes]])
            except msgspec.MsgspecError as exc:
                log.warning(
                    "cache segment damaged, its ready fields are made again", mailbox=mailbox.guid, error=str(exc)
                )
                continue
            _, there = mailbox.state.positions(np.array([uid for uid, _ in pairs], dtype=np.uint32))
            mailbox.put_fields([pair for pair, live in zip(pairs, there.tolist(), strict=True) if live])
    return True


async def mails(
    mailbox: Index, uids: Sequence[int], *, autofix: bool
) -> AsyncGenerator[tuple[int, bytes | Unreadable | None], None]:
    """See `api.Mailbox.mails`."""
    at = 0
    while at < len(uids):
        packs = await _packs(mailbox, uids[at : at + AHEAD_PACKED]) if possible(mailbox.env) else {}
        batch = _where(mailbox, uids, at, AHEAD_PACKED if packs else AHEAD)
        if packs:
            spot = hinted([place for _, place, _, _ in batch if place is not None], packs)
            batch = [(uid, place and spot.get(place.key, place), oid, size) for uid, place, oid, size in batch]
        at += len(batch)
        sources = await _load(mailbox, batch, autofix=autofix)
        for uid, place, oid, _ in batch:
            if (source := sources.get(oid)) is None and place is not None and mailbox.state.position(uid) is not None:
                source = NotFound("the mail is lost from the storage")
            yield uid, source


_Found = tuple[int, Place | None, bytes, int]
"""(uid, place and oid of its envelope, octets). There is no place if the mail is
gone."""


async def _load(mailbox: Index, batch: list[_Found], *, autofix: bool) -> dict[bytes, bytes | Unreadable]:
    """Return the mails of a batch by oid, or why they cannot be read, without mails
    that are gone or lost."""
    env, sid = mailbox.env, mailbox.user.storage_id
    out: dict[bytes, bytes | Unreadable] = {}
    keys: dict[str, bytes] = {}
    places: dict[str, Place] = {}
    expunged: set[str] = set()
    size = 0
    for uid, place, oid, octets in batch:
        mail = env.recent.get(name_of(sid, oid))
        if mail is not None:
            out[oid] = mail
        elif place is not None:
            keys[place.key], places[place.key] = oid, place
            size += octets
            if len(mailbox.state.retained) and mailbox.state.position(uid) is None:
                expunged.add(place.key)
    if not keys:
        return out
    fetched: set[str] = set()
    ranges = Ranges(lambda key, start, end: env.get(key, kind="mail", start=start, end=end), mailbox.user.spawn)

    async def fetch(key: str) -> bytes:
        fetched.add(key)
        place, data = places[key], await ranges.get(places[key])
        if possible(env) and not fits(place, keys[key], data):
            place, data = await find(mailbox, place, keys[key]) or (place, data)
        return _there(mailbox, place, data, expunged=key in expunged)

    found = await env.fscache.get_many(list(keys), fetch, parallel=len(keys), absent=(NotFound, Expunged))
    objects = {key: data for key, data in zip(keys, found, strict=True) if data is not None}
    if autofix and len(objects) < len(keys):
        lost = {uid: place for uid, place, _, _ in batch if place and place.key in keys and place.key not in objects}
        objects |= await look_again(mailbox, lost)
    data, owners = list(objects.values()), [owner_of(key) for key in objects]
    if size > INLINE_DECODED_BYTES or sum(map(len, data)) > INLINE_BYTES:
        decoded = await asyncio.to_thread(env.codec.decode_many, data, owners)
    else:
        decoded = env.codec.decode_many(data, owners)
    for key, one in zip(objects, decoded, strict=True):
        oid = keys[key]
        try:
            if isinstance(one, StoreError) and key not in fetched:
                mail = out[oid] = await _read_again(mailbox, places[key], oid, expunged=key in expunged)
            else:
                mail = out[oid] = _checked(mailbox, key, oid, one)
        except Expunged:
            continue
        except (Corrupt, NotFound) as damage:
            out[oid] = damage
            await env.fscache.drop(key)
        else:
            env.recent.put(name_of(sid, oid), mail)
    return out


async def look_again(mailbox: Index, lost: dict[int, Place], end: int | None = None) -> dict[str, bytes]:
    """See `lost.check_again`."""
    await loaded("obox.store.mails.lost")
    from .lost import check_again

    return await check_again(mailbox, lost, end=end)


async def whole(mailbox: Index, place: Place, oid: bytes, *, expunged: bool) -> bytes:
    """Read a mail. expunged: whether it is expunged. Raises NotFound, Expunged,
    Corrupt, Unavailable."""
    fetched: list[bytes] = []

    async def fetch() -> bytes:
        fetched.append(await _get_envelope(mailbox, place, oid, expunged=expunged))
        return fetched[0]

    key = place.key
    data = await mailbox.env.fscache.get(key, fetch)
    try:
        return await _decode(mailbox, key, oid, data)
    except Corrupt:
        await mailbox.env.fscache.drop(key)
        if fetched:
            raise
    return await _read_again(mailbox, place, oid, expunged=expunged)


async def _read_again(mailbox: Index, place: Place, oid: bytes, *, expunged: bool) -> bytes:
    """Read a mail again whose cached object does not decode. The file is damaged, or of
    an older version than the bucket accepts. Raises NotFound, Expunged, Corrupt,
    Unavailable."""
    key = place.key
    await mailbox.env.fscache.drop(key)
    data = await _get_envelope(mailbox, place, oid, expunged=expunged)
    mail = await _decode(mailbox, key, oid, data)
    await mailbox.env.fscache.put(key, data)
    return mail


async def _packs(mailbox: Index, uids: Sequence[int]) -> dict[str, Packs]:
    """Return the known packs of the mailboxes that have the objects of these mails."""
    state = mailbox.state
    table, where, _ = state.records(np.asarray(uids, dtype=np.uint32))
    homes = set(table.column("home")[where].tolist())
    return await known(mailbox, [mailbox.guid if home < 0 else state.homes[home] for home in homes])


def _where(mailbox: Index, uids: Sequence[int], begin: int, most: int) -> list[_Found]:
    """Return the places of the next mails: at most `most` mails, and AHEAD_BYTES if
    there are several."""
    state, sid = mailbox.state, mailbox.user.storage_id
    if len(uids) == 1 and (at := state.position(uids[0])) is not None:
        place = place_of(state, at, sid, *state.home_of(at))
        oid, octets = state.column("oid")[at].tobytes(), state.column("size").item(at)
        return [(uids[0], place, oid, octets)]
    part = np.asarray(uids[begin : begin + most], dtype=np.uint32)
    table, where, known = state.records(part)
    there = np.ones(len(part), dtype=np.bool_) if known is part else np.isin(part, known, assume_unique=True)
    sizes = np.zeros(len(part), dtype=np.int64)
    octets = table.column("size")[where].tolist()
    sizes[there] = octets
    count = max(1, int(np.searchsorted(np.cumsum(sizes), AHEAD_BYTES, side="right")))
    oids = table.column("oid")[where].tobytes()
    homes, home_uids = table.column("home")[where].tolist(), table.column("home_uid")[where].tolist()
    spots = table.column("place")[where].tolist()
    prefixes = {home: mail_prefix(sid, mailbox.guid if home < 0 else state.homes[home]) for home in set(homes)}
    out: list[_Found] = []
    row = 0
    for uid, here in zip(part[:count].tolist(), there.tolist(), strict=False):
        if not here:
            out.append((uid, None, b"", 0))
            continue
        prefix, (under, start, length) = prefixes[homes[row]], spots[row]
        key = f"{prefix}{home_uids[row]:08x}"
        lies = Place(key, f"{prefix}{under:08x}", start, length) if under else Place(key, key)
        out.append((uid, lies, oids[row * 16 : row * 16 + 16], octets[row]))
        row += 1
    return out


async def part(mailbox: Index, uid: int, start: int, end: int) -> bytes:
    """See `api.Mailbox.part`."""
    state, env = mailbox.state, mailbox.env
    table, where, known = state.records(np.array([uid], dtype=np.uint32))
    if len(known) == 0:
        raise Expunged("the mail has been expunged")
    position, expunged = int(where[0]), table is not state
    home, home_uid = home_of(table, position, mailbox.guid, state.homes)
    oid = bytes(table.column("oid")[position])
    size = int(table.column("size")[position])
    place = place_of(table, position, mailbox.user.storage_id, home, home_uid)
    key = place.key
    if possible(env):
        place = hinted([place], await _packs(mailbox, [uid])).get(key, place)
    if size <= WHOLE_MAX:
        return (await _read(mailbox, place, oid, expunged=expunged))[start:end]

    async def read(low: int, high: int) -> bytes:
        return await env.fscache.read_range(key, low, high, fetch)

    async def fetch(low: int, high: int) -> bytes:
        nonlocal place
        begin, most = place.start, place.length or sys.maxsize
        found = await env.get(place.under, kind="mail", start=begin + min(low, most), end=begin + min(high, most))
        if found is None and possible(env) and (moved := await find(mailbox, place, oid)) is not None:
            place, found = moved[0], moved[1][low:high]
        return _there(mailbox, place, found, expunged=expunged, part=True)

    async def cut() -> bytes:
        try:
            header = env.codec.decode_header(await read(0, 8192), owner)
        except ShortPrefix as short:
            header = env.codec.decode_header(await read(0, short.need), owner)
        _check(mailbox, key, oid, header)
        low, high = header.frames_for(start, end)
        return header.decode_range(await read(low, high) if high > low else b"", start, end)

    owner = owner_of(key)
    try:
        return await cut()
    except (CorruptObject, NewerFormat, ShortPrefix) as exc:
        # The file of the cache is damaged, or the object was rewritten (`storage
        # upgrade`) between two requests.
        log.warning("mail does not decode, it is read again", key=key, user=mailbox.user.name, error=str(exc))
        await env.fscache.drop(key)
    try:
        return await cut()
    except (CorruptObject, NewerFormat, ShortPrefix) as exc:
        log.error("mail damaged", key=key, user=mailbox.user.name, error=str(exc))
        await env.fscache.drop(key)
        raise Corrupt("the mail is damaged in the storage") from exc


def _check(mailbox: Index, key: str, oid: bytes, header: Header) -> None:
    """Raises Corrupt if this is not the mail that the index names."""
    _check_oid(mailbox, key, oid, header.oid)
    if header.major == OLD_MAJOR:
        _check_owner(mailbox, key, header.meta)


async def _read(mailbox: Index, place: Place, oid: bytes, *, expunged: bool) -> bytes:
    """Read the mail at a place. expunged: whether it is expunged. Raises NotFound,
    Expunged, Corrupt, Unavailable."""
    name = name_of(mailbox.user.storage_id, oid)
    mail = mailbox.env.recent.get(name)
    if mail is None:
        mail = await whole(mailbox, place, oid, expunged=expunged)
        mailbox.env.recent.put(name, mail)
    return mail


async def _get_envelope(mailbox: Index, place: Place, oid: bytes, *, expunged: bool) -> bytes:
    """GET a mail's envelope. Raises NotFound if it is lost.

    expunged: whether the mail is expunged. Then its object may have been deleted; this
    raises Expunged, and nothing is logged.
    """
    end = place.start + place.length if place.length else None
    data = await mailbox.env.get(place.under, kind="mail", start=place.start, end=end)
    if possible(mailbox.env) and not fits(place, oid, data):
        place, data = await find(mailbox, place, oid) or (place, data)
    return _there(mailbox, place, data, expunged=expunged)


def _there(mailbox: Index, place: Place, data: bytes | None, *, expunged: bool, part: bool = False) -> bytes:
    """Return what a GET has found at a place; see `_get_envelope`. part: it is a part
    of the envelope."""
    if data is None:
        if expunged:
            raise Expunged("the mail has been expunged")
        log.error("mail lost", key=place.under, user=mailbox.user.name, next_step="restore it, or oboxadm force-resync")
        raise NotFound("the mail is lost from the storage")
    return data if part else envelope_at(place, data)


async def _decode(mailbox: Index, key: str, oid: bytes, data: bytes) -> bytes:
    """Return the mail in an object, after checking that it is the right mail. Raises
    Corrupt."""
    decoded: Decoded | StoreError
    try:
        decoded = await mailbox.env.decode(data, owner_of(key))
    except StoreError as error:
        decoded = error
    return _checked(mailbox, key, oid, decoded)


def _checked(mailbox: Index, key: str, oid: bytes, decoded: Decoded | StoreError) -> bytes:
    """Check as `_decode` does, for an object that has been decoded, or for the error of
    decoding it."""
    if isinstance(decoded, StoreError):
        log.error("mail damaged", key=key, user=mailbox.user.name, error=str(decoded))
        raise Corrupt("the mail is damaged in the storage") from decoded
    _check_oid(mailbox, key, oid, decoded.oid)
    if decoded.major == OLD_MAJOR:
        _check_owner(mailbox, key, decoded.meta)
    return decoded.payload


def _check_owner(mailbox: Index, key: str, meta: bytes) -> None:
    """Raises Corrupt if a mail of version 1 names another mailbox or UID."""
    try:
        check_meta(MailMeta.decode(meta), key)
    except Corrupt as exc:
        log.error("object of another mail under this key", key=key, user=mailbox.user.name, error=str(exc))
        raise Corrupt("the mail is damaged in the storage") from exc


def _check_oid(mailbox: Index, key: str, oid: bytes, found: bytes) -> None:
    """Raises Corrupt if the object under a mail's key is not the object that the index
    names."""
    if found != oid:
        log.error("object of another mail under this key", key=key, user=mailbox.user.name)
        raise Corrupt("the mail is damaged in the storage")
