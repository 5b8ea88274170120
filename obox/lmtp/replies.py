"""Replies (code, enhanced status, text), and the table that maps our failures to
replies.

Invariant: every kind of `obox.errors.KINDS` has a row. A temporary failure never
becomes a 5xx, so that the sending MTA keeps the mail. RFC 5321 §4.2; RFC 3463; RFC 5248
for the meaning of the enhanced codes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from obox import errors

TEXT_BYTES_MAX = 490
"""Longest text. With codes and CRLF a reply line then has at most the 512 octets of RFC
5321 §4.5.3.1.5."""

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply to a command or, after the mail, to a single recipient."""

    code: int
    enhanced: str
    text: str

    @property
    def accepted(self) -> bool:
        """Return whether the code is 2xx."""
        return 200 <= self.code < 300

    def wire(self, *, utf8: bool = False) -> bytes:
        """Return the reply as a line with CRLF.

        utf8: whether the client has asked for SMTPUTF8 (RFC 6531 §3.5). If not,
        characters outside ASCII become '?'.
        """
        text = _UNPRINTABLE.sub(" ", self.text).encode("utf-8" if utf8 else "ascii", "replace")
        if len(text) > TEXT_BYTES_MAX:
            # No character is cut in half.
            text = text[:TEXT_BYTES_MAX].decode("utf-8", "ignore").encode()
        code = f"{self.code} {self.enhanced} " if self.enhanced else f"{self.code} "
        return code.encode("ascii") + text + b"\r\n"


KIND_REPLIES: dict[type[errors.OboxError], Reply] = {
    errors.NotFound: Reply(550, "5.1.1", "User does not exist"),
    errors.Exists: Reply(451, "4.3.0", "Internal error, try again later"),
    errors.NoPerm: Reply(550, "5.2.1", "Mailbox is disabled"),
    errors.OverQuota: Reply(552, "5.2.2", "Quota exceeded (mailbox for user is full)"),
    errors.Expunged: Reply(451, "4.3.0", "Internal error, try again later"),
    errors.InUse: Reply(451, "4.2.0", "Mailbox is in use, try again later"),
    errors.Limit: Reply(452, "4.3.1", "Too much at once, try again later"),
    errors.MailboxFull: Reply(552, "5.2.2", "The mailbox of the user has as many mails as it may have"),
    errors.TooBig: Reply(552, "5.3.4", "Message is too big"),
    errors.Invalid: Reply(501, "5.1.3", "Bad recipient address"),
    errors.Unavailable: Reply(451, "4.3.0", "Storage is not available, try again later"),
    errors.Temporary: Reply(451, "4.3.0", "Temporary failure, try again later"),
    errors.Corrupt: Reply(451, "4.3.0", "Mailbox needs repair, try again later"),
}
"""The table follows Dovecot's. Exists and Expunged make no sense for a delivery.
Corrupt needs a repair on our side, so the mail waits."""

QUOTA_TEMPFAIL = Reply(452, "4.2.2", "Quota exceeded (mailbox for user is full)")
"""The reply of Dovecot's `quota_full_tempfail = yes`: the sender's queue keeps the
mail."""

INTERNAL = Reply(451, "4.3.0", "Internal error, try again later")
"""The reply to an exception other than OboxError. It is a bug, whose traceback is only
in our log."""

TIMED_OUT = Reply(451, "4.3.0", "Delivery took too long, try again later")
LOOP = Reply(554, "5.4.6", "Mail forwarding loop")
SAVED = Reply(250, "2.0.0", "Saved")


def reply_for(error: BaseException, *, quota_full_tempfail: bool = False) -> Reply:
    """Return the reply for a failure. The text of an OboxError replaces the text of the
    table. Any other exception reveals nothing."""
    if isinstance(error, TimeoutError):
        return TIMED_OUT
    for kind in type(error).__mro__:
        row = KIND_REPLIES.get(kind)
        if row is None:
            continue
        if kind in (errors.OverQuota, errors.MailboxFull) and quota_full_tempfail:
            row = QUOTA_TEMPFAIL
        text = str(error)
        return Reply(row.code, row.enhanced, text) if text else row
    return INTERNAL
