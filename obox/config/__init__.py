"""Finds, reads, checks and shows the configuration.

Every setting is a row of `_settings`. Parsing, environment names and `obox config`
follow from it; tests compare `obox.toml` and `docs/config.md` with it. A `Config` is
frozen, so a reload makes a new object. The sources are default, file, environment and
overrides; the later source wins. For the clients of its network, a [remote] section
wins over all of them.

Invariant: a `Config` that `load` returned has been checked; anything else is a
`ConfigError`. This room does not know what the values are used for.
"""

from obox.config._load import by_client, load
from obox.config._settings import Config, Http, Imap, Metacache, Remote, Storage, Tls
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
    "Http",
    "Imap",
    "Listen",
    "Metacache",
    "NewMailbox",
    "Remote",
    "Secret",
    "Setting",
    "Storage",
    "Tls",
    "by_client",
    "describe",
    "load",
    "mask_url",
    "read_priority_weights",
    "read_size_weights",
    "remote_section",
    "settings",
]
