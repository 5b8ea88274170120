"""Decoded mails that were read lately, in memory. A client that reads a mail part by
part, or a second client of the same user, needs no second read and decompression.

Invariant: it holds at most `bytes_max` octets. A mail never changes under its oid, so
an entry is never out of date. A name includes the storage id (`name_of`), so a forged
record with another user's oid finds nothing.

This module does not know where mails are stored.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

RECENT_BYTES_MAX: Final = 32 << 20
"""Memory for some thousand mails. The kernel's page cache holds the files of more."""

MAIL_BYTES_MAX: Final = 1 << 20
"""Larger mails are not kept, because each would evict too many others. Of such a mail
only the frames needed are read."""


def name_of(sid: str, oid: bytes) -> bytes:
    """Return the name under which a user's mail is held. Names are unique, because an
    oid has 16 bytes."""
    return sid.encode("ascii") + oid


class Recent:
    """Decoded mails by name. The least recently used mail is evicted first."""

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
