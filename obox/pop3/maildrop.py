"""The mails of a session, as they were at the login: numbers, sizes, marks, unique ids.

Numbers and sizes are the columns of the index at the login, which nobody changes. So a
maildrop of 100,000 mails costs a byte for each mail, and no request to the bucket. The
view keeps the records of mails that other sessions expunge meanwhile, so that they can
be read while their objects exist.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from obox.errors import OboxError
from obox.mailbox import SEEN, UidArray
from obox.mailbox.view import View
from obox.mime import header_values
from obox.pop3.replies import Bad
from obox.pop3.settings import Pop3Settings
from obox.store.api import Mailbox
from obox.store.fields import Fields

SLICE: Final = 1024
"""Mails of LIST and UIDL for which lines are made at a time: about a millisecond."""
AHEAD_MAILS: Final = 16
"""Mails that are read together once a client retrieves one after the other."""
AHEAD_BYTES: Final = 1 << 20
"""Octets of such mails. A mail that is larger is not read ahead."""
FIELDS_BYTES: Final = 1 << 20
"""Cached fields that are read at a time for X-UIDL."""
UIDL_BYTES_MAX: Final = 70
"""Longest unique id. RFC 1939 §7."""
_UIDL: Final = re.compile(rb"[!-~]{1,%d}" % UIDL_BYTES_MAX)
_TRIMMED: Final = UIDL_BYTES_MAX - 8
"""Octets that are left of a unique id that gets a number behind it."""
OID_BYTES: Final = 16
VARIABLE: Final = re.compile(r"%(0?)([1-9]?)([xX]?)([uvg])")


class Maildrop:
    """See the module's text. deleted: the marks. seen: numbers, from 0, that RETR has
    read."""

    __slots__ = (
        "_ahead",
        "_columns",
        "_next",
        "_read_before",
        "_view",
        "count",
        "deleted",
        "last",
        "left",
        "left_bytes",
        "mailbox",
        "read",
        "uids",
    )

    def __init__(self, mailbox: Mailbox, settings: Pop3Settings) -> None:
        state = mailbox.state
        self.mailbox = mailbox
        self._view = View(state)
        self._columns: dict[str, npt.NDArray[Any]] = {"size": state.column("size"), "oid": state.column("oid")}
        self.uids: UidArray = self._view.uids
        seen = (state.bits & np.uint64(SEEN)) != 0
        if (flag := settings.deleted_flag) and flag in state.flags.names:
            shown = ~state.has_flag(flag, np.arange(len(state)))
            self.uids, seen = self.uids[shown], seen[shown]
            self._columns = {name: column[shown] for name, column in self._columns.items()}
        self.count = len(self.uids)
        self.deleted = np.zeros(self.count, dtype=np.bool_)
        self.left, self.left_bytes = self.count, int(self._columns["size"].sum(dtype=np.uint64))
        self._read_before = self.last = int(np.flatnonzero(seen)[-1]) + 1 if settings.enable_last and seen.any() else 0
        self.read: set[int] = set()
        self._next: int | None = None
        """The mail behind the last that was retrieved."""
        self._ahead = 0
        """The first mail that was not read ahead."""

    def close(self) -> None:
        """Forget expunged mails."""
        self._view.close()

    def at(self, number: bytes) -> int:
        """Return the place, from 0, of a mail that a client names. Raises: Bad."""
        if not number.isdigit() or len(number) > 10:
            raise Bad("A number of a mail is missing")
        place = int(number) - 1
        if not 0 <= place < self.count:
            raise Bad(f"No such mail: there are {self.count}")
        if self.deleted[place]:
            raise Bad("The mail is deleted")
        return place

    def size(self, place: int) -> int:
        return int(self._columns["size"][place])

    def delete(self, place: int) -> None:
        self.deleted[place] = True
        self.left -= 1
        self.left_bytes -= self.size(place)

    def reset(self) -> None:
        """Forget all marks."""
        marked = np.flatnonzero(self.deleted)
        self.left = self.count
        self.left_bytes += int(self._columns["size"][marked].sum(dtype=np.uint64))
        self.deleted[marked] = False
        self.read.clear()
        self.last = self._read_before

    def marked(self) -> UidArray:
        """Return the UIDs of mails that DELE has marked."""
        return self.uids[self.deleted]

    def read_uids(self) -> UidArray:
        """Return the UIDs of mails that RETR has read."""
        return self.uids[np.array(sorted(self.read), dtype=np.intp)]

    async def read_ahead(self, place: int) -> None:
        """Bring mails into the caches that the client will probably retrieve next,
        because it retrieves them in order. They are read in parallel."""
        in_order, self._next = place == self._next, place + 1
        if not in_order or place < self._ahead:
            return
        part = slice(place, place + AHEAD_MAILS)
        fit = np.cumsum(self._columns["size"][part], dtype=np.uint64) <= AHEAD_BYTES
        count = int(np.count_nonzero(fit))
        self._ahead = place + count
        if count > 1:
            try:
                async for _ in self.mailbox.mails(self.uids[place : place + count].tolist()):
                    pass
            except OboxError:
                return  # the read that follows answers with the reason

    # -- lists -----------------------------------------------------------------------------------------------------

    def slices(self) -> Iterator[npt.NDArray[np.intp]]:
        """Yield the places of mails that are not marked, some at a time."""
        places = np.flatnonzero(~self.deleted)
        for at in range(0, len(places), SLICE):
            yield places[at : at + SLICE]

    def scan(self, places: npt.NDArray[np.intp]) -> bytes:
        """Return the lines of LIST."""
        sizes = self._columns["size"][places].tolist()
        return b"".join([b"%d %d\r\n" % pair for pair in zip((places + 1).tolist(), sizes, strict=True)])

    async def unique_ids(
        self, settings: Pop3Settings, pause: Callable[[], Awaitable[None]], place: int | None = None
    ) -> AsyncIterator[tuple[int, bytes]]:
        """Yield place and unique id of mails that are not marked.

        pause: lets other tasks run, and waits for the client. place: of this mail
        alone.
        """
        make = uidl_maker(settings.uidl_format, self.mailbox.uidvalidity)
        differ = _differ(settings)
        known: dict[bytes, int] = {}
        first, end = (0, self.count) if place is None else (place if differ else 0, place + 1)
        step = SLICE if differ else SLICE // 4
        for at in range(first, end, step):
            last = min(at + step, end)
            uids, oids = self.uids[at:last].tolist(), self._columns["oid"][at:last].tobytes()
            own = await self._own(uids) if settings.reuse_xuidl else []
            for row, uid in enumerate(uids):
                one = (own and own[row]) or make(uid, oids[OID_BYTES * row : OID_BYTES * (row + 1)])
                if not differ:
                    times = known[one] = known.get(one, 0) + 1
                    one = one if times == 1 else b"%b-%d" % (one[:_TRIMMED], times)
                if not self.deleted[at + row] and (place is None or at + row == place):
                    yield at + row, one
            await pause()

    async def _own(self, uids: Sequence[int]) -> list[bytes]:
        """Return the mails' own unique ids; b"" where there is none."""
        out: list[bytes] = []
        while len(out) < len(uids):
            found = await self.mailbox.fields(uids[len(out) :], bytes_max=FIELDS_BYTES)
            out += [_xuidl(one.header or b"") if isinstance(one, Fields) else b"" for one in found]
        return out


def _xuidl(header: bytes) -> bytes:
    values = header_values(header, b"x-uidl")
    value = values[0].strip() if values else b""
    return value if _UIDL.fullmatch(value) else b""


def _differ(settings: Pop3Settings) -> bool:
    """Return whether unique ids of several mails differ by themselves."""
    return not settings.reuse_xuidl and any(found[3] == "u" for found in VARIABLE.findall(settings.uidl_format))


def uidl_maker(pattern: str, uidvalidity: int) -> Callable[[int, bytes], bytes]:
    """Return a function that makes a unique id of a mail's UID and oid.

    pattern: as `pop3_uidl_format` in Dovecot: %u is the UID, %v the UIDVALIDITY, %g the
    oid in hexadecimal; between % and the letter may be 0, a width, and x or X.
    """

    def directive(match: re.Match[str]) -> str:
        zero, width, base, name = match.groups()
        if name == "g":
            return "%(g)s"
        return f"%({name}){zero}{width}{base or 'd'}"

    template = VARIABLE.sub(directive, pattern)

    def make(uid: int, oid: bytes) -> bytes:
        return (template % {"u": uid, "v": uidvalidity, "g": oid.hex()}).encode()

    return make
