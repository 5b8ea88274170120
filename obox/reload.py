"""Another configuration for a backend that runs: what can change is used from now on, the rest waits for a restart.

Two steps. `prepare`, in a thread: the file is read and checked as at a start, and all that may fail is made of it.
Then, in one turn of the loop, everything is put into its place; there nothing fails, so a reload is whole or it is
nothing. What was read is compared with what is in use: a change that waits is told of at each reload until the restart.

Every room gets all of its settings anew, changed or not; tests/admin/test_reload.py holds that none is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import rooms
from .auth import PasswdFile
from .changes import Changes, changes
from .config import Config, by_client, load
from .errors import ConfigError, Unavailable
from .net import Certificates, TlsError
from .server import Reloaded, set_level

if TYPE_CHECKING:
    from .backend import Backend

Use = Callable[[], None]


class Reload:
    """See the module's text. `prepare` is for `Lifecycle.on_reload`."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    def prepare(self) -> Callable[[], Reloaded]:
        """Raises ConfigError; blocks on files."""
        backend = self._backend
        read = load(str(backend.config.file) if backend.config.file else None, backend.environ)
        rooms.refuse_absent(read)
        rooms.codec(read)  # keys wait for a restart, but it should not be the restart that finds them wrong
        changed = changes(backend.config, read)
        config, users = changed.config, self._users(changed)
        uses = [
            self._certificates(read, config),
            self._logins(config, users),
            self._store(config),
            self._protocols(config, users),
            self._process(changed),
        ]

        def use() -> Reloaded:
            for one in uses:
                one()
            backend.config = config
            return Reloaded(changed.applied, changed.waiting)

        return use

    def _certificates(self, read: Config, config: Config) -> Use:
        """What was read is checked in any case; the first certificate and the last wait for a restart."""
        backend = self._backend
        try:
            loaded = Certificates.prepare(read.tls.cert, read.tls.key) if read.tls.cert else None
        except TlsError as error:
            raise ConfigError(str(error)) from error

        def use() -> None:
            if backend.certificates is not None and loaded is not None:
                backend.certificates.use(loaded)
                backend.certificate_watch.follow([*config.tls.cert, *config.tls.key])

        return use

    def _users(self, changed: Changes) -> PasswdFile:
        """The users from now on. A file that nobody could read would refuse everybody, so the old one stays."""
        auth, users = changed.config.auth, self._backend.users
        if (auth.passwd_file, auth.default_domain) == (users.path, users.default_domain):
            return users
        try:
            return users.moved(auth.passwd_file, auth.default_domain)
        except Unavailable as error:
            raise ConfigError(f'auth.passwd_file = "{auth.passwd_file}": {error}; allowed: a readable file') from error

    def _logins(self, config: Config, users: PasswdFile) -> Use:
        backend = self._backend
        delays_s, cache_ttl_s = rooms.login_delays(config), config.auth.cache_ttl

        def use() -> None:
            backend.users = backend.admin.users = users
            backend.admin.forget_names()
            backend.authenticator.use(users, cache_ttl_s=cache_ttl_s, delays_s=delays_s)

        return use

    def _store(self, config: Config) -> Use:
        backend = self._backend
        settings, weights = rooms.store_settings(config), rooms.weights(config)

        def use() -> None:
            backend.store.use(settings)
            backend.copies.close_delay_s = config.metacache.close_delay
            backend.cleaner.weights = weights
            backend.fscache.resize(config.fscache.max_size)

        return use

    def _protocols(self, config: Config, users: PasswdFile) -> Use:
        imap, lmtp = self._backend.imap, self._backend.lmtp
        uses: list[Use] = []
        if imap is not None:
            everybody, by_address = rooms.imap_settings(config), by_client(config, rooms.imap_settings)
            uses.append(lambda: imap.use(everybody, by_address))
        if lmtp is not None:
            deliverer, settings = self._backend.lmtp_parts(config, users)
            uses.append(lambda: lmtp.use(deliverer, settings))

        def use() -> None:
            for one in uses:
                one()

        return use

    def _process(self, changed: Changes) -> Use:
        backend, config = self._backend, changed.config

        def use() -> None:
            backend.lifecycle.drain_timeout_s = config.server.shutdown_timeout
            backend.listeners.proxy_networks = config.server.haproxy_trusted_networks
            backend.listeners.proxy_timeout_s = config.server.haproxy_timeout
            if "log.level" in changed.applied:  # else it is what the process has set up, or a test
                set_level(config.log.level)
            if "fscache.max_size" in changed.applied:
                backend.warn_of_small_disks(config)

        return use
