"""ESEARCH: a search in several mailboxes. RFC 7377.

The mailboxes are searched one after the other, and the answer of each is sent before
the next is searched. A mailbox in which nothing matches has no answer. Mailboxes that
are empty by their totals are not opened.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final, cast

import msgspec

from obox.errors import NotFound
from obox.imap import ast, wire
from obox.imap.ast import SearchReturn
from obox.imap.commands.auth import enable_condstore
from obox.imap.commands.search import answer_extended, asks_modseq, matching
from obox.imap.filters import Chosen, existing
from obox.imap.meaning import Meaning, query_of, sets_in
from obox.imap.program import Alone
from obox.imap.progress import in_progress
from obox.imap.replies import Reply, bad, no
from obox.imap.session import NO_UIDS, Session
from obox.mailbox import State, UidArray
from obox.store.api import Mailbox

MAILBOXES_MAX: Final = 1_000
"""Mailboxes of one ESEARCH. Each that has mails is loaded."""
SEARCH_S: Final = 300.0
"""The time of one ESEARCH: a client waits no longer, and a mailbox may have to be read
from the bucket."""


async def esearch(session: Session, command: ast.MultiSearch) -> Reply:
    search, chosen = command.search, Chosen(command.sources)
    alone = all(one.kind == "SELECTED" for one in command.sources)
    if search.returns is None:
        search = msgspec.structs.replace(search, returns=frozenset({SearchReturn.ALL}))
    if (refusal := _refusal(session, search, chosen, alone=alone)) is not None:
        return refusal
    names = [] if alone else await existing(session, chosen)
    if len(names) > MAILBOXES_MAX:
        return no(f"Too many mailboxes: {len(names)}; allowed: {MAILBOXES_MAX}", "LIMIT")
    if asks_modseq(search.key):
        enable_condstore(session)
    names = [name for name in names if name != session.mailbox_name or session.mailbox is None]
    try:
        async with asyncio.timeout(SEARCH_S):
            with in_progress(session, command):
                if session.mailbox is not None and (chosen.selected or alone or _chosen(session, chosen)):
                    await _selected(session, search)
                for name in names:
                    await _other(session, search, name)
    except TimeoutError:
        return no(f"The search took more than {SEARCH_S:g} seconds", "LIMIT")
    return Reply("Esearch completed")


def _chosen(session: Session, chosen: Chosen) -> bool:
    name = session.mailbox_name
    return chosen.has(name, subscribed=name in session.need_user().subscriptions())


def _refusal(session: Session, search: ast.Search, chosen: Chosen, *, alone: bool) -> Reply | None:
    """Return why the command cannot be served."""
    if search.charset and session.utf8 and not session.rev2:  # RFC 6855 §3
        return bad("CHARSET is not allowed with UTF8=ACCEPT: strings are UTF-8")
    if session.mailbox is None and (alone or chosen.selected):
        return bad("No mailbox is selected")
    if SearchReturn.UPDATE in (search.returns or ()):
        return bad("UPDATE is only allowed in SEARCH and SORT")
    if alone:
        return None
    # RFC 7377 §2.2: these mean something in the selected mailbox alone.
    if SearchReturn.SAVE in (search.returns or ()):
        return bad("SAVE is only allowed for the selected mailbox")
    if any(not one.uid or one.sequence.saved for one in sets_in(search.key)):
        return bad("Sequence numbers and $ are only allowed for the selected mailbox")
    return None


async def _selected(session: Session, search: ast.Search) -> None:
    mailbox, _ = session.need_mailbox()
    try:
        found = await matching(session, search.key)
    except BaseException:
        if SearchReturn.SAVE in (search.returns or ()):
            session.saved = NO_UIDS
        raise
    await _answer(session, search, (session.mailbox_name, mailbox), found)


async def _other(session: Session, search: ast.Search, name: str) -> None:
    user = session.need_user()
    try:
        if not (await user.status(name)).messages:
            return
        mailbox = await user.select(name)
    except NotFound:
        return  # It was deleted meanwhile.
    try:
        wanted = await query_of(Meaning(cast(Any, Alone(mailbox))), search.key, session.pause)
        found = await mailbox.search(wanted, mailbox.state.uids, autofix=session.settings.autofix_storage)
        await _answer(session, search, (name, mailbox), found)
    finally:
        await mailbox.release()


async def _answer(session: Session, search: ast.Search, where: tuple[str, Mailbox], found: UidArray) -> None:
    name, mailbox = where
    state: State | None = mailbox.state if asks_modseq(search.key) else None
    source = b" MAILBOX %b UIDVALIDITY %d" % (wire.mailbox(name, utf8=session.utf8), mailbox.uidvalidity)
    if len(found):
        answer_extended(session, search, found, found, state=state, source=source)
    elif SearchReturn.SAVE in (search.returns or ()):
        session.saved = NO_UIDS
    await session.flush()
