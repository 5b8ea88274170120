"""Who may log in: user names, the passwd-file as passdb and userdb, password schemes,
SASL.

Invariant: `normalise` normalises a name before anything else sees it. Knows no
protocol: IMAP, POP3 and the proxy pass names, passwords and addresses; LMTP asks only
the passwd-file.
"""

from obox.auth.authenticator import Authenticator, AuthFailed, AuthUnavailable, Disabled, Penalties, UserDb
from obox.auth.link import MECHANISM as LINK
from obox.auth.link import NO_OWNER, Forward, LinkOwner, LinkRefused, LinkSender, Referred
from obox.auth.names import normalise
from obox.auth.passwdfile import PasswdFile, Problem, add_user, claimed, edit_user, list_users, rename_user
from obox.auth.sasl import Challenge, Credentials, SaslCancelled, SaslError, SaslServer, mechanisms
from obox.auth.schemes import SCHEMES, hash_password
from obox.auth.users import UserEntry

__all__ = [
    "LINK",
    "NO_OWNER",
    "SCHEMES",
    "AuthFailed",
    "AuthUnavailable",
    "Authenticator",
    "Challenge",
    "Credentials",
    "Disabled",
    "Forward",
    "LinkOwner",
    "LinkRefused",
    "LinkSender",
    "PasswdFile",
    "Penalties",
    "Problem",
    "Referred",
    "SaslCancelled",
    "SaslError",
    "SaslServer",
    "UserDb",
    "UserEntry",
    "add_user",
    "claimed",
    "edit_user",
    "hash_password",
    "list_users",
    "mechanisms",
    "normalise",
    "rename_user",
]
