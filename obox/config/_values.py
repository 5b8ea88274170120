"""Kinds of values of settings. Each reads TOML or environment text, and writes TOML.

A kind refuses a value with a `ValueError` whose text says what is allowed.
`obox.config` adds the key, the file and the line. Text of the environment and values of
TOML go through the same `parse`, so both accept the same words.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from obox.text import decimal

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.I)
_SIZE_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.I)
_DURATION_UNITS = {
    **dict.fromkeys(("ms", "msec", "msecs"), 0.001),
    **dict.fromkeys(("s", "sec", "secs", "second", "seconds"), 1.0),
    **dict.fromkeys(("m", "min", "mins", "minute", "minutes"), 60.0),
    **dict.fromkeys(("h", "hour", "hours"), 3600.0),
    **dict.fromkeys(("d", "day", "days"), 86400.0),
    **dict.fromkeys(("w", "week", "weeks"), 604800.0),
}
_BOOLS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
MASK = "********"


class Secret:
    """Text that is shown only by an explicit call. It does not appear in a repr, in a
    log line or in `obox config`.
    """

    __slots__ = ("_text",)

    def __init__(self, text: str = "") -> None:
        self._text = text

    def reveal(self) -> str:
        return self._text

    def __bool__(self) -> bool:
        return bool(self._text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))

    def __repr__(self) -> str:
        return MASK if self._text else "(unset)"


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of bytes, or a share of a total that the user of the setting knows."""

    amount: float
    percent: bool = False

    def of(self, total: int) -> int:
        return int(total * self.amount / 100) if self.percent else int(self.amount)

    def __str__(self) -> str:
        return f"{self.amount:g}%" if self.percent else show_size(int(self.amount))


@dataclass(frozen=True, slots=True)
class Listen:
    """A listening address: `host` and `port`, or the `path` of a unix socket.

    tls: TLS from the first byte. proxy: each connection starts with a PROXY protocol
    header.
    """

    host: str = ""
    port: int = 0
    path: Path | None = None
    tls: bool = False
    proxy: bool = False

    @property
    def loopback(self) -> bool:
        """Return whether only this machine can connect: a unix socket, or an address of
        the loopback net."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        address = f"unix:{self.path}" if self.path is not None else f"{host}:{self.port}"
        return address + ("/tls" if self.tls else "") + ("/proxy" if self.proxy else "")


@dataclass(frozen=True, slots=True)
class NewMailbox:
    """A mailbox that is created and subscribed at a user's first login.

    special_use: RFC 6154 attribute, or empty.
    """

    name: str
    special_use: str = ""

    def __str__(self) -> str:
        return f"{self.name} {self.special_use}".strip()


@dataclass(frozen=True, slots=True)
class Kind:
    """How a kind of value is read and written.

    parse: takes a TOML value or text, and the directory where relative paths start. It
    raises ValueError. show: writes the value as TOML. allowed: what an operator may
    write; it is the end of the error line and a column of the manual. from_file: the
    environment may name a file that has the value (`…_FILE`).
    """

    allowed: str
    parse: Callable[[object, Path], Any]
    show: Callable[[Any], str]
    secret: bool = False
    from_file: bool = False


def quote(text: str) -> str:
    """Return text as a TOML basic string."""
    out = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + "".join(c if c >= " " and c != "\x7f" else f"\\u{ord(c):04x}" for c in out) + '"'


def read_size(raw: object) -> int:
    if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
        return raw
    match = _SIZE.fullmatch(_text(raw).strip())
    if not match:
        raise ValueError
    return int(float(match[1]) * _SIZE_UNITS[match[2].lower()])


def show_size(value: int) -> str:
    for unit in "TGMK":
        if value and value % _SIZE_UNITS[unit.lower()] == 0:
            return f"{value // _SIZE_UNITS[unit.lower()]}{unit}"
    return str(value)


UIDL_CHARS_MAX = 70
"""The longest unique id of a mail. RFC 1939 §7."""


class Why(ValueError):
    """Says what is wrong, if the text about what is allowed does not show it."""


def read_duration(raw: object) -> float:
    if str(raw) == "0":
        return 0.0
    match = _DURATION.fullmatch(_text(raw).strip())
    if not match or match[2].lower() not in _DURATION_UNITS:
        raise ValueError
    return float(match[1]) * _DURATION_UNITS[match[2].lower()]


def show_duration(seconds: float) -> str:
    for unit, length in (("w", 604800), ("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length and seconds % length == 0 and unit != "w":
            return f"{decimal(seconds / length)}{unit}"
    return f"{decimal(seconds * 1000)}ms" if seconds else "0s"


def read_listen(raw: object, base: Path) -> Listen:
    """Read `host:port`, `[v6]:port` or `unix:path`, then `/tls` and `/proxy` in any
    order."""
    text, suffixes = _text(raw).strip(), set()
    while (cut := text.rpartition("/"))[2] in ("tls", "proxy") and cut[0]:
        suffixes.add(cut[2])
        text = cut[0]
    tls, proxy = "tls" in suffixes, "proxy" in suffixes
    if text.startswith("unix:") and len(text) > 5:
        return Listen(path=base / text[5:], tls=tls, proxy=proxy)
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.%\w]+)\]|([^\s:/\[\]]+)):(\d{1,5})", text)
    if not match or int(match[3]) > 65535:
        raise ValueError
    if match[1]:
        ipaddress.IPv6Address(match[1])
    return Listen(host=match[1] or match[2], port=int(match[3]), tls=tls, proxy=proxy)


def read_network(raw: object) -> Network:
    text = _text(raw).strip()
    try:
        return ipaddress.ip_network(text)
    except ValueError as error:
        ipaddress.ip_network(text, strict=False)  # raises if this is not a network
        raise Why(str(error)) from error


def read_priority_weights(text: str) -> tuple[tuple[float, float], ...]:
    """Read `<percent>% +<duration>` for each metacache priority 0 to 3.

    Returns (percent, boost in seconds).
    """
    words = text.split()
    if len(words) != 8 or not all(word.endswith("%") for word in words[::2]):
        raise ValueError
    return tuple(
        (float(share[:-1]), read_duration(boost.removeprefix("+")))
        for share, boost in zip(words[::2], words[1::2], strict=True)
    )


def read_size_weights(text: str) -> tuple[tuple[int, float], tuple[int, float]]:
    """Read `<low size> +<seconds> <high size> +<seconds>`, as two (bytes, seconds)."""
    low, low_boost, high, high_boost = text.split()
    if read_size(low) > read_size(high):
        raise ValueError
    return (read_size(low), float(low_boost)), (read_size(high), float(high_boost))


def read_uidl_format(text: str) -> None:
    """Check a pattern of unique ids in POP3. Raises ValueError."""
    found = re.findall(r"%0?([1-9]?)[xX]?([uvg])", text)
    rest = re.sub(r"%0?[1-9]?[xX]?[uvg]", "", text)
    longest = len(rest) + sum({"g": 32}.get(name, 10) for _, name in found)
    if not re.fullmatch(r"[!-$&-~]*", rest) or longest > UIDL_CHARS_MAX or not any(name in "ug" for _, name in found):
        raise ValueError


def read_moment(raw: object) -> float:
    """Return unix seconds; 0 or empty text means none. Text is seconds, or a date and
    time with its zone.
    """
    if isinstance(raw, int) and not isinstance(raw, bool) and raw >= 0:
        return float(raw)
    text = _text(raw).strip()
    if not text or text.isdigit():
        return float(text or 0)
    found = datetime.fromisoformat(text)
    if found.tzinfo is None:
        raise ValueError
    return found.timestamp()


def _text(raw: object) -> str:
    if not isinstance(raw, str):
        raise ValueError
    return raw


def string(allowed: str = "text", pattern: str = r"[^\x00\r\n]*", check: Callable[[str], Any] | None = None) -> Kind:
    def parse(raw: object, base: Path) -> str:
        text = _text(raw)
        if not re.fullmatch(pattern, text):
            raise ValueError
        if check is not None:
            check(text)
        return text

    return Kind(allowed, parse, quote)


def choice(*words: str) -> Kind:
    def parse(raw: object, base: Path) -> str:
        text = ("on" if raw else "off") if isinstance(raw, bool) else _text(raw)
        if text not in words:
            raise ValueError
        return text

    return Kind(" or ".join(quote(word) for word in words), parse, quote)


def integer(low: int, high: int) -> Kind:
    def parse(raw: object, base: Path) -> int:
        value = int(raw, 10) if isinstance(raw, str) else raw
        if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
            raise ValueError
        return value

    return Kind(f"a whole number from {low} to {high}", parse, str)


def size(low: str = "0", high: str = "") -> Kind:
    def parse(raw: object, base: Path) -> int:
        value = read_size(raw)
        if value < read_size(low) or (high and value > read_size(high)):
            raise ValueError
        return value

    limits = f", at least {low}" * (low != "0") + f", at most {high}" * bool(high)
    return Kind("a size such as 512M or 1G (powers of 1024)" + limits, parse, lambda value: quote(show_size(value)))


def duration(low: str = "0", high: str = "") -> Kind:
    def parse(raw: object, base: Path) -> float:
        value = read_duration(raw)
        if value < read_duration(low) or (high and value > read_duration(high)):
            raise ValueError
        return value

    limits = f", at least {low}" * (low != "0") + f", at most {high}" * bool(high)
    return Kind(
        "a time with its unit such as 500ms, 2s, 5min, 8h or 1d" + limits,
        parse,
        lambda value: quote(show_duration(value)),
    )


def url(allowed: str, *schemes: str, optional: bool = False, words: tuple[str, ...] = ()) -> Kind:
    def parse(raw: object, base: Path) -> str:
        text = _text(raw).strip()
        if (optional and not text) or text in words:
            return text
        parts = urlsplit(text)
        _ = parts.port  # raises if the port is not a number
        if parts.scheme not in schemes or "://" not in text or re.search(r"\s", text):
            raise ValueError
        if parts.scheme in ("file", "lmdb"):
            if parts.netloc or len(parts.path) < 2:
                raise ValueError
        elif parts.scheme != "memory" and not parts.netloc:
            raise ValueError
        return text

    return Kind(allowed, parse, lambda value: quote(mask_url(value)))


def mask_url(text: str) -> str:
    """Return the same URL, with a password before its host masked."""
    return re.sub(r"(://[^/@\s:]*):[^/@\s]*@", rf"\1:{MASK}@", text)


def _flag(raw: object, base: Path) -> bool:
    if isinstance(raw, bool):
        return raw
    text = _text(raw).lower()
    if text not in _BOOLS:
        raise ValueError
    return _BOOLS[text]


def _amount(raw: object, base: Path) -> Amount:
    if isinstance(raw, str) and raw.strip().endswith("%"):
        share = float(raw.strip()[:-1])
        if not 0 <= share <= 100:
            raise ValueError
        return Amount(share, percent=True)
    return Amount(read_size(raw))


def _path(raw: object, base: Path) -> Path:
    text = _text(raw)
    if not text or "\0" in text:
        raise ValueError
    return base / text


def _optional_path(raw: object, base: Path) -> Path | None:
    return _path(raw, base) if raw != "" else None


def _secret(raw: object, base: Path) -> Secret:
    return Secret(_text(raw))


def _mode(raw: object, base: Path) -> int:
    if not re.fullmatch(r"0?[0-7]{3}", _text(raw)):
        raise ValueError
    return int(_text(raw), 8)


def _network(raw: object, base: Path) -> Network:
    return read_network(raw)


def _new_mailbox(raw: object, base: Path) -> NewMailbox:
    name, _, use = _text(raw).strip().rpartition(" ")
    if not use.startswith("\\"):
        name, use = _text(raw).strip(), ""
    name = name.strip()
    # RFC 6154 §2
    known = ("", "\\All", "\\Archive", "\\Drafts", "\\Flagged", "\\Junk", "\\Sent", "\\Trash")
    if not name or (name.isascii() and name.upper() == "INBOX") or not name.isprintable() or use not in known:
        raise ValueError
    return NewMailbox(name, use)


def list_of(allowed: str, parse_one: Callable[[object, Path], Any]) -> Kind:
    """Return the kind of a TOML array, or text whose parts are separated by commas."""

    def parse(raw: object, base: Path) -> tuple[Any, ...]:
        items = [item.strip() for item in raw.split(",")] if isinstance(raw, str) else raw
        if not isinstance(items, list):
            raise ValueError
        values = tuple(parse_one(item, base) for item in items if item != "")
        if len(set(map(str, values))) != len(values):
            raise Why("the same entry twice")
        return values

    return Kind(f"a list of {allowed}", parse, lambda value: "[" + ", ".join(quote(str(v)) for v in value) + "]")


def _name(raw: object, base: Path) -> str:
    text = _text(raw)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{0,63}", text):
        raise ValueError
    return text


def _percent(raw: object, base: Path) -> int:
    number = raw if isinstance(raw, int) else int(_text(raw).removesuffix("%"), 10)
    if not 1 <= number <= 100:
        raise ValueError
    return number


def _keys(raw: object, base: Path) -> Mapping[str, Path]:
    """Return key ids and their files, in order. The first encrypts. Text form:
    `id=file,id=file`."""
    if isinstance(raw, str):
        raw = dict(item.strip().split("=", 1) for item in raw.split(",") if item.strip())
    if not isinstance(raw, dict) or not all(re.fullmatch(r"[A-Za-z0-9._-]{1,32}", key) for key in raw):
        raise ValueError
    return {key: _path(value, base) for key, value in raw.items()}


def _show_keys(value: Mapping[str, Path]) -> str:
    return (
        "{ " + ", ".join(f"{quote(key)} = {quote(str(path))}" for key, path in value.items()) + " }" if value else "{}"
    )


MOMENT = Kind(
    'a time such as "2026-01-31T04:00:00Z", unix seconds, or 0 for none',
    lambda raw, base: read_moment(raw),
    lambda value: str(int(value)),
)
TIME_OF_DAY = string('a time of day such as "03:30" (local), or empty', r"|([01]\d|2[0-3]):[0-5]\d")
FLAG = Kind("true or false", _flag, lambda value: "true" if value else "false")
AMOUNT = Kind("a size such as 512M, or a share such as 10%", _amount, lambda value: quote(str(value)))
PATH = Kind("a path", _path, lambda value: quote(str(value)))
OPTIONAL_PATH = Kind("a path, or empty", _optional_path, lambda value: quote(str(value or "")))
MODE = Kind('three octal digits such as "0660"', _mode, lambda value: quote(f"{value:04o}"))
SECRET = Kind("text", _secret, lambda value: quote(MASK if value else ""), secret=True, from_file=True)
CREDENTIAL = replace(string(), from_file=True)
LISTEN = list_of('"host:port", "[v6]:port" or "unix:/path", each with "/tls" and "/proxy" if wanted', read_listen)
NETWORKS = list_of("networks such as 10.0.0.0/8 or ::1", _network)
PATHS = list_of("paths", _path)
NAMES = list_of("names: at most 64 lower-case letters, digits, dots and dashes each", _name)
PERCENTS = list_of("percents from 1 to 100", _percent)
MAILBOXES = list_of("names, each with a special use of RFC 6154 if wanted: 'Sent \\Sent'", _new_mailbox)
KEYS = Kind('a table of key ids and files: { id = "file" }', _keys, _show_keys)
