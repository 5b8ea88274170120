"""What each operation costs in requests. Requests are what a bucket costs, so the tests
assert their numbers.

The budgets are those of the design: warm reading costs nothing. A delivery costs a PUT
and at most a tenth of an index upload. A COPY or MOVE costs two requests, and a change
of the list of mailboxes costs one.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from machines import Machine, fill, uids
from mails import simple

from metacache import Change
from obox.mailbox import Delta, Rows
from obox.mailbox.search import And, Body, Flag, Header, Larger
from obox.store import NewMail
from obox.store.operate import users as operate

MAIL, INDEX, JOURNAL = ("put", "mail"), ("put", "index"), ("put", "journal")


async def test_delivery_is_one_put(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(0))])
        await life.quiet()
        with life.counting() as requests:
            await user.append("INBOX", [NewMail(simple(1))])
        assert requests.requests() == {MAIL: 1}


@pytest.mark.parametrize("pause_s", [0.0, 1.0, 60.0, 600.0], ids=["burst", "a second", "a minute", "ten minutes"])
async def test_a_hundred_deliveries_cost_ten_uploads_at_most(machine: Machine, pause_s: float) -> None:
    """The test counts all requests that follow from the deliveries: uploads, and the
    upkeep of two more hours. After each forced_refresh_interval of 8 hours the index is
    listed again."""
    async with machine.run() as life:
        user = await life.user()
        await life.quiet()
        with life.counting() as requests:
            for number in range(100):
                await user.append("INBOX", [NewMail(simple(number))])
                await life.let_pass(pause_s)
            await life.let_pass(2 * 3600)
        assert requests.count("put", "mail") == 100
        assert requests.count("put", "index") <= 10
        assert requests.count("put", "journal") <= 100 * pause_s + 10
        assert requests.count("get") + requests.count("head") == 0
        assert requests.count("list") <= 100 * pause_s / (8 * 3600)


@pytest.mark.parametrize("batches", [True, False])
async def test_multiappend_is_one_put(machine: Machine, batches: bool) -> None:
    """In a bucket without batches it is a PUT for each mail."""
    machine.batches = batches
    async with machine.run() as life:
        user = await life.user()
        await life.quiet()
        with life.counting() as requests:
            await user.append("INBOX", [NewMail(simple(number)) for number in range(20)])
        assert requests.requests() == {MAIL: 1 if batches else 20}


async def test_warm_reading_makes_no_request(machine: Machine) -> None:
    """SELECT, FETCH of flags, envelopes, structures and header fields, SEARCH and
    STATUS; bodies are in fscache."""
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(300)])
        first = await user.select("INBOX")
        await life.quiet()
        with life.counting() as requests:
            box = await user.select("INBOX")
            everything = box.state.uids
            fields = await box.fields(everything.tolist())
            assert all(f is not None and f.envelope and f.bodystructure and f.header for f in fields)
            assert len(await box.search(Flag("\\Seen", on=False), everything)) == 300
            assert len(await box.search(And((Larger(10), Header("Subject", "mail 29"))), everything)) == 11
            assert len(await box.search(Body("Body of mail 299"), everything)) == 1
            assert [uid async for uid, _ in box.mails([1, 2, 3])] == [1, 2, 3]
            assert (await user.status("INBOX")).messages == 300
            assert (await user.status("Sent")).messages == 0
            user.mailboxes()
            await box.release()
        assert requests.requests() == {}
        await first.release()


async def test_a_warm_store_costs_a_share_of_one_journal_object_a_second(machine: Machine) -> None:
    """The number of users and commands does not matter: the backend makes a single PUT
    in each interval, which is 0.2 s here."""
    machine.settings = type(machine.settings)(backend="first", journal_interval_s=0.2)
    async with machine.run() as life:
        users = [await life.user(name) for name in ("anna", "ben", "cara")]
        boxes = []
        for user in users:
            await fill(user, "INBOX", [simple(number) for number in range(50)])
            boxes.append(await user.select("INBOX"))
        await life.quiet()
        begun = asyncio.get_running_loop().time()
        with life.counting() as requests:
            stores = 0
            # A slow machine may need more intervals.
            while asyncio.get_running_loop().time() - begun < 1.0 or stores <= 10:
                for box in boxes:
                    op = "add" if stores % 2 else "remove"
                    await box.store_flags(uids(*range(1, 51)), op, ["\\Seen", "$Label"])
                stores += 1
            lasted = asyncio.get_running_loop().time() - begun
        assert set(requests.requests()) <= {JOURNAL}
        assert requests.count() <= lasted / 0.2 + 1
        await life.quiet()


async def test_expunge_waits_for_the_journal_of_the_second(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(100)])
        box = await user.select("INBOX")
        await life.quiet()
        with life.counting() as requests:
            await box.expunge(uids(*range(1, 51)))
        assert requests.requests() == {}
        with life.counting() as requests:
            await life.quiet()
        assert requests.requests() == {JOURNAL: 1}


@pytest.mark.parametrize("move", [False, True], ids=["copy", "move"])
async def test_copy_and_move_of_a_thousand_mails_are_two_requests(machine: Machine, move: bool) -> None:
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(1000)])
        box = await user.select("INBOX")
        await life.quiet()
        with life.counting() as requests:
            copied = await user.copy(box, box.state.uids, "Archive", move=move)
        assert requests.requests() == {MAIL: 1, JOURNAL: 1}
        assert len(copied.source) == len(copied.target) == 1000
        target = await user.select("Archive")
        with life.counting() as requests:
            fields = await target.fields(target.state.uids.tolist())
            assert all(fields)
            assert [mail async for _, mail in target.mails([1, 1000])] == [simple(0), simple(999)]
        assert requests.requests() == {}, "what was local of the originals is local of the copies"


async def test_changes_of_the_list_are_one_request_each(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await life.quiet()
        for change in (
            user.create("Projects/obox"),
            user.rename("Projects/obox", "Projects/done"),
            user.subscribe("Projects/done", on=True),
            user.subscribe("Projects/done", on=False),
            user.delete("Projects/done"),
        ):
            with life.counting() as requests:
                await change
            assert requests.requests() == {JOURNAL: 1}, change


async def test_delete_of_a_mailbox_with_mails_is_one_request(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.create("Old")
        await fill(user, "Old", [simple(number) for number in range(100)])
        await life.quiet()
        with life.counting() as requests:
            await user.delete("Old")
        assert requests.requests() == {JOURNAL: 1}


async def test_cold_login_and_select_of_ten_thousand_mails(machine: Machine, tmp_path: Path) -> None:
    """The machine is empty after a clean stop. The login lists and reads the bundles of
    the root. SELECT reads the heads of the mailbox and makes a LIST."""
    async with machine.run() as life:
        user = await life.user()
        box = await user.select("INBOX")
        await fill_columns(box, 10_000)
        await user.append("INBOX", [NewMail(simple(number)) for number in range(5)])
        await box.store_flags(box.state.uids[:100], "add", ["\\Seen", "$Label"])
        await box.release()
    other = machine.renamed("second", tmp_path / "other")
    async with other.run() as life:
        with life.counting() as login:
            user = await life.user()
            assert (await user.status("INBOX")).messages == 10_005
        assert login.count() <= 3, login
        with life.counting() as select:
            box = await user.select("INBOX")
            assert len(box.state) == 10_005
            assert (await user.status("INBOX")).unseen == 9_905
        assert select.count() <= 3, select
        with life.counting() as again:
            await user.select("INBOX")
        assert again.requests() == {}


async def test_warm_start_after_a_clean_stop_reads_nothing_of_a_user(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(20)])
    async with machine.run() as life:
        with life.counting() as requests:
            user = await life.user()
            box = await user.select("INBOX")
            assert len(box.state) == 20
            assert all(await box.fields(box.state.uids.tolist()))
            assert len([mail async for _, mail in box.mails([1, 20]) if mail]) == 2
        assert requests.requests() == {}


async def test_a_partial_read_of_a_large_mail_gets_its_frames_alone(machine: Machine, tmp_path: Path) -> None:
    source = np.random.default_rng(1).bytes(3 << 20)
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(source)])
    other = machine.renamed("second", tmp_path / "other")
    async with other.run() as life:
        box = await (await life.user()).select("INBOX")
        with life.counting() as requests:
            assert await box.part(1, 1 << 20, (1 << 20) + 1000) == source[1 << 20 : (1 << 20) + 1000]
        assert requests.requests() == {("get", "mail"): 2}
        assert requests.bytes("get", "mail") < 600_000


async def test_the_first_login_of_a_user(machine: Machine) -> None:
    """LIST finds nothing. The first root is PUT under its fixed name."""
    async with machine.run() as life:
        with life.counting() as requests:
            await life.user("new")
        assert requests.requests() == {("list", "index"): 1, INDEX: 1}


async def test_a_refresh_that_finds_nothing_uploads_nothing(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [simple(number) for number in range(3)])
        box = await user.select("INBOX")
        await user.flush(everything=True)
        await life.quiet()
        modseq = box.state.highestmodseq
        with life.counting() as requests:
            assert await operate.refresh(user) == len(user.boxes)
            await user.flush(everything=True)
        assert {op for op, _ in requests.requests()} == {"list"}
        assert box.state.highestmodseq == modseq
        assert not box.stamp.need_base
        await box.release()


async def test_idle_backends_cost_nothing(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        box = await user.select("INBOX")
        await user.append("INBOX", [NewMail(simple(1))])
        # A single mail is uploaded after a day, and its journal is deleted after two
        # days.
        await life.let_pass(60 * 3600)
        with life.counting() as requests:
            await life.let_pass(6 * 3600)
        assert requests.requests() == {}
        await box.release()


async def fill_columns(box: object, count: int) -> None:
    """Fill the index with records without objects, because the test reads only the
    index."""
    numbers = np.arange(1, count + 1)
    rows = Rows(
        uid=numbers.astype(np.uint32),
        size=np.full(count, 3000, dtype=np.uint32),
        internaldate=(1_780_000_000 + numbers).astype(np.int64),
        zone=np.zeros(count, dtype=np.int16),
        savedate=np.full(count, 1_780_000_000_000, dtype=np.int64),
        modseq=np.full(count, box.state.next_modseq(1), dtype=np.uint64),
        home=np.full(count, -1, dtype=np.int32),
        home_uid=numbers.astype(np.uint32),
        oid=np.random.default_rng(3).integers(0, 256, (count, 16), dtype=np.uint8),
        place=np.zeros((count, 3), dtype=np.uint32),
        stamps={},
    )
    delta = Delta(rows=rows, uidnext=count + 1, highestmodseq=box.state.next_modseq(1))
    box.apply(delta, Change.UNIMPORTANT, journal=False)
