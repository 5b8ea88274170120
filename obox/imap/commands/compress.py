"""COMPRESS. RFC 4978."""

from __future__ import annotations

from obox.imap import ast
from obox.imap.replies import Reply, bad
from obox.imap.session import Session
from obox.loading import loaded

MECHANISM = "DEFLATE"


async def compress(session: Session, command: ast.Compress) -> Reply | None:
    """Compress everything behind the tagged OK.

    Nothing is awaited between the OK and the change, since the client may answer at
    once.
    """
    if command.mechanism != MECHANISM:
        return bad(f"Unknown mechanism: allowed is {MECHANISM}")
    if session.out.compressed:
        return bad("Compression is active already")
    await loaded("obox.net.deflate")
    session.finish_command(command.tag, command.NAME, Reply("Compression is active"))
    session.out.start_compression()
    return None
