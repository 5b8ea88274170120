"""Groups of events on the journal of a store: what they hear, in which order, and how
often, through failures, crashes and takeovers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from machines import Bucket, Life, Machine, Time, uids
from owners import Member, Rows

from obox.events import Event, Events, EventSettings, Group
from obox.events import dead as dead_letters
from obox.events import group as group_module
from obox.objectstore.eventkeys import parse_cursor_key
from obox.store import NewMail
from obox.store.log.fence import boots_of, fence, list_journals
from obox.types import StorageId

MAIL = NewMail(b"Subject: a\r\n\r\ntext")


class Recorder:
    """A listener that keeps what it hears. fails: says whether an event fails."""

    def __init__(self, fails: Callable[[Event], bool] = lambda event: False) -> None:
        self.heard: list[Event] = []
        self.tried: list[Event] = []
        self.fails = fails

    async def handle(self, event: Event) -> None:
        self.tried.append(event)
        if self.fails(event):
            raise RuntimeError("it cannot be handled")
        self.heard.append(event)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.heard if event.kind != "QuotaUsageUpdated"]


@asynccontextmanager
async def following(
    machine: Machine, *groups: Group, kill: bool = False, **settings: Any
) -> AsyncIterator[tuple[Life, Events]]:
    """Run a backend with groups."""
    async with machine.run(start=False, kill=kill) as life:
        events = Events(life.store, groups, EventSettings(**settings))
        await life.store.start()
        events.begin()
        try:
            yield life, events
            if not kill:
                for user in life.users:
                    await user.release()
                life.users.clear()
                await life.store.close()
                await events.close()
        finally:
            await stop(events)


async def stop(events: Events) -> None:
    """End the tasks of events without a cursor, as a crash does."""
    for task in list(events.tasks):
        task.cancel()
    await asyncio.gather(*list(events.tasks), return_exceptions=True)


async def until(reached: Callable[[], Any]) -> None:
    async with asyncio.timeout(20):
        while not reached():  # noqa: ASYNC110 - a listener has no event for it
            await asyncio.sleep(0.005)


async def until_letters(life: Life, reached: Callable[[int], bool]) -> None:
    """Wait for the dead letters of anna in the group `bad`."""
    async with asyncio.timeout(20):
        while not reached(len(await dead_letters.list_keys(life.store.env, "bad", "anna"))):  # noqa: ASYNC110 - as `until`
            await asyncio.sleep(0.01)


def requests(life: Life) -> dict[tuple[str, str], int]:
    """Return the requests of a life by operation and kind."""
    return life.bucket.stats.requests()


def _has(heard: Recorder, uid: int) -> bool:
    return ((uid, uid),) in [event.uids for event in heard.heard]


async def cursors(bucket: Bucket) -> list[str]:
    return await bucket.keys("_events/")


async def test_a_group_hears_each_kind_of_change(machine: Machine) -> None:
    heard = Recorder()
    async with following(machine, Group("all", heard)) as (life, _):
        user = await life.user()
        guid = await user.create("work")
        await user.rename("work", "play")
        await user.subscribe("play", True)
        await user.append("INBOX", [MAIL, MAIL, MAIL])
        box = await user.select("INBOX")
        await box.store_flags(uids(1, 2), "add", ["\\Seen", "later"])
        await box.store_flags(uids(2), "remove", ["later"])
        await user.copy(box, uids(1), "play")
        moved = await user.copy(box, uids(2, 3), "play", move=True)
        again = await user.copy(await user.select("play"), moved.target, "INBOX", move=True)
        await box.expunge(uids(1))
        await user.delete("play")
        await life.store.journal.sync()
        await until(lambda: heard.kinds()[-1:] == ["MailboxDeleted"])
    assert heard.kinds() == [
        "MailboxAdded", "MailboxRenamed", "Subscribed", "Added", "FlagsUpdated", "FlagsUpdated", "Added",
        "Added", "Expunged", "Moved", "Added", "Expunged", "Moved", "Expunged", "Expunged", "MailboxDeleted",
    ]  # fmt: skip
    events = [event for event in heard.heard if event.kind != "QuotaUsageUpdated"]
    assert {event.user for event in events} == {"anna"}
    assert [event.name for event in events[:3]] == ["work", "play", "play"]
    assert (events[0].mailbox, events[2].on) == (guid, True)
    assert (events[3].uids, events[3].size) == (((1, 3),), 3 * len(MAIL.source))
    assert [flag[:2] for flag in events[4].flags] == [("\\Seen", True), ("later", True)]
    assert events[5].flags == (("later", False, ((2, 2),)),)
    moves = [event for event in events if event.kind == "Moved"]
    assert [(one.mailbox, one.target) for one in moves] == [(box.guid, guid), (guid, box.guid)]
    assert moves[0].uids == ((2, 3),)
    assert moves[0].target_uids == moves[1].uids == tuple((int(u), int(u) + 1) for u in moved.target[:1])
    assert [first for first, _ in moves[1].target_uids] == again.target[:1].tolist()
    assert len({event.identity for event in events}) == len(events)


async def test_a_backend_without_groups_makes_no_request_for_events(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await life.quiet()
        with life.counting() as counts:
            await user.append("INBOX", [MAIL])
            await life.store.journal.sync()
        assert life.store.journal.follower is None
    assert counts.requests() == {("put", "mail"): 1, ("put", "journal"): 1}


async def test_events_cost_no_request_but_a_cursor(machine: Machine) -> None:
    machine.bucket.time = Time()
    async with following(machine, Group("all", heard := Recorder())) as (life, _):
        user = await life.user()
        await life.quiet()
        await life.let_pass(15)
        await until(lambda: ("put", "events") in requests(life))
        await life.quiet()
        with life.counting() as counts:
            for _ in range(5):
                await user.append("INBOX", [MAIL])
            await life.store.journal.sync()
            await until(lambda: heard.kinds() == ["Added"])
        assert heard.heard[0].uids == ((1, 5),)
        assert counts.requests() == {("put", "mail"): 5, ("put", "journal"): 1}
        with life.counting() as counts:
            await life.let_pass(15)
            await asyncio.sleep(0.05)
        assert counts.requests()["put", "events"] == 1


async def test_carried_changes_make_no_second_event(machine: Machine) -> None:
    async with following(machine, Group("all", heard := Recorder())) as (life, _):
        user = await life.user()
        await user.append("INBOX", [MAIL])
        box = await user.select("INBOX")
        await life.store.journal.sync()
        await life.store.upkeep.carry("anna", box.guid)
        await life.store.journal.sync()
        await user.append("INBOX", [MAIL])
        await life.store.journal.sync()
        await until(lambda: heard.kinds().count("Added") == 2)
        assert [event.uids for event in heard.heard if event.kind == "Added"] == [((1, 1),), ((2, 2),)]


async def test_after_a_crash_the_rest_is_handled(machine: Machine) -> None:
    """The first process handled nothing: its listener hung."""
    never = asyncio.Event()

    class Hangs:
        async def handle(self, event: Event) -> None:
            await never.wait()

    async with following(machine, Group("all", Hangs()), kill=True) as (life, _):
        user = await life.user()
        await user.append("INBOX", [MAIL])
        await life.store.journal.sync()
        await user.append("INBOX", [MAIL])
        box = await user.select("INBOX")
        await box.expunge(uids(1))
        await life.store.journal.sync()
    machine.lose_disk()
    async with following(machine, Group("all", heard := Recorder())) as (life, _):
        await until(lambda: "Expunged" in heard.kinds())
        user = await life.user()
        await user.append("INBOX", [MAIL])
        await life.store.journal.sync()
        await until(lambda: len(heard.kinds()) >= 4)
    assert [(event.kind, event.uids) for event in heard.heard if event.kind != "QuotaUsageUpdated"] == [
        ("Added", ((1, 1),)),
        ("Added", ((2, 2),)),
        ("Expunged", ((1, 1),)),
        ("Added", ((3, 3),)),
    ]
    async with following(machine, Group("all", late := Recorder())) as (life, _):
        await (await life.user()).append("INBOX", [MAIL])
        await life.store.journal.sync()
        await until(late.kinds)
    assert [event.uids for event in late.heard if event.kind == "Added"] == [((4, 4),)], "nothing is handled again"


async def test_a_mail_whose_line_died_with_the_machine_is_found(machine: Machine) -> None:
    """Nobody opens the mailbox. Its user is looked through after the unclean end."""
    machine.bucket.time = Time(speed=50)
    async with following(machine, Group("all", Recorder()), kill=True) as (life, _):
        user = await life.user()
        await user.append("INBOX", [MAIL])
        await life.store.journal.sync()
        life.store.journal.interval_s = 1e9
        await user.append("INBOX", [MAIL])
    machine.lose_disk()
    async with following(machine, Group("all", heard := Recorder())) as (life, _):
        await until(lambda: ((2, 2),) in [event.uids for event in heard.heard if event.kind == "Added"])
        assert life.store.env.metacache.get_state("events-scan") in (b"1", b"")


async def test_a_new_group_hears_of_what_happens_from_its_start(machine: Machine) -> None:
    async with following(machine, Group("old", Recorder())) as (life, _):
        await (await life.user()).append("INBOX", [MAIL])
    async with following(machine, Group("old", old := Recorder()), Group("new", new := Recorder())) as (life, _):
        await (await life.user()).append("INBOX", [MAIL])
        await life.store.journal.sync()
        await until(lambda: new.kinds() and old.kinds())
    assert [event.uids for event in new.heard if event.kind == "Added"] == [((2, 2),)]
    assert [event.uids for event in old.heard if event.kind == "Added"] == [((2, 2),)]


async def test_a_poisoned_event_becomes_a_dead_letter_and_nobody_else_waits(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine.bucket.time = Time(speed=200)
    poisoned = Recorder(lambda event: event.kind == "Added" and event.user == "anna")
    other = Recorder()
    async with following(machine, Group("bad", poisoned), Group("good", other)) as (life, events):
        await (await life.user("anna")).append("INBOX", [MAIL])
        await (await life.user("anna")).subscribe("INBOX", False)
        await (await life.user("ben")).append("INBOX", [MAIL])
        await life.store.journal.sync()
        await until(lambda: {"anna", "ben"} <= {event.user for event in other.heard})
        await until(lambda: "ben" in {event.user for event in poisoned.heard})
        await until(lambda: "Subscribed" in poisoned.kinds())
        (key,) = await dead_letters.list_keys(life.store.env, "bad")
        letter = await dead_letters.read(life.store.env, key)
        assert letter is not None
        assert letter.event is not None
        assert (letter.event.kind, letter.event.user) == ("Added", "anna")
        assert (letter.failures, "it cannot be handled" in letter.error) == (group_module.RETRIES + 1, True)
        assert poisoned.tried.count(letter.event) == group_module.RETRIES + 1
        assert await dead_letters.list_keys(life.store.env, "good") == []
        assert events.figures()["dead_letters_total"] == 1
        assert dead_letters.key_of(letter.id) == key


async def test_a_hanging_listener_delays_neither_mail_nor_other_groups(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_module, "CALL_S", 0.05)
    monkeypatch.setattr(group_module, "FIRST_RETRY_S", 0.0)
    monkeypatch.setattr(group_module, "JITTER_S", 0.0)
    hung: list[Event] = []

    class Hangs:
        async def handle(self, event: Event) -> None:
            hung.append(event)
            if event.user == "anna":
                await asyncio.Event().wait()

    async with following(machine, Group("hangs", Hangs()), Group("good", good := Recorder())) as (life, events):
        for name in ("anna", "ben"):
            user = await life.user(name)
            await user.append("INBOX", [MAIL])
            await user.append("INBOX", [MAIL])
        await life.store.journal.sync()
        await until(lambda: {"anna", "ben"} <= {event.user for event in good.heard})
        await until(lambda: "ben" in {event.user for event in hung})
        await until(lambda: events.figures()["dead_letters_total"])
        (key, *_) = await dead_letters.list_keys(life.store.env, "hangs", "anna")
        letter = await dead_letters.read(life.store.env, key)
        assert letter is not None
        assert "no answer within" in letter.error


async def test_what_is_written_again_after_a_fence_makes_no_second_event(
    machine: Machine, rows: Rows, tmp_path: Path
) -> None:
    """The new boot writes again what no bundle covers. The groups have heard of it."""
    one = Member(rows, "first")
    rows.give("first", "anna")
    async with machine.run(start=False, cluster=one) as life:
        one.life = life
        events = Events(life.store, [Group("all", heard := Recorder())], EventSettings())
        await life.store.start()
        events.begin()
        await one.gain("anna")
        user = await life.user()
        await user.append("INBOX", [MAIL])
        box = await user.select("INBOX")
        await box.store_flags(uids(1), "add", ["\\Seen"])
        await life.store.journal.sync()
        await until(lambda: "FlagsUpdated" in heard.kinds())
        before = life.store.journal.boot
        async with machine.renamed("second", tmp_path / "second").run(start=False) as other:
            for boot in boots_of(await list_journals(other.store.env)):
                await fence(other.store.env, boot)
        await user.append("INBOX", [MAIL])
        await life.store.journal.sync()
        assert life.store.journal.boot != before
        await until(lambda: not life.store.journal.late() and events.idle())
        await until(lambda: ((2, 2),) in [event.uids for event in heard.heard])
        await life.store.upkeep.carry("anna", box.guid)
        await life.store.journal.sync()
        await until(events.idle)
        await one.kick(list(life.store.users))
        await life.store.close()
        await events.close()
        await stop(events)
    assert sorted(event.uids for event in heard.heard if event.kind == "Added")[-1] == ((2, 2),)
    assert heard.kinds().count("FlagsUpdated") == 1


async def test_who_takes_users_over_handles_what_the_dead_backend_left(
    machine: Machine, other: Machine, rows: Rows
) -> None:
    """Two backends share the users of a dead backend. Each handles the rest of its own
    users, once, and before what it writes itself."""

    class Hangs:
        async def handle(self, event: Event) -> None:
            await asyncio.Event().wait()

    dead_one = Member(rows, "first")
    rows.give("first", "anna", "ben")
    async with machine.run(start=False, cluster=dead_one, kill=True) as life:
        dead_one.life = life
        events = Events(life.store, [Group("all", Hangs())], EventSettings())
        await life.store.start()
        events.begin()
        await dead_one.gain("anna", "ben")
        for name in ("anna", "ben"):
            user = await life.user(name)
            await user.append("INBOX", [MAIL])
            await (await user.select("INBOX")).expunge(uids(1))
        await life.store.journal.sync()
        boot = life.store.journal.boot
        life.users.clear()
        await stop(events)
    heirs = {}
    third = machine.renamed("third", machine.path.parent / "third")
    for heir, name in ((other, "anna"), (third, "ben")):
        one = Member(rows, heir.settings.backend)
        async with heir.run(start=False, cluster=one) as life:
            one.life = life
            events = Events(life.store, [Group("all", heard := Recorder())], EventSettings())
            await life.store.start()
            events.begin()
            await until(events.idle)
            assert heard.heard == [], "users of others are left alone"
            await one.gain(name, dead=(("first", boot),))
            user = await life.user(name)
            await user.append("INBOX", [MAIL])
            await life.store.journal.sync()
            await until(partial(_has, heard, 2))
            await until(events.idle)
            heirs[name] = heard
            await one.kick(list(life.store.users))
            await life.store.close()
            await events.close()
            await stop(events)
    for name, heard in heirs.items():
        assert {event.user for event in heard.heard} == {name}
        assert [(event.kind, event.uids) for event in heard.heard if event.kind != "QuotaUsageUpdated"] == [
            ("Added", ((1, 1),)),
            ("Expunged", ((1, 1),)),
            ("Added", ((2, 2),)),
        ]


async def test_the_deletion_of_a_user_drops_events_and_dead_letters(machine: Machine) -> None:
    from obox.store.operate import users

    machine.bucket.time = Time(speed=200)
    bad = Recorder(lambda event: event.user == "anna")
    async with following(machine, Group("bad", bad)) as (life, events):
        anna = await life.user("anna")
        await anna.append("INBOX", [MAIL])
        await life.store.journal.sync()
        await until_letters(life, lambda count: count > 0)
        await anna.append("INBOX", [MAIL])
        await anna.release()
        life.users.clear()
        async for _ in users.delete(life.store, StorageId("anna")):
            pass
        await until_letters(life, lambda count: count == 0)
        await until(lambda: not events.figures()["waiting"])


async def test_a_slow_group_costs_no_memory(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its limit it reads the journal from the bucket later."""
    from obox.events import tail

    monkeypatch.setattr(group_module, "WAITING_MAX", 3)
    monkeypatch.setattr(tail, "RECENT_MAX", 2)
    gate = asyncio.Event()

    class Slow(Recorder):
        async def handle(self, event: Event) -> None:
            await gate.wait()
            await super().handle(event)

    async with following(machine, Group("slow", heard := Slow())) as (life, events):
        user = await life.user()
        for _ in range(12):
            await user.append("INBOX", [MAIL])
            await life.store.journal.sync()
        await asyncio.sleep(0.05)
        (runner,) = events.runners
        assert runner.lanes.own <= 3 + 2
        gate.set()
        await until(lambda: heard.kinds().count("Added") == 12)
        assert [event.uids[0][0] for event in heard.heard if event.kind == "Added"] == list(range(1, 13))


@pytest.mark.parametrize("delivery", ["sync", "mixed", "async"])
async def test_an_acknowledgement_waits_only_for_groups_that_ask(machine: Machine, delivery: str) -> None:
    heard = Recorder()
    async with following(machine, Group("one", heard, "sync"), delivery=delivery) as (life, _):
        user = await life.user()
        await life.quiet()
        await asyncio.sleep(0.05)
        await user.append("INBOX", [MAIL])
        assert ("Added" in heard.kinds()) == (delivery != "async")
        box = await user.select("INBOX")
        await box.store_flags(uids(1), "add", ["\\Seen"])
        assert ("FlagsUpdated" in heard.kinds()) == (delivery != "async")


async def test_objects_are_kept_for_a_group_that_is_behind_and_then_it_rescans(machine: Machine) -> None:
    machine.bucket.time = Time()
    gate = asyncio.Event()

    class Slow(Recorder):
        async def handle(self, event: Event) -> None:
            if event.kind != "Rescan":
                await gate.wait()
            await super().handle(event)

    async with following(machine, Group("slow", heard := Slow()), max_lag_s=200000.0) as (life, _):
        user = await life.user()
        await user.append("INBOX", [MAIL])
        await life.store.journal.sync()
        boot = life.store.journal.boot
        await user.flush(everything=True)
        await user.append("INBOX", [MAIL])
        await life.store.journal.sync()
        first = f"_journal/first/{boot}/"
        line = f"{first}{1:016x}"
        life.time.move(100000)
        await life.store.upkeep.clear_journal()
        assert line in await machine.bucket.keys(first), "the group has not handled it"
        life.time.move(150000)
        await life.store.upkeep.clear_journal()
        assert line not in await machine.bucket.keys(first)
        gate.set()
        await until(lambda: "Rescan" in heard.kinds())
    found = [parse_cursor_key(key) for key in await cursors(machine.bucket)]
    assert {key.group for key in found} == {"slow"}
