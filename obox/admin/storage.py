"""The verb storage check. It checks whether the bucket does what obox needs, and
whether its settings are good.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Annotated, Any, Final

import structlog
from msgspec import Meta

from ..errors import Unavailable
from .exits import Incomplete
from .params import Params
from .parts import Admin
from .table import Event, Needs, Progress, Row, verb

if TYPE_CHECKING:
    from ..objectstore import ObjectStore, StoreError

log = structlog.get_logger("obox.admin")

CLOCK_SKEW_MAX_S: Final = 60.0
"""The allowed difference between the bucket's clock and the clock of this machine. Ages
of objects come from the bucket's clock, and delays from the clock of this machine."""

NAMES: Final = ("a", "b", "c/d", "c0", "z")
"""Keys in byte order: `/` sorts before `0`."""

DELETES_MAX: Final = 4
"""An object that is still listed after this number of deletions is a fault. A slow PUT
was sent again, and its first attempt may land after a DELETE.
"""

GIVE_UP_S: Final = 3.0
"""The first request may fail without an answer for this time. A port without HTTP is
reported after this time, and not at the deadline.
"""

RACE: Final = "race/"
"""PUTs of the race go below this prefix. Some of them land late, so later checks ignore
objects there."""

SIBLINGS: Final = ("s-t/2", "s.t/1", "s/1", "s/2", "s/3", "st/1")
"""Directories with a common prefix, in byte order. Some stores list them in the order
of their names."""


class StorageCheckParams(Params, kw_only=True):
    count: Annotated[
        bool, Meta(description="Also count how the mails of all users lie in objects; reads the header of each object")
    ] = False


@verb("storage check", StorageCheckParams, needs=Needs.BUCKET, columns=("check", "result", "detail", "ms"))
async def storage_check(admin: Admin, params: StorageCheckParams) -> AsyncIterator[Event]:
    """Check that the bucket does everything that obox needs, and show its settings.

    It checks rights, create-only PUT, ranges, the order of LIST, deletion, the clock
    and the rules. It writes small objects below _probe/ and removes them. 160 of them
    are written at the same time, to check that of eight writers of a key only one
    succeeds. The exit code is 65 if something that obox needs is wrong, or if the store
    refuses; the row has the store's message. The exit code is 69 if the store does not
    answer. Warnings are about settings that you may want to change.
    """
    from ..objectstore import OpenStore, StoreError, sweep

    store = admin.store
    bucket = store.env.bucket
    prefix = f"_probe/{store.env.random_bytes(16).hex()}/"
    wrong = []
    written, late = asyncio.Event(), asyncio.Event()
    alone = isinstance(bucket, OpenStore) and bucket.settings.conditional_put == "off"
    try:
        for name, check in (
            ("rights", lambda bucket, prefix: _rights(bucket, prefix, written)),
            ("create-only", _alone if alone else _create_only),
            ("race", _alone if alone else lambda bucket, prefix: _race(bucket, prefix, late)),
            ("range", _range),
            ("list order", _list_order),
            ("copy", _copy),
            ("clock", lambda bucket, prefix: _clock(bucket, prefix, store.env.now)),
            ("delete", _delete),
        ):
            row, failure = await _checked(name, bucket, prefix, check)
            if row["result"] == "wrong":
                wrong.append(name)
            yield row
            if failure is not None and not failure.permanent:
                raise Unavailable(f"the storage does not answer: {failure}")
            if failure is not None and name == "rights":
                break  # the other checks would get the same answer
    finally:
        if written.is_set():
            try:
                await bucket.delete([prefix + name for name in ("one", "two", *NAMES, *SIBLINGS)], kind="format")
                await sweep(bucket, prefix, now=store.env.now(), late=late.is_set())
            except StoreError as error:  # the rows have more details
                log.warning("probe objects cannot be removed", prefix=prefix, error=str(error))
    async for row in _rules(admin):
        yield row
    if params.count:
        async for event in _count(admin):
            yield event
    if wrong:
        raise Incomplete(f"the bucket does not do what obox needs: {', '.join(wrong)}")


Check = Callable[["ObjectStore", str], Awaitable[tuple[str, str]]]


async def _checked(name: str, bucket: ObjectStore, prefix: str, check: Check) -> tuple[Row, StoreError | None]:
    from ..objectstore import StoreError

    began = time.perf_counter()
    failure = None
    try:
        result, detail = await check(bucket, prefix)
    except StoreError as error:
        result, detail, failure = "wrong", str(error), error
    ms = round((time.perf_counter() - began) * 1000, 1)
    return {"check": name, "result": result, "detail": detail, "ms": ms}, failure


async def _rights(bucket: ObjectStore, prefix: str, written: asyncio.Event) -> tuple[str, str]:
    """Sets `written` once there may be something to remove."""
    from ..objectstore import OutcomeUnknown

    try:
        await _answered(bucket, bucket.put(prefix + "one", b"0123456789", kind="format"))
    except OutcomeUnknown:
        written.set()
        raise
    written.set()
    got = await bucket.get(prefix + "one", kind="format")
    listed = await bucket.list(prefix, kind="format")
    if got != b"0123456789" or [info.key for info in listed] != [prefix + "one"]:
        return "wrong", "what is read differs from what was written: PUT, GET and LIST disagree"
    return "ok", "PUT, GET, LIST; what is written can be read at once"


async def _answered(bucket: ObjectStore, request: Coroutine[Any, Any, None]) -> None:
    """Send the first request, and give up early if all its attempts fail.

    Raises StoreError kinds.
    """
    from ..objectstore import Unreachable

    before = getattr(bucket, "last_failure", "")
    task = asyncio.ensure_future(request)
    try:
        while not (await asyncio.wait([task], timeout=GIVE_UP_S))[0]:
            failure = getattr(bucket, "last_failure", "")
            if failure and failure != before:
                raise Unreachable(failure)
        await task
    finally:
        task.cancel()


async def _alone(bucket: ObjectStore, prefix: str) -> tuple[str, str]:
    return "warning", 'not checked: with conditional_put = "off" one backend alone may use the bucket'


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


async def _race(bucket: ObjectStore, prefix: str, late: asyncio.Event) -> tuple[str, str]:
    """Sets `late` if PUTs may land after the race."""
    from ..objectstore import race

    raced = await race(bucket, prefix + RACE)
    if raced.late:
        late.set()
    if raced.fit:
        return "ok", str(raced)
    return "wrong", f'{raced}; allowed: conditional_put = "off" with one backend alone'


async def _list_order(bucket: ObjectStore, prefix: str) -> tuple[str, str]:
    """Check what obox needs of LIST: every key once, and a start at any key of a
    directory. It needs no order.
    """
    expected = sorted([*NAMES, *SIBLINGS, "one"])
    for name in reversed([*NAMES, *SIBLINGS]):
        await bucket.put(prefix + name, b"x", kind="format")
    listed = [info.key.removeprefix(prefix) for info in await bucket.list_as_stored(prefix, kind="format")]
    # Late PUTs of the race may still arrive.
    listed = [name for name in listed if not name.startswith(RACE)]
    below = prefix + "s/"
    after = [info.key.removeprefix(below) for info in await bucket.list(below, kind="format", after=below + "1")]
    names = await bucket.list_names(prefix, kind="format")
    if sorted(listed) != expected:
        return "wrong", f"LIST gives {' '.join(listed)}"
    if after != ["2", "3"]:
        return "wrong", f"LIST after s/1 gives {' '.join(after) or 'nothing'} instead of 2 3"
    # SeaweedFS lists empty directories, too.
    if not {"c", "s", "s-t", "s.t", "st"} <= set(names):
        return "wrong", f"LIST by directories gives {' '.join(names)}"
    if listed != expected:
        first, then = next(pair for pair in itertools.pairwise(listed) if pair[0] > pair[1])
        return "ok", f"LIST is complete, begins at the given key, and is not in byte order: {first} comes before {then}"
    return "ok", "LIST is complete, in byte order, and begins at the given key"


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
    """Check that a deleted object is not listed. If it can be read, a late PUT has made
    it again, and it is deleted once more.
    """
    from ..objectstore import Missing

    for _ in range(DELETES_MAX):
        keys = [info.key for info in await bucket.list(prefix, kind="format")]
        await bucket.delete([*keys, prefix + "never"], kind="format")
        left = [info.key for info in await bucket.list(prefix, kind="format")]
        left = [key for key in left if not key.startswith(prefix + RACE)]
        try:
            for key in left:
                await bucket.get(key, kind="format")
        except Missing:
            break
        if not left:
            return "ok", "DELETE in bulk; gone at once"
    return "wrong", f"{len(left)} objects are still listed"


async def _count(admin: Admin) -> AsyncIterator[Event]:
    """Show how many mails are objects of their own, and how many lie in batches."""
    from ..store.operate import count

    began, done = time.perf_counter(), count.Counted()
    async for done in count.count(admin.store):
        yield Progress("objects counted", done.objects)
    ms = round((time.perf_counter() - began) * 1000, 1)
    others = f"{done.claims} claims, {done.burnt} burnt UIDs"
    yield {"check": "mails", "result": "ok", "detail": f"{done.single} objects of one mail; {others}", "ms": ms}
    detail = f"{done.batches} with {done.mails} mails, {done.bytes} bytes, {done.dead} of them of expunged mails"
    yield {"check": "batches", "result": "ok", "detail": detail, "ms": ms}
    if done.damaged:
        detail = f"{done.damaged} objects do not decode; the log names them"
        yield {"check": "damaged", "result": "warning", "detail": detail, "ms": ms}


async def _rules(admin: Admin) -> AsyncIterator[Row]:
    """Show settings of the bucket, as far as it reports them."""
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
            yield row("lifecycle", "warning", f"rules delete current objects, and so mails: {', '.join(expiring)}")
        else:
            yield row("lifecycle", "ok", facts["lifecycle"])
    versioning = facts.get("versioning", "unknown")
    if versioning == "on" and not facts.get("expires_versions"):
        yield row("versioning", "warning", "on, and no rule deletes old versions: deleted mails stay and cost money")
    else:
        yield row("versioning", "ok" if versioning in ("on", "off") else "unknown", str(versioning))
    for problem in facts.get("problems", ()):
        yield row("settings", "unknown", str(problem))
