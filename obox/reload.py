"""Applies changed settings to a running backend, except those that need a restart.

A reload has two steps. `prepare` runs in a thread. It reads and checks the file as a
start does, and makes everything that may fail. Then a single turn of the loop puts
everything into use. Nothing fails there, so a reload is applied completely or not at
all. The file is compared with the settings in use, so a change that needs a restart is
reported at each reload until then.

Every room gets all of its settings again, whether they changed or not.
tests/admin/test_reload.py checks that none is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from . import rooms
from .admin import Admin
from .auth import PasswdFile
from .changes import Changes, changes
from .config import Config, by_client
from .errors import ConfigError, Unavailable
from .imap.server import ImapServer
from .lmtp import LmtpServer
from .lmtp.delivery import StoreDeliverer
from .net import Certificates, Listeners, TlsError
from .parts import Parts, warn_of_small_disks
from .server import FileWatch, Lifecycle, Reloaded, set_level

if TYPE_CHECKING:
    from .pop3 import Pop3Server
    from .proxy import Forwarder

Use = Callable[[], None]


@dataclass(slots=True, kw_only=True)
class Reload:
    """Everything that a reload changes. `prepare` is for `Lifecycle.on_reload`.

    read: reads and checks the configuration as a start does. imap, pop3, lmtp,
    certificates: None if the configuration has none. forwarder: None if no directory
    says who serves whom.
    """

    parts: Parts
    read: Callable[[], Config]
    admin: Admin
    imap: ImapServer | None
    pop3: Pop3Server | None
    forwarder: Forwarder | None
    lmtp: LmtpServer | None
    certificates: Certificates | None
    certificate_watch: FileWatch
    lifecycle: Lifecycle
    listeners: Listeners

    def prepare(self) -> Callable[[], Reloaded]:
        """Read and check. Returns the function that applies it. Raises ConfigError;
        blocks on files."""
        used = self.parts.config
        read = self.read()
        rooms.refuse_absent(read)
        # Keys need a restart, but an error in them should be found now.
        rooms.codec(read)
        changed = changes(used, read)
        config, users = changed.config, self._users(changed)
        uses = [
            self._certificates(read, config),
            self._logins(config, users),
            self._store(config),
            self._protocols(config, users),
            self._link(config),
            self._process(changed),
        ]

        def use() -> Reloaded:
            for one in uses:
                one()
            self.parts.config = config
            return Reloaded(changed.applied, changed.waiting)

        return use

    def _certificates(self, read: Config, config: Config) -> Use:
        """Read the certificates. They are always checked. To turn TLS on or off needs a
        restart.
        """
        try:
            loaded = Certificates.prepare(read.tls.cert, read.tls.key) if read.tls.cert else None
        except TlsError as error:
            raise ConfigError(str(error)) from error

        def use() -> None:
            if self.certificates is not None and loaded is not None:
                self.certificates.use(loaded)
                self.certificate_watch.follow([*config.tls.cert, *config.tls.key])

        return use

    def _users(self, changed: Changes) -> PasswdFile:
        """Return the users from now on.

        If the file cannot be read, everybody would be refused, so the old users stay.
        """
        auth, users = changed.config.auth, self.parts.users
        if (auth.passwd_file, auth.default_domain) == (users.path, users.default_domain):
            return users
        try:
            return users.moved(auth.passwd_file, auth.default_domain)
        except Unavailable as error:
            raise ConfigError(f'auth.passwd_file = "{auth.passwd_file}": {error}; allowed: a readable file') from error

    def _logins(self, config: Config, users: PasswdFile) -> Use:
        parts, admin = self.parts, self.admin
        delays_s, cache_ttl_s = rooms.login_delays(config), config.auth.cache_ttl

        def use() -> None:
            parts.users = admin.users = users
            admin.forget_names()
            parts.authenticator.use(users, cache_ttl_s=cache_ttl_s, delays_s=delays_s)

        return use

    def _store(self, config: Config) -> Use:
        parts = self.parts
        settings, weights = rooms.store_settings(config), rooms.weights(config)

        def use() -> None:
            parts.store.use(settings)
            parts.copies.close_delay_s = config.metacache.close_delay
            parts.cleaner.weights = weights
            parts.fscache.resize(config.fscache.max_size)

        return use

    def _protocols(self, config: Config, users: PasswdFile) -> Use:
        imap, pop3, lmtp, certificates = self.imap, self.pop3, self.lmtp, self.certificates
        uses: list[Use] = []
        if imap is not None:
            everybody, by_address = rooms.imap_settings(config), by_client(config, rooms.imap_settings)
            uses.append(lambda: imap.use(everybody, by_address))
        if pop3 is not None:
            for_all, for_address = rooms.pop3_settings(config), by_client(config, rooms.pop3_settings)
            uses.append(lambda: pop3.use(for_all, for_address))
        if lmtp is not None:
            settings = rooms.lmtp_settings(config, (lambda: certificates.context) if certificates else None)
            deliverer = StoreDeliverer(self.parts.store, users, mail_bytes_max=settings.mail_bytes_max)
            uses.append(lambda: lmtp.use(deliverer, settings))

        def use() -> None:
            for one in uses:
                one()

        return use

    def _link(self, config: Config) -> Use:
        forwarder, secrets = self.forwarder, rooms.link_secrets(config)

        def use() -> None:
            if forwarder is not None:
                forwarder.secrets = secrets

        return use

    def _process(self, changed: Changes) -> Use:
        config = changed.config

        def use() -> None:
            self.lifecycle.drain_timeout_s = config.server.shutdown_timeout
            self.listeners.proxy_networks = config.server.haproxy_trusted_networks
            self.listeners.proxy_timeout_s = config.server.haproxy_timeout
            # Otherwise the level stays as the process or a test has set it.
            if "log.level" in changed.applied:
                set_level(config.log.level)
            if "fscache.max_size" in changed.applied:
                warn_of_small_disks(config)

        return use
