"""LMTP, the protocol by which mail arrives. RFC 2033.

Invariant: after the mail there is a reply for each recipient, and 250 means that the
mail is durable. This room knows the store only as a `Deliverer`.
"""

from obox.lmtp.deliverer import Deliverer, Envelope, Recipient
from obox.lmtp.machine import Machine
from obox.lmtp.replies import KIND_REPLIES, Reply, reply_for
from obox.lmtp.server import LmtpServer
from obox.lmtp.settings import Settings

__all__ = [
    "KIND_REPLIES",
    "Deliverer",
    "Envelope",
    "LmtpServer",
    "Machine",
    "Recipient",
    "Reply",
    "Settings",
    "reply_for",
]
