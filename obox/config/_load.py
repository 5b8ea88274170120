"""How a configuration is found, read and checked, and what applies to a client.

Invariant: a `Config` that `load` returned has been checked. Anything else is a
`ConfigError`, a single line that names the key, the value and what is allowed.
"""

from __future__ import annotations

import ipaddress
import re
import socket
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from obox.config import _values as kinds
from obox.config._settings import Config, Remote
from obox.config._table import PREFIX, REMOTE, SECTIONS, TABLE, Setting, remote_section, rows_of, settings
from obox.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Given:
    """A value from a file, the environment or the command line, with its place."""

    raw: object
    origin: str
    key: str = ""
    """The key as it was written, if it differs from the setting's key."""


@dataclass(frozen=True, slots=True)
class _Section:
    """A [remote] section as it was written."""

    network: str
    origin: str
    given: dict[str, _Given]

    @property
    def shown(self) -> str:
        return remote_section(self.network)

    def origins(self) -> Iterator[tuple[str, str]]:
        """Yield (key, origin of its value), with the network in its canonical form.
        Call it after the section has been checked.
        """
        shown = remote_section(kinds.read_network(self.network))
        return ((f"{shown}.{key}", given.origin) for key, given in self.given.items())


def find_file(path: str | None, environ: Mapping[str, str]) -> Path | None:
    """Return the file to read. A file that was named must exist; the usual places may
    be empty.
    """
    named = path or environ.get("OBOX_CONFIG")
    if named:
        if not Path(named).is_file():
            why = "is a directory; allowed: a file" if Path(named).is_dir() else "no such file"
            raise ConfigError(f"{'-c' if path else 'OBOX_CONFIG'} = {kinds.quote(named)}: {why}")
        return Path(named).absolute()
    home = environ.get("XDG_CONFIG_HOME") or (environ["HOME"] + "/.config" if environ.get("HOME") else "")
    places = [Path(home, "obox/obox.toml")] if home else []
    return next((place for place in [*places, Path("/etc/obox/obox.toml")] if place.is_file()), None)


def load(
    path: str | None = None,
    environ: Mapping[str, str] | None = None,
    *,
    overrides: Iterable[tuple[str, object]] = (),
    proxy: bool = False,
) -> Config:
    """Find, read and check a configuration.

    proxy: of a proxy, which has no bucket and needs no storage.url.

    path: the file that `-c` named. environ: the environment; None counts as empty.
    overrides: (key, value) pairs of the command line, such as ("imap.listen",
    "127.0.0.1:0"). They win over all other sources. Raises: ConfigError.
    """
    environ = environ or {}
    file = find_file(path, environ)
    base = file.parent if file else Path.cwd()
    present: set[str] = set()
    given: dict[str, _Given] = {}
    sections: list[_Section] = []
    if file:
        _read_file(file, given, present, sections)
    _read_environ(environ, given)
    for key, raw in overrides:
        _known(key, "command line")
        given[key] = _Given(raw, "command line")
    if proxy:
        given.setdefault("storage.url", _Given("memory://", "default"))
    present |= {key.partition(".")[0] for key in given}
    values = {key: _parse(row, given.get(key), base, file) for key, row in TABLE.items()
              if row.section in present or not row.section or not SECTIONS[row.section][1]}  # fmt: skip
    origins = {key: given[key].origin if key in given else "default" for key in values}
    _check(values, origins)
    _derive(values)
    remotes = _parse_remotes(sections, base)
    for section in sections:
        origins |= dict(section.origins())
    built: dict[str, Any] = {}
    for name, (cls, optional) in SECTIONS.items():
        mine = {row.name: values[row.key] for row in rows_of(name, cls) if row.key in values}
        off = optional and not mine.get("listen")
        built[name] = None if off else cls(**mine)
    return Config(state_dir=values["state_dir"], file=file, origins=origins, remotes=remotes, **built)


def _known(key: str, origin: str, *, shown: str = "") -> None:
    """Raises ConfigError for a key of no setting. shown: the key as it was written."""
    if key in TABLE:
        return
    import difflib

    section, _, name = key.rpartition(".")
    if section in SECTIONS:
        near = difflib.get_close_matches(name, [row.name for row in TABLE.values() if row.section == section], 1, 0.5)
        elsewhere = [row.key for row in TABLE.values() if row.name == name]
        hint = [f"{section}.{near[0]}"] if near else elsewhere
    else:
        hint = difflib.get_close_matches(key, [*TABLE, *SECTIONS], 1, 0.5)
    known = f"did you mean {hint[0]}?" if hint else "known sections: " + ", ".join(SECTIONS)
    raise ConfigError(f"{shown or key} ({origin}): unknown setting; {known}")


def _read_file(file: Path, given: dict[str, _Given], present: set[str], remotes: list[_Section]) -> None:
    try:
        text = file.read_bytes().decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file}: is not TOML: {' '.join(str(error).split())}") from error
    lines = text.splitlines()
    for name, value in document.items():
        if name == REMOTE:
            _read_remotes(file, lines, value, remotes)
            continue
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


def _read_remotes(file: Path, lines: Sequence[str], value: object, remotes: list[_Section]) -> None:
    """[remote."10.0.0.0/8"]: its value has the same tables as the whole file. In TOML,
    `imap.idle_timeout = …` makes such a table too.
    """
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        line = _line(lines, "", REMOTE)
        raise ConfigError(f'{REMOTE} ({file}:{line}): has sections by network: allowed: [remote."10.0.0.0/8"]')
    for network, table in value.items():
        header = f"{REMOTE}.{network}"
        start = _line(lines, "", header)
        found = _Section(network, f"{file}:{start}", {})
        for section, inner in table.items():
            for name, raw in inner.items() if isinstance(inner, dict) else [("", inner)]:
                key = f"{section}.{name}".rstrip(".")
                line = _find(lines, f"{header}.{section}", name) or _find(lines, header, key) or start
                found.given[key] = _Given(raw, f"{file}:{line}", f"{found.shown}.{key}")
        remotes.append(found)


def _parse_remote(section: _Section, base: Path) -> Remote:
    """Check a network and the settings of its clients."""
    try:
        network = kinds.read_network(section.network)
    except ValueError as error:
        why = "allowed: a network such as 10.0.0.0/8 or 2001:db8::/32"
        raise ConfigError(f"{section.shown} ({section.origin}): {error}; {why}") from error
    values = {}
    for key, given in section.given.items():
        _known(key, given.origin, shown=given.key)
        row = TABLE[key]
        if not row.remote:
            allowed = ", ".join(one.key for one in settings() if one.remote)
            raise ConfigError(_refusal(row, given, f"is the same for all clients; allowed here: {allowed}"))
        values[key] = _parse(row, given, base, None)
    return Remote(network, values)


def _parse_remotes(sections: Sequence[_Section], base: Path) -> tuple[Remote, ...]:
    """Return all [remote] sections, the most specific network first."""
    out: dict[kinds.Network, Remote] = {}
    for section in sections:
        remote = _parse_remote(section, base)
        if remote.network in out:
            why = f"the network {remote.network} a second time; allowed: each network once"
            raise ConfigError(f"{section.shown} ({section.origin}): {why}")
        out[remote.network] = remote
    return tuple(sorted(out.values(), key=lambda remote: remote.network.prefixlen, reverse=True))


def _line(lines: Sequence[str], section: str, name: str) -> int:
    """Return the line of a key that exists, or 1 if its line cannot be found."""
    return _find(lines, section, name) or 1


def _find(lines: Sequence[str], section: str, name: str) -> int:
    """Return the line of a key, or 0 if it is not found. tomllib keeps no positions;
    this finds the usual ways to write a key.
    """
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
    return best


def _read_environ(environ: Mapping[str, str], given: dict[str, _Given]) -> None:
    names = {row.env: row for row in TABLE.values()}
    for name, text in sorted(environ.items()):
        if name in names:
            given[names[name].key] = _Given(text, name)
        elif name.startswith(PREFIX) and "__" in name and not _secret_file(name, text, environ, names, given):
            _known(name.removeprefix(PREFIX).lower().replace("__", "."), name)


def _secret_file(
    name: str, text: str, environ: Mapping[str, str], names: Mapping[str, Setting], given: dict[str, _Given]
) -> bool:
    """Read a secret from the file that `…_FILE` names, as container runtimes provide
    it, without its last newline.
    """
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
        why = f"{error}; " if isinstance(error, kinds.Why) else ""
        raise ConfigError(_refusal(row, value, f"{why}allowed: {row.kind.allowed}")) from error


def _refusal(row: Setting, value: _Given, why: str) -> str:
    raw = str(value.raw).lower() if isinstance(value.raw, bool) else value.raw
    shown = kinds.quote(kinds.mask_url(raw)) if isinstance(raw, str) and raw is value.raw else str(raw)
    shown = kinds.MASK if row.kind.secret else shown if len(shown) <= 200 else shown[:200] + "…"
    return f"{value.key or row.key} = {shown} ({value.origin}): {why}"


def _check(values: Mapping[str, Any], origins: Mapping[str, str]) -> None:
    """Check rules that concern several values."""

    def refuse(key: str, why: str) -> None:
        raise ConfigError(f"{key} = {TABLE[key].kind.show(values[key])} ({origins[key]}): {why}")

    if values["server.workers"] > 1 and values["cluster.directory"] != "local":
        refuse("server.workers", 'workers share a directory of their own; allowed: 1, or cluster.directory = "local"')
    if values["server.workers"] > 1 and values["storage.url"].startswith("memory:"):
        refuse("server.workers", "workers share a bucket, and memory:// is of one process; allowed: 1")
    if values["cluster.events"] != "local" and values["cluster.directory"] == "local":
        refuse("cluster.events", 'news are for other backends; allowed: "local", or together with cluster.directory')
    if values["cluster.directory"] != "local" and values["cluster.secret_file"] is None:
        refuse("cluster.directory", "members forward users to each other; allowed: together with cluster.secret_file")
    alone = values["server.workers"] == 1 and values["cluster.directory"] == "local"
    if values["storage.conditional_put"] == "off" and not alone:
        why = "several backends would overwrite each other's mails; allowed"
        refuse("storage.conditional_put", f'{why}: with server.workers = 1 and cluster.directory = "local"')
    if list(values["events.quota_warnings"]) != sorted(values["events.quota_warnings"]):
        refuse("events.quota_warnings", "allowed: percents that ascend")
    bucket = urlsplit(values["storage.url"])
    if bucket.scheme == "s3" and not re.fullmatch(r"[A-Za-z0-9._-]{3,255}", bucket.netloc):
        refuse("storage.url", "allowed: after s3:// a bucket name of 3 to 255 letters, digits, dots, - and _")
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


def by_client(config: Config, make: Callable[[Config], T]) -> Callable[[str], T]:
    """Return a function that maps a client's address to `make` of the client's
    configuration. `make` is called once for each network.

    The address is text. An empty address means a unix socket, which is in no network.
    If several networks contain the address and set a value, the most specific network
    wins. An IPv4 address inside IPv6 counts as IPv4.
    """
    default = make(config)
    made = [(remote.network, make(_for_network(config, remote.network))) for remote in config.remotes]

    def find(address: str) -> T:
        if not made or not address:
            return default
        try:
            found = ipaddress.ip_address(address.partition("%")[0])
        except ValueError:
            return default
        found = getattr(found, "ipv4_mapped", None) or found
        return next((value for network, value in made if found in network), default)

    return find


def _for_network(config: Config, network: kinds.Network) -> Config:
    """Return the configuration with the [remote] values of a network and of all
    networks that contain it. The widest network is applied first.
    """
    for remote in reversed(config.remotes):
        if remote.network.version == network.version and network.subnet_of(remote.network):
            for key, value in remote.values.items():
                section, _, name = key.partition(".")
                if (now := getattr(config, section)) is not None:
                    config = replace(config, **{section: replace(now, **{name: value})})
    return config
