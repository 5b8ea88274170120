"""Mails that were read lately, decoded, in memory: a client that reads a mail part by part, or a second client of the
same user, does not pay for the file and the decompression again.

Invariant: what is held is at most `bytes_max` octets; a mail never changes under its oid, so nothing grows stale. A
name has the storage id in it (`name_of`): a record that claims another user's oid, as a forged one may, finds nothing.
Refuses to know: where mails lie.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

RECENT_BYTES_MAX: Final = 32 << 20
"""Some thousand mails; the page cache of the kernel holds the files of more."""

MAIL_BYTES_MAX: Final = 1 << 20
"""A larger one would evict too many for one reader; of such a mail only the frames needed are read."""


def name_of(sid: str, oid: bytes) -> bytes:
    """What a user's mail is held under. No two have the same: an oid has 16 bytes."""
    return sid.encode("ascii") + oid


class Recent:
    """Decoded mails by name; the least recently used go first."""

    def __init__(self, bytes_max: int = RECENT_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        self._mails: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._mails)

    def get(self, name: bytes) -> bytes | None:
        mail = self._mails.get(name)
        if mail is not None:
            self._mails.move_to_end(name)
        return mail

    def put(self, name: bytes, mail: bytes) -> None:
        if len(mail) > MAIL_BYTES_MAX or name in self._mails:
            return
        self._mails[name] = mail
        self.nbytes += len(mail)
        while self.nbytes > self.bytes_max:
            self.nbytes -= len(self._mails.popitem(last=False)[1])

    def clear(self) -> None:
        self._mails.clear()
        self.nbytes = 0
