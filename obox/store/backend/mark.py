"""`_format`, the object that says what the objects of a bucket may be.

It has two layouts (docs/format.md, "Versions"). The older layout says only whether
objects of version 1 are accepted. Once a newer version of a form is allowed, it also
lists the versions that objects may have. Its `major` is then 3, so that an older obox
does not start on the bucket.

Invariant: `_format` allows a version before the first object of that version is
written. Its versions only rise. A backend that cannot read them does not start. Each
content has an oid of its own, because a key seals a single text under an oid. `bucket`
keeps the first oid, which identifies the bucket.

Diagnostics: ConfigError if this obox must not serve the bucket.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec
import structlog

from ...errors import ConfigError, NotFound, Unavailable
from ...forms import above, beyond, first, highest, offered, reads, spelled
from ...objectstore import CorruptObject, NewerFormat, StoreError, put_once
from ...objectstore.codec import MAJOR, OLD_MAJOR, ObjectKind
from ...objectstore.keys import FORMAT_KEY, owner_of
from ...types import Oid
from ..env import Env

log = structlog.get_logger()

WITH_FORMS: Final = 3
"""`major` of a `_format` that has versions of forms."""

ATTEMPTS: Final = 5
"""Attempts to raise a version while others raise versions too."""


class _Content(msgspec.Struct):
    """The payload. oldest: the oldest envelope that is accepted; bucket: the oid of the
    first `_format`. These and `forms` are there with WITH_FORMS only."""

    major: int
    minor: int = 0
    oldest: int = 0
    forms: dict[str, int] = {}
    bucket: bytes = b""


class Mark(NamedTuple):
    """What `_format` says. bucket: identifies the bucket; oldest: the oldest envelope
    that is accepted; forms: versions that objects may have."""

    bucket: bytes
    oldest: int
    forms: Mapping[str, int]
    data: bytes


async def read(env: Env, *, lenient: bool = False) -> Mark | None:
    """Return None if the bucket is new. lenient: see `Codec.decode`. Raises
    ConfigError, Unavailable."""
    data = await env.get(FORMAT_KEY, kind="format")
    if data is None:
        return None
    try:
        decoded = env.codec.decode(data, owner_of(FORMAT_KEY), lenient=lenient)
        content = msgspec.msgpack.decode(decoded.payload, type=_Content)
    except NewerFormat as exc:
        raise ConfigError(f"storage.url: the bucket was written by a newer obox: {exc}") from exc
    except (CorruptObject, msgspec.MsgspecError) as exc:
        raise ConfigError(f"storage.url: {FORMAT_KEY} in the bucket does not decode: {exc}") from exc
    if not OLD_MAJOR <= content.major <= WITH_FORMS:
        raise ConfigError(f"storage.url: the bucket has format {content.major}; allowed: {OLD_MAJOR} to {WITH_FORMS}")
    if unread := beyond(content.forms, reads()):
        ours = {name: reads().get(name, 0) for name in unread}
        raise ConfigError(
            f"storage.url: objects of the bucket may be {spelled(unread)} since `cluster upgrade`, and this obox reads "
            f"{spelled(ours)}; install the version of obox that the other backends have"
        )
    oldest = content.oldest if content.major == WITH_FORMS else content.major
    return Mark(content.bucket or bytes(decoded.oid), oldest, content.forms, data)


def _encoded(
    env: Env, forms: Mapping[str, int], *, oldest: int, bucket: bytes = b"", oid: Oid | None = None
) -> tuple[bytes, Oid]:
    """Encode a `_format`. bucket: b"" for the first. oid: None means a fresh oid."""
    raised = above(forms, {})
    content: object = {"major": oldest, "minor": 0}
    if raised or bucket:
        content = _Content(WITH_FORMS, 0, oldest, raised, bucket)
    oid = env.new_oid() if oid is None else oid
    return env.codec.encode(ObjectKind.FORMAT, owner_of(FORMAT_KEY), oid, b"", msgspec.msgpack.encode(content)), oid


async def open_bucket(env: Env, *, alone: bool, known: bool) -> bytes:
    """Read `_format`, or write it to a new bucket. Returns what identifies the bucket.

    alone: no other backend uses the bucket, so that a new one begins with the newest
    versions. known: this backend has served a bucket before. Raises ConfigError,
    Unavailable.
    """
    while (found := await read(env)) is None:
        if known:
            raise ConfigError(
                f"storage.url: {FORMAT_KEY} is not in the bucket, but the state_dir has served one; allowed: "
                "that bucket (a directory that is not mounted?), or an empty state_dir"
            )
        forms = above(offered(), {}) if alone else {}
        data, oid = _encoded(env, forms, oldest=first("envelope"))
        try:
            if await put_once(env.bucket, FORMAT_KEY, data, oid, kind="format"):
                found = Mark(bytes(oid), first("envelope"), forms, data)
                break
        except StoreError as exc:
            raise env.unavailable("put", FORMAT_KEY, exc) from exc
    env.codec.major_min = max(env.codec.major_min, found.oldest)
    env.forms.rise(found.forms)
    return found.bucket


async def raise_forms(env: Env, wanted: Mapping[str, int]) -> None:
    """Let objects have these versions from now on. `_format` says so first. Raises
    ConfigError, Unavailable."""
    for _ in range(ATTEMPTS):
        found = await read(env)
        if found is None:
            raise ConfigError(f"storage.url: {FORMAT_KEY} is not in the bucket")
        if not above(wanted, found.forms):
            env.forms.rise(found.forms)
            return
        forms = highest(found.forms, wanted)
        data, _ = _encoded(env, forms, oldest=found.oldest, bucket=found.bucket)
        await _replace(env, data)
        log.info("bucket may have newer objects, an older obox does not start on it any more", forms=spelled(forms))
    raise Unavailable("another backend changes _format at the same time; try again")


async def finish(env: Env) -> None:
    """Refuse older envelopes from now on, because no object has one. Raises NotFound,
    ConfigError, Unavailable."""
    found, newest = await read(env, lenient=True), first("envelope")
    if found is None:
        raise NotFound(f"{FORMAT_KEY} is not in the bucket")
    if found.oldest < newest and found.forms:
        new = _encoded(env, found.forms, oldest=newest, bucket=found.bucket)[0]
    elif found.oldest < newest:
        # An older envelope has a key of its own, so the oid may stay.
        new = _encoded(env, {}, oldest=newest, oid=Oid(found.bucket))[0]
    else:
        new = env.codec.renewed(found.data, owner_of(FORMAT_KEY)) if env.codec.outdated(found.data) else b""
    if new:
        await _replace(env, new)
        log.info("bucket upgraded", format=newest)
    env.codec.major_min = MAJOR


async def _replace(env: Env, data: bytes) -> None:
    """Write over `_format`. Raises Unavailable."""
    try:
        await env.bucket.replace(FORMAT_KEY, data, kind="format")
    except StoreError as exc:
        raise env.unavailable("put", FORMAT_KEY, exc) from exc
