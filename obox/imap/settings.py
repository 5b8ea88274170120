"""The limits and times of the IMAP server, each with its unit and reason.

`obox.rooms` fills it in. There may be several, selected by the client's address:
`Context.settings_of`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from obox.imap.parser import Limits
from obox.net import Flow

FetchFailure = Literal["disconnect-immediately", "disconnect-after", "no-after"]


@dataclass(frozen=True, slots=True)
class ImapSettings:
    """What an IMAP server allows. Immutable."""

    name: str = "obox"
    """The name in the greeting and in the answer to ID."""
    version: str = ""
    """The version in the answer to ID. Empty: it is left out."""
    mail_bytes_max: int = 50 << 20
    """Largest mail of an APPEND. It is advertised as APPENDLIMIT. RFC 7889."""
    multiappend_bytes_max: int = 128 << 20
    """All mails of an APPEND: in memory to `intake.SESSION_MEMORY_BYTES`, then in a
    file."""
    append_memory_max: int = 256 << 20
    """The memory for mails that sessions hold. Large mails have as much again while
    they are stored. A user may have a quarter."""
    append_spool_max: int = 4 << 30
    """Larger mails in files while they arrive. A user may have a quarter."""
    spool_dir: Path | None = None
    """The directory of those files. None: the system's directory for temporary
    files."""
    line_bytes_max: int = 65_536
    """A command without its literals."""
    literal_bytes_max: int = 65_536
    """A literal that is not a mail."""
    pipelined_lines_max: int = 32
    """Lines read while a command runs, about as many commands; then reading is
    paused."""
    pipelined_bytes_max: int = 65_536
    """Bytes read while a command runs; then reading is paused."""
    user_sessions_max: int = 50
    """Sessions of a user. 0: no limit."""
    address_sessions_max: int = 500
    """Connections from an address, except addresses of this machine. 0: no limit."""
    bad_commands_max: int = 20
    """After this number of commands in a row that are answered BAD, BYE is sent,
    because the client does not speak IMAP."""
    bad_logins_max: int = 10
    """After this number of failed logins of a connection BYE is sent. A person who
    mistypes succeeds before; a program that guesses has to connect again."""
    login_timeout_s: float = 60.0
    """Time to log in; then BYE is sent."""
    idle_timeout_s: float = 1800.0
    """Time without a command. RFC 9051 §5.4 asks for 30 minutes at least. It does not
    end IDLE if there is a keepalive."""
    keepalive_s: float = 120.0
    """Interval of untagged lines in IDLE, so that NAT tables keep the connection, and
    clients that are gone are noticed. 0: no lines."""
    read_timeout_s: float = 300.0
    """Time without a byte in the middle of a command; then BYE is sent. The bytes of
    the command are held until then."""
    write_timeout_s: float = 300.0
    """How long a client may read nothing while output waits; then the connection is
    cut."""
    write_buffer_max: int = 1 << 20
    """Bytes that may wait for a slow client. With more, its command waits without
    holding a lock."""
    chunk_bytes: int = 65_536
    """Answers are gathered to about this size, then handed to the transport."""
    plaintext_login: bool = False
    """Whether passwords are accepted without TLS from other machines."""
    fetch_failure: FetchFailure = "no-after"
    """What a FETCH does about a mail that is damaged or lost."""
    lost_as_empty: bool = False
    """Whether a lost mail is served as an empty mail, and the FETCH is OK."""
    autofix_storage: bool = False
    """Whether a lost mail is looked for again, and expunged if it is gone."""

    anonymous_limits: Limits = field(init=False, repr=False)
    limits: Limits = field(init=False, repr=False)
    flow: Flow = field(init=False, repr=False)

    def __post_init__(self) -> None:
        common = {"line_bytes_max": self.line_bytes_max, "literal_bytes_max": self.literal_bytes_max}
        before = Limits(**common, literals_bytes_max=self.literal_bytes_max, append_bytes_max=0)
        after = Limits(**common, append_bytes_max=self.mail_bytes_max, multiappend_bytes_max=self.multiappend_bytes_max)
        object.__setattr__(self, "anonymous_limits", before)
        object.__setattr__(self, "limits", after)
        flow = Flow(
            chunk_bytes=self.chunk_bytes,
            write_buffer_max=self.write_buffer_max,
            write_timeout_s=self.write_timeout_s,
            ahead_bytes_max=self.pipelined_bytes_max,
            ahead_lines_max=self.pipelined_lines_max,
            address_connections_max=self.address_sessions_max,
        )
        object.__setattr__(self, "flow", flow)
