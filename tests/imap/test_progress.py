"""INPROGRESS over a socket, RFC 9585: a client hears that a long command is at work."""

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from harness import STORES, Client, Running

from obox.imap import progress

LINE = re.compile(rb'\* OK \[INPROGRESS \("(t[0-9]+)" NIL NIL\)\] ')


class Held:
    """A call of the store that waits for `go`."""

    def __init__(self, call: Callable[..., Awaitable[Any]]) -> None:
        self.call, self.go = call, asyncio.Event()

    async def __call__(self, *given: Any, **more: Any) -> Any:
        await self.go.wait()
        return await self.call(*given, **more)


async def held(running: Running, monkeypatch: pytest.MonkeyPatch, name: str, command: str) -> list[bytes]:
    """Return the answer to a command whose call of the store takes long."""
    client: Client = await running.client(login="anna")
    for number in range(3):
        await client.append("INBOX", b"Subject: %d\r\n\r\nx" % number)
    await client.ok("SELECT INBOX")
    (user,) = running.store.users.values()
    owner = user if hasattr(type(user), name) else next(iter(user.boxes.values()))
    kind = type(owner)
    call = Held(getattr(kind, name))
    # A method must be a function.
    monkeypatch.setattr(kind, name, lambda *given, **more: call(*given, **more))  # noqa: PLW0108 - see above
    monkeypatch.setattr(progress, "EVERY_S", 0.01)
    client.number += 1
    client.send(b"t%d %b\r\n" % (client.number, command.encode()))
    lines = [await client.line() for _ in range(3)]
    assert [found[1] for line in lines if (found := LINE.match(line))][:2] == [b"t%d" % client.number] * 2
    call.go.set()
    monkeypatch.setattr(progress, "EVERY_S", 1000.0)
    lines += await client.until(b"t%d " % client.number)
    return [line for line in lines if not LINE.match(line)]


@pytest.mark.parametrize(
    ("name", "command", "answer"),
    [
        ("search", "SEARCH BODY x", b"* SEARCH 1 2 3"),
        ("search", "SORT (SUBJECT) UTF-8 BODY x", b"* SORT 1 2 3"),
        ("search", "THREAD REFS UTF-8 BODY x", b"* THREAD (1)(2)(3)"),
        ("copy", "MOVE 1:3 Sent", b"* OK [COPYUID "),
        ("select", "SELECT Sent", b"* OK [CLOSED]"),
    ],
)
async def test_a_long_command_is_still_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, command: str, answer: bytes
) -> None:
    async with STORES["memory"](tmp_path) as running:
        assert any(line.startswith(answer) for line in await held(running, monkeypatch, name, command))


async def test_a_quick_command_says_nothing(tmp_path: Path) -> None:
    async with STORES["memory"](tmp_path) as running:
        client = await running.client(login="anna")
        await client.ok("SELECT INBOX")
        assert (await client.ok("SEARCH ALL"))[0] == b"* SEARCH"
        loop = asyncio.get_running_loop()
        due = [one for one in loop._scheduled if not one.cancelled() and "in_progress" in repr(one)]
        assert due == [], "the timer ends with the command"
