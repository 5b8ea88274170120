"""A user with many sessions gets no more turns of the loop than another user. The tests
count turns and measure no time."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from obox.imap import updates
from obox.imap.settings import ImapSettings
from obox.turn import Turn
from tests.imap.harness import Client, serving, serving_real

SESSIONS = 48
SLICES_MAX = 30
"""The largest number of slices of another user's sessions between a command and its
answer. The answer takes about six rounds of the loop, with the client's part, and a
session of the busy user runs about three slices in a round."""


async def drain(client: Client, size: int) -> None:
    """Read the bytes without parsing them, so that the client needs little time of the
    loop."""
    while size > 0:
        size -= len(await client.reader.read(1 << 20))


async def test_searches_of_many_sessions_do_not_keep_another_user_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each session searches the texts of its mails. A slice is the work that a session
    does before others may run."""
    slices = 0
    end = Turn.end

    async def counted(turn: Turn) -> None:
        nonlocal slices
        slices += 1
        await end(turn)

    async with serving_real(tmp_path, ImapSettings(user_sessions_max=0, address_sessions_max=0)) as running:
        writer, ben = await running.client(login="anna"), await running.client(login="ben")
        await writer.ok(b"APPEND INBOX" + b" {13+}\r\na: b\r\n\r\nhello" * 300)
        busy = [await running.client(login="anna") for _ in range(SESSIONS)]
        for client in busy:
            await client.ok("SELECT INBOX")
        monkeypatch.setattr(Turn, "end", counted)
        # A slice is a single mail here, so that the speed of the machine does not
        # matter.
        monkeypatch.setattr(Turn, "over", lambda _: True)
        for client in busy:
            client.send(b"x SEARCH BODY nothing\r\n")
        searching = [asyncio.ensure_future(client.line()) for client in busy]
        waited: list[int] = []
        while not all(task.done() for task in searching):
            before = slices
            await ben.ok("NOOP")
            waited.append(slices - before)
        assert len(waited) >= SESSIONS
        assert max(waited) <= SLICES_MAX


async def test_changes_for_many_sessions_do_not_keep_another_user_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slices = 0
    plain = updates.flag_lines

    def flag_lines(*given: Any, **more: Any) -> bytes:
        nonlocal slices
        slices += 1
        return plain(*given, **more)

    async with serving(tmp_path, ImapSettings(user_sessions_max=0, address_sessions_max=0)) as running:
        writer, ben = await running.client(login="anna"), await running.client(login="ben")
        for _ in range(3):
            await writer.ok(b"APPEND INBOX" + b" {5+}\r\na: b\n" * 900)
        idle = [await running.client(login="anna") for _ in range(SESSIONS)]
        for client in idle:
            await client.ok("SELECT INBOX")
            client.send(b"x IDLE\r\n")
            await client.line()
        await writer.ok("SELECT INBOX")
        monkeypatch.setattr(updates, "flag_lines", flag_lines)
        reading = [asyncio.ensure_future(drain(client, 2_700 * 20)) for client in idle]
        writer.send(b"y STORE 1:* +FLAGS.SILENT (\\Flagged)\r\n")
        waited: list[int] = []
        while not all(task.done() for task in reading):
            before = slices
            await ben.ok("NOOP")
            waited.append(slices - before)
        assert sum(waited) >= SESSIONS
        assert max(waited) <= SLICES_MAX
        assert len(running.imap.hub.lanes) <= 1
