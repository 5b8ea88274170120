"""Masks with which an administrator chooses users or mailboxes.

Lists and masks can be long. So work on them lets other sessions run (`Turn`), and a
mask is bounded before it is compiled.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Final, TypeVar

from ..errors import Invalid, NotFound
from ..mailbox.names import canonical, fitter, literal
from ..turn import Turn

MASK_CHARS_MAX: Final = 1000
"""Characters of a mask with wildcards: as many as a name of a mailbox has. To compile
it takes 6 ms at most."""

MASKS_MAX: Final = 100
"""Masks with wildcards in a request. Each is tried on each name."""

T = TypeVar("T")


def masked(text: str) -> bool:
    """Return whether the name of a user has wildcards."""
    return "*" in text or "?" in text


def mask_of(text: str) -> Callable[[str], object]:
    """Return a function that says whether a text matches a mask. Raises Invalid."""
    if len(text) > MASK_CHARS_MAX:
        raise Invalid(f"a mask of {len(text)} characters; allowed: {MASK_CHARS_MAX}")
    return re.compile(fnmatch.translate(text)).match


async def entries_that_match(entries: Iterable[T], text: str, name: Callable[[T], str]) -> list[T]:
    """Return the entries whose name matches a mask. Raises Invalid."""
    fits, turn, found = mask_of(text), Turn(), []
    for entry in entries:
        if turn.over():
            await turn.end()
        if fits(name(entry)):
            found.append(entry)
    return found


class Masks:
    """Names and masks of mailboxes, any of which chooses a mailbox."""

    def __init__(self) -> None:
        self._names: dict[str, None] = {}
        self._wild: list[Callable[[str], object]] = []

    @classmethod
    async def of(cls, masks: Iterable[str]) -> Masks:
        """Make it of the texts of a request. INBOX has any case in them. Raises
        Invalid."""
        turn, made = Turn(), cls()
        for mask in masks:
            if turn.over():
                await turn.end()
            if (name := literal(mask)) is not None:
                made._names[canonical(name)] = None
            elif len(made._wild) == MASKS_MAX:
                raise Invalid(f"too many masks with wildcards; allowed: {MASKS_MAX}")
            else:
                made._wild.append(fitter(mask))
        return made

    def choose(self, name: str) -> bool:
        """Return whether a canonical name is chosen."""
        return name in self._names or any(fits(name) for fits in self._wild)

    async def among(self, names: Iterable[str]) -> list[str]:
        """Return the names that are chosen."""
        turn, found = Turn(), []
        for name in names:
            if turn.over():
                await turn.end()
            if self.choose(name):
                found.append(name)
        return found

    def missing(self, names: Iterable[str]) -> list[str]:
        """Return the names without wildcards that are not among these."""
        there = set(names) if self._names else set()
        return [name for name in self._names if name not in there]


async def matching(names: Sequence[str], masks: Sequence[str]) -> list[str]:
    """Return those `names` of mailboxes that any of `masks` chooses, or all without
    masks. Raises Invalid."""
    return await (await Masks.of(masks)).among(names) if masks else list(names)


async def require_named(names: Sequence[str], masks: Sequence[str]) -> None:
    """Raises NotFound for a mailbox that is named without wildcards and does not
    exist."""
    for name in (await Masks.of(masks)).missing(names):
        raise NotFound(f"no mailbox {name!r}")
