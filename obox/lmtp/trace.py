"""Header fields that final delivery reads and writes. Pure.

Return-Path, Delivered-To and Received go in front of the mail (RFC 5321 §4.4); the mail
itself stays byte for byte as received. A Return-Path that the mail already has stays
too: it MAY be removed, but signatures may cover it. The first Return-Path is ours.

A single Delivered-To field does not prove a loop. A mail that is fetched, forwarded or
restored has the Delivered-To field of its earlier delivery, perhaps to the same
recipient. So fields are counted (RFC 5321 §6.3). A mail loops if it has passed more
than HOPS_MAX servers, or was delivered to this recipient more than OWN_DELIVERIES_MAX
times.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import formatdate
from typing import Final

from obox.addresses import literal
from obox.lmtp.address import ADDRESS_BYTES_MAX

HEADER_BYTES_MAX = 256 << 10
"""The header is looked for in the first 256 KiB of a mail."""

HOPS_MAX: Final = 100
"""The largest number of Received fields, and of Delivered-To fields, of a mail that
does not loop. RFC 5321 §6.3 asks for 100 at least. The MTAs before us have lower limits
(Postfix: 50), so their limits apply first."""

OWN_DELIVERIES_MAX: Final = 10
"""The largest number of Delivered-To fields with the recipient's address. A mail may be
fetched or restored a few times. A loop between mailboxes never ends, and each round
stores a copy."""

_FIELD = re.compile(
    rb"^(delivered-to|message-id|received)[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)(?:\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_QUEUE_ID = re.compile(rb"\sid[ \t\r\n]+([A-Za-z0-9._-]{1,64})(?=[;\s]|\Z)")
_UNSAFE = re.compile(r"[^\x20-\x7e\x80-\U0010ffff]+")
_LOG_BYTES_MAX = 200


@dataclass(frozen=True, slots=True)
class Inspected:
    """What the header of a mail says. It is read once for all recipients."""

    source: bytes
    delivered_to: Mapping[str, int]
    """How often the mail was delivered to each address. Addresses are in lower case."""
    hops: int
    """The number of Received or of Delivered-To fields, whichever is larger. Counting
    stops at HOPS_MAX + 1."""
    message_id: str
    queue_id: str

    def loops(self, address: str) -> bool:
        """Return whether the mail loops."""
        return self.hops > HOPS_MAX or self.delivered_to.get(address.lower(), 0) > OWN_DELIVERIES_MAX


def inspect(source: bytes) -> Inspected:
    """Read the header. It ends at the first empty line; lines may end with CRLF or a
    bare LF."""
    header = source[: _header_end(source)]
    delivered_to: Counter[str] = Counter()
    message_id = queue_id = ""
    received = delivered = 0
    for match in _FIELD.finditer(header):
        name = match[1].lower()
        if name == b"delivered-to":
            delivered += 1
            delivered_to[_text(match[2], ADDRESS_BYTES_MAX + 2).strip("<>").lower()] += 1
        elif name == b"message-id":
            message_id = message_id or _text(match[2])
        else:
            received += 1
            if received == 1:  # the first field is from the MTA that sends to us
                found = _QUEUE_ID.search(match[2])
                queue_id = _text(found[1]) if found else ""
        if max(received, delivered) > HOPS_MAX:
            break
    return Inspected(source, delivered_to, max(received, delivered), message_id, queue_id)


def trace_fields(
    *,
    reverse_path: str,
    recipient: str,
    lhlo: str,
    remote: str,
    hostname: str,
    session_id: str,
    protocol: str,
    unix_s: int,
) -> bytes:
    """Return the fields to put in front of the mail for a single recipient.

    protocol: LMTP, LMTPS, UTF8LMTP or UTF8LMTPS (RFC 3848, RFC 6531 §4.3). remote: the
    client's address, or "unix"; an IPv6 address is written `[IPv6:…]` (RFC 5321
    §4.1.3).
    """
    origin = f"{_clean(lhlo)} ({literal(remote)})" if remote != "unix" else _clean(lhlo)
    to = _clean(recipient)
    return (
        f"Return-Path: <{_clean(reverse_path)}>\r\n"
        f"Delivered-To: {to}\r\n"
        f"Received: from {origin}\r\n\tby {hostname} with {protocol}\r\n\tid {session_id}\r\n"
        f"\tfor <{to}>; {_date(unix_s)}\r\n"
    ).encode()


def _header_end(source: bytes) -> int:
    if source.startswith((b"\r\n", b"\n")):
        return 0
    crlf = source.find(b"\n\r\n", 0, HEADER_BYTES_MAX)
    bare = source.find(b"\n\n", 0, HEADER_BYTES_MAX if crlf < 0 else crlf)
    ends = [end + 1 for end in (crlf, bare) if end >= 0]
    return min(ends) if ends else min(len(source), HEADER_BYTES_MAX)


def _text(value: bytes, bytes_max: int = _LOG_BYTES_MAX) -> str:
    text = value.strip()[:bytes_max].decode("utf-8", "replace")
    return text if text.isprintable() else _clean(text)


def _clean(text: str) -> str:
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(" ", text)


@functools.lru_cache(maxsize=4)
def _date(unix_s: int) -> str:
    return formatdate(unix_s, localtime=True)
