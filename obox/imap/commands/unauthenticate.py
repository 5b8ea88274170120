"""UNAUTHENTICATE: the connection goes back to the state before the login. RFC 8437.

Invariant: nothing of the user is left in the session. What a connection keeps is TLS,
the client's ID, and the number of failed logins.
"""

from __future__ import annotations

from obox.imap import ast
from obox.imap.replies import Reply, bad
from obox.imap.session import Session


async def unauthenticate(session: Session, command: ast.Unauthenticate) -> Reply | None:
    """Release the user. The next command may be pipelined, so there is no NO: a failure
    ends the connection. RFC 8437 §3.

    Where another server speaks for the client, the next login would have to be checked
    there, so such a session cannot go back. A compressed connection cannot either: the
    end of its compressed input would not be known (RFC 8437 §4.1).
    """
    if session.out.spoken_for or session.out.compressed:
        return bad("UNAUTHENTICATE is not offered here")
    name = session.user_name
    try:
        await session.leave_user("unauthenticate")
    except Exception:
        session.log_bug(command.NAME)
        session.end("The session could not be reset", "UNAVAILABLE")
        return None
    session.context.registry.logout(name)
    session.user_name = ""
    session.condstore = session.qresync = session.uidonly = session.rev2 = False
    session.utf8 = session.out.parser.utf8 = False
    session.emptied = None
    session.commands = 0
    session.out.user_left()
    return Reply("Unauthenticated")
