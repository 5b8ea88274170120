"""What the tests of pulls share: two backends, and the stream between them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from machines import SID, Life, Machine, fill, uids
from mails import simple

from obox.objectstore import ObjectKind
from obox.objectstore.keys import pull_owner
from obox.store.backend import upload
from obox.store.operate.pull import Incoming, Outgoing, Splitter, opened


async def sent(life: Life, *, everything: bool = False) -> bytes:
    """Return all that a source sends."""
    with life.store.pulling(SID):
        outgoing = Outgoing(life.store, SID)
        await outgoing.prepare("anna", everything=everything)
        return b"".join([piece async for piece in outgoing.stream()])


async def take(life: Life, data: bytes, *, size: int = 10_000) -> Incoming:
    with life.store.pulling(SID):
        incoming = Incoming(life.store, SID)
        await incoming.begin()
        for at in range(0, len(data), size):
            await incoming.feed(data[at : at + size])
        await incoming.end()
    return incoming


async def pull(source: Life, destination: Life, *, everything: bool = False) -> Incoming:
    return await take(destination, await sent(source, everything=everything))


def objects(life: Life, data: bytes) -> list[Any]:
    return [opened(life.store.env.codec, raw, SID) for raw in Splitter().feed(data)]


def packed(life: Life, *parts: tuple[ObjectKind, Any, bytes]) -> bytes:
    """Make a stream by hand."""
    out = b""
    for kind, meta, payload in parts:
        env, packed_meta = life.store.env, msgspec.msgpack.encode(meta)
        data = env.codec.encode(kind, pull_owner(SID), env.new_oid(), packed_meta, payload)
        out += len(data).to_bytes(4, "little") + data
    return out


@asynccontextmanager
async def two(machine: Machine, tmp_path: Path) -> AsyncIterator[tuple[Life, Life]]:
    """Start two backends on the same bucket. Without `directory` the second fences the
    first when it starts, but both go on."""
    async with machine.run() as one, machine.renamed("second", tmp_path / "second").run() as other:
        # The first backend learns of the fence at this write.
        await one.store.journal.announce()
        yield one, other


async def some_mail(life: Life) -> None:
    user = await life.user()
    await fill(user, "INBOX", [simple(n) for n in range(30)])
    await fill(user, "Archive", [simple(n) for n in range(100, 110)])
    inbox = await user.select("INBOX")
    await inbox.store_flags(uids(1, 2, 3), "add", ["\\Seen", "$Work"])
    await user.copy(inbox, uids(4, 5), "Archive")
    await user.copy(inbox, uids(6), "Sent", move=True)
    await inbox.expunge(uids(7))
    await user.create("Projects/obox")
    await inbox.release()


@contextmanager
def without_upload(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make a source that cannot upload before it sends."""

    async def nothing(*_: Any, **__: Any) -> None:
        return None

    with monkeypatch.context() as patch:
        patch.setattr(upload, "flush", nothing)
        yield


async def leave(life: Life) -> None:
    """End all sessions."""
    for user in life.users:
        await user.release()
    life.users.clear()
