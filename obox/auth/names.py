"""User names: one normal form, made in one place, before auth, LMTP and object keys see
a name.

Invariant: `normalise` is idempotent, so a name that has passed it may pass again. It
refuses everything that could be mistaken for a path or break a line. `obox.escaping`
escapes names for the bucket.
"""

from __future__ import annotations

import unicodedata

from obox.errors import Invalid
from obox.text import nfc_name

NAME_BYTES_MAX = 200
"""Longest name in UTF-8 bytes, domain included: escaped, it must fit a path element of
255 bytes.
"""

GIVEN_BYTES_MAX = 3 * NAME_BYTES_MAX
"""Longest name that is normalised at all: NFC shortens a decomposed name to no less
than a third (Hangul).
"""

_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Cn", "Zl", "Zp"})
"""Controls, surrogates, unassigned characters (their normal form may change with the
Unicode version), line separators.
"""


def normalise(name: str, default_domain: str = "") -> str:
    """Return the normal form of a user name: NFC, lower case, with a domain if there is
    a default one.

    Raises: Invalid, with a text that may be shown to the client.
    """
    if name.isascii():  # nearly all names: NFC is the identity
        if len(name) > NAME_BYTES_MAX:
            raise Invalid(f"user name is longer than {NAME_BYTES_MAX} bytes")
        result = name.lower()
    else:
        # Lower case may decompose (U+0130) and NFC may then compose: applying NFC twice
        # gives a fixed point. The name is measured before each.
        result = nfc_name(nfc_name(name, GIVEN_BYTES_MAX, "user name").lower(), GIVEN_BYTES_MAX, "user name")
    if not result:
        raise Invalid("user name is empty")
    local, at, domain = result.rpartition("@")
    if not at:
        if default_domain:
            result = f"{result}@{normalise(default_domain)}"
    elif not local:
        raise Invalid("user name has nothing before the '@'")
    elif not domain:
        raise Invalid("user name has nothing after the '@'")
    if "/" in result:
        raise Invalid("user name has a '/'")
    if ".." in result:
        raise Invalid("user name has '..'")
    if result[0].isspace() or result[-1].isspace():
        raise Invalid("user name begins or ends with a space")
    if not (result.isascii() and result.isprintable()) and any(
        unicodedata.category(char) in _REFUSED_CATEGORIES for char in result
    ):
        raise Invalid("user name has a control character")
    if len(result.encode("utf-8")) > NAME_BYTES_MAX:
        raise Invalid(f"user name is longer than {NAME_BYTES_MAX} bytes")
    return result
