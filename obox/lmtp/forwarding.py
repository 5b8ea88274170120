"""What LMTP needs if other backends serve some users. `obox.proxy` implements it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from obox.auth import LinkOwner
from obox.lmtp.deliverer import Deliverer, Envelope, Recipient
from obox.lmtp.events import RecipientAsked
from obox.lmtp.replies import Reply


@dataclass(frozen=True, slots=True)
class Relayed:
    """A mail for recipients of one owner.

    pieces: yields its bytes as received; each call begins again. tls: whether the
    client uses TLS. timeout_s: the time of one attempt.
    """

    recipients: Sequence[Recipient]
    envelope: Envelope
    pieces: Callable[[], AsyncIterator[bytes]]
    tls: bool
    timeout_s: float


class Forwarding(Protocol):
    """See the module's text."""

    @property
    def linked(self) -> bool:
        """Return whether members may prove themselves here."""

    async def exchange(self, *, remote: str, local: bool, tls: bool) -> LinkOwner:
        """Return the owner's side of X-OBOX-LINK, for a peer at `remote`.

        Raises: NoPerm, there is no link over such a connection.
        """

    def forged(self, why: str, *, remote: str, listener: str) -> None:
        """Log a peer that has no proof, and count a failed login of its address."""

    async def recipient(self, asked: RecipientAsked, deliverer: Deliverer) -> Recipient:
        """Answer RCPT, for a recipient of this or of another backend.

        Raises: as `Deliverer.recipient`; Referred, if a member forwards wrongly.
        """

    async def relay(self, mail: Relayed) -> list[Reply | None]:
        """Send a mail to the owner of its recipients. Return a reply for each, in
        order, or None if this backend owns the recipient by now, who has not got the
        mail.

        Raises nothing but bugs. Once all of the mail has gone to a backend, no other is
        tried. A recipient without a reply then gets a temporary error.
        """
