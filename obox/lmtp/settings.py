"""Every limit of the LMTP server, with its unit and reason.

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
"""Input that is read while the machine is busy; then reading is paused."""

WRITE_BUFFER_BYTES = 64 << 10
"""Replies that the client has not read; beyond, its next command waits."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What one LMTP server is allowed. Immutable."""

    hostname: str = "localhost"
    """Names us in the greeting and in Received."""
    mail_bytes_max: int = 64 << 20
    """Largest mail; advertised as SIZE (RFC 1870)."""
    recipients_max: int = 1000
    """Recipients of one transaction: 452 4.5.3 beyond. RFC 5321 §4.5.3.1.8 asks for 100
    at least."""
    line_bytes_max: int = 4096
    """Longest command line: RFC 5321 §4.5.3.1.4 has 512, more for UTF-8 and
    parameters."""
    errors_max: int = 20
    """Bad commands since the last mail before we hang up."""
    delimiters: str = "+"
    """What separates user and detail in a recipient; empty: nothing does."""
    command_timeout_s: float = 300.0
    """RFC 5321 §4.5.3.2.7."""
    data_timeout_s: float = 600.0
    """Longest silence inside a mail: RFC 5321 §4.5.3.2.5 and room."""
    delivery_timeout_s: float = 300.0
    """Longest `recipient` and `deliver`: half of the 10 minutes that a client waits
    (RFC 5321 §4.5.3.2.6)."""
    deliveries_parallel_max: int = 10
    """Recipients of one mail delivered at a time."""
    connections_max: int = 1000
    """Open connections. Beyond, the one that has been idle longest gives way; where
    none is idle, 421."""
    address_connections_max: int = 500
    """Of one client address but this machine's (IPv6: of one /64): 421 beyond. An MTA
    opens some twenty."""
    spool_dir: Path | None = None
    """Where mails above `spool_memory_bytes` wait; None: the system's place for
    temporary files."""
    spool_memory_bytes: int = 1 << 20
    """A mail up to this size stays in memory."""
    delivery_bytes_max: int = 256 << 20
    """Memory of all spooled mails under delivery, copies included; one larger mail
    passes alone."""
    trusted_networks: tuple[str, ...] = field(default=LOOPBACK)
    """TCP clients from elsewhere are refused: LMTP has no authentication. A unix socket
    has its file mode."""
    quota_full_tempfail: bool = False
    """452 4.2.2 in place of 552 5.2.2, as in Dovecot."""
    tls: Callable[[], ssl.SSLContext] | None = None
    """Gives the context of a STARTTLS; None: not offered."""

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
