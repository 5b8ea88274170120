"""The commands before the login: CAPA, STLS, UTF8, USER, PASS, AUTH. RFC 1939 §4, §7,
RFC 2449 §5, RFC 2595 §4, RFC 5034, RFC 6856 §2.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from obox.auth import (
    LINK,
    Challenge,
    Credentials,
    Forward,
    LinkOwner,
    LinkRefused,
    Referred,
    SaslError,
    SaslServer,
    mechanisms,
)
from obox.login import Entered, Login
from obox.pop3.replies import Bad, Reply, err
from obox.pop3.session import Session

Step = Callable[[SaslServer | LinkOwner], Challenge | Credentials | Forward]
"""Gives a line of the client to the mechanism."""
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
    _refuse_clear(session)
    session.name = _decoded(rest.strip())
    if not session.name:
        raise Bad("The name is missing")
    return Reply("Send the password")


async def password(session: Session, rest: bytes) -> Reply | None:
    _refuse_clear(session)
    if not session.name:
        raise Bad("Send USER first")
    name, session.name = session.name, ""
    return _entered(session, await _login(session).by_password(name, _decoded(rest)))


async def auth(session: Session, rest: bytes) -> Reply | None:
    mechanism, _, initial = rest.strip().partition(b" ")
    name = _decoded(mechanism).upper()
    if not name:
        session.answer("AUTH", Reply("Mechanisms"))
        session.write("".join(f"{one}\r\n" for one in mechanisms(tls=session.secure)).encode() + b".\r\n")
        return None
    if session.context.forwarding is not None and name == LINK:
        session.sasl = await _login(session).exchange()
    else:
        _refuse_clear(session)
        session.sasl = SaslServer()
    return await _advance(session, lambda sasl: sasl.start(name, initial.strip() or None))


async def respond(session: Session, line: bytes) -> Reply | None:
    """Go on with AUTH: the line is the client's answer to a challenge."""
    return await _advance(session, lambda sasl: sasl.step(line))


async def _advance(session: Session, work: Step) -> Reply | None:
    sasl, session.sasl = session.sasl, None
    assert sasl is not None
    try:
        step = work(sasl)
    except SaslError as error:
        raise Bad(str(error)) from error
    except LinkRefused as refused:
        _login(session).forged(str(refused))
        return err("Authentication failed", LINK)
    if isinstance(step, Challenge):
        session.sasl = sasl
        session.write(b"+ " + step.wire + b"\r\n")
        return None
    if isinstance(step, Forward):
        try:
            return _entered(session, await _login(session).by_link(step))
        except Referred as referred:
            return err(str(referred), referred.wire)
    return _entered(session, await _login(session).by_password(step.user, step.password))


def _login(session: Session) -> Login:
    return Login("pop3", session.context, session.out, session.login)


def _entered(session: Session, entered: Entered) -> Reply:
    if entered.leg is not None:
        session.forward(entered.account, entered.leg)
        return Reply(entered.leg.text)
    assert session.maildrop is not None
    return Reply(f"{session.maildrop.left} mails of {session.maildrop.left_bytes} octets")


def _refuse_clear(session: Session) -> None:
    if not session.secure:
        raise Bad("Passwords need TLS here")


def _decoded(data: bytes) -> str:
    """Every stored password is UTF-8, so another fails as any wrong password."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return ""
