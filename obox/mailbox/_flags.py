"""Names of flags by bit, and the number of keywords that a mailbox accepts.

The bits of a mail are a 64-bit word: five system flags and KEYWORDS_MAX keywords. A
client that asks for more keywords is refused (`State.spell`). Two writers may bring
more together. The names from NARROW on then have no bit in the word. Such a *wide*
keyword is read from its stamps, which is slower, and shown like the others: a merge
takes no flag from a mail.

A keyword that no mail has any more keeps its bit and its place in FLAGS until another
keyword needs the place.

This module does not know mails or who asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from ..errors import Limit
from ._delta import KEYWORD_BYTES_MAX, KEYWORDS_MAX, KEYWORDS_STAMPED_MAX, SYSTEM_FLAGS

NARROW: Final = 64
"""The number of names that have a bit in the word."""


class FlagNames:
    """See the module's text. names: by bit; the first five are the system's."""

    __slots__ = ("_coming", "names", "version")

    def __init__(self) -> None:
        self.names: list[str] = list(SYSTEM_FLAGS)
        self.version = 0
        """Grows with each change of `names`."""
        self._coming: Counter[str] = Counter()

    @property
    def keywords(self) -> list[str]:
        return self.names[len(SYSTEM_FLAGS) :]

    @property
    def wide(self) -> list[str]:
        return self.names[NARROW:]

    def known(self, flag: str) -> str | None:
        """Return the spelling of a flag that has a place. Flags are
        case-insensitive."""
        if flag in self.names:
            return flag
        low = flag.lower()
        return next((name for name in self.names if name.lower() == low), None)

    def of_bits(self, bits: int) -> list[str]:
        """Return the flags of a mail: bit i stands for `names[i]`."""
        return [name for i, name in enumerate(self.names) if bits >> i & 1]

    def mask(self, flags: Iterable[str]) -> int:
        """Return the bits in the word for those of `flags` that have a place."""
        mask = 0
        for flag in flags:
            name = self.known(flag)
            if name is not None and (bit := self.names.index(name)) < NARROW:
                mask |= 1 << bit
        return mask

    def spelled(self, flags: Iterable[str]) -> list[str]:
        """`flags` without repeats, in this mailbox's spelling.

        Raises Limit for a keyword that is too long.
        """
        out: dict[str, str] = {}
        for flag in flags:
            known = self.known(flag)
            if known is None and len(flag) > KEYWORD_BYTES_MAX:  # a keyword is ASCII
                raise Limit(f"a keyword has at most {KEYWORD_BYTES_MAX} bytes")
            out.setdefault(flag.lower(), known or flag)
        return list(out.values())

    def has_room(self, asked: int, stamped: int) -> bool:
        """Return whether `asked` more keywords certainly fit. stamped: how many flags
        have stamps.

        False means that `check_room` has to look at the mails.
        """
        room = KEYWORDS_MAX - len(self.keywords) - len(self._coming)
        return asked <= room and stamped + asked <= KEYWORDS_STAMPED_MAX

    def check_room(self, asked: set[str], used: set[str], stamped: set[str]) -> None:
        """Raise Limit if the keywords `asked` do not fit. All names are in lower case.

        used: keywords that some mail has. stamped: flags with a stamp on some mail.
        """
        used = used | self.coming
        if not asked <= used and len(used | asked) > KEYWORDS_MAX:
            raise Limit(f"a mailbox holds at most {KEYWORDS_MAX} keywords")
        stamped = stamped - {name.lower() for name in SYSTEM_FLAGS}
        if not asked <= stamped and len(stamped | asked) > KEYWORDS_STAMPED_MAX:
            raise Limit(f"a mailbox remembers at most {KEYWORDS_STAMPED_MAX} keywords that its mails have had lately")

    def allot(self, name: str, used: Callable[[], set[str]]) -> None:
        """Give a keyword a place. used: the keywords that some mail has, in lower case.

        `used` is called only if the word is full: the keyword then gets the place of a
        keyword that no mail has.
        """
        self.version += 1
        if len(self.names) >= NARROW:
            having = used()
            for place in range(len(SYSTEM_FLAGS), len(self.names)):
                if self.names[place].lower() not in having:
                    self.names[place] = name
                    return
        self.names.append(name)

    # -- keywords of mails that are being written ------------------------------------------------------------------

    @property
    def coming(self) -> set[str]:
        """Return keywords, in lower case, of mails that are not visible yet. They count
        against the limit."""
        return set(self._coming)

    def expect(self, flags: Iterable[str]) -> Callable[[], None]:
        """Count the keywords of mails that are about to be written. The call that is
        returned ends the counting.
        """
        names = [flag.lower() for flag in flags if flag not in SYSTEM_FLAGS]
        self._coming.update(names)

        def end() -> None:
            self._coming.subtract(names)
            self._coming = +self._coming  # this drops keywords with a count of 0

        return end
