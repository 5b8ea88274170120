"""The limits of the description of a mail: addresses, parts, bytes of field values.

A single budget holds for a whole mail, including its embedded messages, so that nesting
multiplies nothing. What exceeds the budget is not described: a list of addresses or a
text is NIL, and a part is opaque bytes. No real mail comes near the limits. `exceeded`
has the limits that a mail exceeds.
"""

from __future__ import annotations

from typing import Final

ADDRESSES_MAX: Final = 2000
"""Addresses of a mail that are parsed. A broken address takes 7 us to parse and is ten
times as long in ENVELOPE, where From counts three times. Large providers send to 500 to
2,000 recipients.
"""
PARTS_MAX: Final = 10_000
"""Parts of a mail. After the last of them no delimiter is searched any more. Each takes
13 us.
"""
VALUES_BYTES_MAX: Final = 256 * 1024
"""Bytes of field values in the ENVELOPEs of a mail, at most 1 us each. An embedded
message has some 300.
"""
CONTENT_BYTES_MAX: Final = 256 * 1024
"""Bytes of Content-* values of the parts of a mail, at most 1 us each. A part has some
200. They are apart from the ENVELOPEs, because a FETCH of a part must find the parts
that BODYSTRUCTURE names, and makes no ENVELOPE.
"""


class Budget:
    """What is left for a mail.

    Counts only decrease; `exceeded` names the limits that were exceeded.
    """

    __slots__ = ("addresses", "content_bytes", "exceeded", "parts", "values_bytes")

    def __init__(
        self,
        addresses: int = ADDRESSES_MAX,
        parts: int = PARTS_MAX,
        values_bytes: int = VALUES_BYTES_MAX,
        content_bytes: int = CONTENT_BYTES_MAX,
    ) -> None:
        self.addresses = addresses
        self.parts = parts
        self.values_bytes = values_bytes
        self.content_bytes = content_bytes
        self.exceeded: dict[str, None] = {}

    @classmethod
    def quick(cls) -> Budget:
        """Return a budget of some 5 ms.

        It is for a caller that may not take longer, and that begins anew elsewhere if
        the budget is too small.
        """
        return cls(200, 100, 12 * 1024, 4 * 1024)

    def content(self, length: int) -> bool:
        """Return whether Content-* values of `length` bytes may still be parsed. If
        they may, they are counted.
        """
        if length > self.content_bytes:
            self.exceeded["content"] = None
            return False
        self.content_bytes -= length
        return True

    def value(self, length: int) -> bool:
        """Return whether a field value of `length` bytes may still be parsed. If it
        may, it is counted.
        """
        if length > self.values_bytes:
            self.exceeded["values"] = None
            return False
        self.values_bytes -= length
        return True
