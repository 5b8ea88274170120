"""INPROGRESS: a client learns that its command is still at work. RFC 9585.

Some proxies and clients end a connection on which nothing comes for a minute. A search
for words in many mails that lie in the bucket may take longer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from obox.imap import ast, wire
from obox.imap.session import Session

EVERY_S: Final = 10.0
"""The time between two such lines. Most commands are done before the first."""


@contextmanager
def in_progress(session: Session, command: ast.Command) -> Iterator[None]:
    """Send such lines during the context. Nothing else of the answer is sent
    meanwhile."""
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle
    code = b"INPROGRESS (%b NIL NIL)" % wire.quoted(command.tag)

    def say() -> None:
        nonlocal timer
        if not session.out.congested:
            session.write(wire.status(None, "OK", "Still at work", code))
            session.out.send()
        timer = loop.call_later(EVERY_S, say)

    timer = loop.call_later(EVERY_S, say)
    try:
        yield
    finally:
        timer.cancel()
