"""Does this user have this password? Checked in threads, with a short cache and a
growing delay.

Invariants:
- The present line decides. The cache has an HMAC over name, password and the line's own
  secret under a key of this process, so that no old answer fits a changed line;
  disabled and nologin are read anew each time.
- An unknown user costs the same work as a known user (a hash of the file's commonest
  scheme). Files with several schemes still show a difference; a file with a single
  scheme does not.
- Only a client that knows the password learns that a user is disabled.
- Every queue and table has a limit: hashes in progress and waiting, cache entries,
  remembered addresses.
- Addresses get hashes in turn (`obox.auth._queue`), so that no number of wrong
  passwords from some addresses blocks the users of another address. A password that was
  right lately is not hashed at all.

Delays follow Dovecot's auth penalty: 0, 2, 4, 8, 15 s before the next attempt from an
address (IPv6: /48) after each failure. Failures are forgotten after two quiet minutes
or a success. Repeating the same wrong password (a phone with an old password) does not
add a delay. A login that was refused because its address asks for too much counts as a
failure too.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from obox.accounts import Account
from obox.addresses import counted, parsed
from obox.auth._queue import ADDRESS_MAX, FairQueue, Refused
from obox.auth.schemes import PASSWORD_BYTES_MAX, SchemeError, verify_secret
from obox.auth.users import UserEntry
from obox.errors import Invalid, NoPerm, Unavailable

log = structlog.get_logger("obox.auth")

CACHE_TTL_S = 60.0
CACHE_ENTRIES_MAX = 10_000
HASHES_WAITING_MAX = 256
"""Logins in progress and waiting. A further login is refused temporarily, or takes the
place of an address that has more: at 50 ms a hash the last of them waits 6 s on two
cores.
"""

PENALTY_DELAYS_S = (0.0, 2.0, 4.0, 8.0, 15.0)
PENALTY_FORGET_S = 120.0
PENALTY_ADDRESSES_MAX = 10_000
PENALTY_IPV6_PREFIX_BITS = 48
"""Failures of one site's whole network count together (RFC 6177 §2), as in Dovecot.
Otherwise an attacker could use the 65,536 subnets of a site in turn.
"""
_PENALTY_SEEN_MAX = 10

TOO_MANY = "Too many logins are being checked, try again later"

_FALLBACK_SECRET = (
    "{SHA512-CRYPT}$6$rounds=100000$oboxoboxoboxobox$"
    "jzGZWYEfLZoe3nTqHcZUeVvrzGxbNJl6m9Vvsw3o7JwBR4kgCtdpG2PzQxVKGqLDnPQJhqk7b2YQ3yJdG1bHM0"
)
"""Work for a file without any secret. It protects nothing, and its answer is not used.
"""


class AuthFailed(NoPerm):
    """Unknown user or wrong password; the answer does not say which."""


class Disabled(NoPerm):
    """The password fits, but the user may not log in; text: the line's `reason`."""


class AuthUnavailable(Unavailable):
    """There is no answer now.

    There is no user database, too many wait, or nothing here can check the hash.
    """


class UserDb(Protocol):
    """The part of a passwd-file that the authenticator needs."""

    @property
    def typical_secret(self) -> str:
        """Return a secret that takes as long to check as most secrets."""

    def normalise(self, user: str) -> str:
        """Return the normal form. Raises: Invalid."""

    async def lookup_async(self, user: str) -> UserEntry | None:
        """Return the entry or None. Raises: Unavailable."""


@dataclass(slots=True)
class _Penalty:
    failures: int = 0
    last_at: float = 0.0
    seen: OrderedDict[bytes, None] = field(default_factory=OrderedDict)


class Penalties:
    """Failures per remote address, bounded: the address whose failure is oldest is
    forgotten first.
    """

    def __init__(
        self,
        delays_s: Sequence[float] = PENALTY_DELAYS_S,
        *,
        exempt: Sequence[str] = (),
        clock: Callable[[], float] = time.monotonic,
        addresses_max: int = PENALTY_ADDRESSES_MAX,
    ) -> None:
        """delays_s: after 0, 1, … failures. exempt: networks that never wait, such as
        the network of a webmail server, whose users would wait for each other.
        """
        self.delays_s = tuple(delays_s)
        self._exempt = tuple(ipaddress.ip_network(network) for network in exempt)
        self._clock = clock
        self._addresses_max = addresses_max
        self.by_address: OrderedDict[str, _Penalty] = OrderedDict()

    def __len__(self) -> int:
        return len(self.by_address)

    def delay_s(self, remote: str) -> float:
        """Return how long the next attempt from this address has to wait."""
        penalty = self.by_address.get(key) if (key := self._key(remote)) else None
        if penalty is None or self._clock() - penalty.last_at >= PENALTY_FORGET_S:
            return 0.0
        return self.delays_s[min(penalty.failures, len(self.delays_s) - 1)]

    def failed(self, remote: str, attempt: bytes) -> None:
        """Count a failure. attempt: a keyed digest of the user and password that were
        tried.
        """
        if not (key := self._key(remote)):
            return
        now = self._clock()
        penalty = self.by_address.pop(key, None)
        if penalty is None or now - penalty.last_at >= PENALTY_FORGET_S:
            penalty = _Penalty()
        if attempt not in penalty.seen:
            penalty.failures = min(penalty.failures + 1, len(self.delays_s))
            penalty.seen[attempt] = None
            if len(penalty.seen) > _PENALTY_SEEN_MAX:
                penalty.seen.popitem(last=False)
        penalty.last_at = now
        self.by_address[key] = penalty
        if len(self.by_address) > self._addresses_max:
            self.by_address.popitem(last=False)

    def succeeded(self, remote: str) -> None:
        """Forget the failures, as Dovecot does."""
        if key := self._key(remote):
            self.by_address.pop(key, None)

    def _key(self, remote: str) -> str:
        """Return the address that is counted; "" for a unix socket or an exempt
        network."""
        address = parsed(remote)
        if address is None or any(address in network for network in self._exempt):
            return ""
        if isinstance(address, ipaddress.IPv6Address):
            return str(ipaddress.ip_network((address, PENALTY_IPV6_PREFIX_BITS), strict=False))
        return str(address)


class Authenticator:
    """Checks passwords for all protocols of a process. Call `close` at the end."""

    def __init__(
        self,
        users: UserDb,
        *,
        threads: int = 2,
        cache_ttl_s: float = CACHE_TTL_S,
        cache_entries_max: int = CACHE_ENTRIES_MAX,
        waiting_max: int = HASHES_WAITING_MAX,
        address_max: int = ADDRESS_MAX,
        penalties: Penalties | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        check: Callable[[str, str], bool] = verify_secret,
    ) -> None:
        self.users = users
        self.cache_ttl_s = cache_ttl_s
        self._cache_entries_max = cache_entries_max
        self.penalties = Penalties(clock=clock) if penalties is None else penalties
        self._clock = clock
        self._sleep = sleep
        self._check = check
        self._key = secrets.token_bytes(32)
        self._cache: OrderedDict[bytes, float] = OrderedDict()  # digest -> expiry
        self._queue = FairQueue(running_max=threads, total_max=waiting_max, address_max=address_max)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="obox-auth")

    async def verify(self, user: str, password: str, *, remote: str) -> Account:
        """Return the account of a user who may log in.

        remote: the client's address, or "" for a unix socket.

        Raises: AuthFailed, Disabled, AuthUnavailable; after a delay if that address has
        failed before.
        """
        if (delay_s := self.penalties.delay_s(remote)) > 0:
            await self._sleep(delay_s)
        users = self.users
        try:
            name = users.normalise(user)
            entry = await users.lookup_async(name)
        except Invalid:
            name, entry = user, None
        except Unavailable as error:
            raise AuthUnavailable("Authentication is temporarily unavailable") from error
        usable = bool(password) and len(password.encode("utf-8", "surrogatepass")) <= PASSWORD_BYTES_MAX
        secret = entry.password if entry is not None else ""
        digest = self._digest(name, password if usable else "", secret)
        if entry is not None and (entry.nopassword or (usable and self._cached(digest))):
            fits = True
        else:
            try:
                fits = await self._hash(secret, password if usable else "", counted(remote), digest)
            except Refused as refused:
                if refused.own:
                    self.penalties.failed(remote, digest)
                log.info("too many logins wait", user=name[:200], remote=remote, own_address=refused.own)
                raise AuthUnavailable(TOO_MANY) from refused
            fits = fits and entry is not None and usable
        if not fits or entry is None:
            self.penalties.failed(remote, digest)
            log.info("login failed", user=name[:200], remote=remote, known=entry is not None)
            raise AuthFailed("Authentication failed")
        self.penalties.succeeded(remote)
        if entry.disabled or entry.nologin:
            log.info("login refused", user=entry.user, remote=remote, disabled=entry.disabled)
            raise Disabled(entry.reason or "Login is disabled for this user")
        return entry.account

    def normalise(self, user: str) -> str:
        """Return the normal form of a login name. Raises: Invalid."""
        return self.users.normalise(user)

    async def account(self, user: str) -> Account | None:
        """Return the account behind a login name; None if there is none, or the user is
        disabled. Raises: Invalid, Unavailable."""
        entry = await self.users.lookup_async(self.users.normalise(user))
        return None if entry is None or entry.disabled else entry.account

    async def admit(self, remote: str) -> None:
        """Let a peer wait as long as after its failures, before it proves anything."""
        if (delay_s := self.penalties.delay_s(remote)) > 0:
            await self._sleep(delay_s)

    def forged(self, remote: str) -> None:
        """Count a forged proof as a failed login of an address."""
        self.penalties.failed(remote, secrets.token_bytes(16))

    async def forwarded(self, user: str, storage_id: str) -> Account:
        """Return the account of a user whose password another member of the cluster has
        checked.

        Raises: Disabled, AuthUnavailable; also where we know the user as another, since
        the members then have different user databases.
        """
        try:
            entry = await self.users.lookup_async(self.users.normalise(user))
        except (Invalid, Unavailable) as error:
            raise AuthUnavailable("Authentication is temporarily unavailable") from error
        if entry is None or entry.account.storage_id != storage_id:
            log.error(
                "members have different users",
                user=user[:200],
                known=entry is not None,
                next_step="give all members the same users",
            )
            raise AuthUnavailable("Authentication is temporarily unavailable")
        if entry.disabled or entry.nologin:
            raise Disabled(entry.reason or "Login is disabled for this user")
        return entry.account

    def use(self, users: UserDb, *, cache_ttl_s: float, delays_s: Sequence[float]) -> None:
        """Use other users, times and delays from now on.

        Cached passwords expire within the new time. Failures are still remembered.
        """
        longer_s = cache_ttl_s - self.cache_ttl_s
        self._cache = OrderedDict((digest, expiry + longer_s) for digest, expiry in self._cache.items())
        self.users = users
        self.cache_ttl_s = cache_ttl_s
        self.penalties.delays_s = tuple(delays_s)

    def close(self) -> None:
        """Stop the threads; hashes in progress end by themselves."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _hash(self, secret: str, password: str, address: str, digest: bytes) -> bool:
        """Return whether the password fits the secret.

        Without a secret: False after the same work. Raises: Refused, AuthUnavailable. A
        client's connections come back all at once after a restart: the first password
        is hashed, and those that wait meanwhile are known by their digest.
        """
        await self._queue.enter(address)
        if secret and self._cached(digest):
            self._queue.leave(address)
            return True

        def hashed(done: asyncio.Future[bool]) -> None:
            """This is called even if the client has left meanwhile: the thread
            continued.

            It remembers the result before it gives the turn away.
            """
            if not done.cancelled() and done.exception() is None and done.result() and secret and password:
                self._remember(digest)
            self._queue.leave(address)

        work = functools.partial(self._check, secret or self.users.typical_secret or _FALLBACK_SECRET, password)
        try:
            hashing = asyncio.get_running_loop().run_in_executor(self._pool, work)
        except RuntimeError as error:  # the pool is closed
            self._queue.leave(address)
            raise AuthUnavailable("Authentication is temporarily unavailable") from error
        hashing.add_done_callback(hashed)
        try:
            fits = await asyncio.shield(hashing)
        except SchemeError as error:
            if not secret:
                return False
            log.error("stored password cannot be checked", error=str(error))
            raise AuthUnavailable("Authentication is temporarily unavailable") from error
        return fits and bool(secret)

    def _digest(self, name: str, password: str, secret: str) -> bytes:
        parts = [part.encode("utf-8", "surrogatepass") for part in (name, password, secret)]
        message = b"".join(len(part).to_bytes(4, "big") + part for part in parts)
        return hmac.digest(self._key, message, hashlib.sha256)

    def _cached(self, digest: bytes) -> bool:
        expiry = self._cache.get(digest)
        if expiry is None:
            return False
        if expiry <= self._clock():
            del self._cache[digest]
            return False
        return True

    def _remember(self, digest: bytes) -> None:
        if self.cache_ttl_s <= 0:
            return
        self._cache[digest] = self._clock() + self.cache_ttl_s
        self._cache.move_to_end(digest)
        if len(self._cache) > self._cache_entries_max:
            self._cache.popitem(last=False)
