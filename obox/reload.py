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
from .config import Config
from .errors import ConfigError, Unavailable
from .lmtp.delivery import StoreDeliverer
from .parts import Parts, warn_of_small_disks
from .renewal import Use, prepare_certificates, prepare_protocols, use_process
from .server import Reloaded
from .serving import Serving

if TYPE_CHECKING:
    from .proxy import Forwarder


@dataclass(slots=True, kw_only=True)
class Reload:
    """Everything that a reload changes. `prepare` is for `Lifecycle.on_reload`.

    read: reads and checks the configuration as a start does. forwarder: None if no
    directory says who serves whom.
    """

    parts: Parts
    read: Callable[[], Config]
    admin: Admin
    serving: Serving
    forwarder: Forwarder | None

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
            prepare_certificates(self.serving, read.tls, config.tls),
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
        store = self.parts.store
        return prepare_protocols(
            self.serving, config, lambda settings: StoreDeliverer(store, users, mail_bytes_max=settings.mail_bytes_max)
        )

    def _link(self, config: Config) -> Use:
        forwarder, secrets = self.forwarder, rooms.link_secrets(config)

        def use() -> None:
            if forwarder is not None:
                forwarder.secrets = secrets

        return use

    def _process(self, changed: Changes) -> Use:
        def use() -> None:
            use_process(self.serving, changed)
            if "fscache.max_size" in changed.applied:
                warn_of_small_disks(changed.config)

        return use
