"""Mails that were read lately, decoded, in memory: a client that reads a mail part by part, or a second client of the
same user, does not pay for the file and the decompression again.

Invariant: what is held is at most `bytes_max` octets; a mail never changes under its oid, so nothing grows stale.
Refuses to know: where mails lie.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

RECENT_BYTES_MAX: Final = 32 << 20
"""Some thousand mails; the page cache of the kernel holds the files of more."""

MAIL_BYTES_MAX: Final = 1 << 20
"""A larger one would evict too many for one reader; of such a mail only the frames needed are read."""


class Recent:
    """Decoded mails by oid; the least recently used go first."""

    def __init__(self, bytes_max: int = RECENT_BYTES_MAX) -> None:
        self.bytes_max = bytes_max
        self.nbytes = 0
        self._mails: OrderedDict[bytes, bytes] = OrderedDict()

    def __len__(self) -> int:
        return len(self._mails)

    def get(self, oid: bytes) -> bytes | None:
        mail = self._mails.get(oid)
        if mail is not None:
            self._mails.move_to_end(oid)
        return mail

    def put(self, oid: bytes, mail: bytes) -> None:
        if len(mail) > MAIL_BYTES_MAX or oid in self._mails:
            return
        self._mails[oid] = mail
        self.nbytes += len(mail)
        while self.nbytes > self.bytes_max:
            self.nbytes -= len(self._mails.popitem(last=False)[1])

    def clear(self) -> None:
        self._mails.clear()
        self.nbytes = 0
