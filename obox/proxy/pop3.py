"""The login of a forwarded client at its backend, over POP3."""

from __future__ import annotations

import re
from typing import Final

from obox.auth import LINK, Disabled, LinkRefused, Referred
from obox.errors import InUse, OboxError, Unavailable
from obox.login import TooSoon
from obox.net.dialogue import Dialogue

from .link import Answer, LoginDialect

_ERR: Final = re.compile(rb"-ERR(?: \[([^\]\r\n]*)\])? ?(.*)", re.IGNORECASE)


class Pop3(LoginDialect):
    STARTTLS = b"STLS"
    AUTH = b"AUTH"

    async def greeted(self, dialogue: Dialogue) -> None:
        self.check_tls(await dialogue.line())

    async def answer(self, dialogue: Dialogue) -> bytes:
        return await dialogue.line()

    def check_tls(self, answer: bytes) -> None:
        if not answer.startswith(b"+OK"):
            raise ConnectionRefusedError(answer.decode(errors="replace"))

    def challenge(self, answer: bytes) -> bytes | None:
        return answer.removeprefix(b"+ ").strip() if answer.startswith(b"+ ") else None

    def entered(self, line: bytes) -> Answer:
        if line.startswith(b"+OK"):
            return Answer(b"", line[3:].strip().decode(errors="replace"))
        match = _ERR.fullmatch(line)
        if match is None:
            raise ConnectionRefusedError("the backend's answer is not POP3")
        raise _refusal((match[1] or b"").decode("ascii", "replace"), match[2].decode(errors="replace"))


def _refusal(code: str, text: str) -> OboxError | LinkRefused:
    if (referred := Referred.read(code)) is not None:
        return referred
    if code == LINK:
        return LinkRefused("the backend does not accept our proof")
    return {"AUTH": Disabled, "IN-USE": InUse, "LOGIN-DELAY": TooSoon}.get(code, Unavailable)(text)
