"""The table of all settings, with name, kind, default and a line of documentation.

The dataclasses below are the table. `obox.config` reads a configuration, checks it and
shows it by this table. An absent section of a protocol is None, which means "off".
Invariant: there are only plain values, without behaviour. Seconds are floats, sizes are
bytes.
"""

# ruff: noqa: RUF009 - the rows of the table are fields, each with a new value

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from obox.config import _values as kinds
from obox.config._events import Events
from obox.config._row import row as _set
from obox.config._values import Amount, Listen, Network, NewMailbox, Secret


@dataclass(frozen=True, slots=True)
class Storage:
    """The bucket."""

    url: str = _set(  # Storage() without a URL is a ValueError
        kinds.url(
            "file:///dir, memory://, s3://bucket/prefix, gs://bucket/prefix or az://container/prefix",
            "file",
            "memory",
            "s3",
            "gs",
            "az",
        ),
        "",
        "where the mail is; this setting has no default",
        restart=True,
    )
    endpoint_url: str = _set(
        kinds.url("an http:// or https:// URL, or empty", "http", "https", optional=True),
        "",
        "the S3 server, if it is not AWS",
        restart=True,
    )
    ca_file: Path = _set(
        kinds.OPTIONAL_PATH,
        "",
        "PEM file of authorities that may have signed the server's certificate, in addition to the system's",
        restart=True,
    )
    region: str = _set(
        kinds.string(pattern=r"[A-Za-z0-9-]*"), "", "S3 region; empty: from the credential chain", restart=True
    )
    addressing: str = _set(
        kinds.choice("auto", "path", "virtual"),
        "auto",
        'where the name of an S3 bucket is: "path" of the URL, or "virtual" (the host); auto: path with endpoint_url',
        restart=True,
    )
    access_key_id: str = _set(kinds.CREDENTIAL, "", "empty: boto3's own credential chain", restart=True)
    secret_access_key: Secret = _set(kinds.SECRET, "", "belongs to access_key_id", restart=True)
    compress: str = _set(
        kinds.string('"none", or "zstd:1" to "zstd:19"', r"none|zstd:([1-9]|1\d)"),
        "zstd:3",
        "compression of mails and bundles, with its level",
        restart=True,
    )
    encryption_keys: Mapping[str, Path] = _set(
        kinds.KEYS,
        "",
        'id = "file" that has a master key; the first key encrypts, all keys decrypt; none: no encryption',
        restart=True,
    )
    require_encryption: bool = _set(
        kinds.FLAG,
        "false",
        "refuses objects that are not encrypted, or of version 1; needs encryption_keys and a bucket without them",
        restart=True,
    )
    durability: str = _set(
        kinds.choice("local", "bucket"),
        "local",
        '"local": flag changes and expunges get OK after the synced local commit; "bucket": after the journal PUT',
    )
    journal_interval: float = _set(
        kinds.duration("10ms", "5s"),
        "1s",
        "flag changes and expunges are in the bucket within this time; they are refused if the journal is 10s late",
    )
    batch_linger: float = _set(
        kinds.duration("0", "2s"),
        "0",
        "a mail waits this long for others to its mailbox, to be one object with them; fewer PUTs, later answers",
    )
    delete_delay: float = _set(
        kinds.duration(),
        "1d",
        "an object is deleted at the earliest this time after its last reference has gone",
    )
    conditional_put: str = _set(
        kinds.choice("on", "off"),
        "on",
        '"off" for a bucket without create-only PUT; only one backend may then use it, two would overwrite mails',
        restart=True,
    )
    deadline: float = _set(
        kinds.duration("1s", "5min"),
        "10s",
        "time limit of one operation, retries included; afterwards the client is asked to try later",
        restart=True,
    )
    autofix_storage: bool = _set(
        kinds.FLAG,
        "false",
        "expunges a mail whose object a second look does not find either; never deletes the object",
        remote=True,
    )
    fetch_lost_mails_as_empty: bool = _set(
        kinds.FLAG,
        "false",
        "serves a mail whose object is gone as an empty mail, with OK; meant for webmail servers in a [remote]",
        remote=True,
    )
    lost_mailbox_prefix: str = _set(
        kinds.string("1 to 50 letters, digits, dots, dashes, underscores and spaces", r"[\w.\- ]{1,50}"),
        "recovered-lost-folder-",
        "oboxadm rebuild gives a mailbox that lost its name this prefix and 8 digits of its GUID",
    )

    @property
    def zstd_level(self) -> int:
        """0: no compression."""
        return int(self.compress.partition(":")[2] or 0)


@dataclass(frozen=True, slots=True)
class Fscache:
    """Local cache of mail bodies."""

    path: Path = _set(kinds.OPTIONAL_PATH, "", "empty: state_dir/fscache", restart=True)
    max_size: int = _set(
        kinds.size(), "1G", "above this size bodies are evicted; those that were read only once are evicted first"
    )


@dataclass(frozen=True, slots=True)
class Metacache:
    """Local cache of index bundles."""

    path: Path = _set(kinds.OPTIONAL_PATH, "", "empty: state_dir/metacache", restart=True)
    max_space: int = _set(
        kinds.size("2M"), "1G", "above it indexes are flushed and cleaned, the lowest weight first", restart=True
    )
    max_grace: Amount = _set(
        kinds.AMOUNT,
        "10%",
        "room above max_space while the cleaner works; a share is a share of max_space",
        restart=True,
    )
    upload_interval: float = _set(kinds.duration("1s"), "5min", "a changed index is in the bucket after this time")
    close_delay: float = _set(
        kinds.duration(), "2s", "an index that was used within this time is not cleaned, even if nobody has it open"
    )
    forced_refresh_interval: float = _set(
        kinds.duration(), "8h", "an open compares a local index with the bucket after this time; 0: never"
    )
    refresh_index_once_after: float = _set(
        kinds.MOMENT, "0", "each local index is compared with the bundles in the bucket once after this moment"
    )
    rescan_mails_once_after: float = _set(
        kinds.MOMENT, "0", "each mailbox is compared with a LIST of new mails once after this moment"
    )
    drop_at_start_older_than: float = _set(
        kinds.duration(),
        "0",
        "a start drops uploaded indexes that nobody used for this time; 0: none",
        restart=True,
    )
    flush_at: str = _set(
        kinds.TIME_OF_DAY, "", "everything is uploaded at this time of day, so that a stop has less to upload"
    )
    max_rescan_mail_count: int = _set(
        kinds.integer(0, 100_000),
        "10",
        "more new mails than this are uploaded as an index; fewer stay in the journal, and an open reads them singly",
    )
    priority_weights: str = _set(
        kinds.string(
            "empty, or <percent>% +<time> for each priority 0 to 3",
            check=lambda text: text and kinds.read_priority_weights(text),
        ),
        "10% +1d 10% +1d 50% +1h 100% 0",
        "how much longer root, FTS, INBOX and Junk, other indexes are kept while they fill less than the share",
    )
    size_weights: str = _set(
        kinds.string(
            "empty, or <low size> +<seconds> <high size> +<seconds>",
            check=lambda text: text and kinds.read_size_weights(text),
        ),
        "2M +30 1G +120",
        "how many seconds longer small (cheap to keep) and big (slow to load) indexes are kept; empty: LRU",
    )
    sync: bool = _set(
        kinds.FLAG,
        "true",
        "false: no fsync, and the cache is dropped after an unclean boot of the machine",
        restart=True,
    )


@dataclass(frozen=True, slots=True)
class Auth:
    """Who may log in."""

    passwd_file: Path = _set(kinds.PATH, "users", "lines as in Dovecot: user:{SCHEME}secret:::::")
    default_domain: str = _set(kinds.string(pattern=r"[^\s@]*"), "", "domain that is added to a user name without @")
    disable_plaintext_auth: bool = _set(
        kinds.FLAG,
        "true",
        "no password over a connection without TLS, unless the client is on this machine",
        remote=True,
    )
    failure_delay: float = _set(
        kinds.duration("0", "1min"),
        "2s",
        "delay of the answer to a failed login; doubles with each failure from the same address",
    )
    max_failure_delay: float = _set(
        kinds.duration("0", "5min"), "16s", "the doubling stops here, well before login_timeout"
    )
    cache_ttl: float = _set(
        kinds.duration("0", "1d"), "5min", "a password that was right is not hashed again for this time"
    )


@dataclass(frozen=True, slots=True)
class Imap:
    """IMAP; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:1143", "addresses to listen on", restart=True)
    max_line_length: int = _set(
        kinds.size("8K", "1M"), "64K", "length of a command without its literals; RFC 9051 asks for 8000 octets"
    )
    max_literal_size: int = _set(
        kinds.size("1K", "16M"),
        "64K",
        "size of a literal outside APPEND (mailbox names, search keys), which is held in memory",
    )
    max_pipelined_commands: int = _set(
        kinds.integer(1, 1000),
        "32",
        "commands of a session that wait for their answers; with more the session stops reading",
    )
    max_user_sessions: int = _set(
        kinds.integer(0, 100_000), "50", "sessions of one user; a client opens about 5; 0: no limit", remote=True
    )
    max_address_sessions: int = _set(
        kinds.integer(0, 1_000_000),
        "500",
        "sessions of one client address, except this machine's; an office is one address; 0: no limit",
        remote=True,
    )
    login_timeout: float = _set(kinds.duration("1s", "1h"), "60s", "time to log in; afterwards the client gets BYE")
    idle_timeout: float = _set(
        kinds.duration("1min", "1d"), "30min", "time without a command; RFC 9051 §5.4 asks for 30 minutes", remote=True
    )
    idle_keepalive: float = _set(
        kinds.duration("0", "29min"),
        "2min",
        "time between untagged lines in IDLE, so that NAT tables keep the connection; 0: no such lines",
        remote=True,
    )
    max_write_buffer: int = _set(
        kinds.size("16K", "64M"),
        "1M",
        "bytes that wait for a slow client; beyond this size its commands wait without a lock",
    )
    max_append_memory: int = _set(
        kinds.size("16M", "1T"),
        "256M",
        "memory for appended mails; large mails that are being stored have as much again; a user has a quarter",
        restart=True,
    )
    max_append_spool: int = _set(
        kinds.size("512M", "100T"),
        "4G",
        "space below state_dir/spool for larger appended mails; a user has a quarter",
        restart=True,
    )
    fetch_failure: str = _set(
        kinds.choice("disconnect-immediately", "disconnect-after", "no-after"),
        "no-after",
        "if a mail is damaged or lost: BYE at once, BYE after the other mails, or NO after the other mails",
        remote=True,
    )
    acl: bool = _set(
        kinds.FLAG,
        "false",
        "whether users may share mailboxes (docs/sharing.md: read what is missing); not in a cluster",
        restart=True,
    )


@dataclass(frozen=True, slots=True)
class Lmtp:
    """LMTP; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:1024", "addresses to listen on", restart=True)
    trusted_networks: tuple[Network, ...] = _set(
        kinds.NETWORKS,
        "127.0.0.0/8,::1/128",
        "networks that may deliver, since LMTP has no login; a unix socket is always trusted",
    )
    max_recipients: int = _set(
        kinds.integer(1, 100_000), "1000", "recipients of a transaction; RFC 5321 §4.5.3.1.8 asks for 100"
    )
    recipient_delimiter: str = _set(
        kinds.string("one or more of + - = # . _", r"[-+=#._]*"),
        "+",
        "user+detail@domain goes to user@domain; empty: no delimiter",
    )
    max_mail_size: int = _set(kinds.size(), "0", "size of a mail; 0: the same as [quota] max_mail_size")
    timeout: float = _set(
        kinds.duration("1s", "1h"), "5min", "time without a byte from the client; RFC 5321 §4.5.3.2.7"
    )


@dataclass(frozen=True, slots=True)
class Pop3:
    """POP3; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:1110", "addresses to listen on", restart=True)
    max_user_sessions: int = _set(
        kinds.integer(0, 100_000), "10", "sessions of one user; a client opens one; 0: no limit", remote=True
    )
    max_address_sessions: int = _set(
        kinds.integer(0, 1_000_000),
        "500",
        "sessions of one client address, except this machine's; an office is one address; 0: no limit",
        remote=True,
    )
    login_timeout: float = _set(kinds.duration("1s", "1h"), "60s", "time to log in")
    idle_timeout: float = _set(
        kinds.duration("10s", "1d"), "10min", "time without a command; RFC 1939 §3 asks for 10 minutes", remote=True
    )
    lock_session: bool = _set(
        kinds.FLAG, "false", "one session for each user; a second is refused with [IN-USE]", remote=True
    )
    login_delay: float = _set(
        kinds.duration("0", "1d"), "0", "least time between two logins of a user; 0: none", remote=True
    )
    mark_seen: bool = _set(kinds.FLAG, "true", "a mail that RETR has read becomes \\Seen", remote=True)
    enable_last: bool = _set(kinds.FLAG, "false", "offers LAST, which RFC 1725 removed", remote=True)
    deleted_flag: str = _set(
        kinds.string("empty, or a keyword of 1 to 60 letters, digits and $ - _ .", r"[A-Za-z0-9$_.-]{0,60}"),
        "",
        "DELE sets this keyword, and POP3 does not show such mails any more; empty: they are expunged",
        remote=True,
    )
    uidl_format: str = _set(
        kinds.string(
            "text with %u or %g, also %v, and a width as in %08Xu; the unique ids have at most 70 characters",
            check=kinds.read_uidl_format,
        ),
        "%08Xu%08Xv",
        "unique id of a mail: %u is its UID, %v the UIDVALIDITY, %g its EMAILID",
    )
    reuse_xuidl: bool = _set(
        kinds.FLAG, "false", "a mail with a header field X-UIDL has the value of the field as its unique id"
    )
    expire: str = _set(
        kinds.string("never, or a number of days", r"never|\d{1,5}"),
        "never",
        "what CAPA says about how long mails are kept (EXPIRE); obox itself deletes none",
    )


@dataclass(frozen=True, slots=True)
class Managesieve:
    """ManageSieve; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:4190", "addresses to listen on", restart=True)


@dataclass(frozen=True, slots=True)
class Http:
    """Admin API, metrics and probes; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:8080", "addresses to listen on", restart=True)
    api_key: Secret = _set(
        kinds.SECRET, "", "key of the admin API; empty: the API answers on a unix socket only", restart=True
    )


@dataclass(frozen=True, slots=True)
class Metrics:
    """An own address for /metrics and the probes; without it [http] has them."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:9143", "addresses to listen on", restart=True)


@dataclass(frozen=True, slots=True)
class Socketmap:
    """Lookups of Postfix: users, and their backends; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:9145", "addresses to listen on", restart=True)


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates for "/tls" addresses and STARTTLS."""

    cert: tuple[Path, ...] = _set(
        kinds.PATHS, "", "PEM chains; of several, the name that the client asks for selects the chain"
    )
    key: tuple[Path, ...] = _set(kinds.PATHS, "", "PEM keys, a key for each chain, in the same order")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which backend serves whom."""

    backend: str = _set(
        kinds.string("letters, digits, dot, dash, underscore; at most 64", r"[A-Za-z0-9._-]{0,64}"),
        "",
        "name of this backend; empty: the host name",
        restart=True,
    )
    site: str = _set(
        kinds.string("letters, digits, dot, dash, underscore; 1 to 64", r"[A-Za-z0-9._-]{1,64}"),
        "default",
        "name of the site that this member is in; a member of another site is never taken for dead",
        restart=True,
    )
    address: str = _set(
        kinds.string("a host name or an IP address, or empty", r"[A-Za-z0-9.:_-]{0,253}"),
        "",
        "host where the other members reach this member; empty: the host name",
        restart=True,
    )
    directory: str = _set(
        kinds.url("local, lmdb:///path or cassandra://host,host/keyspace", "lmdb", "cassandra", words=("local",)),
        "local",
        "who serves whom; local: this backend serves everybody; lmdb: shared by the backends of one host",
        restart=True,
    )
    password_file: Path | None = _set(
        kinds.OPTIONAL_PATH,
        "",
        "file with the password of the user in a cassandra:// URL; it is read at each connect",
        restart=True,
    )
    secret_file: Path | None = _set(
        kinds.OPTIONAL_PATH,
        "",
        "file with secrets that all members share, one a line; the first signs, all are accepted; empty: no forwarding",
    )
    dead_after: float = _set(
        kinds.duration("5s", "1h"),
        "10s",
        "a backend whose beat has not changed for this time, and that does not answer, is taken for dead",
        restart=True,
    )
    events: str = _set(
        kinds.url("local or nats://host:4222", "nats", words=("local",)),
        "local",
        "the bus for news between backends: nats://host:4222; local: there is none",
        restart=True,
    )


@dataclass(frozen=True, slots=True)
class Server:
    """The process."""

    workers: int = _set(
        kinds.integer(1, 1024),
        "1",
        "backends behind the same addresses, each in a process of its own; caches are divided among them",
        restart=True,
    )
    shutdown_timeout: float = _set(
        kinds.duration("1s", "1h"),
        "30s",
        "time to finish commands and flush after SIGTERM; afterwards connections are closed",
    )
    unix_mode: int = _set(kinds.MODE, "0660", "mode of unix sockets", restart=True)
    haproxy_trusted_networks: tuple[Network, ...] = _set(
        kinds.NETWORKS,
        "127.0.0.0/8,::1/128",
        'networks that may send a PROXY header to a "/proxy" address; a unix socket always may',
    )
    haproxy_timeout: float = _set(kinds.duration("100ms", "1min"), "3s", "time for the PROXY header to arrive")


@dataclass(frozen=True, slots=True)
class MailLimits:
    """What a user may store."""

    max_mail_size: int = _set(
        kinds.size("1K", "2G"), "50M", "size of a mail, delivered or appended; clients see it as APPENDLIMIT"
    )
    max_mailbox_mails: int = _set(
        kinds.integer(1000, 10_000_000),
        "500000",
        "mails of a mailbox; some work takes time for each of them, and other users wait meanwhile",
    )


@dataclass(frozen=True, slots=True)
class Log:
    """Log, to stderr."""

    level: str = _set(kinds.choice("debug", "info", "warning", "error"), "info", "the lowest level that is logged")
    format: str = _set(  # a reader of the log expects a single format
        kinds.choice("auto", "json", "console", "logfmt"),
        "auto",
        "auto: console on a terminal, otherwise json",
        restart=True,
    )


@dataclass(frozen=True, slots=True)
class Mailboxes:
    """A user's mailboxes beside INBOX."""

    create: tuple[NewMailbox, ...] = _set(
        kinds.MAILBOXES,
        "Drafts \\Drafts,Sent \\Sent,Trash \\Trash,Junk \\Junk,Archive \\Archive",
        "mailboxes that are created and subscribed at the first login, with their special use",
    )


class Remote(NamedTuple):
    """Settings of the clients of a network. values: key -> value, if it is set."""

    network: Network
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration.

    file: the file that was read, or None. origins: key -> where its value came from.
    remotes: the most specific network first; `obox.config.by_client` applies them.
    """

    state_dir: Path = _set(
        kinds.PATH, "/var/lib/obox", "all local state is below it unless another setting says otherwise", restart=True
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
    socketmap: Socketmap | None
    tls: Tls
    cluster: Cluster
    events: Events
    server: Server
    quota: MailLimits
    log: Log
    mailboxes: Mailboxes
    remotes: tuple[Remote, ...] = ()
    file: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)
