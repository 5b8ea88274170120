"""Object IDs. RFC 8474.

MAILBOXID is the mailbox's guid: it stays when the mailbox is renamed. EMAILID is the
oid of the mail's object, which all copies of a mail share, and which a mail keeps as
long as it exists. A letter in front shows which it is, and keeps an ID from being a
number. There are no THREADIDs. Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy.typing as npt

MAILBOX: Final = "F"
EMAIL: Final = "M"
_OID_BYTES: Final = 16


def mailbox_id(guid: str) -> str:
    return MAILBOX + guid


def email_ids(oids: npt.NDArray[Any]) -> Sequence[bytes]:
    """Return the EMAILIDs of mails. oids: a row of bytes for each."""
    text = oids.tobytes().hex().encode()
    size = 2 * _OID_BYTES
    lead = EMAIL.encode()
    return [lead + text[at : at + size] for at in range(0, len(text), size)]


def oid_of(email_id: str) -> bytes | None:
    """Return the oid that an EMAILID stands for. None: it is the EMAILID of no mail."""
    digits = email_id.removeprefix(EMAIL)
    if len(digits) != 2 * _OID_BYTES or digits == email_id or digits.lower() != digits:
        return None
    try:
        return bytes.fromhex(digits)
    except ValueError:
        return None
