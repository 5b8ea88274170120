"""Paths and parameters of MAIL and RCPT; user and detail of a recipient. Pure.

    Path       = "<" [ A-d-l ":" ] Mailbox ">"            ; RFC 5321 §4.1.2
    Mailbox    = Local-part "@" ( Domain / address-literal )
    Local-part = Dot-string / Quoted-string

More than that is accepted: dots anywhere (senders use them), UTF-8 (RFC 6531 §3.3), a
local part without a domain (`obox.auth.normalise` adds the default domain), and a space
before the "<". Control characters are never accepted. A source route is ignored (RFC
5321 appendix C).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

ADDRESS_BYTES_MAX = 512
"""Longest path. RFC 5321 §4.5.3.1.3 has 256 octets; UTF-8 gets twice as many."""

_ATOM = r'[^\s\x00-\x20\x7f-\x9f<>()\[\]\\,;:@"]+'
_QUOTED = r'"(?:[^\x00-\x1f\x7f-\x9f"\\]|\\[\x20-\x7e])*"'
_PATH = re.compile(
    rf"\s*<(?:@[^\s:<>]+:)?(?P<address>(?P<local>{_ATOM}|{_QUOTED})(?:@(?P<domain>{_ATOM}|\[[^\s\[\]\\<>]+\]))?)>"
    r"(?:\s+(?P<parameters>.*))?"
)
_NULL = re.compile(r"\s*<\s*>(?:\s+(?P<parameters>.*))?")
_QUOTED_PAIR = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Address:
    """text: as the client wrote it, without brackets and route. local: without quotes.
    domain: it may be empty."""

    text: str
    local: str
    domain: str


NULL_ADDRESS = Address("", "", "")
"""The null reverse-path of a bounce. RFC 5321 §4.5.5."""


def parse_path(text: str) -> tuple[Address, str] | None:
    """Parse what follows `FROM:` or `TO:`. Returns the address and the parameters, or
    None if the text is not a path."""
    match = _PATH.fullmatch(text)
    if match is None:
        null = _NULL.fullmatch(text)
        return (NULL_ADDRESS, null["parameters"] or "") if null else None
    address, local = match["address"], match["local"]
    if len(address) > ADDRESS_BYTES_MAX or (not address.isascii() and len(address.encode()) > ADDRESS_BYTES_MAX):
        return None
    if local[0] == '"':
        local = _QUOTED_PAIR.sub(r"\1", local[1:-1])
        if not local:
            return None
    return Address(address, local, match["domain"] or ""), match["parameters"] or ""


def parse_parameters(text: str) -> dict[str, str] | None:
    """Parse `KEY=value KEY …`. Keys are returned in upper case, with "" for no value.
    Returns None if a key is empty or occurs twice."""
    found: dict[str, str] = {}
    for item in text.split():
        key, _, value = item.partition("=")
        key = key.upper()
        if not key or key in found:
            return None
        found[key] = value
    return found


def split_detail(address: Address, delimiters: str) -> tuple[str, str]:
    """Return (user, detail): `bob+work@x` is user `bob@x`, detail `work`. Any character
    of `delimiters` separates them.

    A local part that begins with a delimiter has no detail. RFC 5233 §1.
    """
    user, detail = address.local, ""
    for index, char in enumerate(user):
        if index and char in delimiters:
            user, detail = user[:index], user[index + 1 :]
            break
    return (f"{user}@{address.domain}" if address.domain else user), detail
