"""What the protocols with a login need from outside. The classes are for types alone,
so a start does not import this module."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeVar

from obox.accounts import Account
from obox.auth import Forward, LinkOwner
from obox.net import Flow

if TYPE_CHECKING:
    from obox.net.splice import Leg


class Authenticator(Protocol):
    """`obox.auth.Authenticator`."""

    async def verify(self, user: str, password: str, *, remote: str) -> Account:
        """Raises: AuthFailed, Disabled, AuthUnavailable."""


class Forwarding(Protocol):
    """What a member of a cluster does with users of other members. `obox.proxy`
    implements it."""

    async def connect(self, account: Account, *, listener: str, remote: str, tls: bool) -> Leg | None:
        """Return a connection to the backend that owns the user, after the login. None
        if this backend is the owner.

        remote: the client's address. Raises: Unavailable, Limit, NoPerm.
        """

    async def exchange(self, *, remote: str, local: bool, tls: bool) -> LinkOwner:
        """Return the owner's side of X-OBOX-LINK, for a peer at `remote`.

        Raises: NoPerm, if no link is allowed over such a connection.
        """

    def redeem(self, user: str, token: str) -> Forward | None:
        """Return what a member states about a client whose front end logs in with a
        token.

        None if the secret is a password. Raises: LinkRefused.
        """

    async def proven(self, forward: Forward) -> Account:
        """Return the account of a user who comes with a token that names no owner.

        Raises: LinkRefused, if it is for another member; Disabled, Unavailable.
        """

    async def accept(self, forward: Forward) -> Account:
        """Return the account of a user that a member forwards to this backend.

        Raises: Referred; Disabled, Unavailable.
        """

    def forged(self, why: str, *, remote: str, listener: str) -> None:
        """Log a peer that has no proof, and count a failed login of its address."""


class Counters(Protocol):
    """The counters of a server, which become metrics."""

    def session(self, change: int) -> None:
        """Count a connection that began (+1) or ended (-1)."""

    def idle(self, change: int) -> None:
        """Count a session that entered or left IMAP's IDLE."""

    def login(self, result: str) -> None:
        """result: ok, failed, unavailable."""

    def command(self, name: str, result: str) -> None:
        """Count a command that was answered. result: OK, NO, BAD, ERR."""


class Settings(Protocol):
    """The settings that each protocol with a login has."""

    @property
    def flow(self) -> Flow: ...
    @property
    def user_sessions_max(self) -> int: ...
    @property
    def bad_commands_max(self) -> int: ...
    @property
    def bad_logins_max(self) -> int: ...
    @property
    def login_timeout_s(self) -> float: ...
    @property
    def plaintext_login(self) -> bool: ...


S = TypeVar("S", bound=Settings)


class Channel(Protocol[S]):
    """What a session may use of the connection.

    ended: why the connection ends, for the log. full: whether enough output is gathered
    that it should be flushed. tls, client_tls: whether this connection uses TLS, and
    whether the client does; they differ when a member forwards the client. duration_s:
    seconds since the client connected.
    """

    id: int
    tls: bool
    remote: str
    ended: str
    settings: S
    bytes_in: int
    bytes_out: int

    @property
    def full(self) -> bool: ...
    @property
    def is_local(self) -> bool: ...
    @property
    def client_tls(self) -> bool: ...
    @property
    def duration_s(self) -> float: ...

    def speak_for(self, remote: str, *, tls: bool) -> None:
        """Note that the peer is a member of the cluster, that its client is at
        `remote`, and whether the client uses TLS."""

    def write(self, data: bytes) -> None:
        """Gather output. It goes out in order, at the latest when the command ends."""

    async def flush(self) -> None:
        """Hand over the output, wait for a slow client.

        Raises: ConnectionResetError.
        """

    async def yield_if_due(self) -> None:
        """Let other tasks run if this task has used its time."""

    async def start_tls(self) -> None:
        """Continue under TLS."""

    def close(self) -> None:
        """Send what is gathered and close."""

    def abort(self) -> None:
        """Cut the connection."""

    def logged_in(self) -> None:
        """Apply the limits and times of a logged-in user from now on."""
