"""Mails that APPEND gets as literal8, which may have NUL. RFC 3516 §4.4."""

from __future__ import annotations

import asyncio
from typing import Final

from msgspec.structs import replace

from obox.errors import Limit
from obox.imap import ast
from obox.imap.intake import TRY_LATER, Incoming
from obox.mime.nul import without_nul
from obox.store.api import Source

PIECE_BYTES: Final = 1 << 18
"""Octets of a mail that are moved to the file at a time."""


async def encoded(command: ast.Append) -> ast.Append | None:
    """Return the command with mails that have no NUL, or None if a mail has NUL where
    it cannot be encoded. Raises: Limit, Temporary."""
    messages = []
    for message in command.messages:
        if message.binary:
            data = await _encoded(message.data, command.incoming)
            if data is None:
                return None
            messages.append(replace(message, data=data))
        else:
            messages.append(message)
    return replace(command, messages=tuple(messages))


async def _encoded(data: bytes | Source, incoming: Incoming | None) -> bytes | Source | None:
    if isinstance(data, bytes):
        return await asyncio.to_thread(without_nul, data) if b"\0" in data else data
    assert incoming is not None
    async with incoming.reading(), data.open() as mail:
        found = await asyncio.to_thread(without_nul, mail)
        if found is None or found is mail:
            return None if found is None else data
        if not incoming.admit(len(found)):
            raise Limit(TRY_LATER)
        if not incoming.spooling:
            return found
        for at in range(0, len(found), PIECE_BYTES):
            if incoming.add(found[at : at + PIECE_BYTES]):
                await incoming.flush()
        return incoming.end()
