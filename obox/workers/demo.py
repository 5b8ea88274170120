"""`obox serve --demo DIR --workers N` delivers the mails of the demo as a client
does."""

from __future__ import annotations

import asyncio
import imaplib
import smtplib
import sys

from obox.demo import PASSWORD, USER, mails, print_hint
from obox.front import Front

from .supervisor import Supervisor

_filling: set[asyncio.Task[None]] = set()


def begin(front: Front) -> None:
    """Fill the demo, and print how to connect."""
    assert isinstance(front, Supervisor)
    task = asyncio.get_running_loop().create_task(_fill(front))
    _filling.add(task)
    task.add_done_callback(_filling.discard)


async def _fill(front: Supervisor) -> None:
    imap, *_ = front.listeners.addresses("imap")
    lmtp, *_ = front.listeners.addresses("lmtp")
    try:
        await asyncio.to_thread(_deliver, imap, lmtp)
    except (OSError, imaplib.IMAP4.error, smtplib.SMTPException) as error:
        print(f"obox: no mails were delivered: {error}", file=sys.stderr, flush=True)
        return
    processes = {worker.name: worker.process for worker in front.pool.workers.values()}
    pids = ", ".join(f"{name} is process {one.pid}" for name, one in processes.items() if one is not None)
    print_hint(imap, lmtp, front.config.storage.url, f"  workers   {pids}\n")


def _deliver(imap: str, lmtp: str) -> None:
    """Deliver the mails. Raises OSError, IMAP4.error, SMTPException."""
    host, _, port = imap.rpartition(":")
    with imaplib.IMAP4(host, int(port), timeout=30) as client:
        client.login(USER, PASSWORD)
        if b"(UIDNEXT 1)" not in client.status("INBOX", "(UIDNEXT)")[1][0]:
            return
    host, _, port = lmtp.rpartition(":")
    with smtplib.LMTP(host, int(port), timeout=30) as sender:
        for mail in mails():
            sender.sendmail("postmaster@example.org", [USER], mail)
