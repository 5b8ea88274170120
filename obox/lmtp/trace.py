"""Header fields that a final delivery reads and writes. Pure.

Return-Path, Delivered-To and Received go in front of the mail (RFC 5321 §4.4); the mail
itself stays byte for byte as received, a Return-Path that is there already too (it MAY
be removed, and signatures may cover it): the first one is ours.

A loop is counted, not taken from one line (RFC 5321 §6.3): a mail that is fetched, sent
on or restored brings the Delivered-To of its delivery before, and perhaps of the same
recipient. It loops when it has gone through more than HOPS_MAX servers, or was
delivered to this recipient more than OWN_DELIVERIES_MAX times.
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

HEADER_BYTES_MAX = 256 << 10
"""How far into a mail its header is looked for."""

HOPS_MAX: Final = 100
"""Received fields, and likewise Delivered-To fields, of a mail that is no loop. RFC
5321 §6.3 asks for 100 at least; the MTAs before us have lower limits (Postfix 50), so
that theirs are met first."""

OWN_DELIVERIES_MAX: Final = 10
"""Delivered-To fields of the recipient. A mail is fetched or restored a few times in
its life; a loop between mailboxes goes on for ever, and stores one copy in each
round."""

_FIELD = re.compile(
    rb"^(delivered-to|message-id|received)[ \t]*:([^\n]*(?:\n[ \t][^\n]*)*)(?:\n|\Z)",
    re.IGNORECASE | re.MULTILINE,
)
_QUEUE_ID = re.compile(rb"\sid[ \t\r\n]+([A-Za-z0-9._-]{1,64})(?=[;\s]|\Z)")
_UNSAFE = re.compile(r"[^\x20-\x7e\x80-\U0010ffff]+")
_LOG_CHARS_MAX = 200


@dataclass(frozen=True, slots=True)
class Inspected:
    """A mail whose header has been looked at once for all its recipients."""

    source: bytes
    delivered_to: Mapping[str, int]
    """How often it was delivered to an address, in lower case."""
    hops: int
    """Received or Delivered-To fields, whichever are more; counted up to HOPS_MAX +
    1."""
    message_id: str
    queue_id: str

    def loops(self, address: str) -> bool:
        """Does it go in circles?"""
        return self.hops > HOPS_MAX or self.delivered_to.get(address.lower(), 0) > OWN_DELIVERIES_MAX


def inspect(source: bytes) -> Inspected:
    """Look at the header: up to the first empty line, whether lines end with CRLF or a
    bare LF."""
    header = source[: _header_end(source)]
    delivered_to: Counter[str] = Counter()
    message_id = queue_id = ""
    received = delivered = 0
    for match in _FIELD.finditer(header):
        name = match[1].lower()
        if name == b"delivered-to":
            delivered += 1
            delivered_to[_text(match[2]).strip("<>").lower()] += 1
        elif name == b"message-id":
            message_id = message_id or _text(match[2])
        else:
            received += 1
            if received == 1:  # the topmost is that of the MTA which sends to us
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
    """The fields to put in front, for one recipient.

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


def _text(value: bytes) -> str:
    text = value.strip()[:_LOG_CHARS_MAX].decode("utf-8", "replace")
    return text if text.isprintable() else _clean(text)


def _clean(text: str) -> str:
    return text if text.isascii() and text.isprintable() else _UNSAFE.sub(" ", text)


@functools.lru_cache(maxsize=4)
def _date(unix_s: int) -> str:
    return formatdate(unix_s, localtime=True)
