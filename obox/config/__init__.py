"""How a configuration is found, read, checked and shown.

Every setting is one row of `_settings`; parsing, environment names, `obox config`,
`obox.toml` and `docs/config.md` follow from it (tests hold the last two). A `Config` is
frozen: a reload makes a new one. Sources, the later wins: default, file, environment,
overrides. What a [remote] section says holds for the clients of its network over all of
them.

Invariant: a `Config` that `load` returned has been checked; anything else is a
`ConfigError`.
Refuses to know: what is done with the values.
"""

from obox.config._doubts import doubts
from obox.config._load import by_client, load
from obox.config._settings import Config, Imap, Metacache, Remote, Storage
from obox.config._table import SECTIONS, Setting, describe, remote_section, settings
from obox.config._values import (
    Amount,
    Listen,
    NewMailbox,
    Secret,
    mask_url,
    read_priority_weights,
    read_size_weights,
)

__all__ = [
    "SECTIONS",
    "Amount",
    "Config",
    "Imap",
    "Listen",
    "Metacache",
    "NewMailbox",
    "Remote",
    "Secret",
    "Setting",
    "Storage",
    "by_client",
    "describe",
    "doubts",
    "load",
    "mask_url",
    "read_priority_weights",
    "read_size_weights",
    "remote_section",
    "settings",
]
