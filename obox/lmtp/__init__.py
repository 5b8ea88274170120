"""LMTP: how mail comes in. RFC 2033.

The invariant: 250 after the mail means durable, one reply for each recipient. Knows the
store only as a `Deliverer`.
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
