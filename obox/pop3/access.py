"""The commands before the login: CAPA, STLS, UTF8, USER, PASS, AUTH. RFC 1939 §4, §7,
RFC 2449 §5, RFC 2595 §4, RFC 5034, RFC 6856 §2.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable
from typing import Final

from obox.auth import Challenge, SaslError, mechanisms
from obox.login import Entered, decoded
from obox.pop3.replies import Bad, Reply
from obox.pop3.session import Session

_ALWAYS: Final = ("TOP", "UIDL", "RESP-CODES", "AUTH-RESP-CODE", "PIPELINING", "UTF8 USER")


async def capa(session: Session, _: bytes) -> Reply | None:
    settings = session.settings
    out = [*_ALWAYS, f"EXPIRE {settings.expire}"]
    if settings.login_delay_s:
        out.append(f"LOGIN-DELAY {math.ceil(settings.login_delay_s)}")
    if session.secure:
        out += ["USER", " ".join(("SASL", *mechanisms(tls=True)))]
    if session.context.upgrade is not None and not session.out.tls and session.user is None:
        out.append("STLS")
    out.append(f"IMPLEMENTATION {settings.name}-{settings.version}" if settings.version else "IMPLEMENTATION obox")
    session.answer("CAPA", Reply("Capabilities"))
    session.write("".join(f"{line}\r\n" for line in out).encode() + b".\r\n")
    return None


async def stls(session: Session, _: bytes) -> Reply | None:
    if session.out.tls:
        raise Bad("TLS is active already")
    if session.context.upgrade is None:
        raise Bad("TLS is not offered")
    session.answer("STLS", Reply("Begin TLS negotiation now"))
    session.name = ""
    await session.out.start_tls()
    return None


async def utf8(session: Session, _: bytes) -> Reply | None:
    """Mails are sent as they were stored, with this command and without it."""
    return Reply("UTF8 enabled")


async def user(session: Session, rest: bytes) -> Reply | None:
    """The answer does not say whether there is such a user."""
    session.need_tls()
    session.name = decoded(rest.strip())
    if not session.name:
        raise Bad("The name is missing")
    return Reply("Send the password")


async def password(session: Session, rest: bytes) -> Reply | None:
    session.need_tls()
    if not session.name:
        raise Bad("Send USER first")
    name, session.name = session.name, ""
    return _entered(session, await session.by_password(name, decoded(rest)))


async def auth(session: Session, rest: bytes) -> Reply | None:
    mechanism, _, initial = rest.strip().partition(b" ")
    name = decoded(mechanism)
    if not name:
        session.answer("AUTH", Reply("Mechanisms"))
        session.write("".join(f"{one}\r\n" for one in mechanisms(tls=session.secure)).encode() + b".\r\n")
        return None
    return await _step(session, session.authenticate(name, initial.strip() or None))


async def respond(session: Session, line: bytes) -> Reply | None:
    """Go on with AUTH: the line is the client's answer to a challenge."""
    return await _step(session, session.respond(line))


async def _step(session: Session, work: Awaitable[Challenge | Entered]) -> Reply | None:
    try:
        step = await work
    except SaslError as error:
        raise Bad(str(error)) from error
    if isinstance(step, Entered):
        return _entered(session, step)
    session.write(b"+ " + step.wire + b"\r\n")
    return None


def _entered(session: Session, entered: Entered) -> Reply:
    if entered.leg is not None:
        return Reply(entered.leg.text)
    assert session.maildrop is not None
    return Reply(f"{session.maildrop.left} mails of {session.maildrop.left_bytes} octets")
