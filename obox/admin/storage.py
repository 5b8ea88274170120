"""The verb storage check: does the bucket do what obox needs of it, and are its settings good."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from .exits import Incomplete
from .parts import Admin
from .table import Event, Nothing, Row, verb

if TYPE_CHECKING:
    from ..objectstore import ObjectStore

CLOCK_SKEW_MAX_S: Final = 60.0
"""Between the bucket's clock and ours: ages of objects are told by its clock, delays by ours."""

NAMES: Final = ("a", "b", "c/d", "c0", "z")
"""In key order, which is byte order: `/` sorts before `0`."""


@verb("storage check", Nothing, columns=("check", "result", "detail", "ms"))
async def storage_check(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """Try all that obox asks of the bucket: rights, create-only PUT, ranges, LIST order, deleting; its clock and rules.

    Writes a few small objects below _probe/ and removes them. Exit 65 if something that obox needs is wrong; warnings
    are about what you may want otherwise.
    """
    store = admin.store
    bucket = store.env.bucket
    prefix = f"_probe/{store.env.random_bytes(16).hex()}/"
    wrong = []
    try:
        for name, check in (
            ("rights", _rights),
            ("create-only", _create_only),
            ("range", _range),
            ("list order", _list_order),
            ("copy", _copy),
            ("clock", lambda bucket, prefix: _clock(bucket, prefix, store.env.now)),
            ("delete", _delete),
        ):
            row = await _checked(name, bucket, prefix, check)
            if row["result"] == "wrong":
                wrong.append(name)
            yield row
    finally:
        await store.env.delete([prefix + name for name in ("one", "two", *NAMES)], kind="format")
    async for row in _rules(admin):
        yield row
    if wrong:
        raise Incomplete(f"the bucket is not fit: {', '.join(wrong)}")


Check = Callable[["ObjectStore", str], Awaitable[tuple[str, str]]]


async def _checked(name: str, bucket: ObjectStore, prefix: str, check: Check) -> Row:
    from ..objectstore import StoreError

    began = time.perf_counter()
    try:
        result, detail = await check(bucket, prefix)
    except StoreError as error:
        result, detail = "wrong", str(error)
    return {"check": name, "result": result, "detail": detail, "ms": round((time.perf_counter() - began) * 1000, 1)}


async def _rights(bucket: ObjectStore, prefix: str) -> tuple[str, str]:
    await bucket.put(prefix + "one", b"0123456789", kind="format")
    got = await bucket.get(prefix + "one", kind="format")
    listed = await bucket.list(prefix, kind="format")
    if got != b"0123456789" or [info.key for info in listed] != [prefix + "one"]:
        return "wrong", "what was written is not what is read: PUT, GET and LIST disagree"
    return "ok", "PUT, GET, LIST; what is written is seen at once"


async def _create_only(bucket: ObjectStore, prefix: str) -> tuple[str, str]:
    from ..objectstore import AlreadyExists

    try:
        await bucket.put(prefix + "one", b"other", kind="format")
    except AlreadyExists:
        return "ok", "a second PUT under a key is refused"
    return "wrong", 'a second PUT replaces the object; allowed: conditional_put = "off" with one backend alone'


async def _range(bucket: ObjectStore, prefix: str) -> tuple[str, str]:
    got = await bucket.get(prefix + "one", kind="format", start=3, end=6)
    return ("ok", "a part of an object is read") if got == b"345" else ("wrong", f"bytes 3 to 6 are {got!r}")


async def _list_order(bucket: ObjectStore, prefix: str) -> tuple[str, str]:
    for name in reversed(NAMES):
        await bucket.put(prefix + name, b"x", kind="format")
    listed = [info.key.removeprefix(prefix) for info in await bucket.list(prefix, kind="format")]
    after = [info.key.removeprefix(prefix) for info in await bucket.list(prefix, kind="format", after=prefix + "b")]
    if listed != sorted([*NAMES, "one"]) or after != [name for name in listed if name > "b"]:
        return "wrong", f"LIST gives {' '.join(listed)}"
    return "ok", "LIST is in byte order, new objects are in it, and it begins where it is told"


async def _copy(bucket: ObjectStore, prefix: str) -> tuple[str, str]:
    await bucket.copy(prefix + "one", prefix + "two", kind="format")
    got = await bucket.get(prefix + "two", kind="format")
    return ("ok", "an object is copied") if got == b"0123456789" else ("wrong", "a copy differs from its original")


async def _clock(bucket: ObjectStore, prefix: str, now: Callable[[], float]) -> tuple[str, str]:
    infos = await bucket.list(prefix, kind="format")
    off = max((info.modified for info in infos), default=0.0) - now()
    text = f"the bucket's clock is {abs(off):.0f} s {'ahead of' if off > 0 else 'behind'} ours"
    return ("warning" if abs(off) > CLOCK_SKEW_MAX_S else "ok"), text


async def _delete(bucket: ObjectStore, prefix: str) -> tuple[str, str]:
    keys = [info.key for info in await bucket.list(prefix, kind="format")]
    await bucket.delete([*keys, prefix + "never"], kind="format")
    left = await bucket.list(prefix, kind="format")
    return ("wrong", f"{len(left)} objects are still listed") if left else ("ok", "DELETE in bulk; gone at once")


async def _rules(admin: Admin) -> AsyncIterator[Row]:
    """Settings of the bucket, as far as it tells them."""
    if admin.describe_bucket is None:
        return
    facts: Any = await admin.describe_bucket()
    if not facts:
        return
    began = time.perf_counter()

    def row(check: str, result: str, detail: str) -> Row:
        return {"check": check, "result": result, "detail": detail, "ms": round((time.perf_counter() - began) * 1000)}

    expiring = facts.get("expires_current", [])
    if "lifecycle" in facts:
        if expiring:
            yield row("lifecycle", "warning", f"rules delete current objects, so mails: {', '.join(expiring)}")
        else:
            yield row("lifecycle", "ok", facts["lifecycle"])
    versioning = facts.get("versioning", "unknown")
    if versioning == "on" and not facts.get("expires_versions"):
        yield row("versioning", "warning", "on, and no rule deletes old versions: deleted mails stay and cost")
    else:
        yield row("versioning", "ok" if versioning in ("on", "off") else "unknown", str(versioning))
    for problem in facts.get("problems", ()):
        yield row("settings", "unknown", str(problem))
