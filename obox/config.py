"""Every setting, once: its name, kind, default and reason; and how a configuration is found, read, checked and shown.

The dataclasses below are the table. Parsing, environment names, `obox config`, `obox.toml` and `docs/config.md` follow
from it (tests hold the last two). A `Config` is frozen: a reload makes a new one. An absent section of a protocol is
None, which is "off". Invariant: a `Config` that `load` returned has been checked; anything else is a `ConfigError`, one
line that names the key, the value and what is allowed. Sources, the later wins: default, file, environment, overrides.
A leaf: knows values, not what is done with them. Seconds are floats, sizes are bytes.
"""

# ruff: noqa: RUF009 - the rows of the table are fields, each with a fresh value

from __future__ import annotations

import difflib
import re
import socket
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

from obox import _values as kinds
from obox._values import Amount, Kind, Listen, Network, NewMailbox, Secret
from obox.errors import ConfigError

__all__ = ["Amount", "Config", "Listen", "NewMailbox", "Secret", "Setting", "describe", "load", "settings"]

_PREFIX = "OBOX_"


def _set(kind: Kind, default: str, doc: str) -> Any:
    """One row of the table. default: as an operator would write it; text, as in the environment."""
    return field(
        default_factory=lambda: kind.parse(default, Path()), metadata={"kind": kind, "default": default, "doc": doc}
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
    )
    endpoint_url: str = _set(
        kinds.url("an http:// or https:// URL, or empty", "http", "https", optional=True),
        "",
        "the S3 server, where it is not AWS",
    )
    region: str = _set(kinds.string(pattern=r"[A-Za-z0-9-]*"), "", "S3 region; empty: from the credential chain")
    access_key_id: str = _set(kinds.CREDENTIAL, "", "empty: boto3's own credential chain")
    secret_access_key: Secret = _set(kinds.SECRET, "", "goes with access_key_id")
    compress: str = _set(
        kinds.string('"none", or "zstd:1" to "zstd:19"', r"none|zstd:([1-9]|1\d)"),
        "zstd:3",
        "compression of mails and bundles, with its level",
    )
    encryption_keys: Mapping[str, Path] = _set(
        kinds.KEYS, "", 'id = "file" with a master key in it; the first encrypts, all decrypt; none: no encryption'
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
    )
    deadline: float = _set(
        kinds.duration("1s", "5min"),
        "10s",
        "of one operation, retries included; then the client is told to try later",
    )

    @property
    def zstd_level(self) -> int:
        """0: no compression."""
        return int(self.compress.partition(":")[2] or 0)


@dataclass(frozen=True, slots=True)
class Fscache:
    """Local cache of mail bodies."""

    path: Path = _set(kinds.OPTIONAL_PATH, "", "empty: state_dir/fscache")
    max_size: int = _set(kinds.size(), "1G", "bodies beyond it are evicted: those read once before those read again")


@dataclass(frozen=True, slots=True)
class Metacache:
    """Local cache of index bundles."""

    path: Path = _set(kinds.OPTIONAL_PATH, "", "empty: state_dir/metacache")
    max_space: int = _set(kinds.size("16M"), "1G", "above it indexes are flushed and cleaned, lowest weight first")
    max_grace: Amount = _set(kinds.AMOUNT, "10%", "above max_space while it cleans; a share is of max_space")
    upload_interval: float = _set(kinds.duration("1s"), "5min", "a changed index is in the bucket after this time")
    close_delay: float = _set(kinds.duration(), "2s", "a user's index stays open for so long after the last session")
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
    sync: bool = _set(kinds.FLAG, "true", "false: no fsync, and an unclean boot of the machine drops the cache")


@dataclass(frozen=True, slots=True)
class Auth:
    """Who may log in."""

    passwd_file: Path = _set(kinds.PATH, "users", "lines as Dovecot's: user:{SCHEME}secret:::::")
    default_domain: str = _set(kinds.string(pattern=r"[^\s@]*"), "", "added to a user name without @")
    disable_plaintext_auth: bool = _set(
        kinds.FLAG, "true", "no password over a connection without TLS, unless it comes from this machine"
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

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:1143", "addresses")
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
        kinds.integer(0, 100_000), "50", "sessions of one user; a client opens about 5; 0: no limit"
    )
    max_address_sessions: int = _set(
        kinds.integer(0, 1_000_000),
        "500",
        "sessions from one address but this machine's; an office is one address; 0: no limit",
    )
    login_timeout: float = _set(kinds.duration("1s", "1h"), "60s", "to log in; then BYE")
    idle_timeout: float = _set(
        kinds.duration("1min", "1d"), "30min", "without a command; RFC 9051 §5.4 asks for 30 minutes"
    )
    idle_keepalive: float = _set(
        kinds.duration("0", "29min"),
        "2min",
        "between untagged lines while IDLE, so that NAT tables keep the connection; 0: none",
    )
    max_write_buffer: int = _set(
        kinds.size("16K", "64M"), "1M", "bytes waiting for one slow client; then its commands wait, holding no lock"
    )


@dataclass(frozen=True, slots=True)
class Lmtp:
    """LMTP; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:1024", "addresses")
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

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:1110", "addresses")


@dataclass(frozen=True, slots=True)
class Managesieve:
    """ManageSieve; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:4190", "addresses")


@dataclass(frozen=True, slots=True)
class Http:
    """Admin API, metrics and probes; off without this section."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:8080", "addresses")
    api_key: Secret = _set(kinds.SECRET, "", "of the admin API; empty: it answers on a unix socket only")


@dataclass(frozen=True, slots=True)
class Metrics:
    """An address of its own for /metrics and the probes; without this section [http] has them."""

    listen: tuple[Listen, ...] = _set(kinds.LISTEN, "127.0.0.1:9143", "addresses")


@dataclass(frozen=True, slots=True)
class Tls:
    """Certificates, for "/tls" addresses and STARTTLS; read again on SIGHUP."""

    cert: tuple[Path, ...] = _set(kinds.PATHS, "", "PEM chains; with several the name that the client asks for selects")
    key: tuple[Path, ...] = _set(kinds.PATHS, "", "PEM keys, one for each cert, in the same order")


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which backend serves whom."""

    backend: str = _set(
        kinds.string("letters, digits, dot, dash, underscore; at most 64", r"[A-Za-z0-9._-]{0,64}"),
        "",
        "this backend's name; empty: the host name",
    )
    directory: str = _set(
        kinds.url("local, lmdb:///path or cassandra://host,host/keyspace", "lmdb", "cassandra", words=("local",)),
        "local",
        "local: LMDB below state_dir; lmdb: shared by the backends of one host",
    )
    events: str = _set(
        kinds.url("local or nats://host:4222", "nats", words=("local",)), "local", "the bus for news between backends"
    )


@dataclass(frozen=True, slots=True)
class Server:
    """The process."""

    workers: int = _set(kinds.integer(1, 1024), "1", "processes behind the same addresses; only 1 for now")
    shutdown_timeout: float = _set(
        kinds.duration("1s", "1h"), "30s", "to finish commands and flush after SIGTERM; then connections are cut"
    )
    unix_mode: int = _set(kinds.MODE, "0660", "of unix sockets")
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
    format: str = _set(
        kinds.choice("auto", "json", "console", "logfmt"), "auto", "auto: console on a terminal, else json"
    )


@dataclass(frozen=True, slots=True)
class Mailboxes:
    """A user's mailboxes beside INBOX."""

    create: tuple[NewMailbox, ...] = _set(
        kinds.MAILBOXES,
        "Drafts \\Drafts,Sent \\Sent,Trash \\Trash,Junk \\Junk,Archive \\Archive",
        "made and subscribed at the first login, with their special use",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """The whole configuration. file: what was read, None if nothing. origins: key -> where its value came from."""

    state_dir: Path = _set(kinds.PATH, "/var/lib/obox", "everything local lives below it unless said otherwise")
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
    file: Path | None = None
    origins: Mapping[str, str] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, slots=True)
class Setting:
    """One row of the table, for those who check documents against it."""

    section: str
    name: str
    kind: Kind
    default: str
    doc: str

    @property
    def key(self) -> str:
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def env(self) -> str:
        return _PREFIX + self.key.upper().replace(".", "__")

    def default_toml(self) -> str:
        """The default as a line of `obox.toml` would say it."""
        if self.key == "storage.url":
            return '""'
        return self.kind.show(self.kind.parse(self.default, Path()))


def _sections() -> dict[str, tuple[type[Any], bool]]:
    """Section name -> (dataclass, whether it may be absent)."""
    out = {}
    for name, hint in get_type_hints(Config).items():
        classes = [cls for cls in get_args(hint) or (hint,) if hasattr(cls, "__dataclass_fields__")]
        if classes:
            out[name] = (classes[0], type(None) in get_args(hint))
    return out


def _rows(section: str, cls: type[Any]) -> Iterator[Setting]:
    for row in fields(cls):
        if "kind" in row.metadata:
            yield Setting(section, row.name, **row.metadata)


SECTIONS = _sections()
_TABLE = {row.key: row for section, cls in [("", Config), *((s, c) for s, (c, _) in SECTIONS.items())]
          for row in _rows(section, cls)}  # fmt: skip


def settings() -> tuple[Setting, ...]:
    """Every setting, in the order of the table."""
    return tuple(_TABLE.values())


@dataclass(frozen=True, slots=True)
class _Given:
    """A value that somebody wrote, and where."""

    raw: object
    origin: str


def find_file(path: str | None, environ: Mapping[str, str]) -> Path | None:
    """The file to read: one that was named must be there, the usual places may be empty."""
    named = path or environ.get("OBOX_CONFIG")
    if named:
        if not Path(named).is_file():
            raise ConfigError(f"{'-c' if path else 'OBOX_CONFIG'} = {kinds.quote(named)}: no such file")
        return Path(named).absolute()
    home = environ.get("XDG_CONFIG_HOME") or (environ["HOME"] + "/.config" if environ.get("HOME") else "")
    places = [Path(home, "obox/obox.toml")] if home else []
    return next((place for place in [*places, Path("/etc/obox/obox.toml")] if place.is_file()), None)


def load(
    path: str | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    overrides: Iterable[tuple[str, object]] = (),
) -> Config:
    """Find, read and check a configuration.

    path: the file that `-c` named. environ: the environment; none is an empty one. overrides: (key, value) pairs of the
    command line, such as ("imap.listen", "127.0.0.1:0"); they win over all.
    Raises: ConfigError.
    """
    environ = environ or {}
    file = find_file(path, environ)
    base = file.parent if file else Path.cwd()
    present: set[str] = set()
    given: dict[str, _Given] = {}
    if file:
        _read_file(file, given, present)
    _read_environ(environ, given)
    for key, raw in overrides:
        _known(key, "command line")
        given[key] = _Given(raw, "command line")
    present |= {key.partition(".")[0] for key in given}
    values = {key: _parse(row, given.get(key), base, file) for key, row in _TABLE.items()
              if row.section in present or not row.section or not SECTIONS[row.section][1]}  # fmt: skip
    origins = {key: given[key].origin if key in given else "default" for key in values}
    _check(values, origins)
    _derive(values)
    built: dict[str, Any] = {}
    for name, (cls, optional) in SECTIONS.items():
        mine = {row.name: values[row.key] for row in _rows(name, cls) if row.key in values}
        off = optional and not mine.get("listen")
        built[name] = None if off else cls(**mine)
    return Config(state_dir=values["state_dir"], file=file, origins=origins, **built)


def _known(key: str, origin: str) -> None:
    if key in _TABLE:
        return
    section, _, name = key.rpartition(".")
    if section in SECTIONS:
        near = difflib.get_close_matches(name, [row.name for row in _TABLE.values() if row.section == section], 1, 0.5)
        elsewhere = [row.key for row in _TABLE.values() if row.name == name]
        hint = [f"{section}.{near[0]}"] if near else elsewhere
    else:
        hint = difflib.get_close_matches(key, [*_TABLE, *SECTIONS], 1, 0.5)
    known = f"did you mean {hint[0]}?" if hint else "known sections: " + ", ".join(SECTIONS)
    raise ConfigError(f"{key} ({origin}): unknown setting; {known}")


def _read_file(file: Path, given: dict[str, _Given], present: set[str]) -> None:
    try:
        text = file.read_bytes().decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: not UTF-8: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: not TOML: {' '.join(str(error).split())}") from error
    lines = text.splitlines()
    for name, value in document.items():
        if name not in SECTIONS or not isinstance(value, dict):
            origin = f"{file}:{_line(lines, '', name)}"
            if name in SECTIONS:
                raise ConfigError(f"{name} ({origin}): is a section: allowed: [{name}]")
            _known(name, origin)
            given[name] = _Given(value, origin)
            continue
        present.add(name)
        for key, raw in value.items():
            origin = f"{file}:{_line(lines, name, key)}"
            _known(f"{name}.{key}", origin)
            given[f"{name}.{key}"] = _Given(raw, origin)


def _line(lines: Sequence[str], section: str, name: str) -> int:
    """The line of a key that is there. tomllib keeps no positions; this finds the usual ways to write it."""
    bare, sub = re.escape(name), re.escape(section)
    here, in_key, best = "", rf"\s*[\"']?{bare}[\"']?\s*[=.]", 0
    dotted = rf"\s*{sub}\s*\.\s*[\"']?{bare}[\"']?\s*[=.]"
    for number, line in enumerate(lines, 1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            here = re.sub(r"[\s\"']", "", header[1])
            if here == f"{section}.{name}".strip("."):
                return number
        elif (here == section and re.match(in_key, line)) or (section and not here and re.match(dotted, line)):
            return number
        elif section and not here and re.match(rf"\s*{sub}\s*=", line):
            best = number  # an inline table
    return best or 1


def _read_environ(environ: Mapping[str, str], given: dict[str, _Given]) -> None:
    names = {row.env: row for row in _TABLE.values()}
    for name, text in sorted(environ.items()):
        if name in names:
            given[names[name].key] = _Given(text, name)
        elif name.startswith(_PREFIX) and "__" in name and not _secret_file(name, text, environ, names, given):
            _known(name.removeprefix(_PREFIX).lower().replace("__", "."), name)


def _secret_file(
    name: str, text: str, environ: Mapping[str, str], names: Mapping[str, Setting], given: dict[str, _Given]
) -> bool:
    """Read a secret from the file that `…_FILE` names, as container runtimes hand it out, without its last newline."""
    row = names.get(name.removesuffix("_FILE"))
    if not name.endswith("_FILE") or row is None or not row.kind.from_file:
        return False
    if row.env in environ:
        raise ConfigError(f"{row.key} ({name}): {row.env} is set too; allowed: one of them")
    try:
        given[row.key] = _Given(Path(text).read_text(encoding="utf-8").rstrip("\r\n"), name)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{row.key} = {kinds.quote(text)} ({name}): cannot be read; allowed: a readable file"
        ) from error
    return True


def _parse(row: Setting, value: _Given | None, base: Path, file: Path | None) -> Any:
    if value is None:
        if row.key == "storage.url":
            where = f"in {file}" if file else "in a file"
            raise ConfigError(f"storage.url is not set: say it {where} or as {row.env}; allowed: {row.kind.allowed}")
        return row.kind.parse(row.default, base)
    try:
        return row.kind.parse(value.raw, base)
    except (ValueError, TypeError, OverflowError) as error:
        raise ConfigError(_refusal(row, value, f"allowed: {row.kind.allowed}")) from error


def _refusal(row: Setting, value: _Given, why: str) -> str:
    raw = str(value.raw).lower() if isinstance(value.raw, bool) else value.raw
    shown = kinds.quote(kinds.mask_url(raw)) if isinstance(raw, str) and raw is value.raw else str(raw)
    shown = kinds.MASK if row.kind.secret else shown if len(shown) <= 200 else shown[:200] + "…"
    return f"{row.key} = {shown} ({value.origin}): {why}"


def _check(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """What no single value shows."""

    def refuse(key: str, why: str) -> None:
        raise ConfigError(f"{key} = {_TABLE[key].kind.show(values[key])} ({origins[key]}): {why}")

    if values["server.workers"] > 1:
        refuse("server.workers", "several workers behind one address are not there yet; allowed: 1")
    if bool(values["storage.access_key_id"]) != bool(values["storage.secret_access_key"]):
        refuse("storage.access_key_id", "allowed: together with storage.secret_access_key, or neither")
    if len(values["tls.cert"]) != len(values["tls.key"]):
        refuse("tls.cert", f"{len(values['tls.key'])} in tls.key; allowed: one key for each certificate")
    taken: dict[str, str] = {}
    for key, value in values.items():
        for entry in value if key.endswith(".listen") else ():
            if entry.tls and not values["tls.cert"]:
                refuse(key, '"/tls" needs a certificate; allowed: with tls.cert and tls.key set')
            place = str(entry.path or (entry.host, entry.port))
            if place in taken and (entry.path or entry.port):
                refuse(key, f"the same address as in {taken[place]}; allowed: each address once")
            taken[place] = key


def _derive(values: dict[str, Any]) -> None:
    """Fill in defaults that depend on other settings."""
    for name in ("fscache", "metacache"):
        values[f"{name}.path"] = values[f"{name}.path"] or values["state_dir"] / name
    values["cluster.backend"] = values["cluster.backend"] or re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:64]
    if values.get("lmtp.max_mail_size") == 0:
        values["lmtp.max_mail_size"] = values["quota.max_mail_size"]


def describe(config: Config) -> str:
    """The effective configuration as TOML that `load` reads again, each line with its origin; secrets masked."""

    def line(row: Setting, value: Any) -> str:
        return f"{row.name} = {row.kind.show(value)}  # {config.origins.get(row.key, 'default')}"

    out = [f"# file: {config.file or 'none'}", *(line(row, getattr(config, row.name)) for row in _rows("", Config))]
    for name, (cls, _) in SECTIONS.items():
        section = getattr(config, name)
        out += ["", f"[{name}]"] if section is not None else ["", f"# [{name}] is off"]
        out += [line(row, getattr(section, row.name)) for row in _rows(name, cls)] if section is not None else []
    return "\n".join(out) + "\n"
