"""Objects in the envelope of the first version, made from the description of that
envelope."""

from __future__ import annotations

import struct
from zlib import crc32

import zstandard
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

FRAME = 256 << 10


def encode(
    kind: int, oid: bytes, meta: bytes, payload: bytes, *, key_id: str = "", key: bytes = b"", compress: bool = False
) -> bytes:
    """Encode an object. key_id "": the object is not encrypted."""
    frames = [payload[at : at + FRAME] for at in range(0, len(payload), FRAME)]
    if compress:
        frames = [zstandard.compress(frame) for frame in frames]
    stored = len(meta) + (16 if key_id else 0)
    name = key_id.encode()
    signed = struct.pack("<4sBBBB8s16sIIQ", b"obox", 1, 0, kind, compress, name, oid, stored, len(frames), len(payload))
    if key_id:
        seal = AESGCM(HKDF(SHA256(), 32, salt=oid, info=b"obox 1 object").derive(key))
        frames = [
            seal.encrypt(struct.pack("<I8x", n), frame, signed + struct.pack("<IB", n, n == len(frames) - 1))
            for n, frame in enumerate(frames)
        ]
        meta = seal.encrypt(b"\xff" * 4 + bytes(8), meta, signed + b"\xff" * 4 + b"\0")
    table = b"".join(struct.pack("<II", len(frame), crc32(frame)) for frame in frames)
    crc = crc32(meta, crc32(table, crc32(signed)))
    return b"".join((signed, struct.pack("<I", crc), table, meta, *frames))
