"""FETCH and UID FETCH. RFC 9051 §6.4.5, RFC 7162 §3.1.4, §3.2.6.

Mails are handled in chunks of UIDs. For each chunk: read what the plan needs
(awaiting), then look up the rows and make the lines (not awaiting), then send them and
wait for the client.

If another session has expunged a mail, and this client does not know that, the mail is
served from what is left: its record (`State.retained`), its ready fields, its object.
The answer is OK with EXPUNGEISSUED. It is NO if something that was fetched does not
exist any more (RFC 2180 §4.1, RFC 5530 §3). A UID FETCH of such mails is OK, as if they
did not exist.

A FETCH of items that are in the index never needs a lost or damaged mail. If it would
have to read the bytes of such a mail, only the flags are sent, and `fetch_failure`
decides: BYE at once, or the other mails first and then BYE or NO. With `lost_as_empty`
a lost mail is served as an empty mail. After the length of a literal has been sent, a
failure can only end the connection.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final, NamedTuple, cast

import numpy as np

from obox.errors import Corrupt, Expunged, NotFound, Temporary, Unavailable
from obox.imap import ast, wire
from obox.imap.ast import FetchAttr
from obox.imap.body import Body, literal
from obox.imap.commands.auth import enable_condstore
from obox.imap.plan import Plan, compile_plan, rare
from obox.imap.replies import Reply, bad, no
from obox.imap.rows import ANSWER_BYTES, Where, flag_rows, lead, lines, part_of, parts
from obox.imap.session import NO_UIDS, Session
from obox.imap.sets import format_set
from obox.imap.updates import flags_of, write_flags
from obox.loading import loaded
from obox.mailbox import SEEN, Table, UidArray, within
from obox.store.api import Fields, Unreadable
from obox.store.content import INLINE_MAX, Budget, Part, header_end, make_fields, parse

COLUMN_ROWS: Final = 1000
"""Mails of a chunk that needs only columns: about 64 KiB of lines."""
FIELD_ROWS: Final = 250
"""Mails of a chunk that needs cached fields: about 200 KiB."""
FIELDS_BYTES: Final = 4 << 20
"""A FETCH has at most 4 MiB of ready fields in memory. Most mails have 1 kB; a hostile
mail has megabytes."""
HEADER_CELLS: Final = 1000
"""Header sections of a chunk, over all its mails: each may be as large as a header that
is kept, 8 KiB."""
MAIL_ROWS: Final = 128
"""Mails of a chunk that needs whole mails, whose \\Seen is set at once."""
STREAM_BYTES_MIN: Final = 1 << 20
"""A larger mail is not held in memory as a whole, but is streamed."""
PIECE_BYTES: Final = 1 << 18
"""Octets of such a mail that are read and sent at a time: a frame of the stored
object."""
HEADER_CELLS_TURN: Final = 16
"""Items that are cut out of header blocks before the clock is read again: some 0.1
ms."""
NAMED_MAX: Final = 50
"""Mails that a status line names by UID: clients have limits for a line."""


async def fetch(session: Session, command: ast.Fetch) -> Reply | None:
    if command.vanished and not session.qresync:
        return bad("VANISHED needs QRESYNC to be enabled")  # RFC 7162 §3.2.6
    if rare(command.items):
        await loaded("obox.imap.cuts")
    if command.vanished:
        await loaded("obox.imap.earlier")
    plan = compile_plan(
        command.items, uid=command.uid and not session.uidonly, modseq=command.changed_since is not None
    )
    if plan.has(FetchAttr.MODSEQ):
        enable_condstore(session)
    uids = part_of(session.resolve(command.sequence, uid=command.uid), command.partial)
    if command.changed_since is not None:
        uids = _changed_since(session, command, uids, command.changed_since)
    job = _Fetch(session, plan, uid=command.uid)
    rows = MAIL_ROWS if plan.needs_mail else FIELD_ROWS if plan.needs_fields else COLUMN_ROWS
    rows = max(1, min(rows, HEADER_CELLS // max(1, len(job.of_header))))
    try:
        at = 0
        while at < len(uids):
            at += await job.chunk(uids[at : at + rows])
    except _AtOnce:
        pass
    if job.unreadable:
        said = _named(sorted(job.unreadable))
        if session.settings.fetch_failure == "no-after":
            return no(said, "CORRUPTION")
        session.end(said, "CORRUPTION")
        return None
    if job.unknown:
        return no("The transfer encoding of a part is unknown", "UNKNOWN-CTE")
    if job.unsent and not command.uid:
        return no("Some of the mails no longer exist", "EXPUNGEISSUED")
    if job.expunged and not command.uid:
        return Reply("Fetch completed, some of the mails have been expunged", "EXPUNGEISSUED")
    return Reply("Fetch completed")


def _named(unreadable: list[int]) -> str:
    """Return a short text for the client about mails that cannot be read."""
    more = f" and {len(unreadable) - NAMED_MAX} more" if len(unreadable) > NAMED_MAX else ""
    return f"Mails of UID {format_set(unreadable[:NAMED_MAX]).decode()}{more} are damaged or lost"


def _changed_since(session: Session, command: ast.Fetch, uids: UidArray, modseq: int) -> UidArray:
    mailbox, view = session.need_mailbox()
    state = mailbox.state
    # Mails that the client still counts are reported with the next EXPUNGE or VANISHED,
    # not as VANISHED (EARLIER).
    if command.vanished:
        from obox.imap.earlier import vanished_earlier

        if gone := vanished_earlier(state, modseq, command.sequence, shown=view.uids):
            session.write(wire.line(b"VANISHED (EARLIER)", gone))
    table, where, known = state.records(uids)
    return known[table.modseqs[where] > np.uint64(state.trusted(modseq))]


def _of_mail(item: FetchAttr | Body) -> bool:
    return isinstance(item, Body) and not item.in_header


async def _structure(mail: bytes) -> tuple[Part, bool]:
    """Return the parts of a mail, and whether it is so small that its parts can be cut
    out on the loop too."""
    if len(mail) <= INLINE_MAX:
        budget = Budget.quick()
        root = parse(mail, budget)
        if not budget.exceeded:
            return root, True
    return await asyncio.to_thread(parse, mail), False


class _Rows(NamedTuple):
    """Mails whose lines are made now: their table, their positions in it, and their
    UIDs."""

    table: Table
    where: Where
    uids: UidArray


class _Run(NamedTuple):
    """Mails that are answered together, their ready fields, and their header blocks if
    these are needed. A header that is too long to be cached is None, and alone."""

    uids: UidArray
    found: dict[int, Fields]
    heads: list[bytes | None]


class _AtOnce(Exception):
    """A mail cannot be read, and nothing more is to be sent."""


class _Fetch:
    """A FETCH under way. unreadable: UIDs of lost or damaged mails. expunged: whether
    some mails are expunged. unsent: whether items of expunged mails could not be
    sent. unknown: whether parts could not be decoded."""

    def __init__(self, session: Session, plan: Plan, *, uid: bool) -> None:
        self.session = session
        self.plan = plan
        self.mailbox, self.view = session.need_mailbox()
        self.names = plan.names()
        self.cut = [(at, item) for at, item in enumerate(plan.order, 1) if isinstance(item, Body) and _of_mail(item)]
        self.plain = len(self.cut) == 1 and self.cut[0][1].entire
        """Whether all that is needed of a mail is the mail itself, as it mostly is."""
        self.short = plan.short
        self.of_header = [item.of_header() for item in plan.order if isinstance(item, Body) and item.in_header]
        self.needs_structure = plan.needs_structure
        self.uid = uid
        self.uidonly = session.uidonly
        self.lead = lead(uidonly=session.uidonly)
        self.autofix = session.settings.autofix_storage
        self.unreadable: set[int] = set()
        self.expunged = self.unsent = self.unknown = False
        self.flags = partial(flags_of, session)

    async def chunk(self, uids: UidArray) -> int:
        """Deliver some mails, or as many of the first as FIELDS_BYTES allows.

        Returns how many.
        """
        plan = self.plan
        seen = NO_UIDS
        found: dict[int, Fields] = {}
        if plan.needs_fields:
            uids, found = await self._fields(uids)
            if self.session.rev2 and plan.describes:
                await loaded("obox.imap.rev2")
                from obox.imap.rev2 import for_rev2

                found = await for_rev2(self.mailbox, found)
        if plan.sets_seen and not self.session.read_only and "s" in self.mailbox.rights:
            seen = await self._mark_seen(uids)
        for run in self._runs(uids, found):
            await self._deliver(run, seen)
            await self.session.pause()
        return len(uids)

    def _runs(self, uids: UidArray, found: dict[int, Fields]) -> Iterator[_Run]:
        """Yield the mails in runs, so that each header that is too long to be cached is
        alone in memory."""
        heads = [one.header for one in found.values()] if self.of_header else []
        if all(heads):
            yield _Run(uids, found, heads)
            return
        del heads
        long = [at for at, uid in enumerate(uids.tolist()) if uid in found and found[uid].header is None]
        cuts = sorted({0, len(uids), *long, *(at + 1 for at in long)})
        for a, b in pairwise(cuts):
            some = uids[a:b]
            theirs = {uid: found[uid] for uid in some.tolist() if uid in found}
            yield _Run(some, theirs, [one.header for one in theirs.values()])

    async def _deliver(self, run: _Run, seen: UidArray) -> None:
        plan = self.plan
        uids, found, heads = run
        headers: dict[int, Sequence[bytes]] = {}
        if plan.needs_fields:
            if self.of_header:
                headers = await self._headers(list(found), heads)
                found = {uid: found[uid] for uid in headers} if len(headers) < len(found) else found
            if len(found) < len(uids):
                for uid in sorted(self.unreadable.intersection(uids.tolist())):
                    await self._write_flags(uid, seen)
        rows = self._known(uids, found)
        if plan.needs_mail:
            await self._whole(rows, seen, found, headers)
            return
        table, where, uids = rows
        if len(uids) == 0:
            return
        order = uids.tolist() if plan.needs_fields else []
        columns = plan.columns(
            table,
            where,
            self.flags,
            [found[uid] for uid in order],
            [headers[uid] for uid in order] if headers else [],
        )
        names = self.names
        if len(seen):
            names, columns = self._with_flags(rows, seen, columns)
        seqs = self._numbers(uids)
        if not plan.needs_fields and flag_rows(self.mailbox.state, len(seqs)) == len(seqs):
            # numbers, dates and few flags: nothing is long.
            self.session.write(lines(names, seqs, columns, uidonly=self.uidonly))
            return
        for part in parts(names, columns, len(seqs)):
            self.session.write(lines(names, seqs[part], [column[part] for column in columns], uidonly=self.uidonly))
            if self.session.out.full:
                await self.session.flush()

    def _numbers(self, uids: UidArray) -> list[int]:
        """Return the numbers of the mails in the answer."""
        found: list[int] = (uids if self.uidonly else self.view.seqs(uids)).tolist()
        return found

    def _known(self, uids: UidArray, found: Mapping[int, Fields]) -> _Rows:
        """Return those of `uids` whose record we have, and the fields that the plan
        needs."""
        state = self.mailbox.state
        table, where, known = state.records(uids)
        self.expunged |= table is not state or len(known) < len(uids)
        if self.plan.needs_fields and len(found) < len(uids):
            has = np.isin(known, np.fromiter(found, dtype=np.uint32, count=len(found)))
            known, where = known[has], where[has]
        self.unsent |= len(known) < len(uids) and not self.unreadable.issuperset(uids[~np.isin(uids, known)].tolist())
        return _Rows(table, where, known)

    # -- what cannot be read ---------------------------------------------------------------------------------------

    def _instead(self, uid: int, error: Unreadable) -> bytes | None:
        """Return what is served for a mail that cannot be read: an empty mail, or
        nothing.

        Raises: _AtOnce.
        """
        settings = self.session.settings
        if settings.lost_as_empty and isinstance(error, NotFound):
            return b""
        self.unreadable.add(uid)
        if settings.fetch_failure == "disconnect-immediately":
            raise _AtOnce
        return None

    async def _write_flags(self, uid: int, seen: UidArray) -> None:
        """Write the flags of a mail that cannot be read, if they were fetched or are
        new.

        The rest of its line is not sent, because clients treat a line with a date but
        no body as our mistake (mbsync 1.4 stops synchronising the mailbox).
        """
        if uid in seen or self.plan.has(FetchAttr.FLAGS):
            await write_flags(self.session, np.array([uid], dtype=np.uint32), uid=self.uid)

    # -- \Seen -----------------------------------------------------------------------------------------------------

    async def _mark_seen(self, uids: UidArray) -> UidArray:
        """Set \\Seen where it is missing. Returns the mails that got it, whose flags
        belong in the answer."""
        state = self.mailbox.state
        where, there = state.positions(uids)
        there[there] = (state.bits[where[there]] & np.uint64(SEEN)) == 0
        if not there.any():
            return NO_UIDS
        try:
            stored = await self.mailbox.store_flags(uids[there], "add", ["\\Seen"])
        except (Unavailable, Temporary) as error:
            # Reading continues while nothing can be changed, because the mail matters
            # more than its flag.
            self.session.context.log.warning("\\Seen not set", user=self.session.user_name, error=str(error))
            return NO_UIDS
        self.view.note_own(stored.modseq, stored.changed)
        return stored.changed

    def _with_flags(
        self, rows: _Rows, seen: UidArray, columns: list[Sequence[Any]]
    ) -> tuple[list[bytes], list[Sequence[Any]]]:
        """Add flags (and MODSEQ) for mails that got \\Seen, if the client did not fetch
        them. They stand behind the other short items."""
        table, where, uids = rows
        new = within(uids, seen).tolist()
        names = list(self.names)
        added: list[Sequence[Any]] = []
        if not self.plan.has(FetchAttr.FLAGS):
            flags = self.flags(table, where)
            added.append([b"FLAGS %b " % f if n else b"" for f, n in zip(flags, new, strict=True)])
        if self.session.condstore and not self.plan.has(FetchAttr.MODSEQ):
            modseqs = table.modseqs[where].tolist()
            added.append([b"MODSEQ (%d) " % m if n else b"" for m, n in zip(modseqs, new, strict=True)])
        at = self.short
        names[at] = b"%b" * len(added) + names[at]
        return names, [*columns[:at], *added, *columns[at:]]

    # -- fields and headers ----------------------------------------------------------------------------------------

    async def _fields(self, uids: UidArray) -> tuple[UidArray, dict[int, Fields]]:
        """Return the ready fields of the first mails, and the UIDs of these mails."""
        found = await self.mailbox.fields(uids.tolist(), autofix=self.autofix, bytes_max=FIELDS_BYTES)
        uids = uids[: len(found)]
        if set(map(type, found)) == {Fields}:
            return uids, dict(zip(uids.tolist(), cast("list[Fields]", found), strict=True))
        out: dict[int, Fields] = {}
        for uid, one in zip(uids.tolist(), found, strict=True):
            if isinstance(one, Fields):
                out[uid] = one
            elif one is not None and (mail := self._instead(uid, one)) is not None:
                out[uid] = make_fields(mail)
        return uids, out

    async def _headers(self, uids: list[int], heads: list[bytes | None]) -> dict[int, Sequence[bytes]]:
        """Return the items that are cut out of header blocks, by UID."""
        if heads == [None]:
            return await self._headers_of_mail(uids[0])
        out: dict[int, Sequence[bytes]] = {}
        step = max(1, HEADER_CELLS_TURN // len(self.of_header))
        for at in range(0, len(uids), step):
            some = cast("list[bytes]", heads[at : at + step])
            columns = [list(map(cut, some)) for cut in self.of_header]
            out.update(zip(uids[at : at + step], zip(*columns, strict=True), strict=True))
            await self.session.out.yield_if_due()
        return out

    async def _headers_of_mail(self, uid: int) -> dict[int, Sequence[bytes]]:
        """Read a header that is too long to be cached from the mail."""
        try:
            mail: bytes | None = await self.mailbox.mail(uid, autofix=self.autofix)
        except Expunged:
            return {}
        except (Corrupt, NotFound) as error:
            mail = self._instead(uid, error)
        return {} if mail is None else {uid: await asyncio.to_thread(self._of_header_of, mail)}

    def _of_header_of(self, mail: bytes) -> list[bytes]:
        header = mail[: header_end(mail)]
        return [cut(header) for cut in self.of_header]

    # -- whole mails -----------------------------------------------------------------------------------------------

    async def _whole(
        self, asked: _Rows, seen: UidArray, found: dict[int, Fields], headers: dict[int, Sequence[bytes]]
    ) -> None:
        """Take the columns of all mails now, and then each mail's bytes. A change in
        between is reported by the next poll."""
        order = asked.uids.tolist()
        sizes = asked.table.column("size")[asked.where].tolist()
        names, rows = self._cells(asked, seen, found, headers)
        lead = self.lead + b" ".join(names) + b")\r\n"
        place = self.cut[0][0] - len(self.plan.order) - 1
        at = 0
        async for uid, mail in self._mails(order, sizes):
            while order[at] != uid:
                at += 1
            wrong: Unreadable | None = None
            if isinstance(mail, bytes):
                if self.plain and len(mail) <= ANSWER_BYTES:
                    values = rows[at]
                    values[place] = literal(mail)
                    self.session.out.write(lead % tuple(values))
                elif not await self._write_row(lead, rows[at], mail):
                    await self._write_flags(uid, seen)
            elif mail is not None:
                wrong = mail
            elif self._streams(sizes[at]):
                wrong = await self._stream(uid, sizes[at], rows[at])
            else:
                self.expunged = self.unsent = True
            if wrong is not None and (instead := self._instead(uid, wrong)) is not None:
                await self._write_row(lead, rows[at], instead)
            elif wrong is not None:
                await self._write_flags(uid, seen)
            if self.session.out.full:
                await self.session.flush()

    def _streams(self, size: int) -> bool:
        return size >= STREAM_BYTES_MIN and self.plan.whole_only

    def _mails(self, uids: list[int], sizes: list[int]) -> AsyncIterator[tuple[int, bytes | Unreadable | None]]:
        """Yield whole mails in order, None for a mail that is streamed or was
        expunged."""
        if any(map(self._streams, sizes)):
            return self._between_streams(uids, sizes)
        return self.mailbox.mails(uids, autofix=self.autofix)

    async def _between_streams(
        self, uids: list[int], sizes: list[int]
    ) -> AsyncIterator[tuple[int, bytes | Unreadable | None]]:
        run: list[int] = []
        for uid, size in zip(uids, sizes, strict=True):
            if not self._streams(size):
                run.append(uid)
                continue
            async for pair in self.mailbox.mails(run, autofix=self.autofix):
                yield pair
            run = []
            yield uid, None
        async for pair in self.mailbox.mails(run, autofix=self.autofix):
            yield pair

    def _cells(
        self, rows: _Rows, seen: UidArray, found: dict[int, Fields], headers: dict[int, Sequence[bytes]]
    ) -> tuple[list[bytes], list[list[Any]]]:
        """Return format strings, and for each line its sequence number and values.
        Values that are cut from the mail are None for now."""
        plan = self.plan
        table, where, uids = rows
        small = Plan([item for item in plan.order if not _of_mail(item)])
        order = uids.tolist() if plan.needs_fields else []
        given = iter(
            small.columns(
                table,
                where,
                self.flags,
                [found[uid] for uid in order],
                [headers[uid] for uid in order] if headers else [],
            )
        )
        blank = [None] * len(uids)
        columns: list[Sequence[Any]] = [blank if _of_mail(item) else next(given) for item in plan.order]
        names = self.names
        if len(seen):
            names, columns = self._with_flags(rows, seen, columns)
        return names, [list(row) for row in zip(self._numbers(uids), *columns, strict=True)]

    async def _write_row(self, lead: bytes, values: list[Any], mail: bytes) -> bool:
        """Write the line of a mail. If its items may be large together, they are sent
        piece by piece. Returns False if an item cannot be decoded; nothing is written
        then.
        """
        root, quick = await _structure(mail) if self.needs_structure else (None, True)
        if root is not None and any(item.unknown(root) for _, item in self.cut):
            self.unknown = True
            return False
        added = len(values) - 1 - len(self.plan.order)
        if len(mail) * len(self.cut) > ANSWER_BYTES:
            await self._write_items(values, mail, root, quick=quick)
            return True
        if not quick:
            for (at, _), value in zip(self.cut, await asyncio.to_thread(self._of_mail, mail, root), strict=True):
                values[at + added] = value
            self.session.write(lead % tuple(values))
            return True
        for at, item in self.cut:
            values[at + added] = item.of_mail(mail, root)
            if not item.whole or len(self.cut) > 1:
                await self.session.out.yield_if_due()
        self.session.write(lead % tuple(values))
        return True

    async def _write_items(self, values: list[Any], mail: bytes, root: Part | None, *, quick: bool) -> None:
        """Write the row as `_write_row` does, but hold at most a single item and
        PIECE_BYTES of output, at the client's pace."""
        session = self.session
        lead = self.lead % values[0]
        for item, name, cell in self._apart(values):
            if isinstance(item, Body) and _of_mail(item):
                cut = item.cut(mail, root) if quick else await asyncio.to_thread(item.cut, mail, root)
                head, source, start, end = cut
                session.write(lead, name, head)
                while source is not None and start < end:
                    session.write(source[start : min(start + PIECE_BYTES, end)])
                    start += PIECE_BYTES
                    await session.pause()
            else:
                session.write(lead, name, cell)
            lead = b" "
            await session.pause()
        session.write(b")\r\n")

    def _apart(self, values: list[Any]) -> Iterator[tuple[FetchAttr | Body, bytes, bytes]]:
        """Yield each item of a row with its name and value in the answer. The value of
        an item that is cut from the mail is empty."""
        order, added = self.plan.order, len(values) - 1 - len(self.plan.order)
        at = 1 + self.short
        flags, cells = b"".join(values[at : at + added]), [*values[1:at], *values[at + added :]]
        for item, name, cell in zip(order, self.names, cells, strict=True):
            if isinstance(item, Body):
                label, value = item.label + b" ", cell or b""
            else:
                label, value = b"", name % cell
            if item is order[self.short]:
                label = flags + label
            yield item, label, value

    def _of_mail(self, mail: bytes, root: Part | None) -> list[bytes]:
        return [item.of_mail(mail, root) for _, item in self.cut]

    async def _stream(self, uid: int, size: int, values: list[Any]) -> Unreadable | None:
        """Send a large mail piece by piece. Returns why nothing of it was sent, or
        None.

        A failure inside a literal ends the connection (ConnectionResetError), because
        the length has been sent.
        """
        session, order = self.session, self.plan.order
        spans = [item.span(size) if isinstance(item, Body) and _of_mail(item) else (0, 0) for item in order]
        first = b""
        if (begun := next((span for span in spans if span[0] < span[1]), None)) is not None:
            low, high = begun
            try:
                first = await self.mailbox.part(uid, low, min(low + PIECE_BYTES, high), autofix=self.autofix)
            except Expunged:
                self.expunged = self.unsent = True
                return None
            except (Corrupt, NotFound) as error:
                return error
        lead = self.lead % values[0]
        for (item, name, cell), span in zip(self._apart(values), spans, strict=True):
            if not (isinstance(item, Body) and _of_mail(item)):
                session.write(lead, name, cell)
                lead = b" "
                continue
            start, end = span
            session.write(lead, name, b"{%d}\r\n" % (end - start) if end > start else b'""')
            lead = b" "
            while start < end:
                piece = first or await self._piece(uid, start, min(start + PIECE_BYTES, end))
                first = b""
                session.write(piece)
                start += len(piece)
                await session.flush()
        session.write(b")\r\n")
        return None

    async def _piece(self, uid: int, start: int, end: int) -> bytes:
        try:
            piece = await self.mailbox.part(uid, start, end)
        except Exception as error:
            raise ConnectionResetError("a mail became unreadable in the middle of a literal") from error
        if not piece:
            raise ConnectionResetError("a mail is shorter than its size says")
        return piece
