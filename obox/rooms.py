"""Translates the configuration into the settings of each room, at start and reload.

Invariant: equal configurations give equal settings. The only files that it reads are
those with encryption keys and with secrets of the cluster.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ssl import SSLContext
from typing import TYPE_CHECKING, Literal, cast

import structlog

from metacache import SizeWeights, Weights

from . import __version__
from .config import Config, read_priority_weights, read_size_weights
from .errors import ConfigError
from .escaping import escape
from .imap.settings import FetchFailure, ImapSettings
from .lmtp.settings import Settings as LmtpSettings
from .objectstore import Codec, load_keys
from .objectstore import Settings as BucketSettings
from .store import StoreSettings

if TYPE_CHECKING:
    from .pop3 import Pop3Settings

log = structlog.get_logger()

__all__ = [
    "bucket_settings",
    "codec",
    "imap_settings",
    "link_secrets",
    "lmtp_settings",
    "login_delays",
    "pop3_settings",
    "refuse_absent",
    "store_settings",
    "weights",
]


def refuse_absent(config: Config) -> None:
    """Raises ConfigError for a protocol that this version does not speak."""
    if config.managesieve is not None:
        raise ConfigError("managesieve.listen: this version has no managesieve; allowed: no [managesieve] section")


def bucket_settings(config: Config) -> BucketSettings:
    storage = config.storage
    return BucketSettings(
        url=storage.url,
        endpoint_url=storage.endpoint_url,
        ca_file=str(storage.ca_file or ""),
        access_key_id=storage.access_key_id,
        secret_access_key=storage.secret_access_key.reveal(),
        region=storage.region,
        addressing=cast(Literal["auto", "path", "virtual"], storage.addressing),
        conditional_put="on" if storage.conditional_put == "on" else "off",
        deadline_s=storage.deadline,
    )


def codec(config: Config) -> Codec:
    """Read the encryption keys. Raises ConfigError."""
    storage, paths = config.storage, config.storage.encryption_keys
    keys = load_keys({name: str(path) for name, path in paths.items()})
    return Codec(keys, next(iter(paths), None), storage.compress, require_encryption=storage.require_encryption)


def store_settings(config: Config) -> StoreSettings:
    storage, metacache = config.storage, config.metacache
    return StoreSettings(
        backend=escape((config.cluster.backend or socket.gethostname()).lower()),
        durability="bucket" if storage.durability == "bucket" else "local",
        journal_interval_s=storage.journal_interval,
        batch_linger_s=storage.batch_linger,
        delete_delay_s=storage.delete_delay,
        upload_interval_s=metacache.upload_interval,
        max_rescan_mail_count=metacache.max_rescan_mail_count,
        forced_refresh_interval_s=metacache.forced_refresh_interval,
        refresh_index_once_after=metacache.refresh_index_once_after,
        rescan_mails_once_after=metacache.rescan_mails_once_after,
        flush_at=metacache.flush_at,
        max_mail_size=config.quota.max_mail_size,
        mailbox_mails_max=config.quota.max_mailbox_mails,
        autofix_storage=storage.autofix_storage,
        lost_mailbox_prefix=storage.lost_mailbox_prefix,
        mailboxes=tuple((box.name, box.special_use) for box in config.mailboxes.create),
    )


def weights(config: Config) -> Weights:
    """Return the weights by which the metacache's cleaner ranks local copies."""
    priorities, sizes = config.metacache.priority_weights, config.metacache.size_weights
    low, high = read_size_weights(sizes) if sizes else ((0, 0.0), (0, 0.0))
    return Weights(
        read_priority_weights(priorities) if priorities else (),
        SizeWeights(*low, *high) if sizes else None,
    )


def login_delays(config: Config) -> Sequence[float]:
    """Return the delay of the next login from an address, by the number of failures. It
    begins with 0, and doubles up to its maximum.
    """
    first, most = config.auth.failure_delay, config.auth.max_failure_delay
    delays = [0.0]
    if not first:
        return delays
    while first < most:
        delays.append(first)
        first *= 2
    return (*delays, most)


def link_secrets(config: Config) -> tuple[bytes, ...]:
    """Secrets of the link between members; none: there is no link.

    Reads the file, and warns of what is weak. Raises ConfigError.
    """
    path = config.cluster.secret_file
    if path is None:
        return ()
    from .auth.secretfile import read_secrets

    secrets, warnings = read_secrets(path)
    for warning in warnings:
        log.warning("cluster.secret_file is weak", path=str(path), reason=warning)
    return secrets


def imap_settings(config: Config) -> ImapSettings:
    """Return the IMAP settings of the clients that this configuration is for."""
    imap, storage = config.imap, config.storage
    assert imap is not None
    return ImapSettings(
        version=__version__,
        mail_bytes_max=config.quota.max_mail_size,
        append_memory_max=imap.max_append_memory,
        append_spool_max=imap.max_append_spool,
        spool_dir=config.state_dir / "spool",
        line_bytes_max=imap.max_line_length,
        literal_bytes_max=imap.max_literal_size,
        pipelined_lines_max=imap.max_pipelined_commands,
        user_sessions_max=imap.max_user_sessions,
        address_sessions_max=imap.max_address_sessions,
        login_timeout_s=imap.login_timeout,
        idle_timeout_s=imap.idle_timeout,
        keepalive_s=imap.idle_keepalive,
        write_buffer_max=imap.max_write_buffer,
        plaintext_login=not config.auth.disable_plaintext_auth,
        fetch_failure=cast(FetchFailure, imap.fetch_failure),
        lost_as_empty=storage.fetch_lost_mails_as_empty,
        autofix_storage=storage.autofix_storage,
    )


def pop3_settings(config: Config) -> Pop3Settings:
    """Return the POP3 settings of the clients that this configuration is for."""
    from .pop3.settings import Pop3Settings  # most backends have no [pop3]

    pop3 = config.pop3
    assert pop3 is not None
    return Pop3Settings(
        version=__version__,
        user_sessions_max=pop3.max_user_sessions,
        address_sessions_max=pop3.max_address_sessions,
        login_timeout_s=pop3.login_timeout,
        idle_timeout_s=pop3.idle_timeout,
        plaintext_login=not config.auth.disable_plaintext_auth,
        mark_seen=pop3.mark_seen,
        enable_last=pop3.enable_last,
        deleted_flag=pop3.deleted_flag,
        reuse_xuidl=pop3.reuse_xuidl,
        uidl_format=pop3.uidl_format,
        lock_session=pop3.lock_session,
        login_delay_s=pop3.login_delay,
        expire=pop3.expire.upper(),
    )


def lmtp_settings(config: Config, tls: Callable[[], SSLContext] | None) -> LmtpSettings:
    lmtp = config.lmtp
    assert lmtp is not None
    return LmtpSettings(
        hostname=socket.gethostname(),
        mail_bytes_max=lmtp.max_mail_size or config.quota.max_mail_size,
        recipients_max=lmtp.max_recipients,
        delimiters=lmtp.recipient_delimiter,
        command_timeout_s=lmtp.timeout,
        spool_dir=config.state_dir / "spool",
        trusted_networks=tuple(str(network) for network in lmtp.trusted_networks),
        tls=tls,
    )
