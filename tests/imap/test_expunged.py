"""Another session has expunged mails, and this client has not learned that. RFC 2180
§4, RFC 5530 §3."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import Client, Running, serving_real

from obox.mailbox.invariants import check
from obox.objectstore.keys import mail_key
from obox.store import NewMail
from obox.store.recent import Recent
from obox.store.user.mailbox import Mailbox
from obox.types import StorageId, Uid

ANNA = StorageId("anna")
LARGE = b"Subject: large\r\n\r\n" + bytes(range(33, 123)) * 20_000
LONG = b"Subject: x\r\nX-Long: " + b"y" * 10_000 + b"\r\n\r\nbody\r\n"
DONE = b"OK [EXPUNGEISSUED] Fetch completed, some of the mails have been expunged"
REFUSED = b"NO [EXPUNGEISSUED] Some of the mails no longer exist"


def mail(number: int) -> bytes:
    return b"Subject: s%d\r\nFrom: a@x.org\r\n\r\nbody %d\r\n" % (number, number)


class Pair:
    """Two sessions in a mailbox of five mails. `one` expunges mails, and `two` does not
    learn of it."""

    def __init__(self, running: Running, box: Mailbox, one: Client, two: Client) -> None:
        self.running, self.box, self.one, self.two = running, box, one, two

    async def expunge(self, seqs: str) -> None:
        await self.one.ok(f"STORE {seqs} +FLAGS.SILENT (\\Deleted)")
        await self.one.ok("EXPUNGE")

    async def forget(self, *uids: int, bucket: bool) -> None:
        """Drop everything from the caches about these mails, and with `bucket` also
        their objects."""
        keys = [mail_key(ANNA, self.box.guid, Uid(uid)) for uid in uids]
        self.box.env.metacache.drop_fields(ANNA, self.box.guid, list(uids))
        self.box.env.recent = Recent()
        for key in keys:
            await self.box.env.fscache.drop(key)
        if bucket:
            await self.box.env.bucket.delete(keys, kind="mail")


@pytest.fixture
async def pair(tmp_path: Path) -> AsyncIterator[Pair]:
    async with serving_real(tmp_path) as running:
        user = await running.store.open_user("anna", ANNA)
        flags = [("\\Flagged",), ("$Label1", "\\Seen"), (), ("$Label2",), ()]
        sources = [mail(1), mail(2), LARGE, mail(4), LONG]
        await user.append("INBOX", [NewMail(s, f) for s, f in zip(sources, flags, strict=True)])
        box = await user.box(user.entry("INBOX").guid)
        box.take_recent()
        one, two = await running.client(login="anna"), await running.client(login="anna")
        for client in (one, two):
            await client.ok("SELECT INBOX")
        yield Pair(running, box, one, two)
        check(box.state)
        await user.release()


ITEMS = [
    "FLAGS",
    "UID",
    "(UID FLAGS INTERNALDATE RFC822.SIZE MODSEQ)",
    "ENVELOPE",
    "(FLAGS BODYSTRUCTURE)",
    "BODY.PEEK[HEADER.FIELDS (Subject)]",
    "BODY.PEEK[HEADER]",
    "BODY.PEEK[]",
    "(FLAGS BODY.PEEK[TEXT]<2.9>)",
    "(RFC822.SIZE BODY.PEEK[]<0.7> ENVELOPE)",
    "(BODY.PEEK[1] BODY.PEEK[1.MIME])",
]


@pytest.mark.parametrize("known", ["all is cached", "flushed", "the object alone"])
@pytest.mark.parametrize("items", ITEMS)
async def test_all_that_is_left_is_served(pair: Pair, items: str, known: str) -> None:
    await pair.two.ok("ENABLE CONDSTORE")
    await pair.one.ok("STORE 1:5 +FLAGS.SILENT (\\Deleted)")
    await pair.two.ok("NOOP")
    before = await pair.two.ok(f"FETCH 1:5 {items}")
    await pair.one.ok("UID EXPUNGE 1:3,5")
    if known != "all is cached":
        await pair.box.user.flush(everything=True)
    if known == "the object alone":
        await pair.forget(1, 2, 3, 5, bucket=False)
    after = await pair.two.ok(f"FETCH 1:5 {items}")
    assert after[-1] == DONE

    assert after[:-1] == before[:-1]
    assert (await pair.two.ok(f"FETCH 4 {items}"))[-1] == b"OK Fetch completed"
    assert (await pair.two.ok("NOOP"))[:4] == [b"* %d EXPUNGE" % seq for seq in (5, 3, 2, 1)]
    assert len(pair.box.state.retained) == 0


async def test_what_is_left_nowhere_is_refused(pair: Pair) -> None:
    await pair.expunge("1:3,5")
    await pair.forget(1, 2, 3, 5, bucket=True)
    assert (await pair.two.ok("FETCH 1:5 (FLAGS UID)"))[-1] == DONE
    for items in ("ENVELOPE", "BODY.PEEK[]", "BODY[HEADER]", "(FLAGS BODY.PEEK[TEXT]<5.5>)"):
        lines = await pair.two.cmd(f"FETCH 1:5 {items}")
        assert [line.split()[1] for line in lines[:-1]] == [b"4"]
        assert lines[-1] == REFUSED
    # A command by UID treats the mails as if they did not exist: RFC 3501 §6.4.8.
    lines = await pair.two.ok("UID FETCH 1:5 BODY.PEEK[TEXT]")
    assert [line.split()[1:3] for line in lines[:-1]][:1] == [[b"4", b"FETCH"]]
    assert b"* 1 EXPUNGE" in lines
    assert (await pair.two.cmd("FETCH 1 FLAGS"))[-1] == b"OK Fetch completed"


async def test_mails_that_go_while_a_fetch_runs(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mails are expunged after FETCH has looked the rows up and before it reads the
    mails."""
    plain = Mailbox.mails
    gone = False

    async def mails(self: Mailbox, uids: list[int], **more: object) -> AsyncIterator[object]:
        nonlocal gone
        if not gone:
            gone = True
            await pair.expunge("1:5")
        async for found in plain(self, uids, **more):
            yield found

    monkeypatch.setattr(Mailbox, "mails", mails)
    lines = await pair.two.ok("FETCH 1:5 (UID BODY.PEEK[])")
    assert [line.split()[1] for line in lines if b"FETCH" in line[:10]] == [b"1", b"2", b"3", b"4", b"5"]


async def test_copies_are_served_from_where_they_lie(pair: Pair) -> None:
    await pair.one.ok("COPY 1:2 Sent")
    for client in (pair.one, pair.two):
        await client.ok("SELECT Sent")
    await pair.expunge("1:2")
    lines = await pair.two.ok("FETCH 1:2 (FLAGS ENVELOPE BODY.PEEK[TEXT])")
    assert lines[-1] == DONE
    assert [line.endswith(b"body %d\r\n)" % n) for n, line in enumerate(lines[:-1], 1)] == [True, True]


async def test_other_commands(pair: Pair) -> None:
    """STORE changes the mails that are left (RFC 2180 §4.2.1), COPY copies no mail
    (§4.4.1), and SEARCH finds none of the expunged mails (§4.3)."""
    await pair.expunge("2")
    lines = await pair.two.ok("STORE 1:3 +FLAGS (\\Answered)")
    assert [line.split()[1] for line in lines if b"FETCH" in line] == [b"1", b"3"]
    assert lines[-1].startswith(b"OK [EXPUNGEISSUED]")
    assert (await pair.two.ok("SEARCH 1:3"))[0] == b"* SEARCH 1 3"
    assert (await pair.two.ok("FETCH 2 BODY[TEXT]"))[-1] == DONE, "\\Seen is not set, and nobody misses it"
    lines = await pair.two.cmd("COPY 1:3 Sent")
    assert lines[-1] == REFUSED
    assert b"* 2 EXPUNGE" in lines
    assert b"* STATUS Sent (MESSAGES 0)" in await pair.two.ok("STATUS Sent (MESSAGES)")


async def test_nothing_is_kept_when_nobody_counts(pair: Pair) -> None:
    await pair.two.ok("UNSELECT")
    await pair.expunge("1")
    assert len(pair.box.state.retained) == 0
    await pair.two.ok("EXAMINE INBOX")
    await pair.expunge("1")
    assert len(pair.box.state.retained) == 1
    await pair.two.close()
    while any(who.mailbox for who in pair.running.imap.who()[1:]):
        await pair.one.ok("NOOP")
    assert len(pair.box.state.retained) == 0


async def test_no_request_for_what_is_ready(pair: Pair) -> None:
    await pair.two.ok("FETCH 1:5 ENVELOPE")
    await pair.expunge("1:2")
    bucket, asked = pair.box.env.bucket, []
    plain = type(bucket).get

    async def get(self: object, key: str, **more: object) -> bytes:
        asked.append(key)
        return await plain(self, key, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(bucket), "get", get)
        assert (await pair.two.ok("FETCH 1:2 (FLAGS ENVELOPE BODYSTRUCTURE BODY.PEEK[HEADER])"))[-1] == DONE
    assert asked == []


@pytest.mark.parametrize("seed", range(4))
async def test_a_session_that_expunges_and_one_that_fetches(pair: Pair, seed: int) -> None:
    """A session expunges mails while another fetches. Each FETCH is answered with a
    line for each mail that the client counts."""
    rng = random.Random(seed)
    for number in range(40):
        await pair.one.append("INBOX", mail(number))
    await pair.one.ok("NOOP")
    await pair.two.ok("NOOP")
    reported = 45
    for _ in range(40):
        if rng.random() < 0.5:
            there = len(pair.box.state)
            if there:
                await pair.expunge(str(rng.randint(1, there)))
        low, high = sorted((rng.randint(1, reported), rng.randint(1, reported)))
        items = rng.choice(["FLAGS", "(UID ENVELOPE)", "(FLAGS BODY.PEEK[TEXT])", "BODY[]"])
        lines = await pair.two.ok(f"FETCH {low}:{high} {items}")
        answered = {int(line.split()[1]) for line in lines[:-1] if b" FETCH (" in line[:16]}
        assert set(range(low, high + 1)) <= answered
        if rng.random() < 0.2:
            reported -= len([line for line in await pair.two.ok("NOOP") if line.endswith(b"EXPUNGE")])
            if not reported:
                break
