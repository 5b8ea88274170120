"""What the LMTP server needs of the store: check a recipient, and store a mail.

Invariant: `deliver` returns only when the mail is durable. The reply 250 is sent only
after that. Failures are kinds of `obox.errors`; `obox.lmtp.replies` maps them to
replies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Recipient:
    """An accepted recipient.

    `context` belongs to the deliverer: what it looked up and needs again in `deliver`.
    """

    address: str
    """As the client wrote it, without brackets."""
    user: str
    """The user without the detail. It is not normalised unless the deliverer did it."""
    detail: str = ""
    context: object = None
    owner: str = ""
    """The backend that serves the user; "": we do."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is known about a mail apart from its bytes."""

    reverse_path: str
    """Empty for a bounce."""
    lhlo: str
    remote: str
    """The client's address, or "unix"."""
    session_id: str
    """Identifies the transaction in our log, in Received and in the reply."""
    size: int
    """Bytes as received, without the header fields that we add."""
    body: str = "7BIT"
    smtputf8: bool = False
    message_id: str = ""
    queue_id: str = ""
    """The queue id of the sending MTA, from its Received field."""


class Deliverer(Protocol):
    """The store as LMTP uses it. Both methods may be called for many mails at once."""

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
