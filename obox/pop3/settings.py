"""The limits and times of the POP3 server, each with its unit and reason.

`obox.rooms` fills it in. There may be several, selected by the client's address:
`Context.settings_of`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from obox.net import Flow


@dataclass(frozen=True, slots=True)
class Pop3Settings:
    """What a POP3 server allows. Immutable."""

    name: str = "obox"
    """The name in the greeting."""
    version: str = ""
    """The version in CAPA. Empty: it is left out."""
    user_sessions_max: int = 10
    """Sessions of a user. 0: no limit. A client opens one."""
    address_sessions_max: int = 500
    """Connections from an address, except addresses of this machine. 0: no limit."""
    pipelined_lines_max: int = 512
    """Lines read while a command runs; then reading is paused."""
    pipelined_bytes_max: int = 65_536
    """Bytes read while a command runs; then reading is paused."""
    bad_commands_max: int = 20
    """Commands in a row that are unknown or wrong, after which the connection ends."""
    bad_logins_max: int = 10
    """Failed logins of a connection, after which it ends."""
    login_timeout_s: float = 60.0
    """Time to log in."""
    idle_timeout_s: float = 600.0
    """Time without a command. RFC 1939 §3 asks for ten minutes at least."""
    write_timeout_s: float = 300.0
    """How long a client may read nothing while output waits; then the connection is
    cut."""
    write_buffer_max: int = 262_144
    """Bytes that may wait for a slow client. With more, its command waits."""
    plaintext_login: bool = False
    """Whether passwords are accepted without TLS from other machines."""
    mark_seen: bool = True
    """Whether RETR makes a mail \\Seen."""
    enable_last: bool = False
    """Whether there is a command LAST. RFC 1460 had it."""
    deleted_flag: str = ""
    """The keyword that DELE sets instead of expunging; mails that have it are not
    shown. Empty: mails are expunged."""
    reuse_xuidl: bool = False
    """Whether a mail's own X-UIDL field is its unique id."""
    uidl_format: str = "%08Xu%08Xv"
    """The unique id of a mail: see `maildrop.uidl_maker`."""
    lock_session: bool = False
    """Whether a user may have a single session."""
    login_delay_s: float = 0.0
    """The least time between two logins of a user."""
    expire: str = "NEVER"
    """What CAPA says about how long mails are kept. RFC 2449 §6.7."""

    flow: Flow = field(init=False, repr=False)

    def __post_init__(self) -> None:
        flow = Flow(
            write_buffer_max=self.write_buffer_max,
            write_timeout_s=self.write_timeout_s,
            ahead_bytes_max=self.pipelined_bytes_max,
            ahead_lines_max=self.pipelined_lines_max,
            address_connections_max=self.address_sessions_max,
        )
        object.__setattr__(self, "flow", flow)
