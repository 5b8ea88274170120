"""CAPABILITY, ID, STARTTLS, LOGIN, AUTHENTICATE, ENABLE, NOOP, LOGOUT.

RFC 9051 §6.1, §6.2, §6.3.1.
"""

from __future__ import annotations

from base64 import b64encode
from typing import TYPE_CHECKING, Final

from obox.accounts import Account
from obox.auth import (
    LINK,
    NO_OWNER,
    AuthFailed,
    Challenge,
    Credentials,
    Forward,
    LinkRefused,
    Referred,
    SaslError,
    SaslServer,
)
from obox.errors import Elsewhere, NoPerm, OboxError
from obox.imap import ast, wire
from obox.imap.replies import Reply, bad, no
from obox.imap.session import Session

if TYPE_CHECKING:
    from obox.net.splice import Leg

REFERRAL: Final = "X-OBOX-REFERRAL"
"""Response code with the assignment of a forwarded user that another backend owns."""
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
    """RFC 5161; RFC 7162 §3.1.8, §3.2.3: QRESYNC brings CONDSTORE along."""
    enabled = []
    for name in command.capabilities:
        if name == "CONDSTORE" and not session.condstore:
            enable_condstore(session)
            enabled.append(b"CONDSTORE")
        elif name == "QRESYNC" and not session.qresync:
            session.qresync = True
            enable_condstore(session)
            enabled.append(b"QRESYNC")
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
    if not session.secure:
        return no("Passwords need TLS here", "PRIVACYREQUIRED")
    try:
        password = command.password.decode()
    except UnicodeDecodeError:
        # Every stored password is UTF-8, so this password fails as any wrong password.
        password = ""
    return await _check(session, command.username, password)


async def authenticate(session: Session, command: ast.Authenticate) -> Reply | None:
    """RFC 9051 §6.2.2; the initial response is RFC 4959's."""
    forwarding, out = session.context.forwarding, session.out
    if forwarding is not None and command.mechanism.upper() == LINK:
        session.sasl = await forwarding.exchange(remote=out.remote, local=out.is_local, tls=out.tls)
    elif not session.secure:
        return no("Passwords need TLS here", "PRIVACYREQUIRED")
    else:
        session.sasl = SaslServer()
    initial = command.initial
    coded = None if initial is None else (b64encode(initial) or b"=")
    try:
        step = session.sasl.start(command.mechanism, coded)
    except SaslError as error:
        session.sasl = None
        return no(str(error), "CANNOT") if initial is None else bad(str(error))
    return await _step(session, command.tag, step)


async def respond(session: Session, data: bytes | None) -> Reply | None:
    """Return the client's answer to a challenge; None if the client cancelled."""
    if session.sasl is None:
        return bad("No authentication is under way")
    try:
        step = session.sasl.step(b"*" if data is None else b64encode(data))
    except SaslError as error:
        return bad(str(error))
    except LinkRefused as refused:
        _forged(session, str(refused))
        raise AuthFailed from None
    return await _step(session, session.waiting_tag, step)


async def _step(session: Session, tag: bytes, step: Challenge | Credentials | Forward) -> Reply | None:
    if isinstance(step, Challenge):
        session.waiting_tag = tag
        session.write(wire.challenge(step.data))
        session.out.parser.expect_sasl()
        return None
    session.sasl = None
    if isinstance(step, Forward):
        return await _accept(session, step)
    return await _check(session, step.user, step.password)


async def _check(session: Session, user: str, password: str) -> Reply:
    context = session.context
    if context.forwarding is not None:
        try:
            forward = context.forwarding.redeem(user, password)
            if forward is not None and forward.number == NO_OWNER:
                return await _vouched(session, forward)
        except LinkRefused as refused:
            _forged(session, str(refused))
            raise AuthFailed from None
        if forward is not None:
            return await _accept(session, forward)
    try:
        account = await context.authenticator.verify(user, password, remote=session.out.remote)
    except OboxError as error:
        context.counters.login("failed" if isinstance(error, NoPerm) else "unavailable")
        if isinstance(error, NoPerm) and not isinstance(error, AuthFailed):
            context.log.info("imap login refused", user=user[:200], remote=session.out.remote, reason=str(error))
        raise
    try:
        return await _enter(session, account)
    except OboxError:
        context.counters.login("unavailable")
        raise


async def _vouched(session: Session, forward: Forward) -> Reply:
    """Serve or forward a user whose password this member has checked for a front
    end."""
    context = session.context
    assert context.forwarding is not None
    try:
        account = await context.forwarding.vouched(forward)
        session.out.speak_for(forward.remote, tls=forward.tls)
        return await _enter(session, account)
    except OboxError:
        context.counters.login("unavailable")
        raise


async def _enter(session: Session, account: Account) -> Reply:
    """Serve a user whose password was right, or forward the session to the owner."""
    context = session.context
    leg = await _leg(session, account)
    if leg is None:
        try:
            return await _login(session, account)
        except Elsewhere:  # handed over while the login waited
            leg = await _leg(session, account)
            if leg is None:
                raise
    session.forward(account, leg)
    context.counters.login("ok")
    return Reply(leg.text, leg.code)


async def _leg(session: Session, account: Account) -> Leg | None:
    """Connect to the owner of a user. None: it is this backend. Raises Unavailable."""
    forwarding, out = session.context.forwarding, session.out
    if forwarding is None:
        return None
    return await forwarding.connect(account, listener="imap", remote=out.remote, tls=out.client_tls)


async def _login(session: Session, account: Account) -> Reply:
    await session.login(account)
    session.context.counters.login("ok")
    return Reply("Logged in", b"CAPABILITY " + session.capability())


# -- the trusted link --------------------------------------------------------------------------------------------------


async def _accept(session: Session, forward: Forward) -> Reply:
    """Serve a user without a password, because a member has checked it."""
    context = session.context
    assert context.forwarding is not None
    try:
        account = await context.forwarding.accept(forward)
        session.out.speak_for(forward.remote, tls=forward.tls)
        try:
            return await _login(session, account)
        except Elsewhere:  # handed over while the login waited
            await context.forwarding.accept(forward)
            raise
    except Referred as referred:
        return no(str(referred), f"{REFERRAL} {referred.backend} {referred.number} {referred.token}")
    except OboxError:
        context.counters.login("unavailable")
        raise


def _forged(session: Session, why: str) -> None:
    context = session.context
    assert context.forwarding is not None
    session.sasl = None
    context.counters.login("failed")
    context.forwarding.forged(why, remote=session.out.remote, listener="imap")
