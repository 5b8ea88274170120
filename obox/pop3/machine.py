"""The machine: what a session does with each line of the client.

A line is an answer to a challenge of AUTH, or a command of the row of the table for the
session's state. Its handler returns the first line of the answer, or has written the
answer itself and returns None. Each command of a user waits until the store may answer,
which matters after a pause of the process.

Every exception of a handler becomes an answer (`replies.of_error`). Any exception that
is no OboxError is a bug: its traceback is logged, and the session continues.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from obox.errors import OboxError
from obox.login import NeedsTls
from obox.pop3.lines import LINE_BYTES_MAX
from obox.pop3.replies import SERVER_BUG, Bad, Reply, err, of_error
from obox.pop3.session import LEFT, Session

Handler = Callable[[Session, bytes], Awaitable[Reply | None]]
"""Takes the session, and what follows the command and a space."""
UNKNOWN: Final = "OTHER"
"""What unknown commands are counted as."""


class Table(NamedTuple):
    """The commands before and after the login. respond: handles the client's answer to
    a challenge. cancellable: these change nothing, so they are cancelled when the
    client is gone."""

    before: Mapping[bytes, Handler]
    after: Mapping[bytes, Handler]
    respond: Handler
    cancellable: frozenset[bytes]


class Machine:
    """See the module's text."""

    __slots__ = ("_table",)

    def __init__(self, table: Table) -> None:
        self._table = table

    async def handle(self, session: Session, line: bytes) -> None:
        """Answer a line."""
        if len(line) > LINE_BYTES_MAX:
            session.sasl = None
            session.answer(UNKNOWN, err(f"The line is too long: {LINE_BYTES_MAX} octets are allowed"), bad=True)
            return
        table = self._table
        if session.sasl is not None:
            await self._run(session, b"AUTH", table.respond, line)
            return
        session.commands += 1
        word, _, rest = line.partition(b" ")
        name = word.upper()
        handler = (table.before if session.user is None else table.after).get(name)
        if handler is None:
            known = name in table.before or name in table.after
            text = f"{name.decode()} is not allowed now" if known else "Unknown command"
            session.answer(name.decode() if known else UNKNOWN, err(text), bad=True)
            return
        await self._run(session, name, handler, rest)

    async def _run(self, session: Session, name: bytes, handler: Handler, rest: bytes) -> None:
        session.may_cancel = name in self._table.cancellable
        label = name.decode()
        try:
            if session.user is not None and name != b"QUIT":
                await session.user.current()
            reply = await handler(session, rest)
        except (Bad, NeedsTls) as error:
            session.answer(label, of_error(error), bad=True)
        except OboxError as error:
            session.answer(label, of_error(error))
        except ConnectionError:
            raise
        except Exception:
            session.log_bug(label)
            session.answer(label, SERVER_BUG)
        else:
            if reply is not None:
                session.answer(label, reply)
        finally:
            session.may_cancel = False
        if session.out.ended == LEFT:
            session.out.close()
