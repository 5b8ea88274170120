"""The login of a forwarded client at its backend, over IMAP."""

from __future__ import annotations

import re
from typing import Final

from obox.auth import LinkRefused, Referred
from obox.errors import Limit, NoPerm, OboxError, Unavailable
from obox.net.dialogue import Dialogue

from .link import Answer, LoginDialect

_TAGGED: Final = re.compile(rb"[ab] (OK|NO|BAD)(?: \[([^\]\r\n]*)\])? ?(.*)", re.IGNORECASE)


class Imap(LoginDialect):
    STARTTLS = b"a STARTTLS"
    AUTH = b"b AUTHENTICATE"

    async def greeted(self, dialogue: Dialogue) -> None:
        line = await dialogue.line()
        if not line.startswith(b"* OK"):
            raise ConnectionRefusedError(line.decode(errors="replace"))

    async def answer(self, dialogue: Dialogue) -> bytes:
        """Return the next line that is tagged or a continuation."""
        while True:
            line = await dialogue.line()
            if line.startswith(b"* BYE"):
                raise ConnectionRefusedError(line.decode(errors="replace"))
            if not line.startswith(b"* "):
                return line

    def check_tls(self, answer: bytes) -> None:
        if _tagged(answer)[0] != b"OK":
            raise ConnectionRefusedError("the backend offers no TLS")

    def challenge(self, answer: bytes) -> bytes | None:
        return answer.removeprefix(b"+").strip() if answer.startswith(b"+") else None

    def entered(self, line: bytes) -> Answer:
        condition, code, text = _tagged(line)
        if condition != b"OK":
            raise _refusal(code.decode("ascii", "replace"), text)
        return Answer(code, text)


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
    return {"LIMIT": Limit, "AUTHORIZATIONFAILED": NoPerm}.get(code, Unavailable)(text)
