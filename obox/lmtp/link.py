"""The owner's end of X-OBOX-LINK in LMTP: a client proves that it is a member of the
cluster. It is imported where users are forwarded."""

from __future__ import annotations

from obox.auth import LINK, Challenge, Forward, LinkRefused, SaslError
from obox.errors import OboxError
from obox.lmtp.events import LinkAsked
from obox.lmtp.machine import Machine
from obox.lmtp.replies import Reply
from obox.lmtp.session import Session
from obox.net import Connection, speak_for


async def step(connection: Connection, machine: Machine, session: Session, asked: LinkAsked) -> None:
    """Answer one line of the client."""
    forwarding = session.context.forwarding
    assert forwarding is not None
    try:
        if asked.first:
            session.link = await forwarding.exchange(
                remote=connection.remote, local=connection.is_local, tls=connection.tls
            )
            answer: Challenge | Forward = session.link.start(LINK, asked.line)
        else:
            assert session.link is not None
            answer = session.link.step(asked.line or b"")
    except SaslError as error:
        machine.answer_link(Reply(501, "5.5.4", str(error)))
    except LinkRefused as refused:
        forwarding.forged(str(refused), remote=connection.remote, listener="lmtp")
        machine.answer_link(Reply(535, "5.7.8", "Authentication failed"))
    except OboxError as error:
        machine.answer_link(Reply(538, "5.7.11", str(error)))
    else:
        if isinstance(answer, Challenge):
            machine.answer_link(None, answer.wire)
            return
        machine.member = True
        speak_for(connection, answer.remote, tls=answer.tls)
        session.remote, session.tls = answer.remote or "unix", answer.tls
        machine.answer_link(Reply(235, "2.7.0", "Welcome"))
    session.link = None
