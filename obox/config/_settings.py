"""Every setting, once: its name, kind, default and reason.

The dataclasses below are the table; the other files of this room read, check and show
what follows from it. A section of a protocol that is absent is None, which means "off".
Invariant: plain values, no behaviour. Seconds are floats, sizes are bytes.
"""

# ruff: noqa: RUF009 - the rows of the table are fields, each with a fresh value

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from obox.config import _values as kinds
from obox.config._values import Amount, Kind, Listen, Network, NewMailbox, Secret


def _set(kind: Kind, default: str, doc: str, *, remote: bool = False, restart: bool = False) -> Any:
    """One row of the table. default: as an operator would write it; text, as in the
    environment.

    remote: a [remote] section may say otherwise for some clients. restart: a change
    waits for one; all others are used at a reload, and `obox.reload` sees to it.
    """
    return field(
        default_factory=lambda: kind.parse(default, Path()),
        metadata={"kind": kind, "default": default, "doc": doc, "remote": remote, "restart": restart},
    )


@dataclass(frozen=True, slots=True)
class Storage:
    """The bucket."""

    url: str = _set(  # Storage() without one is a ValueError
        kinds.url(
            "file:///dir, memory://, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
            "file",
            "memory",
            "s3",
            "gs",
            "az",
        ),
        "",
        "where the mail is; has no default",
        restart=True,
    )
    endpoint_url: str = _set(
        kinds.url("an http:// or https:// URL, or empty", "http", "https", optional=True),
        "",
        "the S3 server, where it is not AWS",
        restart=True,
    )
    region: str = _set(
        kinds.string(pattern=r"[A-Za-z0-9-]*"), "", "S3 region; empty: from the credential chain", restart=True
    )
    addressing: str = _set(
        kinds.choice("auto", "path", "virtual"),
        "auto",
        'where the name of an s3 bucket is: "path" of the URL, or "virtual": in the host; auto: path with endpoint_url',
        restart=True,
    )
    access_key_id: str = _set(kinds.CREDENTIAL, "", "empty: boto3's own credential chain", restart=True)
    secret_access_key: Secret = _set(kinds.SECRET, "", "goes with access_key_id", restart=True)
    compress: str = _set(
        kinds.string('"none", or "zstd:1" to "zstd:19"', r"none|zstd:([1-9]|1\d)"),
        "zstd:3",
        "compression of mails and bundles, with its level",
        restart=True,
    )
    encryption_keys: Mapping[str, Path] = _set(
        kinds.KEYS,
        "",
        'id = "file" with a master key in it; the first encrypts, all decrypt; none: no encryption',
        restart=True,
    )
    require_encryption: bool = _set(
        kinds.FLAG,
        "false",
        "objects that are not encrypted, or of version 1, are refused; needs encryption_keys and a bucket without them",
        restart=True,
    )
    durability: str = _set(
        kinds.choice("local", "bucket"),
        "local",
        'flag changes and expunges are OK after the synced local commit, or "bucket": after their journal object',
    )
    journal_interval: float = _set(
        kinds.duration("10ms", "5s"),
        "1s",
        "flag changes and expunges are in the bucket within this time; changes stop when the journal is 10s late",
    )
    delete_delay: float = _set(
        kinds.duration(),
        "1d",
        "an object goes no earlier than this after the last reference",
    )
    conditional_put: str = _set(
        kinds.choice("on", "off"),
        "on",
        '"off" for a bucket without create-only PUT: one backend alone may use it then, two would overwrite mails',
        restart=True,
    )
    deadline: float = _set(
        kinds.duration("1s", "5min"),
        "10s",
        "of one operation, retries included; then the client is told to try later",
        restart=True,
    )
    autofix_storage: bool = _set(
        kinds.FLAG,
        "false",
        "a mail whose object is gone, also at a second look, is expunged from the index; the object is left alone",
        remote=True,
    )
    fetch_lost_mails_as_empty: bool = _set(
        kinds.FLAG,
        "false",
        "a mail whose object is gone is an empty one, and FETCH is OK; for webmails in a [remote]",
        remote=True,
    )
    lost_mailbox_prefix: str = _set(
        kinds.string("1 to 50 letters, digits, dots, dashes, underscores and spaces", r"[\w.\- ]{1,50}"),
        "recovered-lost-folder-",
        "oboxadm rebuild names a mailbox whose name is lost so, with 8 digits of its GUID behind",
    )

    @property
    def zstd_level(self) -> int:
        """0: no compression."""
        return int(self.compress.partition(":")[2] or 0)


@dataclass(frozen=True, slots=True)
class Fscache:
    """Local cache of mail bodies."""

    path: Path = _set(kinds.OPTIONAL_PATH, "", "empty: state_dir/fscache", restart=True)
    max_size: int = _set(kinds.size(), "1G", "bodies beyond it are evicted: those read once before those read again")


@dataclass(frozen=True, slots=True)
class Metacache:
    """Local cache of index bundles."""

    path: Path = _set(kinds.OPTIONAL_PATH, "", "empty: state_dir/metacache", restart=True)
    max_space: int = _set(
        kinds.size("2M"), "1G", "above it indexes are flushed and cleaned, lowest weight first", restart=True
    )
    max_grace: Amount = _set(
        kinds.AMOUNT, "10%", "above max_space while it cleans; a share is of max_space", restart=True
    )
    upload_interval: float = _set(kinds.duration("1s"), "5min", "a changed index is in the bucket after this time")
    close_delay: float = _set(
        kinds.duration(), "2s", "what was used within this time is not cleaned, though nobody has it open"
    )
    forced_refresh_interval: float = _set(
        kinds.duration(), "8h", "a local index is compared with the bucket at an open after this time; 0: never"
    )
    refresh_index_once_after: float = _set(
        kinds.MOMENT, "0", "each local index is compared with the bucket's bundles once after this moment"
    )
    rescan_mails_once_after: float = _set(
        kinds.MOMENT, "0", "each mailbox is compared with a LIST of new mails once after this moment"
    )
    drop_at_start_older_than: float = _set(
        kinds.duration(),
        "0",
        "a start drops uploaded indexes that were not used for so long; 0: none",
        restart=True,
    )
    flush_at: str = _set(
        kinds.TIME_OF_DAY, "", "everything is uploaded at this time of day, so that less is left for a stop"
    )
    max_rescan_mail_count: int = _set(
        kinds.integer(0, 100_000), "10", "new mails that an open reads one by one before it uploads the index it found"
    )
    priority_weights: str = _set(
        kinds.string(
            "empty, or <percent>% +<time> for each priority 0 to 3",
            check=lambda text: text and kinds.read_priority_weights(text),
        ),
        "10% +1d 10% +1d 50% +1h 100% 0",
        "how much longer user root, FTS, INBOX and Junk, others are kept, while below that share of max_space",
    )
    size_weights: str = _set(
        kinds.string(
            "empty, or <low size> +<seconds> <high size> +<seconds>",
            check=lambda text: text and kinds.read_size_weights(text),
        ),
        "2M +30 1G +120",
        "small indexes cost little to keep, big ones much to load: seconds longer; empty: LRU",
    )
    sync: bool = _set(
        kinds.FLAG, "true", "false: no fsync, and an unclean boot of the machine drops the cache", restart=True
    )


@dataclass(frozen=True, slots=True)
class Auth:
    """Who may log in."""

    passwd_file: Path = _set(kinds.PATH, "users", "lines as Dovecot's: user:{SCHEME}secret:::::")
    default_domain: str = _set(kinds.string(pattern=r"[^\s@]*"), "", "added to a user name without @")
    disable_plaintext_auth: bool = _set(
        kinds.FLAG,
        "true",
        "no password over a connection without TLS, unless it comes from this machine",
        remote=True,
    )
    failure_delay: float = _set(
        kinds.duration("0", "1min"), "2s", "until a failed login is answered; doubles with each from an address"
    )
    max_failure_delay: float = _set(
        kinds.duration("0", "5min"), "16s", "the doubling stops here, well before login_timeout"
    )
    cache_ttl: float = _set(
        kinds.duration("0", "1d"), "5min", "a password that was right is not hashed again for so long"
    )


@dataclass(frozen=True, slots=True)
class Imap:
    """IMAP; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:1143", "addresses", restart=True)
    max_line_length: int = _set(
        kinds.size("8K", "1M"), "64K", "of a command without its literals; RFC 9051 asks for 8000 octets"
    )
    max_literal_size: int = _set(
        kinds.size("1K", "16M"), "64K", "of one literal outside APPEND: mailbox names, search keys; held in memory"
    )
    max_pipelined_commands: int = _set(
        kinds.integer(1, 1000), "32", "commands in flight of one session; then reading stops"
    )
    max_user_sessions: int = _set(
        kinds.integer(0, 100_000), "50", "sessions of one user; a client opens about 5; 0: no limit", remote=True
    )
    max_address_sessions: int = _set(
        kinds.integer(0, 1_000_000),
        "500",
        "sessions from one address but this machine's; an office is one address; 0: no limit",
        remote=True,
    )
    login_timeout: float = _set(kinds.duration("1s", "1h"), "60s", "to log in; then BYE")
    idle_timeout: float = _set(
        kinds.duration("1min", "1d"), "30min", "without a command; RFC 9051 §5.4 asks for 30 minutes", remote=True
    )
    idle_keepalive: float = _set(
        kinds.duration("0", "29min"),
        "2min",
        "between untagged lines while IDLE, so that NAT tables keep the connection; 0: none",
        remote=True,
    )
    max_write_buffer: int = _set(
        kinds.size("16K", "64M"), "1M", "bytes waiting for one slow client; then its commands wait, holding no lock"
    )
    max_append_memory: int = _set(
        kinds.size("16M", "1T"),
        "256M",
        "mails on their way in, of all sessions; as much again while large ones are stored; a quarter for one user",
        restart=True,
    )
    max_append_spool: int = _set(
        kinds.size("512M", "100T"),
        "4G",
        "larger mails on their way in, in files below state_dir/spool; a quarter for one user",
        restart=True,
    )
    fetch_failure: str = _set(
        kinds.choice("disconnect-immediately", "disconnect-after", "no-after"),
        "no-after",
        "when a mail is damaged or lost: BYE at once, BYE after the other mails, or NO after the other mails",
        remote=True,
    )


@dataclass(frozen=True, slots=True)
class Lmtp:
    """LMTP; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:1024", "addresses", restart=True)
    trusted_networks: tuple[Network, ...] = _set(
        kinds.NETWORKS, "127.0.0.0/8,::1/128", "who may deliver: LMTP has no login; a unix socket is always trusted"
    )
    max_recipients: int = _set(
        kinds.integer(1, 100_000), "1000", "of one transaction; RFC 5321 §4.5.3.1.8 asks for 100"
    )
    recipient_delimiter: str = _set(
        kinds.string("one or more of + - = # . _", r"[-+=#._]*"),
        "+",
        "user+detail@domain goes to user@domain; empty: none",
    )
    max_mail_size: int = _set(kinds.size(), "0", "of one mail; 0: as [quota] max_mail_size")
    timeout: float = _set(kinds.duration("1s", "1h"), "5min", "without a byte from the client; RFC 5321 §4.5.3.2.7")


@dataclass(frozen=True, slots=True)
class Pop3:
    """POP3; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:1110", "addresses", restart=True)


@dataclass(frozen=True, slots=True)
class Managesieve:
    """ManageSieve; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:4190", "addresses", restart=True)


@dataclass(frozen=True, slots=True)
class Http:
    """Admin API, metrics and probes; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:8080", "addresses", restart=True)
    api_key: Secret = _set(kinds.SECRET, "", "of the admin API; empty: it answers on a unix socket only", restart=True)


@dataclass(frozen=True, slots=True)
class Metrics:
    """An address of its own for /metrics and the probes; without this section [http]
    has them.
    """

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:9143", "addresses", restart=True)


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates, for "/tls" addresses and STARTTLS; read again when they change, and
    at a reload.
    """

    cert: tuple[Path, ...] = _set(kinds.PATHS, "", "PEM chains; with several the name that the client asks for selects")
    key: tuple[Path, ...] = _set(kinds.PATHS, "", "PEM keys, one for each cert, in the same order")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which backend serves whom."""

    backend: str = _set(
        kinds.string("letters, digits, dot, dash, underscore; at most 64", r"[A-Za-z0-9._-]{0,64}"),
        "",
        "this backend's name; empty: the host name",
        restart=True,
    )
    directory: str = _set(
        kinds.url("local, lmdb:///path or cassandra://host,host/keyspace", "lmdb", "cassandra", words=("local",)),
        "local",
        "local: LMDB below state_dir; lmdb: shared by the backends of one host",
        restart=True,
    )
    events: str = _set(
        kinds.url("local or nats://host:4222", "nats", words=("local",)),
        "local",
        "the bus for news between backends",
        restart=True,
    )


@dataclass(frozen=True, slots=True)
class Server:
    """The process."""

    workers: int = _set(
        kinds.integer(1, 1024), "1", "processes behind the same addresses; only 1 for now", restart=True
    )
    shutdown_timeout: float = _set(
        kinds.duration("1s", "1h"), "30s", "to finish commands and flush after SIGTERM; then connections are cut"
    )
    unix_mode: int = _set(kinds.MODE, "0660", "of unix sockets", restart=True)
    haproxy_trusted_networks: tuple[Network, ...] = _set(
        kinds.NETWORKS,
        "127.0.0.0/8,::1/128",
        'who may send a PROXY header on a "/proxy" address; a unix socket always may',
    )
    haproxy_timeout: float = _set(kinds.duration("100ms", "1min"), "3s", "for the PROXY header to come")


@dataclass(frozen=True, slots=True)
class Quota:
    """What a user may store."""

    max_mail_size: int = _set(
        kinds.size("1K", "2G"), "50M", "of one mail, delivered or appended; told to clients as APPENDLIMIT"
    )


@dataclass(frozen=True, slots=True)
class Log:
    """Log, to stderr."""

    level: str = _set(kinds.choice("debug", "info", "warning", "error"), "info", "the least that is logged")
    format: str = _set(  # what reads the log expects one format of one process
        kinds.choice("auto", "json", "console", "logfmt"),
        "auto",
        "auto: console on a terminal, else json",
        restart=True,
    )


@dataclass(frozen=True, slots=True)
class Mailboxes:
    """A user's mailboxes beside INBOX."""

    create: tuple[NewMailbox, ...] = _set(
        kinds.MAILBOXES,
        "Drafts \\Drafts,Sent \\Sent,Trash \\Trash,Junk \\Junk,Archive \\Archive",
        "made and subscribed at the first login, with their special use",
    )


class Remote(NamedTuple):
    """What is different for clients of one network. values: key -> value, as far as the
    section says something.
    """

    network: Network
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. file: what was read, None if nothing. origins: key ->
    where its value came from.

    remotes: the most specific network first; `obox.config.by_client` applies them.
    """

    state_dir: Path = _set(
        kinds.PATH, "/var/lib/obox", "everything local lives below it unless said otherwise", restart=True
    )
    storage: Storage
    fscache: Fscache
    metacache: Metacache
    auth: Auth
    imap: Imap | None
    lmtp: Lmtp | None
    pop3: Pop3 | None
    managesieve: Managesieve | None
    http: Http | None
    metrics: Metrics | None
    tls: Tls
    cluster: Cluster
    server: Server
    quota: Quota
    log: Log
    mailboxes: Mailboxes
    remotes: tuple[Remote, ...] = ()
    file: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)
