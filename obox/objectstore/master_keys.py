"""Master keys from files, and the ids by which objects name them.

This module does not know what is sealed with a key. Diagnostics: ConfigError, in one
line.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from obox.errors import ConfigError

KEY_ID_BYTES: Final = 8
"""The longest id of a key: the length of its field in the header."""


def load_keys(files: Mapping[str, str]) -> dict[str, bytes]:
    """Read master keys, id -> file: 32 bytes, or their hex, or their base64.

    Raises: ConfigError, in one line.
    """
    keys: dict[str, bytes] = {}
    for key_id, name in files.items():
        check_key_id(key_id)
        try:
            raw = Path(name).read_bytes()
        except OSError as error:
            raise ConfigError(f"encryption key {key_id!r}: cannot read {name}: {error.strerror}") from None
        key = _parse_key(raw)
        if key is None:
            raise ConfigError(f"encryption key {key_id!r}: {name} has no key; allowed: 32 bytes, raw, hex or base64")
        keys[key_id] = key
    return keys


def _parse_key(raw: bytes) -> bytes | None:
    if len(raw) == 32:
        return raw
    text = raw.strip()
    try:
        if len(text) == 64:
            return binascii.unhexlify(text)
        key = base64.b64decode(text, validate=True)
    except ValueError:
        return None
    return key if len(key) == 32 else None


def check_key_id(key_id: str) -> None:
    if not (1 <= len(key_id) <= KEY_ID_BYTES and key_id.isascii() and key_id.isalnum()):
        raise ConfigError(f"encryption key id {key_id!r}; allowed: 1 to {KEY_ID_BYTES} ASCII letters and digits")
