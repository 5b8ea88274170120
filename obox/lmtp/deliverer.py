"""What the LMTP server needs of the store: may this recipient have mail, and store this
mail.

The invariant: `deliver` returns only when the mail is durable; the reply 250 follows it
and nothing else does. Failures are kinds of `obox.errors`; `obox.lmtp.replies` says
what the client hears.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Recipient:
    """An accepted recipient.

    `context` is the deliverer's own: whatever it looked up and wants back.
    """

    address: str
    """As the client wrote it, without brackets."""
    user: str
    """Without the detail; not yet normalised unless the deliverer did it."""
    detail: str = ""
    context: object = None
    owner: str = ""
    """The backend that serves the user; "": we do."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is known of a mail beside its bytes."""

    reverse_path: str
    """Empty for a bounce."""
    lhlo: str
    remote: str
    """The client's address, or "unix"."""
    session_id: str
    """Names the transaction in our log, in Received and in the reply."""
    size: int
    """Bytes as received, without the header fields that we add."""
    body: str = "7BIT"
    smtputf8: bool = False
    message_id: str = ""
    queue_id: str = ""
    """The sending MTA's, from its Received field."""


class Deliverer(Protocol):
    """The store, as LMTP sees it. Both methods may be called for many mails at once."""

    async def recipient(self, address: str, user: str, detail: str, size: int | None) -> Recipient:
        """Answer RCPT. size: what the client announced (RFC 1870), or None.

        Raises: NotFound; NoPerm (disabled); OverQuota; Invalid; Unavailable, Temporary
        (retry).
        """

    async def deliver(self, recipient: Recipient, envelope: Envelope, source: bytes) -> None:
        """Store one mail for one recipient; durable on return.

        source: Return-Path, Delivered-To and Received for this recipient, then the mail
        as received. Raises: as `recipient`, and TooBig.
        """
