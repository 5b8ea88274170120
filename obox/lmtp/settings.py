"""The limits of the LMTP server, each with its unit and reason.

`obox.config` fills it in.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from obox.net import Flow

LOOPBACK = ("127.0.0.0/8", "::1/128")

READ_AHEAD_BYTES = 256 << 10
"""Input that is read while the machine is busy. With more, reading is paused."""

WRITE_BUFFER_BYTES = 64 << 10
"""Replies that the client has not read. With more, its next command waits."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Limits and names of an LMTP server. Immutable."""

    hostname: str = "localhost"
    """Our name in the greeting and in Received."""
    mail_bytes_max: int = 64 << 20
    """Largest mail; advertised as SIZE (RFC 1870)."""
    recipients_max: int = 1000
    """Recipients of a transaction. The next recipient gets 452 4.5.3. RFC 5321
    §4.5.3.1.8 asks for 100 at least."""
    line_bytes_max: int = 4096
    """Longest command line. RFC 5321 §4.5.3.1.4 has 512 octets; UTF-8 and parameters
    need more."""
    errors_max: int = 20
    """Bad commands since the last mail, after which we close the connection."""
    delimiters: str = "+"
    """Characters that separate user and detail in a recipient. Empty: there is no
    detail."""
    command_timeout_s: float = 300.0
    """Longest silence between commands: RFC 5321 §4.5.3.2.7."""
    data_timeout_s: float = 600.0
    """Longest silence inside a mail. It is longer than RFC 5321 §4.5.3.2.5 asks for."""
    delivery_timeout_s: float = 300.0
    """Longest `recipient` and `deliver`: half of the 10 minutes that a client waits
    (RFC 5321 §4.5.3.2.6)."""
    deliveries_parallel_max: int = 10
    """Recipients of a mail that are delivered at the same time."""
    connections_max: int = 1000
    """Open connections. With more, the connection that has been idle longest is closed.
    If none is idle, the new client gets 421."""
    address_connections_max: int = 500
    """Connections of a client address (IPv6: of a /64), except addresses of this
    machine. The next client gets 421. An MTA opens some twenty."""
    spool_dir: Path | None = None
    """Directory for mails above `spool_memory_bytes`. None: the system's directory for
    temporary files."""
    spool_memory_bytes: int = 1 << 20
    """A mail up to this size stays in memory."""
    delivery_bytes_max: int = 256 << 20
    """Memory of all spooled mails under delivery, copies included. A larger mail is
    delivered when no other mail is."""
    trusted_networks: tuple[str, ...] = field(default=LOOPBACK)
    """TCP clients from other networks are refused, because LMTP has no authentication.
    A unix socket is protected by its file mode."""
    quota_full_tempfail: bool = False
    """Whether a full mailbox is answered with 452 4.2.2 instead of 552 5.2.2, as in
    Dovecot."""
    tls: Callable[[], ssl.SSLContext] | None = None
    """Returns the context for STARTTLS. None: STARTTLS is not offered."""

    flow: Flow = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        flow = Flow(
            write_buffer_max=WRITE_BUFFER_BYTES,
            write_timeout_s=self.command_timeout_s,
            ahead_bytes_max=READ_AHEAD_BYTES,
            address_connections_max=self.address_connections_max,
            connections_max=self.connections_max,
        )
        object.__setattr__(self, "flow", flow)
