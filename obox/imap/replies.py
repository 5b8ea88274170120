"""The tagged line of a command, and the table that maps our failures to tagged lines.

Every kind of `obox.errors` is in ERRORS, which a test checks. Any other exception is a
bug: it is logged and answered SERVER_BUG. Response codes: RFC 5530, RFC 9051 §7.1.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from obox import errors
from obox.auth import AuthFailed, Disabled, Referred
from obox.login import NeedsTls


class Reply(NamedTuple):
    """The tagged status line: text, response code without brackets, OK or NO or BAD."""

    text: str
    code: str | bytes | None = None
    condition: str = "OK"


def no(text: str, code: str | bytes | None = None) -> Reply:
    return Reply(text, code, "NO")


def bad(text: str, code: str | bytes | None = None) -> Reply:
    return Reply(text, code, "BAD")


SERVER_BUG: Final = no("Internal error: the log of the server says more", "SERVERBUG")

ERRORS: Final[dict[type[errors.OboxError], tuple[str, str, str]]] = {
    # kind: condition, code, text for an error that has none
    errors.NotFound: ("NO", "NONEXISTENT", "No such mailbox"),
    errors.Exists: ("NO", "ALREADYEXISTS", "Exists already"),
    errors.NoPerm: ("NO", "NOPERM", "Not permitted"),
    errors.OverQuota: ("NO", "OVERQUOTA", "Quota exceeded"),
    errors.Expunged: ("NO", "EXPUNGEISSUED", "Some of the mails no longer exist"),
    errors.InUse: ("NO", "INUSE", "In use, try later"),
    errors.Limit: ("NO", "LIMIT", "A limit is reached"),
    errors.MailboxFull: ("NO", "LIMIT", "The mailbox has as many mails as it may have"),
    errors.TooBig: ("NO", "TOOBIG", "Too big"),
    errors.Invalid: ("NO", "CANNOT", "Cannot do that"),
    errors.Unavailable: ("NO", "UNAVAILABLE", "Storage is not available, try later"),
    errors.Temporary: ("NO", "UNAVAILABLE", "Temporary failure, try later"),
    errors.Corrupt: ("NO", "CORRUPTION", "Stored data is damaged"),
    # kinds that obox.auth and obox.login refine
    AuthFailed: ("NO", "AUTHENTICATIONFAILED", "Authentication failed"),
    Disabled: ("NO", "AUTHORIZATIONFAILED", "Login is disabled for this user"),
    NeedsTls: ("NO", "PRIVACYREQUIRED", "Passwords need TLS here"),
}


def of_error(error: errors.OboxError, *, target: bool = False) -> Reply:
    """Return the answer to a failure. target: whether a missing mailbox is the target
    of mails, so that CREATE would help.
    """
    if isinstance(error, Referred):
        return no(str(error), error.wire)
    for kind in type(error).__mro__:
        if kind in ERRORS:
            condition, code, text = ERRORS[kind]
            if target and kind is errors.NotFound:
                code = "TRYCREATE"
            said = str(error)
            return Reply(said[:1].upper() + said[1:] if said else text, code, condition)
    return SERVER_BUG
