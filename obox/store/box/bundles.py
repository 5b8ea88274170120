"""The bundles of a box (a mailbox, or a user's root) in the bucket: lists, reads,
writes and deletes them.

A base has the whole state. A diff has everything that changed since its base. A new
diff replaces the diff before it, so that a cold open reads two objects. A bundle's meta
names the bundles that it covers. Bundles that no other bundle covers are the heads, and
the state is the join of the heads. A covered bundle is deleted when the bundle that
covers it has been in the bucket for `delete_delay`.

Invariant: a bundle is PUT before the local copy names it. Nothing that a reader may
need is deleted before its delay. Diagnostics: a bundle that does not decode is
`Corrupt` and names its key; the operator repairs it (`oboxadm force-resync`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

import msgspec
import structlog
from msgspec.structs import replace

from ...errors import Corrupt, Unavailable
from ...objectstore import CorruptObject, NewerFormat, ObjectInfo, ObjectKind
from ...objectstore.keys import BundleKey, Form, bundle_key, bundles_prefix, is_pack, owner_of, parse_bundle_key
from ...types import StorageId
from ..env import TRY_LATER, Env
from ..stamp import Stamp, name_of

log = structlog.get_logger()

DIFF_SHARE: Final = 4
"""A diff that would be larger than 1/4 of its base becomes a new base."""

DIFF_FREE_BYTES: Final = 16 * 1024
"""A diff smaller than this is always written, because a base costs the same request and
more bytes."""


VERSIONS_MAX: Final = 1 << 62
"""A base or diff of this version or above is foreign: no box is written as often."""


_KINDS: Final = {"base": ObjectKind.BASE, "diff": ObjectKind.DIFF, "cache": ObjectKind.CACHE}
"""The kind of an object by the form in its key."""


class BundleMeta(msgspec.Struct, omit_defaults=True):
    """covers: names (the last key element) of the bundles that this bundle makes
    superfluous. clean: only of a root; everything of the user was flushed with it, so
    its totals are exact. base: the name of the base that a diff belongs to."""

    covers: list[str] = []
    clean: bool = False
    base: str = ""


@dataclass
class Loaded:
    """What the bucket has of a box: the payloads of its heads, oldest first."""

    stamp: Stamp
    payloads: list[bytes] = field(default_factory=list)
    merged: bool = False
    """Whether they are of more than a single history."""


def by_box(infos: Iterable[ObjectInfo]) -> dict[str, list[ObjectInfo]]:
    """Group a LIST of a user's bundles by box, without packs. Foreign keys are logged
    and left alone."""
    boxes: dict[str, list[ObjectInfo]] = {}
    for info in infos:
        if is_pack(info.key):
            continue
        try:
            key = parse_bundle_key(info.key)
            if key.form != "cache" and key.version >= VERSIONS_MAX:
                raise ValueError(key.version)
            boxes.setdefault(key.box, []).append(info)
        except ValueError:
            log.warning("foreign object among the indexes ignored", key=info.key)
    return boxes


class Bundles:
    """The bundles of a box. stamp: what is known of them. To change it, replace the
    value between two awaits."""

    def __init__(self, env: Env, sid: StorageId, box: str) -> None:
        self.stamp = Stamp()
        self.cleared = False
        """Whether `clear_all` has begun."""
        self._env = env
        self._sid = sid
        self._box = box
        self._prefix = bundles_prefix(sid, box)
        self._owner = owner_of(self._prefix)

    async def listing(self) -> list[ObjectInfo]:
        """LIST the bundles of the box, without foreign objects. Raises Unavailable."""
        return by_box(await self._env.listing(self._prefix, kind="index")).get(self._box, [])

    def cover(self, infos: list[ObjectInfo]) -> None:
        """Let the next bundle cover all bundles of a LIST, also bundles that do not
        decode."""
        heads = [info for info in infos if not info.key.endswith(".cache")]
        segments = tuple(name_of(info.key) for info in infos if info.key.endswith(".cache"))
        self.stamp = Stamp(
            version=max((parse_bundle_key(info.key).version for info in heads), default=0),
            heads=tuple(name_of(info.key) for info in heads),
            segments=segments,
            cached_uid=max((segment_range(name)[1] for name in segments), default=0),
        )

    async def load(self, infos: list[ObjectInfo]) -> Loaded:
        """Read the heads among `infos`, this box's part of a LIST. It reads the newest
        first, so that most bundles are never read."""
        parsed = sorted(
            ((parse_bundle_key(info.key), info) for info in infos), key=lambda p: (p[0].version, p[0].writer)
        )
        bundles = [(key, info) for key, info in parsed if key.form != "cache" and info.size]
        segments = tuple(name_of(info.key) for key, info in parsed if key.form == "cache")
        clean = False
        covered = _outdone(bundles)
        heads: list[tuple[BundleKey, ObjectInfo, bytes]] = []
        base_of: dict[str, str] = {}
        pending = [(key, info) for key, info in bundles if name_of(info.key) not in covered]
        while pending:
            # Nearly always a base and its diff, which are read at the same time.
            wave = pending[-2:]
            pending = pending[:-2]
            wanted = [(key, info) for key, info in wave if name_of(info.key) not in covered]
            bodies = await self._env.get_all([info.key for _, info in wanted], kind="index")
            for (key, info), body in sorted(zip(wanted, bodies, strict=True), key=lambda p: -p[0][0].version):
                if name_of(info.key) in covered:
                    continue
                # It was covered and deleted since the LIST, which lacks the covering
                # bundle.
                if body is None:
                    raise Unavailable(TRY_LATER)
                meta, payload = await self.decode(info.key, body)
                covered.update(meta.covers)
                heads.append((key, info, payload))
                base_of[name_of(info.key)] = meta.base
                clean = meta.clean and len(heads) == 1
            pending = [(key, info) for key, info in pending if name_of(info.key) not in covered]
        heads.sort(key=lambda head: (head[0].version, head[0].writer))
        bases = [head for head in heads if head[0].form == "base"]
        names = tuple(name_of(info.key) for _, info, _ in heads)
        newest = max((info.modified for _, info in bundles), default=0.0)
        need_base = [base_of[name] for name in names] not in ([""], ["", names[0]] if heads else [""])
        stamp = Stamp(
            version=max((key.version for key, _ in bundles), default=0),
            heads=names,
            known_at=bases[-1][1].modified if bases else 0.0,
            need_base=need_base,
            # Use the newest bundle's time. Any of the bundles may cover this object,
            # and none is younger.
            superseded=tuple((name, newest) for _, info in bundles if (name := name_of(info.key)) not in names),
            segments=segments,
            cached_uid=max((segment_range(name)[1] for name in segments), default=0),
            clean=clean,
        )
        return Loaded(stamp, [payload for _, _, payload in heads], need_base and len(heads) > 1)

    async def decode(self, key: str, body: bytes) -> tuple[BundleMeta, bytes]:
        """Decode a bundle. Raises Corrupt, also if the kind is not the form in the key:
        all objects of a box have the same owner."""
        try:
            decoded = await self._env.decode(body, self._owner)
            if decoded.kind != _KINDS[parse_bundle_key(key).form]:
                raise CorruptObject(f"an object of kind {decoded.kind}")
            return msgspec.msgpack.decode(decoded.meta, type=BundleMeta), decoded.payload
        except (CorruptObject, NewerFormat, msgspec.MsgspecError) as exc:
            raise Corrupt(f"index bundle {key} does not decode: {exc}") from exc

    async def put(self, form: Form, payload: bytes, *, modseq: int, uidnext: int = 0, clean: bool = False) -> None:
        """Write a bundle and note what it makes superfluous. Raises Unavailable; then
        nothing is covered. Raises Corrupt: no version is left."""
        stamp = self.stamp
        keep = () if form == "base" else stamp.heads[:1]
        covers = [name for name in stamp.heads if name not in keep]
        version = stamp.version + 1
        if version >= VERSIONS_MAX:
            raise Corrupt(f"a foreign object below {self._prefix} has the last version; remove it from the bucket")
        # Also after a PUT that fails, because it may have landed or may land later.
        self.stamp = replace(stamp, version=version)
        key = bundle_key(self._sid, self._box, version, self._env.writer, form)
        covered = [*covers, *_last_of_others(stamp.superseded, self._env.writer)]
        meta = msgspec.msgpack.encode(BundleMeta(covered, clean, keep[0] if keep else ""))
        now = self._env.now()
        try:
            if not await self._env.put_new(key, _KINDS[form], meta, payload):
                raise Unavailable(TRY_LATER)
        except BaseException:
            self._supersede([name_of(key)], now)
            raise
        now = self._env.now()
        self._supersede(covers, now)
        stamp = replace(
            self.stamp,
            heads=(*keep, name_of(key)),
            clean=clean,
            flushed_uidnext=max(self.stamp.flushed_uidnext, uidnext),
        )
        if form == "base":
            stamp = replace(stamp, base_modseq=modseq, base_bytes=len(payload), need_base=False)
        if stamp.known_at <= now - self._env.delete_delay_s:
            stamp = replace(stamp, known_uidnext=uidnext, known_at=now)
        self.stamp = stamp

    async def put_segment(self, low: int, high: int, payload: bytes) -> None:
        """Write the fields of the UIDs low..high. Segments inside that range are
        superseded."""
        key = bundle_key(self._sid, self._box, low << 32 | high, self._env.writer, "cache")
        # An existing segment is from an earlier attempt. Fields never change; at worst
        # it has fewer of them.
        await self._env.put_new(key, ObjectKind.CACHE, b"", payload)
        segments = self.stamp.segments
        inside = [name for name in segments if low <= segment_range(name)[0] and segment_range(name)[1] <= high]
        self._supersede(inside, self._env.now())
        self.stamp = replace(
            self.stamp,
            segments=(*(name for name in segments if name not in inside), name_of(key)),
            cached_uid=max(self.stamp.cached_uid, high),
        )

    def _supersede(self, names: list[str], now: float) -> None:
        self.stamp = replace(self.stamp, superseded=(*self.stamp.superseded, *((name, now) for name in names)))

    async def get_segments(self, names: list[str]) -> list[bytes | None]:
        """Return the payloads of cache segments, None for a lost or damaged segment,
        whose fields are made again."""
        bodies = await self._env.get_all([self._prefix + name for name in names], kind="index")
        out: list[bytes | None] = []
        for body in bodies:
            try:
                decoded = None if body is None else await self._env.decode(body, self._owner)
            except (CorruptObject, NewerFormat):
                decoded = None
            out.append(decoded.payload if decoded is not None and decoded.kind == ObjectKind.CACHE else None)
        return out

    async def clear(self) -> bool:
        """Delete what has been superseded for the delay. Returns True if anything was
        deleted."""
        limit = self._env.now() - self._env.delete_delay_s
        old = [name for name, since in self.stamp.superseded if since < limit]
        if old:
            await self._env.delete([self._prefix + name for name in old], kind="index")
            left = tuple((name, since) for name, since in self.stamp.superseded if name not in old)
            self.stamp = replace(self.stamp, superseded=left)
        return bool(old)

    async def clear_all(self) -> None:
        """Delete every bundle and pack of a box that was deleted. Nobody writes
        another."""
        self.cleared = True
        infos = await self._env.listing(self._prefix, kind="index")
        await self.remove([*by_box(infos).get(self._box, []), *(info for info in infos if is_pack(info.key))])

    async def remove(self, infos: Iterable[ObjectInfo]) -> None:
        """Delete these bundles of a box that was deleted."""
        await self._env.delete([info.key for info in infos], kind="index")


def _last_of_others(superseded: Iterable[tuple[str, float]], writer: str) -> list[str]:
    """Return the last base and diff of each other writer among superseded bundles.
    `_outdone` follows from them."""
    last: dict[tuple[str, str], str] = {}
    for name, _ in superseded:
        version, other, form = name.split(".")
        if other != writer and form != "cache" and last.get((other, form), "") < version:
            last[other, form] = name
    return list(last.values())


def _outdone(bundles: list[tuple[BundleKey, ObjectInfo]]) -> set[str]:
    """Return bundles that a later bundle of their writer covers, although perhaps no
    remaining bundle names them.

    Each bundle of a writer has what its earlier bundles had: a base has all of it, a
    diff all since its base. A base names the diff before it and not the diffs before
    that, which that diff had covered.
    """
    last: dict[tuple[str, str], int] = {}
    for key, _ in bundles:
        last[key.writer, key.form] = max(last.get((key.writer, key.form), 0), key.version)
    return {
        name_of(info.key)
        for key, info in bundles
        if key.version < last.get((key.writer, "base"), 0)
        or (key.form == "diff" and key.version < last.get((key.writer, "diff"), 0))
    }


def segment_range(name: str) -> tuple[int, int]:
    """Return the UIDs of a cache segment from its name: low and high are the halves of
    its version."""
    version = int(name[:16], 16)
    return version >> 32, version & 0xFFFFFFFF
