"""The login of a forwarded client at its backend, over IMAP.

Diagnostics: it raises OSError if the backend does not answer, OboxError if it refuses.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Final, NamedTuple

from obox.auth import LINK, LinkRefused, LinkSender, Referred
from obox.errors import Limit, NoPerm, OboxError, Unavailable
from obox.net.dialogue import Dialogue

from .dial import CONNECT_S, binding, context

LOGIN_S: Final = 15.0
"""The time in which the backend opens the user's mail. It waits 10 s for the bucket."""
_TAGGED: Final = re.compile(rb"[ab] (OK|NO|BAD)(?: \[([^\]\r\n]*)\])? ?(.*)", re.IGNORECASE)


class Answer(NamedTuple):
    """The tagged OK: the code without its brackets, and the text."""

    code: bytes
    text: str


async def login(dialogue: Dialogue, make: Callable[[bytes], LinkSender]) -> Answer:
    """Log a client in over a new connection.

    make: the sender of the link for a binding. Raises: Referred, Limit, Unavailable;
    LinkRefused, the two members have no common secret; OSError.
    """
    async with asyncio.timeout(LOGIN_S):
        greeting = await dialogue.line()
        if not greeting.startswith(b"* OK"):
            raise ConnectionRefusedError(greeting.decode(errors="replace"))
        if not dialogue.tls and not dialogue.local:
            await dialogue.send(b"a STARTTLS\r\n")
            if _tagged(await _until_tagged(dialogue))[0] != b"OK":
                raise ConnectionRefusedError("the backend offers no TLS")
            await dialogue.start_tls(context(), CONNECT_S)
        sender = make(binding(dialogue))
        await dialogue.send(b"b AUTHENTICATE %b %b\r\n" % (LINK.encode(), sender.first()))
        line = await _until_tagged(dialogue)
        if line.startswith(b"+"):
            try:
                answer = sender.answer(line.removeprefix(b"+").strip())
            except LinkRefused:
                await dialogue.send(b"*\r\n")
                raise
            await dialogue.send(answer + b"\r\n")
            line = await _until_tagged(dialogue)
    condition, code, text = _tagged(line)
    if condition != b"OK":
        raise _refusal(code.decode("ascii", "replace"), text)
    return Answer(code, text)


async def _until_tagged(dialogue: Dialogue) -> bytes:
    """Return the next line that is tagged or a continuation."""
    while True:
        line = await dialogue.line()
        if line.startswith(b"* BYE"):
            raise ConnectionRefusedError(line.decode(errors="replace"))
        if not line.startswith(b"* "):
            return line


def _tagged(line: bytes) -> tuple[bytes, bytes, str]:
    match = _TAGGED.fullmatch(line)
    if match is None:
        raise ConnectionRefusedError("the backend's answer is not IMAP")
    return match[1].upper(), match[2] or b"", match[3].decode(errors="replace")


def _refusal(code: str, text: str) -> OboxError | LinkRefused:
    if (referred := Referred.read(code)) is not None:
        return referred
    if code == "AUTHENTICATIONFAILED":
        return LinkRefused("the backend does not accept our proof")
    if code == "LIMIT":
        return Limit(text)
    if code == "AUTHORIZATIONFAILED":
        return NoPerm(text)
    return Unavailable(text)
