"""The login of a forwarded client at its backend, over POP3.

Diagnostics: it raises OSError if the backend does not answer, OboxError if it refuses.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final

from obox.auth import LINK, Disabled, LinkRefused, LinkSender, Referred
from obox.errors import InUse, OboxError, Unavailable
from obox.login import TooSoon
from obox.net.dialogue import Dialogue

from .dial import CONNECT_S, binding, context
from .imap import LOGIN_S, Answer

_ERR: Final = re.compile(rb"-ERR(?: \[([^\]\r\n]*)\])? ?(.*)", re.IGNORECASE)


async def login(dialogue: Dialogue, make: Callable[[bytes], LinkSender]) -> Answer:
    """Log a client in over a new connection.

    make: the sender of the link for a binding. Raises: Referred, InUse, TooSoon,
    Disabled, Unavailable; LinkRefused, the two members have no common secret; OSError.
    """
    async with asyncio.timeout(LOGIN_S):
        _ok(await dialogue.line())
        if not dialogue.tls and not dialogue.local:
            await dialogue.send(b"STLS\r\n")
            _ok(await dialogue.line())
            await dialogue.start_tls(context(), CONNECT_S)
        sender = make(binding(dialogue))
        await dialogue.send(b"AUTH %b %b\r\n" % (LINK.encode(), sender.first()))
        line = await dialogue.line()
        if line.startswith(b"+ "):
            try:
                answer = sender.answer(line.removeprefix(b"+ ").strip())
            except LinkRefused:
                await dialogue.send(b"*\r\n")
                raise
            await dialogue.send(answer + b"\r\n")
            line = await dialogue.line()
    if not line.startswith(b"+OK"):
        match = _ERR.fullmatch(line)
        if match is None:
            raise ConnectionRefusedError("the backend's answer is not POP3")
        raise _refusal((match[1] or b"").decode("ascii", "replace"), match[2].decode(errors="replace"))
    return Answer(b"", line[3:].strip().decode(errors="replace"))


def _ok(line: bytes) -> None:
    if not line.startswith(b"+OK"):
        raise ConnectionRefusedError(line.decode(errors="replace"))


def _refusal(code: str, text: str) -> OboxError | LinkRefused:
    if (referred := Referred.read(code)) is not None:
        return referred
    if code == LINK:
        return LinkRefused("the backend does not accept our proof")
    kind = {"AUTH": Disabled, "IN-USE": InUse, "LOGIN-DELAY": TooSoon}.get(code, Unavailable)
    return kind(text)
