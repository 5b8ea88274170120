"""A login at a backend as other members do it, to see whether it works: `cluster check
--login`.

The login needs no password, because it goes over the trusted link. A backend that does
not own the user refers to the owner. That shows, too, that the backend lives and has
the same secret.
"""

from __future__ import annotations

import os
from typing import NamedTuple

from obox.accounts import Account
from obox.auth import Forward, LinkRefused, LinkSender, Referred
from obox.auth.link import NONCE_BYTES
from obox.cluster import There
from obox.errors import OboxError

from .dial import dial, place_of
from .imap import Imap
from .link import forward_of, login

LISTENER = "imap"


class Probed(NamedTuple):
    """works: whether other members can forward clients there. text: for people."""

    works: bool
    text: str


class Asker:
    """The sender's end of the link, for a process that is no member. It is a
    `calls.Signer`."""

    def __init__(self, member: str, secret: bytes) -> None:
        """member: the name in the configuration."""
        self.member = member
        self._secret = secret

    def sender(self, forward: Forward, binding: bytes) -> LinkSender:
        """Return our side of the link."""
        return LinkSender(self._secret, forward, nonce=os.urandom(NONCE_BYTES), binding=binding)


async def probe(there: There, account: Account, *, member: str, secret: bytes) -> Probed:
    """Log in at a backend. there: the backend, with the assignment of the user; member:
    the name of this member."""
    forward = forward_of(there, account, member=member, listener=LISTENER, remote="127.0.0.1", tls=True)
    try:
        dialogue = await dial(place_of(there, LISTENER))
        try:
            asker = Asker(member, secret)
            await login(dialogue, Imap(), lambda binding: asker.sender(forward, binding))
        finally:
            dialogue.abort()
    except Referred as found:
        return Probed(True, f"answers, and says that {found.backend} serves {account.name}")
    except LinkRefused as error:
        return Probed(False, f"{error}; all members need the same cluster.secret_file")
    except TimeoutError:
        return Probed(False, "no answer in time")
    except (OSError, OboxError) as error:
        return Probed(False, str(getattr(error, "strerror", None) or error) or type(error).__name__)
    return Probed(True, f"{account.name} can log in")
