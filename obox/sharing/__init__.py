"""Mailboxes that users share with each other: another user's mailbox as `api.Mailbox`,
and a user's mail together with what others share as `api.User`. docs/sharing.md.

Invariant: a session reaches another user's mail only through a `Visitor` and a
`GuestMailbox`, and each of their methods first asks which rights are in force now. So
no command can forget to ask. What a user may not look up is answered as if it were not
there.

This room knows no protocol, no passwords, and no bucket.
"""

from obox.sharing.guest import GuestMailbox
from obox.sharing.visitor import ROOT, Sharing, Visitor

__all__ = ["ROOT", "GuestMailbox", "Sharing", "Visitor"]
