"""The contract of `obox.store.api`, which both implementations keep. Properties of a
single implementation (durability, requests, merging) are tested in other files of this
folder."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
from machines import Bucket, Machine, flags_of, uids
from mails import every_kind, simple

from obox.errors import Exists, Expunged, Invalid, Limit, NoPerm, NotFound, OverQuota, TooBig
from obox.mailbox.search import And, Flag, Header, Not, Text
from obox.store import Mailbox, NewMail, Store, User, api
from obox.store.api import Fields
from obox.store.memory import DEFAULT_MAILBOXES, MemoryStore
from obox.store.user import mailboxes
from obox.types import StorageId

MAIL_BYTES_MAX = 1 << 20


@pytest.fixture(params=["memory", "bucket"])
async def store(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore(mail_bytes_max=MAIL_BYTES_MAX)
        return
    machine = Machine(bucket, tmp_path / "disk", max_mail_size=MAIL_BYTES_MAX, mailboxes=DEFAULT_MAILBOXES[1:])
    async with machine.run() as life:
        yield life.store


@pytest.fixture
async def user(store: Store) -> User:
    return await store.open_user("anna", StorageId("anna"))


async def names(user: User) -> list[str]:
    return [info.name for info in user.mailboxes()]


async def filled(user: User, count: int = 5, *, name: str = "INBOX", flags: tuple[str, ...] = ()) -> Mailbox:
    await user.append(name, [NewMail(simple(number), flags) for number in range(1, count + 1)])
    return await user.select(name)


async def test_ready_fields_come_by_bytes(user: User) -> None:
    """The memory holds ready fields of at most `bytes_max` and the last mail. The
    fields of further mails are requested again."""
    box = await filled(user, 12)
    asked = box.state.uids.tolist()
    whole = await box.fields(asked)
    sizes = [len(one.packed) for one in whole if isinstance(one, Fields)]
    assert len(sizes) == 12
    for most in (0, sizes[0], 3 * max(sizes), sum(sizes)):
        at, found = 0, []
        while at < 12:
            some = await box.fields([*asked[at:], 999], bytes_max=most)
            assert some
            assert sum(sizes[at : at + len(some) - 1]) <= most
            found += [one.packed for one in some if isinstance(one, Fields)]
            at += len(some)
        assert found == [one.packed for one in whole if isinstance(one, Fields)]
    await box.release()


# -- mailboxes -----------------------------------------------------------------------------------------------------


async def test_a_new_user_has_the_mailboxes_of_the_settings_and_is_subscribed_to_them(user: User) -> None:
    assert await names(user) == ["INBOX", "Drafts", "Sent", "Trash"]
    assert {info.name: info.special_use for info in user.mailboxes()} == dict(DEFAULT_MAILBOXES)
    assert sorted(user.subscriptions()) == sorted(await names(user))


async def test_a_user_is_the_same_for_all_sessions(store: Store, user: User) -> None:
    await user.create("Lists")
    again = await store.open_user("anna@alias", StorageId("anna"))
    assert "Lists" in await names(again)
    assert "Lists" not in await names(await store.open_user("ben", StorageId("ben")))


async def test_create_makes_parents_that_are_no_mailboxes(user: User) -> None:
    guid = await user.create("a/b/c")
    found = {info.name: info for info in user.mailboxes()}
    assert found["a/b/c"].guid == guid
    assert (found["a"].guid, found["a/b"].guid) == (None, None)
    assert (found["a"].has_children, found["a/b/c"].has_children) == (True, False)
    with pytest.raises(NotFound):
        await user.select("a/b")
    with pytest.raises(Exists):
        await user.create("a/b/c")
    await user.create("a")
    assert {info.name: info for info in user.mailboxes()}["a"].has_children


@pytest.mark.parametrize("name", ["", "a//b", "/a", "x" * 1001, "a\0b", "a\nb"])
async def test_names_that_cannot_be_are_refused(user: User, name: str) -> None:
    with pytest.raises(Invalid):
        await user.create(name)
    with pytest.raises(Invalid):
        await user.rename("Sent", name)


async def test_one_mailbox_for_each_special_use(user: User) -> None:
    with pytest.raises(Exists):
        await user.create("Other", "\\Trash")
    await user.create("Old", "\\Archive")


async def test_uidvalidity_of_a_name_made_again_is_larger(user: User) -> None:
    await user.create("x")
    before = (await user.status("x")).uidvalidity
    await user.delete("x")
    await user.create("x")
    assert (await user.status("x")).uidvalidity > before


async def test_delete_keeps_children_and_ends_sessions(user: User) -> None:
    await user.create("a")
    await user.create("a/b")
    box = await filled(user, name="a")
    woken: list[bool] = []
    box.watch(lambda: woken.append(True))
    await user.delete("a")
    assert box.deleted
    assert woken
    assert "a/b" in await names(user)
    with pytest.raises(NotFound):
        await box.store_flags(uids(1), "add", ["\\Seen"])
    with pytest.raises(NotFound):
        await user.status("a")
    with pytest.raises(NotFound):
        await user.delete("a")
    with pytest.raises(NoPerm):
        await user.delete("INBOX")
    assert user.usage().messages == 0


async def test_rename_takes_children_along(user: User) -> None:
    guid = await user.create("a/b")
    await user.create("a/b/c")
    await filled(user, 3, name="a/b")
    validity = (await user.status("a/b")).uidvalidity
    await user.rename("a/b", "new/place")
    found = {info.name: info.guid for info in user.mailboxes()}
    assert found["new/place"] == guid
    assert "new/place/c" in found
    assert "a/b" not in found
    status = await user.status("new/place")
    assert (status.messages, status.uidvalidity) == (3, validity)
    with pytest.raises(Exists):
        await user.rename("new/place", "Sent")
    with pytest.raises(Invalid):
        await user.rename("new/place", "new/place/below")
    with pytest.raises(NotFound):
        await user.rename("a/b", "c")


async def test_rename_of_inbox_moves_its_mails(user: User) -> None:
    await filled(user, 3, flags=("\\Seen", "$x"))
    await user.rename("INBOX", "Old")
    assert (await user.status("INBOX")).messages == 0
    assert flags_of(await user.select("Old")) == {uid: ["$x", "\\Seen"] for uid in (1, 2, 3)}


async def test_subscriptions_outlive_mailboxes(user: User) -> None:
    await user.subscribe("nowhere", True)
    assert "nowhere" in user.subscriptions()
    await user.subscribe("Sent", False)
    assert {info.name: info.subscribed for info in user.mailboxes()}["Sent"] is False
    await user.subscribe("nowhere", False)
    assert "nowhere" not in user.subscriptions()


async def test_annotations(user: User) -> None:
    both = user.annotations
    await both.change("INBOX", {"/private/a": b"1", "/shared/b": b""})
    await both.change("", {"/private/a": b"2"})
    assert both.of("inbox") == {"/private/a": b"1", "/shared/b": b""}
    assert both.of("") == {"/private/a": b"2"}
    await both.change("INBOX", {"/private/a": None})
    assert both.of("INBOX") == {"/shared/b": b""}
    for name in ("nowhere", "a/level"):
        with pytest.raises(NotFound):
            both.of(name)
        with pytest.raises(NotFound):
            await both.change(name, {"/private/a": b"1"})
    await user.create("box")
    await both.change("box", {"/private/a": b"1"})
    await user.rename("box", "moved")
    assert both.of("moved") == {"/private/a": b"1"}
    await user.delete("moved")
    await user.create("moved")
    assert both.of("moved") == {}


async def test_listeners_learn_which_box_has_changed(user: User) -> None:
    heard: list[str] = []
    end = user.changes.watch(heard.append)
    guid = await user.create("box")
    assert heard == [""]
    await user.append("box", [NewMail(simple(1))])
    assert guid in heard
    del heard[:]
    box = await user.select("box")
    await box.store_flags(uids(1), "add", ["\\Seen"])
    assert heard == [guid]
    await box.store_flags(uids(1), "add", ["\\Seen"])
    assert heard == [guid], "nothing has changed"
    del heard[:]
    await user.annotations.change("box", {"/private/a": b"1"})
    await user.subscribe("box", True)
    assert heard == ["", ""]
    end()
    await user.create("more")
    assert heard == ["", ""]


# -- mails ---------------------------------------------------------------------------------------------------------


async def test_what_goes_in_comes_out(user: User) -> None:
    mails = list(every_kind().values())
    mails = [mail for mail in mails if len(mail) <= MAIL_BYTES_MAX]
    done = await user.append("INBOX", [NewMail(mail, (), 1_000_000_000 + i, 60) for i, mail in enumerate(mails)])
    box = await user.select("INBOX")
    assert done.uidvalidity == box.uidvalidity
    assert done.uids == box.state.uids.tolist() == list(range(1, len(mails) + 1))
    assert [found async for _, found in box.mails(done.uids)] == mails
    assert box.state.column("size").tolist() == [len(mail) for mail in mails]
    assert box.state.column("internaldate").tolist() == [1_000_000_000 + i for i in range(len(mails))]
    assert set(box.state.column("zone").tolist()) == {60}
    for uid, mail in zip(done.uids, mails, strict=True):
        assert await box.part(uid, 3, 40) == mail[3:40]
    made = await box.fields(done.uids)
    assert all(field is not None and not isinstance(field, Exception) and field.envelope for field in made)


async def test_append_is_all_or_nothing(user: User) -> None:
    with pytest.raises(TooBig):
        await user.append("INBOX", [NewMail(b"x"), NewMail(b"x" * (MAIL_BYTES_MAX + 1))])
    with pytest.raises(Limit):
        await user.append("INBOX", [NewMail(b"x"), NewMail(b"x", tuple(f"k{n}" for n in range(70)))])
    with pytest.raises(NotFound):
        await user.append("nowhere", [NewMail(b"x")])
    assert (await user.status("INBOX")).messages == 0


async def test_uids_grow_and_are_never_used_twice(user: User) -> None:
    box = await filled(user, 3)
    await box.expunge(uids(3))
    assert (await user.status("INBOX")).uidnext == 4
    assert (await user.append("INBOX", [NewMail(b"x")])).uids == [4]
    assert box.state.uids.tolist() == [1, 2, 4]


async def test_expunged_mails_are_gone(user: User) -> None:
    box = await filled(user, 3)
    before = box.state.highestmodseq
    assert (await box.expunge(uids(2, 3, 9))).tolist() == [2, 3]
    assert box.state.gone_since(before).tolist() == [2, 3]
    with pytest.raises(Expunged):
        await box.mail(2)
    assert [found async for _, found in box.mails([1, 2])][1] is None
    assert (await box.expunge(uids(2))).tolist() == []


async def test_quota_bounds_what_is_stored(store: Store) -> None:
    user = await store.open_user("anna", StorageId("anna"), quota_bytes=1000, quota_messages=3)
    await user.append("INBOX", [NewMail(b"x" * 600)])
    with pytest.raises(OverQuota):
        await user.append("INBOX", [NewMail(b"x" * 401)])
    box = await user.select("INBOX")
    with pytest.raises(OverQuota):
        await user.copy(box, box.state.uids, "Sent")
    await user.copy(box, box.state.uids, "Sent", move=True)
    await user.append("INBOX", [NewMail(b"x")] * 2)
    with pytest.raises(OverQuota):
        await user.append("INBOX", [NewMail(b"x")])
    assert user.usage() == (602, 3, 1000, 3)


# -- flags ---------------------------------------------------------------------------------------------------------


async def test_flags_are_added_removed_and_replaced(user: User) -> None:
    box = await filled(user, 3)
    before = box.state.highestmodseq
    done = await box.store_flags(uids(1, 2, 9), "add", ["\\Seen", "$Label"])
    assert done.changed.tolist() == [1, 2]
    assert done.modseq == box.state.highestmodseq > before
    assert (await box.store_flags(uids(1), "add", ["\\seen"])).modseq == 0
    await box.store_flags(uids(1), "remove", ["$LABEL"])
    await box.store_flags(uids(2), "replace", ["\\Flagged"])
    assert flags_of(box) == {1: ["\\Seen"], 2: ["\\Flagged"], 3: []}
    assert (await user.status("INBOX")).unseen == 2


async def test_several_changes_share_a_commit(user: User) -> None:
    """What is not committed yet is visible already."""
    box = await filled(user, 2)
    for number in (1, 2):
        done = await box.store_flags(uids(number), "add", ["\\Seen"], committed=False)
        assert done.changed.tolist() == [number]
    assert flags_of(box) == {1: ["\\Seen"], 2: ["\\Seen"]}
    await user.commit()
    assert flags_of(box) == {1: ["\\Seen"], 2: ["\\Seen"]}


async def test_unchanged_since_refuses_what_has_changed(user: User) -> None:
    box = await filled(user, 3)
    then = box.state.highestmodseq
    await box.store_flags(uids(2), "add", ["\\Seen"])
    done = await box.store_flags(uids(1, 2, 3), "add", ["\\Flagged"], unchanged_since=then)
    assert (done.changed.tolist(), done.refused.tolist()) == ([1, 3], [2])


async def test_a_mailbox_holds_a_bounded_number_of_keywords(user: User) -> None:
    box = await filled(user, 1)
    await box.store_flags(uids(1), "add", [f"k{number}" for number in range(59)])
    with pytest.raises(Limit):
        await box.store_flags(uids(1), "add", ["one-more"])
    assert len(flags_of(box)[1]) == 59


# -- copy and move -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("move", [False, True], ids=["copy", "move"])
async def test_copies_keep_bytes_dates_and_flags(user: User, move: bool) -> None:
    when = NewMail(simple(1), ("\\Seen", "$x"), 1_000_000_000, -90)
    await user.append("INBOX", [when, NewMail(simple(2))])
    await filled(user, 1, name="Sent")
    box, sent = await user.select("INBOX"), await user.select("Sent")
    done = await user.copy(box, uids(1, 2, 7), "Sent", move=move)
    assert (done.source.tolist(), done.target.tolist(), done.uidvalidity) == ([1, 2], [2, 3], sent.uidvalidity)
    assert await sent.mail(2) == simple(1)
    assert flags_of(sent)[2] == ["$x", "\\Seen"]
    assert (int(sent.state.column("internaldate")[1]), int(sent.state.column("zone")[1])) == (1_000_000_000, -90)
    assert box.state.uids.tolist() == ([] if move else [1, 2])
    await box.expunge(box.state.uids)
    assert await sent.mail(3) == simple(2)


async def test_copy_into_the_same_mailbox_and_of_nothing(user: User) -> None:
    box = await filled(user, 2)
    assert (await user.copy(box, box.state.uids, "INBOX")).target.tolist() == [3, 4]
    assert (await user.copy(box, uids(99), "Sent")).target.tolist() == []
    with pytest.raises(NotFound):
        await user.copy(box, box.state.uids, "nowhere")


# -- sessions ------------------------------------------------------------------------------------------------------


async def test_everybody_who_watches_is_woken(user: User) -> None:
    box, other = await user.select("INBOX"), await user.select("INBOX")
    woken: list[str] = []
    end = box.watch(lambda: woken.append("box"))
    other.watch(lambda: woken.append("other"))
    await filled(user, 1)
    assert {"box", "other"} <= set(woken)
    end()
    end()
    woken.clear()
    await other.store_flags(uids(1), "add", ["\\Seen"])
    assert set(woken) == {"other"}


async def test_each_mail_is_recent_for_one_session(user: User) -> None:
    box = await filled(user, 3)
    assert (await user.status("INBOX")).recent == 3
    assert box.take_recent() == 1
    assert (await user.status("INBOX")).recent == 0
    await filled(user, 2)
    assert box.take_recent() == 4
    assert box.take_recent() == 6


async def test_status_counts(user: User) -> None:
    box = await filled(user, 4)
    await box.store_flags(uids(1, 2), "add", ["\\Seen"])
    await box.store_flags(uids(2), "add", ["\\Deleted"])
    status = await user.status("INBOX")
    size = sum(len(simple(number)) for number in range(1, 5))
    assert (status.messages, status.unseen, status.deleted, status.uidnext, status.size) == (4, 2, 1, 5, size)
    assert status.highestmodseq == box.state.highestmodseq
    with pytest.raises(NotFound):
        await user.status("nowhere")


async def test_search(user: User) -> None:
    box = await filled(user, 4)
    await box.store_flags(uids(2, 3), "add", ["\\Seen"])
    seen = Flag("\\Seen")
    assert (await box.search(seen, box.state.uids)).tolist() == [2, 3]
    assert (await box.search(Not(seen), uids(1, 2, 9))).tolist() == [1]
    assert (await box.search(And((seen, Header("Subject", "MAIL 3"))), box.state.uids)).tolist() == [3]
    assert (await box.search(Text("body of mail 4"), box.state.uids)).tolist() == [4]


async def test_many_writers_at_once_each_get_their_own_uid(user: User) -> None:
    done = await asyncio.gather(*(user.append("INBOX", [NewMail(simple(n))]) for n in range(20)))
    assert sorted(uid for one in done for uid in one.uids) == list(range(1, 21))
    box = await user.select("INBOX")
    for number, one in enumerate(done):
        assert await box.mail(one.uids[0]) == simple(number)
    assert bool((np.diff(box.state.uids) > 0).all())


# -- what sessions count on ----------------------------------------------------------------------------------------


async def test_names_are_taken_in_any_spelling_of_inbox(user: User) -> None:
    await user.create("Inbox/Sub")
    await user.append("inbox/Sub", [NewMail(simple(1))])
    assert (await user.status("iNBOX/Sub")).messages == 1
    await user.rename("inbox/Sub", "inbox/Other")
    await user.delete("InBox/Other")
    with pytest.raises(NoPerm):
        await user.delete("inbox")


class Uncounted:
    """A session that counts mails, and has not learned yet that some of them are
    expunged."""


async def test_an_expunged_mail_is_read_as_long_as_its_record_is_retained(user: User) -> None:
    box = await filled(user, 3)
    view = Uncounted()
    box.state.retained.enter(view)
    await box.expunge(uids(2))
    assert [mail async for _, mail in box.mails([1, 2])] == [simple(1), simple(2)]
    assert None not in await box.fields([1, 2])
    box.state.retained.leave(view)
    assert [mail async for _, mail in box.mails([1, 2])] == [simple(1), None]


# -- the store and its users ---------------------------------------------------------------------------------------


async def test_who_may_open_and_answer(store: Store) -> None:
    await store.admit(StorageId("anna"))
    user = await store.open_user("anna", StorageId("anna"))
    await user.current()
    await user.select("INBOX")
    numbers = store.metadata()
    assert numbers["users"] == 1
    assert isinstance(numbers["mailboxes"], int)
    assert numbers["mailboxes"] >= 1
    await user.release()


async def test_the_last_open_says_name_and_quota(store: Store, user: User) -> None:
    assert user.usage() == (0, 0, None, None)
    again = await store.open_user("anna@alias", StorageId("anna"), quota_bytes=10, quota_messages=2)
    assert (again.name, again.storage_id) == ("anna@alias", "anna")
    assert user.usage() == (0, 0, 10, 2)


async def test_selected_mailboxes_say_who_they_are(user: User) -> None:
    guid = await user.create("a")
    box, status = await user.select("a"), await user.status("a")
    assert (box.guid, box.uidvalidity) == (status.guid, status.uidvalidity) == (guid, status.uidvalidity)
    assert not box.deleted
    assert (await user.select("iNBox")).guid == (await user.status("INBOX")).guid
    with pytest.raises(NotFound):
        await user.select("nowhere")


async def test_levels_count_against_the_number_of_mailboxes(user: User, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mailboxes, "MAILBOXES_MAX", 8)
    await user.create("a/b/c")
    with pytest.raises(Limit):
        await user.create("d/e")
    with pytest.raises(Limit):
        await user.rename("Sent", "d/e/f")
    await user.create("d")
    assert "Sent" in await names(user)


async def test_names_that_cannot_be_are_not_subscribed(user: User) -> None:
    with pytest.raises(Invalid):
        await user.subscribe("a//b", True)


async def test_rename_of_inbox_keeps_its_children(user: User) -> None:
    await user.create("INBOX/Below")
    await filled(user, 1)
    with pytest.raises(Exists):
        await user.rename("INBOX", "Sent")
    assert (await user.status("INBOX")).messages == 1
    await user.rename("INBOX", "Old")
    assert {"INBOX", "INBOX/Below", "Old"} <= set(await names(user))
    assert "Old/Below" not in await names(user)


class Waiting:
    """A mail that is not in memory."""

    lost = False

    def __init__(self, mail: bytes) -> None:
        self._mail = mail

    def __len__(self) -> int:
        return len(self._mail)

    @asynccontextmanager
    async def open(self) -> AsyncIterator[bytes]:
        yield self._mail


async def test_a_mail_need_not_be_in_memory(user: User) -> None:
    with pytest.raises(TooBig):
        await user.append("INBOX", [NewMail(Waiting(b"x" * (MAIL_BYTES_MAX + 1)))])
    await user.append("INBOX", [NewMail(Waiting(simple(1))), NewMail(simple(2))])
    box = await user.select("INBOX")
    assert [await box.mail(uid) for uid in (1, 2)] == [simple(1), simple(2)]


async def test_a_mail_may_take_the_room_of_the_mail_that_it_replaces(store: Store) -> None:
    user = await store.open_user("anna", StorageId("anna"), quota_bytes=1000, quota_messages=1)
    await user.append("INBOX", [NewMail(b"x" * 600)])
    with pytest.raises(OverQuota):
        await user.append("INBOX", [NewMail(b"y" * 900)], freed_bytes=400, freed_mails=1)
    await user.append("INBOX", [NewMail(b"y" * 900)], freed_bytes=600, freed_mails=1)
    box = await user.select("INBOX")
    await box.expunge(uids(1))
    assert user.usage() == (900, 1, 1000, 1)


@pytest.mark.parametrize("autofix", [None, False, True])
async def test_mails_are_read_in_the_order_that_is_asked(user: User, autofix: bool | None) -> None:
    box = await filled(user, 3)
    await box.expunge(uids(2))
    asked = [3, 1, 2, 3, 99]
    whole = [simple(3), simple(1), None, simple(3), None]
    assert [found async for found in box.mails(asked, autofix=autofix)] == list(zip(asked, whole, strict=True))
    made = await box.fields([1, 99, 3], autofix=autofix)
    assert [one is None for one in made] == [False, True, False]
    assert await box.mail(3, autofix=autofix) == simple(3)
    assert await box.part(3, 5, 1 << 30, autofix=autofix) == simple(3)[5:]
    assert await box.part(3, 1 << 20, 1 << 21, autofix=autofix) == b""
    for uid in (2, 99):
        with pytest.raises(Expunged):
            await box.mail(uid, autofix=autofix)
        with pytest.raises(Expunged):
            await box.part(uid, 0, 1, autofix=autofix)
    assert (await box.search(Text("body of mail"), uids(1, 2, 3), autofix=autofix)).tolist() == [1, 3]


async def test_nothing_is_done_to_a_deleted_mailbox(user: User) -> None:
    await user.create("a")
    box = await filled(user, 2, name="a")
    await user.delete("a")
    with pytest.raises(NotFound):
        await box.expunge(uids(1))
    with pytest.raises(NotFound):
        await user.copy(box, uids(1), "Sent")
    with pytest.raises(NotFound):
        await user.append("a", [NewMail(simple(1))])
    assert (await user.status("Sent")).messages == 0


async def test_a_move_into_the_same_mailbox_gives_new_uids(user: User) -> None:
    box = await filled(user, 2)
    assert (await user.copy(box, uids(1), "INBOX", move=True)).target.tolist() == [3]
    assert box.state.uids.tolist() == [2, 3]
    assert await box.mail(3) == simple(1)


async def test_a_copy_brings_no_more_keywords_than_fit(user: User) -> None:
    sent = await filled(user, 1, name="Sent")
    await sent.store_flags(uids(1), "add", [f"k{number}" for number in range(59)])
    box = await filled(user, 1, flags=("other",))
    with pytest.raises(Limit):
        await user.copy(box, uids(1), "Sent")
    assert sent.state.uids.tolist() == [1]


def test_every_method_of_the_contract_is_tested_here() -> None:
    text = Path(__file__).read_text()
    for part in (api.Store, api.User, api.Mailbox):
        for name, found in vars(part).items():
            if not name.startswith("_") and callable(found):
                assert f".{name}(" in text, f"{part.__name__}.{name}"
