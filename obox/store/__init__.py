"""A user's mail over bucket, metacache and fscache: what the protocols talk to.

`api` is the contract; `MailStore` keeps it. See docs/flow.md for the order of steps and
docs/format.md for the bytes.
"""

from .api import (
    Appended,
    Copied,
    Fields,
    Mailbox,
    MailboxInfo,
    NewMail,
    Status,
    Store,
    Stored,
    Usage,
    User,
)
from .backend.store import MailStore
from .env import Env, StoreSettings
from .recent import RECENT_BYTES_MAX

__all__ = [
    "RECENT_BYTES_MAX",
    "Appended",
    "Copied",
    "Env",
    "Fields",
    "MailStore",
    "Mailbox",
    "MailboxInfo",
    "NewMail",
    "Status",
    "Store",
    "StoreSettings",
    "Stored",
    "Usage",
    "User",
]
