"""Header fields that a final delivery reads and writes. Pure.

Return-Path, Delivered-To and Received go in front of the mail (RFC 5321 §4.4); the mail itself stays byte for byte as
received, a Return-Path that is there already too (it MAY be removed, and signatures may cover it): the first one is
ours. A mail that carries Delivered-To of the same
recipient has been here before: a loop (RFC 5321 §6.3).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from email.utils import formatdate

HEADER_BYTES_MAX = 256 << 10
"""How far into a mail its header is looked for."""

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
    delivered_to: frozenset[str]
    message_id: str
    queue_id: str

    def loops(self, address: str) -> bool:
        """Has it been delivered to this address before?"""
        return address.lower() in self.delivered_to


def inspect(source: bytes) -> Inspected:
    """Look at the header: up to the first empty line, whether lines end with CRLF or a bare LF."""
    header = source[: _header_end(source)]
    delivered_to: list[str] = []
    message_id = queue_id = ""
    received = False
    for match in _FIELD.finditer(header):
        name = match[1].lower()
        if name == b"delivered-to":
            delivered_to.append(_text(match[2]).strip("<>").lower())
        elif name == b"message-id":
            message_id = message_id or _text(match[2])
        elif not received:  # the topmost Received is that of the MTA which sends to us
            received = True
            found = _QUEUE_ID.search(match[2])
            queue_id = _text(found[1]) if found else ""
    return Inspected(source, frozenset(delivered_to), message_id, queue_id)


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

    protocol: LMTP, LMTPS, UTF8LMTP or UTF8LMTPS (RFC 3848, RFC 6531 §4.3).
    """
    origin = f"{_clean(lhlo)} ([{remote}])" if remote != "unix" else _clean(lhlo)
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
