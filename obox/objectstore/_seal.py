"""Seals the frames of an object. It is imported if there are keys, because its library
is large."""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from obox.objectstore._errors import CorruptObject

_AAD = struct.Struct("<IB")
_NONCE = struct.Struct("<I8x")


class Seal:
    """Seals and opens the frames of an object."""

    __slots__ = ("_aead", "_bound")

    def __init__(self, master: bytes, oid: bytes, info: bytes, bound: bytes) -> None:
        """info: of the key. bound: header bytes 0..48 and the owner since version 2."""
        self._aead = AESGCM(HKDF(SHA256(), 32, salt=oid, info=info).derive(master))
        self._bound = bound

    def seal(self, data: bytes, number: int, last: bool) -> bytes:
        return self._aead.encrypt(_NONCE.pack(number), data, self._bound + _AAD.pack(number, last))

    def open(self, data: bytes, number: int, last: bool) -> bytes:
        try:
            return self._aead.decrypt(_NONCE.pack(number), data, self._bound + _AAD.pack(number, last))
        except InvalidTag:
            raise CorruptObject(f"frame {number} is not authentic (damaged, or another master key)") from None
