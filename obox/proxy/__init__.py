"""A member of the cluster that hands its clients over to the backends that own them.

forward.py  Forwarder: who serves a user, the trusted link, referrals
waiting.py  Wait: how long a client waits for a backend that does not answer
moves.py    Moves: ends splices and attempts when their user has another backend
dial.py     connections to a backend, with TLS
link.py     the sender's end of the trusted link, in any protocol
imap.py     how the login at a backend is written in IMAP
pop3.py     the same in POP3
lmtp.py     LmtpForwarder: mails for users of other backends
router.py   ViewRouter: the router of a proxy, from its view of the directory
calls.py    calls of the admin API between members
pulls.py    sources of `metacache pull` that are members
probe.py    a login at a backend to see whether it works
nginx.py, socketmap.py  answers for nginx and Postfix: who serves a user

Every backend has this code too, so that a client may connect anywhere. Arrow: knows the
cluster, accounts, auth and connections; knows no store.
"""

from .forward import Counters, Forwarder, NoCounters
from .lmtp import LmtpForwarder, Nowhere
from .router import ViewRouter

__all__ = ["Counters", "Forwarder", "LmtpForwarder", "NoCounters", "Nowhere", "ViewRouter"]
