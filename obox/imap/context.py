"""What all sessions of a server share. Everything that the server needs from outside is
passed in here."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from obox.accounts import Account
from obox.auth import Forward, LinkOwner
from obox.imap.intake import Intake
from obox.imap.settings import ImapSettings
from obox.net import Hub, Registry, Upgrade
from obox.store.api import User

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

    async def vouched(self, forward: Forward) -> Account:
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
    """Counters of the server. `obox.backend` makes metrics of them."""

    def session(self, change: int) -> None:
        """Count a connection that began (+1) or ended (-1)."""

    def idle(self, change: int) -> None:
        """Count a session that entered or left IDLE."""

    def login(self, result: str) -> None:
        """result: ok, failed, unavailable."""

    def command(self, name: str, condition: str) -> None:
        """Count a command that was answered OK, NO or BAD."""


class NoCounters:
    def session(self, change: int) -> None:
        pass

    def idle(self, change: int) -> None:
        pass

    def login(self, result: str) -> None:
        pass

    def command(self, name: str, condition: str) -> None:
        pass


@dataclass(slots=True, kw_only=True)
class Context:
    """Shared by all sessions of a server.

    settings: the settings of the server. settings_of: returns a client's settings by
    its address ("" is a unix socket). upgrade: starts TLS; None: STARTTLS is not
    offered. forwarding: None where all users are ours.
    """

    hub: Hub
    settings: ImapSettings
    settings_of: Callable[[str], ImapSettings]
    authenticator: Authenticator
    open_user: Callable[[Account], Awaitable[User]]
    counters: Counters
    upgrade: Upgrade | None
    log: Any
    intake: Intake
    forwarding: Forwarding | None = None

    @property
    def registry(self) -> Registry:
        """Who is connected."""
        return self.hub.registry

    @property
    def clock(self) -> Callable[[], float]:
        """Monotonic seconds, with which long work lets other tasks run in time."""
        return self.hub.clock
