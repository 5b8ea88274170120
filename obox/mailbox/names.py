"""Mailbox names: their canonical form, their rules, and LIST's wildcards, in one place.

A name is decoded text, NFC, with `/` between levels and without a separator at either
end. INBOX has any case as a whole name and as the first level of a name (`inbox/Lists`
is `INBOX/Lists`); everything else compares exactly. RFC 3501 §5.1, RFC 9051 §5.1.
`canonical` is applied where a name comes in: by the IMAP parser, and by the store's
`User` for other callers.

`%` and `*` may occur in names although they are discouraged (RFC 3501 §5.1): people
call mailboxes `50%`, and a name used as a pattern always matches at least itself. The
bucket and the caches know mailboxes by GUID, so no character has a meaning there.
"""

from __future__ import annotations

import fnmatch
import re
import unicodedata
from collections.abc import Callable, Iterable
from typing import Final

from ..errors import Invalid
from ..text import nfc_name

SEPARATOR: Final = "/"
INBOX: Final = "INBOX"

LEVEL_BYTES_MAX: Final = 255
"""A level has at most 255 bytes of UTF-8. A file name may have as many, so every name
can be exported to any file system.
"""
NAME_BYTES_MAX: Final = 1000
"""UTF-8 bytes of a whole name: a LIST line stays well below the lengths at which
clients give up.
"""
GIVEN_BYTES_MAX: Final = 3 * NAME_BYTES_MAX
"""UTF-8 bytes of a name or LIST pattern as it arrives: NFC shortens a decomposed name
to no less than a third (Hangul).
"""
LEVELS_MAX: Final = 50
"""Levels of a name: an answer to LIST may have a line for each level."""

_REFUSED: Final = {"Cc": "a control character", "Cs": "half a surrogate pair", "Zl": "a line end", "Zp": "a line end"}
"""Unicode categories. RFC 9051 §5.1 asks for Net-Unicode (RFC 5198), which has none of
these.
"""


_ESCAPED: Final = re.compile(r"\[([*?[])\]")
"""A sign of a shell mask that stands for itself: what Python's `glob.escape` writes."""


def canonical(name: str) -> str:
    """Return the canonical spelling of a name: NFC, no separator at its end, INBOX in
    capitals.

    Does not check whether a mailbox may have this name, but checks lengths before it
    normalises. Raises Invalid for a name of more than GIVEN_BYTES_MAX bytes or with too
    many consecutive combining characters; no mailbox has such a name. Idempotent: of
    two separators at the end neither is dropped, so that `check_name` refuses them.
    """
    name = _fold(name)
    return name if name.endswith(SEPARATOR * 2) else name.removesuffix(SEPARATOR)


def _fold(name: str) -> str:
    name = nfc_name(name, GIVEN_BYTES_MAX, "a mailbox name")
    if is_inbox(name[: len(INBOX)]) and name[len(INBOX) : len(INBOX) + 1] in ("", SEPARATOR):
        return INBOX + name[len(INBOX) :]
    return name


def is_inbox(name: str) -> bool:
    """Return whether a whole name is INBOX. Only ASCII letters have two cases here (RFC
    3501 §5.1).

    `str.upper` alone would turn U+0131, the dotless i, into `I`, too.
    """
    return name.isascii() and name.upper() == INBOX


def literal(mask: str) -> str | None:
    """Return the one name that a shell mask of an administrator means, or None for a
    mask with wildcards. `[*]`, `[?]` and `[[]` stand for the sign between the brackets.
    """
    if any(sign in _ESCAPED.sub("", mask) for sign in "*?["):
        return None
    return _ESCAPED.sub(r"\1", mask)


def fitter(mask: str) -> Callable[[str], object]:
    """Return a function that says whether a canonical name fits a shell mask of an
    administrator. INBOX has any case in the mask. Raises Invalid for a mask that is
    longer than a name.
    """
    if (size := len(_ESCAPED.sub("*", mask))) > NAME_BYTES_MAX:
        raise Invalid(f"a mask has {size} characters; allowed: {NAME_BYTES_MAX}")
    return re.compile(fnmatch.translate(canonical(mask))).match


def check_name(name: str) -> str:
    """Return the canonical form of a name that a mailbox may have.

    A separator at the end, with which a client says that it wants children (RFC 3501
    §6.3.3), is dropped. Raises Invalid with the reason.
    """
    name = canonical(name)
    if not name:
        raise Invalid("a mailbox name may not be empty")
    for char in name:
        reason = _REFUSED.get(unicodedata.category(char))
        if reason is not None:
            raise Invalid(f"a mailbox name may not contain {reason} (U+{ord(char):04X})")
    if len(name.encode()) > NAME_BYTES_MAX:
        raise Invalid(f"a mailbox name may have at most {NAME_BYTES_MAX} bytes in UTF-8")
    levels = name.split(SEPARATOR)
    if "" in levels:
        raise Invalid(f"a mailbox name may not have an empty level (a {SEPARATOR!r} at its start, or two in a row)")
    if len(levels) > LEVELS_MAX:
        raise Invalid(f"a mailbox name may have at most {LEVELS_MAX} levels")
    for level in levels:
        if len(level.encode()) > LEVEL_BYTES_MAX:
            raise Invalid(f"a level of a mailbox name may have at most {LEVEL_BYTES_MAX} bytes in UTF-8")
    return name


# -- the tree ----------------------------------------------------------------------------------------------------------


def parents(name: str) -> list[str]:
    """Return the levels above a name, the topmost first: `a`, `a/b` for `a/b/c`."""
    out = []
    at = name.find(SEPARATOR)
    while at >= 0:
        out.append(name[:at])
        at = name.find(SEPARATOR, at + 1)
    return out


def with_children(names: Iterable[str]) -> set[str]:
    """Return every name, given or only implied, that has one of `names` below it."""
    out: set[str] = set()
    for name in names:
        at = name.rfind(SEPARATOR)
        while at >= 0:
            name = name[:at]  # noqa: PLW2901 - climbing
            if name in out:
                break
            out.add(name)
            at = name.rfind(SEPARATOR)
    return out


def is_below(name: str, ancestor: str) -> bool:
    """Return whether `name` lies at any depth below `ancestor`."""
    return name.startswith(ancestor + SEPARATOR)


def moved(name: str, old: str, new: str) -> str | None:
    """Return the name that RENAME of `old` to `new` gives to `name`; None if `name` is
    neither `old` nor below it."""
    if name == old:
        return new
    return new + name[len(old) :] if is_below(name, old) else None


def sort_key(name: str) -> tuple[bool, list[str]]:
    """Sort INBOX first, then by level, so that children follow their parent."""
    return (name != INBOX and not is_below(name, INBOX), name.split(SEPARATOR))


# -- LIST --------------------------------------------------------------------------------------------------------------


class Pattern:
    """A LIST pattern: `*` stands for any text, `%` for any text within a level. RFC
    3501 §6.3.8.

    A pattern with wildcards elsewhere than at its end runs as a non-deterministic
    automaton whose states are the bits of an int. The time is linear in the name
    whatever the pattern is; a regular expression with several wildcards may backtrack
    for hours. Bit i: the first i signs of the pattern have been matched.
    """

    __slots__ = ("_across", "_by_char", "_inside", "_prefix", "_tail", "_within", "ends_in_percent", "final")

    def __init__(self, pattern: str) -> None:
        """Raises Invalid for a pattern of more than GIVEN_BYTES_MAX bytes; a sequence
        of wildcards counts as one.
        """
        signs = _fold(_collapse(pattern))
        self.ends_in_percent = signs[-1:] == "%"
        """Whether matching levels above a mailbox are wanted as well, even if they are
        no mailboxes.
        """
        self._tail = signs[-1:] if signs[-1:] in ("*", "%") else ""
        head = signs[: len(signs) - len(self._tail)]
        self._prefix = None if "*" in head or "%" in head or _touches_inbox(head) else head
        self._inside = "" if self._prefix is not None else _longest_literal(signs)
        self._by_char: dict[str, int] = {}
        self._across = self._within = 0
        literals = 0
        for sign in signs:
            here = 1 << literals
            if sign == "*":
                self._across |= here
            elif sign == "%":
                self._within |= here
            else:
                self._by_char[sign] = self._by_char.get(sign, 0) | here
                literals += 1
        self.final = 1 << literals

    def matches(self, name: str) -> bool:
        """Return whether the pattern covers the whole of `name`, which is canonical."""
        if self._prefix is not None:
            if not name.startswith(self._prefix):
                return False
            if self._tail == "%":
                return SEPARATOR not in name[len(self._prefix) :]
            return self._tail == "*" or len(name) == len(self._prefix)
        if self._inside and self._inside not in name:
            return False
        # A wildcard is not a state of its own but a loop at the state before the sign
        # that follows it.
        inbox = len(INBOX) if name == INBOX or is_below(name, INBOX) else 0
        by_char, across, within = self._by_char, self._across, self._across | self._within
        states = 1
        for at, char in enumerate(name):
            step = by_char.get(char, 0)
            if at < inbox:
                step |= by_char.get(char.lower(), 0)
            states = (states & step) << 1 | states & (across if char == SEPARATOR else within)
            if not states:
                return False
        return bool(states & self.final)


_WILDCARDS: Final = re.compile(r"[*%]{2,}")


def _collapse(pattern: str) -> str:
    """Replace each sequence of wildcards by one: `*` if the sequence has a `*`, else
    `%`.
    """
    return _WILDCARDS.sub(lambda run: "*" if "*" in run[0] else "%", pattern)


def _longest_literal(signs: str) -> str:
    """Return the longest piece that a matching name contains, without wildcards and
    without letters of INBOX."""
    return max(re.split(r"[*%INBOXinbox]", signs), key=len)


def _touches_inbox(head: str) -> bool:
    """Return whether a literal start can match INBOX if case is ignored: `inb*` can,
    `work*` cannot.
    """
    start = head[: len(INBOX)]
    return start.isascii() and start.upper() == INBOX[: len(head)] and not INBOX.startswith(start)


def match(pattern: str, names: Iterable[str]) -> dict[str, bool]:
    """Return those of `names` that a LIST or LSUB pattern matches, in their order, each
    with True.

    If the pattern ends in `%`, also matching levels above them that are not among
    `names`, each with False (\\Noselect, RFC 3501 §6.3.8 and §6.3.9).
    """
    compiled = Pattern(pattern)
    names = list(names)
    out = {name: True for name in names if compiled.matches(name)}
    if compiled.ends_in_percent:
        missing = filter(compiled.matches, with_children(names).difference(names))
        out |= dict.fromkeys(sorted(missing, key=sort_key), False)
    return out
