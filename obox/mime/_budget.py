"""What the description of one mail may cost: addresses, parts, bytes of field values.

One budget serves a whole mail, its embedded messages included, so that nesting multiplies
nothing. What goes beyond it is not described: a list of addresses or a text is NIL, a part is
opaque bytes. No real mail comes near; `exceeded` says what did.
"""

from __future__ import annotations

from typing import Final

ADDRESSES_MAX: Final = 2000
"""Addresses that are read of one mail. A broken one takes 7 us to read and is ten times as long
in ENVELOPE, where From counts three times. Large providers send to 500 to 2,000 recipients."""
PARTS_MAX: Final = 10_000
"""Parts of one mail; after the last no delimiter is looked for any more. Each takes 13 us."""
VALUES_BYTES_MAX: Final = 512 * 1024
"""Bytes of field values that ENVELOPE and BODYSTRUCTURE of one mail are made of; 1 us each at
worst. A part has some 200, an embedded message 500."""


class Budget:
    """What is left for one mail. Counts go down only; `exceeded` names what was asked beyond it."""

    __slots__ = ("addresses", "exceeded", "parts", "values_bytes")

    def __init__(
        self, addresses: int = ADDRESSES_MAX, parts: int = PARTS_MAX, values_bytes: int = VALUES_BYTES_MAX
    ) -> None:
        self.addresses = addresses
        self.parts = parts
        self.values_bytes = values_bytes
        self.exceeded: dict[str, None] = {}

    @classmethod
    def quick(cls) -> Budget:
        """A budget of some 5 ms: for a caller who may not take longer and begins anew elsewhere
        when it does not suffice."""
        return cls(200, 100, 16 * 1024)

    def value(self, length: int) -> bool:
        """Whether a field value of so many bytes may still be looked at; if so it is counted."""
        if length > self.values_bytes:
            self.exceeded["values"] = None
            return False
        self.values_bytes -= length
        return True
