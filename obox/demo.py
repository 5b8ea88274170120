"""`obox serve --demo DIR`: a backend with a user and a few mails, without any
preparation.

Everything is below DIR: the configuration, the users, the bucket (a directory) and the
local state. A second start continues with the same data. The mails are delivered only
once.
"""

from __future__ import annotations

import asyncio
import sys
import time
from email.message import EmailMessage
from email.utils import formatdate
from pathlib import Path
from typing import TYPE_CHECKING

from .accounts import storage_id
from .auth import add_user, hash_password
from .errors import Unavailable
from .store.api import NewMail

if TYPE_CHECKING:
    from .backend import Backend

USER = "demo@example.org"
PASSWORD = "demo"

_CONFIG = """\
# Made by `obox serve --demo`; every setting is in docs/config.md.
state_dir = "state"

[storage]
url = "{bucket}"

[auth]
passwd_file = "users"

[imap]
listen = ["127.0.0.1:1143"]

[lmtp]
listen = ["127.0.0.1:1024"]

[http]
listen = ["127.0.0.1:8080"]
"""


def prepare(directory: Path) -> Path:
    """Create what is missing below `directory`, and return the configuration file."""
    directory.mkdir(parents=True, exist_ok=True)
    config = directory / "obox.toml"
    if not config.exists():
        config.write_text(_CONFIG.format(bucket=(directory / "bucket").absolute().as_uri()))
    users = directory / "users"
    if not users.exists():
        users.touch(mode=0o600)
        add_user(users, USER, hash_password("SHA512-CRYPT", PASSWORD))
    return config


def mails() -> list[bytes]:
    """Return a plain mail, a mail with alternatives, and a mail with an attachment."""
    out = []
    for number, subject in enumerate(("Welcome to obox", "Two ways to say it", "With a picture, nearly"), 1):
        mail = EmailMessage()
        mail["From"] = "obox <postmaster@example.org>"
        mail["To"] = USER
        mail["Subject"] = subject
        mail["Date"] = formatdate(time.time() - 3600 * (4 - number))
        mail["Message-ID"] = f"<demo-{number}@example.org>"
        mail.set_content("This mail is one object in the bucket; its index record is in a bundle beside it.\n")
        if number == 2:
            mail.add_alternative("<p>This mail is <b>one object</b> in the bucket.</p>\n", subtype="html")
        if number == 3:
            mail.add_attachment(b"\x89PNG\r\n\x1a\n", maintype="image", subtype="png", filename="dot.png")
        out.append(mail.as_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    return out


async def fill(backend: Backend) -> None:
    """Deliver the mails, once, and print how to connect.

    It does nothing if the backend is stopped before.
    """
    await backend.ready.wait()
    try:
        await _deliver(backend)
    except Unavailable as error:
        print(f"obox: no mails were delivered: {error}", file=sys.stderr, flush=True)
        return
    imap, *_ = backend.listeners.addresses("imap")
    lmtp, *_ = backend.listeners.addresses("lmtp")
    print_hint(imap, lmtp, backend.parts.config.storage.url)


async def _deliver(backend: Backend) -> None:
    user = await backend.parts.store.open_user(USER, storage_id(USER))
    try:
        if (await user.status("INBOX")).uidnext == 1:
            await user.append("INBOX", [NewMail(mail) for mail in mails()])
    finally:
        await user.release()


def print_hint(imap: str, lmtp: str, bucket: str, more: str = "") -> None:
    """Say how to connect. more: further lines."""
    print(
        f"\nobox is ready.\n\n"
        f"  user      {USER}   password  {PASSWORD}\n"
        f"  IMAP      {imap}   LMTP  {lmtp}\n"
        f"  bucket    {bucket}\n{more}\n"
        f"Read the first mail:\n\n"
        f"  curl -s --user {USER}:{PASSWORD} 'imap://{imap}/INBOX;MAILINDEX=1'\n\n"
        f"Stop with Ctrl-C: everything is flushed to the bucket; delete the state and start again, it is all there.\n",
        flush=True,
    )


_filling: set[asyncio.Task[None]] = set()


def begin(backend: Backend) -> None:
    """Fill the demo while the backend starts."""
    task = asyncio.get_running_loop().create_task(fill(backend))
    _filling.add(task)
    task.add_done_callback(_filling.discard)
