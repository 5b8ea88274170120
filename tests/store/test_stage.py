"""The log is the only writer of changes. Changes that belong together are a single
edit, and listeners get the same changes as the journal."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from machines import SID, Life, Machine, uids

from metacache import Change
from obox.mailbox import Changed, Delta, Gone, RootDelta
from obox.mailbox.invariants import fingerprint
from obox.objectstore.keys import ROOT
from obox.store import NewMail
from obox.store.box.expunge import expunge_in
from obox.store.log.journal import JournalObject, Line
from obox.store.log.stage import Altered, altered_by

TREE = Path(__file__).parent.parent.parent


def _calls(wanted: Callable[[ast.Call], bool]) -> list[str]:
    """Return the files of the product that contain such a call. There is an element for
    each call."""
    return [
        path.relative_to(TREE).as_posix()
        for top in ("obox", "metacache", "fscache", "admintool")
        for path in sorted((TREE / top).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and wanted(node)
    ]


@pytest.mark.parametrize("verb", ["add", "carry"])
def test_one_place_hands_changes_to_the_journal(verb: str) -> None:
    assert _calls(lambda call: ast.unparse(call.func).endswith(f"journal.{verb}")) == ["obox/store/log/stage.py"]


def test_one_place_appends_to_local_copies() -> None:
    """The test finds the calls by their argument `priority`, which only local copies
    have."""

    def appends(call: ast.Call) -> bool:
        named = {one.arg for one in call.keywords}
        return isinstance(call.func, ast.Attribute) and call.func.attr == "append" and "priority" in named

    assert _calls(appends) == ["obox/store/log/stage.py"]


def _plain(altered: Altered) -> tuple[Any, ...]:
    what = altered.what
    if isinstance(what, Changed):
        return altered.sid, altered.box, *(column.tolist() for column in (what.new, what.flags, what.gone))
    return altered.sid, altered.box, what.mailboxes, what.subscriptions


class Heard(list[tuple[Any, ...]]):
    """A listener that records its calls, an element for each edit."""

    def __call__(self, altered: tuple[Altered, ...]) -> None:
        self.append(tuple(_plain(one) for one in altered))

    def take(self) -> list[tuple[Any, ...]]:
        heard = list(self)
        self.clear()
        return heard


async def _lines(life: Life) -> list[Line]:
    """Return all lines of the journal in the bucket, in their order."""
    await life.store.journal.sync()
    lines = []
    for info in sorted(await life.bucket.list("_journal/", kind="journal")):
        data = await life.bucket.get(info.key, kind="journal")
        lines += JournalObject.decode(life.store.env.codec, data, info.key).lines
    return lines


async def test_what_belongs_together_is_one_edit_and_the_journal_says_the_same(machine: Machine) -> None:
    heard = Heard()
    async with machine.run() as life:
        user = await life.user()
        life.store.log.listeners.append(heard)
        inbox, sent = (user.entry(name).guid for name in ("INBOX", "Sent"))
        reported: list[tuple[Any, ...]] = []

        def one_edit(*expected: tuple[Any, ...]) -> None:
            assert heard == [expected]
            reported.extend(heard.take()[0])

        await user.append("INBOX", [NewMail(b"a: b\r\n\r\n1")])
        one_edit((SID, inbox, [1], [], []))
        box = await user.select("INBOX")
        await box.store_flags(uids(1), "add", ["\\Seen", "$x"])
        one_edit((SID, inbox, [], [1], []))
        await user.copy(box, uids(1), "Sent")
        one_edit((SID, sent, [1], [], []))
        await user.copy(box, uids(1), "Sent", move=True)
        one_edit((SID, sent, [2], [], []), (SID, inbox, [], [], [1]))
        target = await user.select("Sent")
        await user.copy(target, uids(1), "Sent", move=True)
        one_edit((SID, sent, [3], [], []), (SID, sent, [], [], [1]))
        await target.expunge(uids(2))
        one_edit((SID, sent, [], [], [2]))
        guid = await user.create("Work")
        one_edit((SID, ROOT, (guid,), ()))
        await user.rename("Work", "Play")
        one_edit((SID, ROOT, (guid,), ()))
        await user.subscribe("Play", True)
        one_edit((SID, ROOT, (), ("Play",)))
        await user.copy(target, uids(3), "Play")
        one_edit((SID, guid, [1], [], []))
        await user.delete("Play")
        one_edit((SID, guid, [], [], [1]), (SID, ROOT, (guid,), ()))
        assert [_plain(one) for line in await _lines(life) if line.sid == SID for one in altered_by(line)] == reported


async def test_a_move_inside_a_mailbox_gives_each_of_its_changes_a_modseq(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(b"a: b\r\n\r\n1")])
        box = await user.select("INBOX")
        await user.copy(box, uids(1), "INBOX", move=True)
        assert (box.state.uids.tolist(), box.state.gone_uid.tolist()) == ([2], [1])
        assert int(box.state.modseqs[0]) < int(box.state.gone_modseq[0]) == box.state.highestmodseq


async def test_an_edit_that_does_not_encode_changes_nothing(machine: Machine) -> None:
    class Broken(RootDelta):
        def encode(self) -> bytes:
            raise RuntimeError("broken")

    heard = Heard()
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(b"a: b\r\n\r\n1")])
        box = await user.select("INBOX")
        before, lines = fingerprint(box.state), len(await _lines(life))
        life.store.log.listeners.append(heard)
        edit = user.edit()
        expunge_in(box, edit, uids(1), {})
        edit.add(user.rootbox, Broken(), Change.IMPORTANT)
        with pytest.raises(RuntimeError):
            life.store.log.stage(edit)
        assert (fingerprint(box.state), len(await _lines(life)), heard) == (before, lines, [])


async def test_a_listener_that_fails_delays_nobody(machine: Machine) -> None:
    def fails(altered: tuple[Altered, ...]) -> None:
        raise RuntimeError("a listener's own mistake")

    heard = Heard()
    async with machine.run() as life:
        user = await life.user()
        life.store.log.listeners += [fails, heard]
        await user.append("INBOX", [NewMail(b"a: b\r\n\r\n1")])
        assert len(heard) == 1
        assert (await user.status("INBOX")).messages == 1


async def test_sessions_wake_when_all_of_an_edit_is_in_memory(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(b"a: b\r\n\r\n1")])
        source, target = await user.select("INBOX"), await user.select("Sent")
        seen: list[tuple[int, int]] = []
        ends = [box.watch(lambda: seen.append((len(source.state), len(target.state)))) for box in (source, target)]
        await user.copy(source, uids(1), "Sent", move=True)
        for end in ends:
            end()
        assert set(seen) == {(0, 1)}


def test_what_a_line_says() -> None:
    """A mail that a line expunges is gone, whatever else the delta says of this mail.
    Listeners get neither burnt UIDs nor holders."""
    guid, gone = "ab" * 16, Gone.at(4, uids(2))
    changes = [
        (guid, Delta(claims={5: 1}, uidnext=6).encode()),
        ("deleted", b""),
        (guid, Delta(flags=[("\\Seen", 3, uids(1, 2)), ("$x", 3, uids(3))], gone=gone).encode()),
        (ROOT, RootDelta(highestmodseq=9).encode()),
    ]
    assert list(map(_plain, altered_by(Line(SID, changes)))) == [(SID, guid, [], [1, 3], [2])]
