"""Answers, and the table that maps our failures to answers.

Every kind of `obox.errors` is in ERRORS, which a test checks. Any other exception is a
bug: it is logged and answered SERVER_BUG. Response codes: RFC 2449 §8, RFC 3206.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from obox import errors
from obox.auth import LINK, AuthFailed, Disabled, Referred
from obox.login import Forged, NeedsTls, TooSoon

TEXT_BYTES_MAX: Final = 480
"""Longest text. An answer then has at most the 512 octets of RFC 2449 §4."""
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


class Reply(NamedTuple):
    """The first line of an answer. code: the response code without brackets."""

    text: str
    code: str = ""
    ok: bool = True

    def wire(self) -> bytes:
        text = _UNPRINTABLE.sub(" ", self.text).encode("ascii", "replace")[:TEXT_BYTES_MAX]
        code = f"[{self.code}] ".encode() if self.code else b""
        return (b"+OK " if self.ok else b"-ERR ") + code + text + b"\r\n"


class Bad(errors.Invalid):
    """A command that is unknown or wrong. Too many in a row end the session."""


def err(text: str, code: str = "") -> Reply:
    return Reply(text, code, ok=False)


SERVER_BUG: Final = err("Internal error: the log of the server says more", "SYS/PERM")

ERRORS: Final[dict[type[errors.OboxError], tuple[str, str]]] = {
    # kind: code, text for an error that has none
    errors.NotFound: ("SYS/PERM", "No such mail"),
    errors.Exists: ("SYS/PERM", "Exists already"),
    errors.NoPerm: ("SYS/PERM", "Not permitted"),
    errors.OverQuota: ("SYS/PERM", "Quota exceeded"),
    errors.Expunged: ("", "The mail no longer exists"),
    errors.InUse: ("IN-USE", "In use, try later"),
    errors.Limit: ("SYS/TEMP", "A limit is reached"),
    errors.MailboxFull: ("SYS/PERM", "The mailbox has as many mails as it may have"),
    errors.TooBig: ("SYS/PERM", "Too big"),
    errors.Invalid: ("", "Cannot do that"),
    errors.Unavailable: ("SYS/TEMP", "Storage is not available, try later"),
    errors.Temporary: ("SYS/TEMP", "Temporary failure, try later"),
    errors.Corrupt: ("SYS/PERM", "Stored data is damaged"),
    # kinds that obox.auth and obox.login refine
    AuthFailed: ("AUTH", "Authentication failed"),
    Disabled: ("AUTH", "Login is disabled for this user"),
    Forged: (LINK, "Authentication failed"),
    NeedsTls: ("", "Passwords need TLS here"),
    TooSoon: ("LOGIN-DELAY", "Too soon after the last login"),
}


def of_error(error: errors.OboxError) -> Reply:
    """Return the answer to a failure."""
    if isinstance(error, Referred):
        return err(str(error), error.wire)
    for kind in type(error).__mro__:
        if kind in ERRORS:
            code, text = ERRORS[kind]
            said = str(error)
            return err(said[:1].upper() + said[1:] if said else text, code)
    return SERVER_BUG
