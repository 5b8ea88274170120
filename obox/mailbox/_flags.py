"""Names of flags by bit, and the number of keywords that a mailbox accepts.

The bits of a mail are a 64-bit word: five system flags and KEYWORDS_MAX keywords. A
client that asks for more keywords is refused (`State.spell`). Two writers may bring
more together. The names from NARROW on then have no bit in the word. Such a *wide*
keyword is read from its stamps, which is slower, and shown like the others: a merge
takes no flag from a mail.

A keyword that no mail has any more keeps its bit and its place in FLAGS until another
keyword needs the place.

Refuses to know: mails; who asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from ._delta import SYSTEM_FLAGS

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
        """The spelling of a flag that has a place. Flags are case-insensitive."""
        if flag in self.names:
            return flag
        low = flag.lower()
        return next((name for name in self.names if name.lower() == low), None)

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
        """Keywords, in lower case, of mails that are not visible yet. They count
        against the limit.
        """
        return set(self._coming)

    def expect(self, flags: Iterable[str]) -> Callable[[], None]:
        """Count the keywords of mails that are about to be written. The call that is
        returned ends the counting.
        """
        names = [flag.lower() for flag in flags if flag not in SYSTEM_FLAGS]
        self._coming.update(names)

        def end() -> None:
            self._coming.subtract(names)
            self._coming = +self._coming  # drops keywords with a count of 0

        return end
