"""doveadm's search queries: IMAP's search keys and MAILBOX, as words of a command line.

    MAILBOX INBOX SINCE 2w NOT FROM alice
    ( MAILBOX a* OR MAILBOX b ) UNSEEN

Names of mailboxes may have * and ?. Dates may also be written as 2026-01-31, as unix
time, or as an age such as 2w or 3d.

doveadm writes OR between its keys, and IMAP writes it before them; both are accepted. A
query is rewritten to an IMAP search program, which IMAP's parser reads. IMAP has no key
MAILBOX; it becomes true or false once the mailbox is known. Pure.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Sequence
from typing import Final

from ..errors import Invalid
from ..mailbox.names import fitter

_NO_ARGUMENT: Final = frozenset(
    ("ALL", "ANSWERED", "DELETED", "DRAFT", "FLAGGED", "NEW", "OLD", "RECENT", "SEEN", "UNANSWERED", "UNDELETED",
     "UNDRAFT", "UNFLAGGED", "UNSEEN", "SAVEDATESUPPORTED")
)  # fmt: skip
_TEXT: Final = frozenset(("BCC", "BODY", "CC", "FROM", "SUBJECT", "TEXT", "TO"))
_DATE: Final = frozenset(field + test for field in ("", "SENT", "SAVED") for test in ("BEFORE", "ON", "SINCE"))
_SIZE: Final = frozenset(("LARGER", "SMALLER"))
_AGE: Final = frozenset(("OLDER", "YOUNGER"))
_PLAIN: Final = frozenset(("KEYWORD", "UNKEYWORD", "UID", "MODSEQ"))
_SET: Final = re.compile(r"[0-9*][0-9:,*]*")
_UNITS: Final = {"s": 1, "secs": 1, "m": 60, "min": 60, "mins": 60, "h": 3600, "hours": 3600, "d": 86400,
                 "days": 86400, "w": 604800, "weeks": 604800}  # fmt: skip
_SPAN: Final = re.compile(r"([0-9]{1,9}) ?([a-z]+)", re.I)
_BYTES: Final = {"": 1, "B": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
DEPTH_MAX: Final = 32
WORDS_MAX: Final = 4096


class SearchQuery:
    """A query: the mailboxes in which it can match, and an IMAP search program for
    each.
    """

    def __init__(self, words: Sequence[str], now: float) -> None:
        """Raises Invalid."""
        self._words = [part for word in words for part in _parentheses(word)]
        self._now = now
        if len(self._words) > WORDS_MAX:
            raise Invalid(f"a query of {len(self._words)} words; allowed: {WORDS_MAX}")
        if not self._words:
            raise Invalid("the search query is empty; allowed: ALL for every mail")
        self._at = 0
        self._depth = 0
        self._masks: list[str] = []
        self._tree = self._or()
        if self._at < len(self._words):
            raise Invalid(f"search query: unexpected {self._words[self._at]!r}")

    @property
    def names_mailbox(self) -> bool:
        """Return whether the query names mailboxes."""
        return bool(self._masks)

    @property
    def names_mails(self) -> bool:
        """Return whether the query has any key other than MAILBOX."""
        return any(not isinstance(one, _Mailbox) for one in _leaves(self._tree))

    def program(self, mailbox: str, guid: str) -> bytes | None:
        """Return the search program for a mailbox, or None if nothing there can
        match."""
        known = _resolve(self._tree, mailbox, guid)
        return None if known is False else b"ALL" if known is True else _written(known).encode()

    # -- the grammar: or = and *("OR" and); and = not *not; not = ["NOT" / "!"] key --------------------------------

    def _deeper(self) -> None:
        """Begin a level, which the caller ends. Raises Invalid."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise Invalid(f"a query with more than {DEPTH_MAX} levels")

    def _peek(self) -> str:
        return self._words[self._at].upper() if self._at < len(self._words) else ""

    def _take(self, what: str) -> str:
        if self._at >= len(self._words):
            raise Invalid(f"search query: {what} is missing at its end")
        self._at += 1
        return self._words[self._at - 1]

    def _or(self) -> _Tree:
        self._deeper()
        found = [self._and()]
        while self._peek() == "OR":
            self._at += 1
            found.append(self._and())
        self._depth -= 1
        return found[0] if len(found) == 1 else _Node("OR", found)

    def _and(self) -> _Tree:
        found = [self._not()]
        while self._at < len(self._words) and self._peek() not in (")", "OR"):
            found.append(self._not())
        return found[0] if len(found) == 1 else _Node("AND", found)

    def _not(self) -> _Tree:
        if self._peek() in ("NOT", "!"):
            self._deeper()
            self._at += 1
            found = _Node("NOT", [self._not()])
            self._depth -= 1
            return found
        return self._key()

    def _key(self) -> _Tree:
        word = self._take("a search key")
        key = word.upper()
        if key == "(":
            found = self._or()
            if self._take('")"') != ")":
                raise Invalid('search query: ")" is missing')
            return found
        if key == "OR":  # as IMAP writes it
            self._deeper()
            either = [self._not(), self._not()]
            self._depth -= 1
            return _Node("OR", either)
        if key in ("MAILBOX", "MAILBOX-GUID"):
            mask = self._take("the mailbox")
            self._masks.append(mask)
            return _Mailbox(mask, key == "MAILBOX-GUID")
        if key in _NO_ARGUMENT:
            return _Leaf(key)
        if key == "HEADER":
            return _Leaf(f"HEADER {quoted(self._take('the field'))} {quoted(self._take('the text'))}")
        if key in _TEXT:
            return _Leaf(f"{key} {quoted(self._take('the text'))}")
        if key in _PLAIN:
            return _Leaf(f"{key} {_word(self._take('its argument'))}")
        if key in _DATE:
            return _Leaf(f"{key} {self._date(self._take('the date'))}")
        if key in _SIZE:
            return _Leaf(f"{key} {_size(self._take('the size'))}")
        if key in _AGE:
            return _Leaf(f"{key} {_seconds(self._take('the age'))}")
        if _SET.fullmatch(word):
            return _Leaf(word)
        raise Invalid(f"search query: unknown key {word!r}; allowed: MAILBOX and the search keys of IMAP")

    def _date(self, text: str) -> str:
        try:
            if match := re.fullmatch(r"([0-9]{1,2})-([A-Za-z]{3})-([0-9]{4})", text):
                day = dt.date(int(match[3]), _MONTHS.index(match[2].capitalize()) + 1, int(match[1]))
            elif re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
                day = dt.date.fromisoformat(text)
            elif text.isascii() and text.isdigit():
                day = dt.datetime.fromtimestamp(int(text), dt.UTC).date()
            else:
                day = dt.datetime.fromtimestamp(self._now - _seconds(text), dt.UTC).date()
        except (ValueError, OverflowError, OSError, Invalid) as error:
            raise Invalid(
                f"date {text!r}; allowed: 2026-01-31, 31-Jan-2026, unix time, or an age such as 90s, 5mins, 3d, 2w"
            ) from error
        return f"{day.day}-{_MONTHS[day.month - 1]}-{day.year:04d}"


class _Leaf:
    def __init__(self, text: str) -> None:
        self.text = text


class _Mailbox:
    def __init__(self, mask: str, guid: bool) -> None:
        self.mask = mask
        self.guid = guid
        self._fits = fitter(mask)

    def fits(self, name: str, guid: str) -> bool:
        if self.guid:
            return guid == self.mask.lower()
        return bool(self._fits(name))


class _Node:
    def __init__(self, kind: str, parts: list[_Tree]) -> None:
        self.kind = kind
        self.parts = parts


_Tree = _Leaf | _Mailbox | _Node


def _leaves(tree: _Tree) -> list[_Leaf | _Mailbox]:
    if isinstance(tree, _Node):
        return [leaf for part in tree.parts for leaf in _leaves(part)]
    return [tree]


def _resolve(tree: _Tree, name: str, guid: str) -> _Tree | bool:
    """Return the query for a mailbox, with MAILBOX replaced by true or false and
    simplified.
    """
    if isinstance(tree, _Leaf):
        return tree
    if isinstance(tree, _Mailbox):
        return tree.fits(name, guid)
    parts = [_resolve(part, name, guid) for part in tree.parts]
    if tree.kind == "NOT":
        return not parts[0] if isinstance(parts[0], bool) else _Node("NOT", [parts[0]])
    decides = tree.kind == "OR"  # True decides an OR, False an AND
    if any(part is decides for part in parts):
        return decides
    rest = [part for part in parts if not isinstance(part, bool)]
    if not rest:
        return not decides
    return rest[0] if len(rest) == 1 else _Node(tree.kind, rest)


def _written(tree: _Tree) -> str:
    """Write a query as IMAP's search program, with OR before its two keys. RFC 9051
    §6.4.4."""
    if isinstance(tree, _Leaf):
        return tree.text
    assert isinstance(tree, _Node)
    texts = [_written(part) for part in tree.parts]
    if tree.kind == "NOT":
        return f"NOT {texts[0]}"
    if tree.kind == "AND":
        return f"({' '.join(texts)})"
    return " ".join([*(f"OR {text}" for text in texts[:-1]), texts[-1]])


def _parentheses(word: str) -> list[str]:
    """Split `(` and `)` off a word. They may stand alone or at the edge of a word."""
    out: list[str] = []
    while word.startswith("("):
        out.append("(")
        word = word[1:]
    tail = 0
    while word.endswith(")") and word.count(")") > word.count("("):
        tail += 1
        word = word[:-1]
    return [*out, *([word] if word or not (out or tail) else []), *[")"] * tail]


def quoted(text: str) -> str:
    """Return an IMAP quoted string. Raises Invalid if it cannot hold the text."""
    if any(char in "\r\n\0" for char in text):
        raise Invalid("search query: a text with a line end is not allowed")
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _word(text: str) -> str:
    if not text or any(char in ' "(){}\\\r\n' for char in text.removeprefix("\\")):
        raise Invalid(f"search query: {text!r}; allowed: a single word")
    return text


def _size(text: str) -> int:
    match = re.fullmatch(r"([0-9]{1,15})([BKMGT]?)", text.upper())
    if match is None:
        raise Invalid(f"size {text!r}; allowed: octets, or with K, M, G")
    return int(match[1]) * _BYTES[match[2]]


def _seconds(text: str) -> int:
    if text.isascii() and text.isdigit():
        return int(text)
    match = _SPAN.fullmatch(text)
    unit = match[2].lower() if match else ""
    if match is None or (unit not in _UNITS and unit + "s" not in _UNITS):
        raise Invalid(f"age {text!r}; allowed: as 90s, 5mins, 3d, 2w")
    return int(match[1]) * _UNITS.get(unit, _UNITS.get(unit + "s", 0))


Parse = Callable[[bytes], object]
