"""Rights in a mailbox: their letters, who gets them, and what follows from the entries
of an ACL. RFC 4314.

An ACL maps identifiers to rights. An identifier is the login name of a user, `anyone`
or `authenticated`; all users here are authenticated. With `-` before it, the entry
takes rights away. The owner has every right, and has no entry.

Rights are text: a subset of ALL, in that order. `c` and `d` of RFC 2086 stand for other
rights. They are never stored, and are shown where one of the rights is there that they
stand for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from ..errors import Invalid

ALL: Final = "lrswipkxtea"
"""Every right: look up, read, keep \\Seen, write other flags, insert, post, create
below, delete the mailbox, set \\Deleted, expunge, administer."""
OLD: Final[Mapping[str, str]] = {"c": "kx", "d": "te"}
"""What the rights of RFC 2086 stand for. RFC 4314 §2.1.1."""
EVERYBODY: Final = ("anyone", "authenticated")
OWNER: Final = "owner"
"""The identifier of the owner. Every `User` has exactly one."""


def parse(text: str) -> str:
    """Return the rights that a client has written, in the order of ALL. Raises
    Invalid."""
    given = set(text)
    for old, new in OLD.items():
        if old in given:
            given = (given - {old}) | set(new)
    if unknown := given - set(ALL):
        raise Invalid(f"no such right: {''.join(sorted(unknown))}; allowed: {ALL}{''.join(OLD)}")
    return ordered(given)


def ordered(rights: set[str]) -> str:
    """Return rights as text."""
    return "".join(right for right in ALL if right in rights)


def shown(rights: str) -> str:
    """Return rights as clients see them, with those of RFC 2086."""
    return rights + "".join(old for old, new in OLD.items() if set(new) & set(rights))


def changed(before: str, how: str, rights: str) -> str:
    """Return what `SETACL` makes of rights. how: `+` adds, `-` removes, "" replaces."""
    if how == "+":
        return ordered(set(before) | set(rights))
    if how == "-":
        return ordered(set(before) - set(rights))
    return rights


def effective(entry: Callable[[str], str], who: str) -> str:
    """Return the rights of a user who is not the owner. entry: returns the rights of an
    identifier, "" if it has no entry. RFC 4314 §2."""
    # The entry of a login name that begins with "-" would be a negative entry.
    names = EVERYBODY if who.startswith("-") else (who, *EVERYBODY)
    granted: set[str] = set()
    for name in names:
        granted.update(entry(name))
    if granted:
        for name in names:
            granted.difference_update(entry("-" + name))
    return ordered(granted) if granted else ""


def flag_right(flag: str) -> str:
    """Return the right that allows to change a flag. RFC 4314 §2.1."""
    folded = flag.lower()
    return "s" if folded == "\\seen" else "t" if folded == "\\deleted" else "w"
