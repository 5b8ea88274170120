"""CAPABILITY, ID, STARTTLS, LOGIN, AUTHENTICATE, ENABLE, NOOP, LOGOUT.

RFC 9051 §6.1, §6.2, §6.3.1.
"""

from __future__ import annotations

from base64 import b64encode
from typing import Final

from obox.auth import Challenge, SaslError
from obox.imap import ast, wire
from obox.imap.replies import Reply, bad, no
from obox.imap.session import Session
from obox.login import Entered, decoded

ID_VALUE_CHARS_MAX: Final = 200
"""Characters of a client's ID that are logged."""


async def capability(session: Session, _: ast.Capability) -> Reply:
    session.write(wire.line(b"CAPABILITY", session.capability()))
    return Reply("Capability completed")


async def noop(_: Session, command: ast.Command) -> Reply:
    """Answer NOOP and CHECK. Changes are reported with every command.

    RFC 9051 §6.1.2, RFC 3501 §6.4.1.
    """
    return Reply(f"{command.NAME.capitalize()} completed")


async def logout(session: Session, _: ast.Logout) -> Reply:
    session.out.ended = "logout"
    await session.leave()
    session.write(wire.status(None, "BYE", "Logging out"))
    session.logged_out = True
    return Reply("Logout completed")


async def identify(session: Session, command: ast.Id) -> Reply:
    """Log the client's ID, shortened. Nothing depends on it. RFC 2971."""
    if command.params:
        named = [f"{name}={value}" for name, value in command.params if value is not None]
        session.client_id = " ".join(named)[:ID_VALUE_CHARS_MAX]
    settings = session.settings
    pairs = [b'"name"', wire.quoted(settings.name.encode())]
    if settings.version:
        pairs += [b'"version"', wire.quoted(settings.version.encode())]
    session.write(wire.line(b"ID", b"(" + b" ".join(pairs) + b")"))
    return Reply("ID completed")


async def enable(session: Session, command: ast.Enable) -> Reply:
    """Handle ENABLE. RFC 5161; RFC 7162 §3.1.8, §3.2.3: QRESYNC brings CONDSTORE
    along."""
    enabled = []
    for name in command.capabilities:
        if name == "CONDSTORE" and not session.condstore:
            enable_condstore(session)
            enabled.append(b"CONDSTORE")
        elif name == "QRESYNC" and not session.qresync:
            session.qresync = True
            enable_condstore(session)
            enabled.append(b"QRESYNC")
        elif name == "UIDONLY" and not session.uidonly:
            session.uidonly = True
            enabled.append(b"UIDONLY")
        elif name == "UTF8=ACCEPT" and not session.utf8:
            session.utf8 = session.out.parser.utf8 = True
            enabled.append(b"UTF8=ACCEPT")
        elif name == "IMAP4REV2" and not session.rev2:
            session.rev2 = session.utf8 = session.out.parser.utf8 = True
            enabled.append(b"IMAP4rev2")
    session.write(wire.line(b"ENABLED", *enabled))
    return Reply("Enabled")


def enable_condstore(session: Session) -> None:
    """Report MODSEQs from now on. Any command that needs them calls it.

    RFC 7162 §3.1.
    """
    if session.condstore:
        return
    session.condstore = True
    if session.mailbox is not None:
        modseq = session.mailbox.state.highestmodseq
        session.write(wire.status(None, "OK", "Highest", f"HIGHESTMODSEQ {modseq}"))


async def starttls(session: Session, command: ast.StartTls) -> Reply | None:
    if session.out.tls:
        return bad("TLS is active already")
    if session.context.upgrade is None:
        return bad("TLS is not offered")
    session.finish_command(command.tag, command.NAME, Reply("Begin TLS negotiation now"))
    await session.out.start_tls()
    return None


# -- login -------------------------------------------------------------------------------------------------------------


async def login(session: Session, command: ast.Login) -> Reply:
    session.need_tls()
    return _logged_in(session, await session.by_password(command.username, decoded(command.password)))


async def authenticate(session: Session, command: ast.Authenticate) -> Reply | None:
    """RFC 9051 §6.2.2; the initial response is RFC 4959's."""
    initial = command.initial
    coded = None if initial is None else (b64encode(initial) or b"=")
    try:
        step = await session.authenticate(command.mechanism, coded)
    except SaslError as error:
        return no(str(error), "CANNOT") if initial is None else bad(str(error))
    return _step(session, command.tag, step)


async def respond(session: Session, data: bytes | None) -> Reply | None:
    """Return the client's answer to a challenge; None if the client cancelled."""
    try:
        step = await session.respond(b"*" if data is None else b64encode(data))
    except SaslError as error:
        return bad(str(error))
    return _step(session, session.waiting_tag, step)


def _step(session: Session, tag: bytes, step: Challenge | Entered) -> Reply | None:
    if isinstance(step, Entered):
        return _logged_in(session, step)
    session.waiting_tag = tag
    session.write(wire.challenge(step.data))
    session.out.parser.expect_sasl()
    return None


def _logged_in(session: Session, entered: Entered) -> Reply:
    if entered.leg is not None:
        return Reply(entered.leg.text, entered.leg.code)
    return Reply("Logged in", b"CAPABILITY " + session.capability())
