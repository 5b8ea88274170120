"""IDLE, RFC 2177: the session reports changes until the client sends DONE.

The handler only enters the state; `Session.wake` starts the connection's task for each
change, so that an idle session holds no task. The tagged answer follows DONE.
"""

from __future__ import annotations

from obox.imap import ast, wire
from obox.imap.session import Session
from obox.imap.updates import report


async def idle(session: Session, command: ast.Idle) -> None:
    await report(session)
    session.write(wire.continuation("idling"))
    session.waiting_tag = command.tag
    session.idling = True
    session.out.parser.expect_done()
    session.out.idle_changed()
