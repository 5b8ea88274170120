"""Upkeep: a job that fails does not delay other jobs. Its log line names it, and it is
tried again after ever longer pauses."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from machines import Bucket, Life, Machine, uids
from mails import simple
from structlog.testing import capture_logs

from metacache import Change
from obox.errors import Corrupt, NotFound, Unavailable
from obox.mailbox import Totals
from obox.store import NewMail
from obox.store.backend import upkeep
from obox.store.backend.upload import flush_all
from obox.store.jobs import DELAY_S_MAX, FIRST_DELAY_S, STALE_S, UNAVAILABLE_DELAY_S_MAX, Job, Jobs
from obox.store.log.fence import Boot, Ended
from obox.store.user import chores, mailboxes
from obox.store.user.chores import Chores
from obox.store.user.mailbox import Mailbox
from obox.store.user.unload import UNLOAD_AT_ONCE, unload_idle
from obox.store.user.user import User
from obox.types import Guid, StorageId

FLUSH = Job("flush", "anna", "inbox")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def spawn(work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
    return asyncio.get_running_loop().create_task(work)


def failing(error: Exception) -> Any:
    async def work() -> None:
        raise error

    return work


async def fine() -> None: ...


async def until(reached: Callable[[], bool], meanwhile: Callable[[], None] = lambda: None) -> None:
    async with asyncio.timeout(60):
        while not reached():
            meanwhile()
            await asyncio.sleep(0.001)


# -- jobs ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "longest"),
    [
        (Corrupt("does not decode"), DELAY_S_MAX),
        (KeyError("x"), DELAY_S_MAX),
        (Unavailable("no"), UNAVAILABLE_DELAY_S_MAX),
    ],
    ids=["damaged", "a bug", "outage"],
)
async def test_a_job_that_fails_waits_longer_each_time(error: Exception, longest: float) -> None:
    clock = Clock()
    jobs = Jobs(clock=clock, spawn=spawn, at_once=1)
    wanted = FIRST_DELAY_S
    for attempt in range(1, 12):
        assert not await jobs.attempt(FLUSH, failing(error))
        assert jobs.failing[FLUSH].attempts == attempt
        assert jobs.failing[FLUSH].next_at == clock.now + min(wanted, longest)
        assert not await jobs.attempt(FLUSH, fine), "it waits"
        clock.now = jobs.failing[FLUSH].next_at
        wanted *= 2
    assert jobs.failures["flush"] == 11
    assert await jobs.attempt(FLUSH, fine)
    assert not jobs.failing


async def test_failures_are_named_and_an_outage_is_said_once_a_minute() -> None:
    clock = Clock()
    jobs = Jobs(clock=clock, spawn=spawn, at_once=8)
    with capture_logs() as logs:
        for number in range(100):
            await jobs.attempt(Job("flush", f"user{number}", "box"), failing(Unavailable("the bucket does not answer")))
        await jobs.attempt(Job("flush", "bad", "box"), failing(Corrupt("bundle x does not decode")))
    assert len(logs) == 2
    assert (logs[1]["user"], logs[1]["mailbox"], logs[1]["job"]) == ("bad", "box", "flush")
    assert logs[1]["error"] == "bundle x does not decode"
    assert jobs.figures()["upkeep_flush_failing"] == 101


async def test_a_job_runs_once_at_a_time_and_few_at_once() -> None:
    jobs = Jobs(clock=Clock(), spawn=spawn, at_once=2)
    running, most = 0, 0
    release = asyncio.Event()

    async def work() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await release.wait()
        running -= 1

    for number in range(6):
        for _ in range(3):
            jobs.start(Job("flush", f"user{number}"), work)
    await asyncio.sleep(0)
    release.set()
    await until(lambda: all(jobs.ready(Job("flush", f"user{number}")) for number in range(6)))
    assert most == 2


async def test_what_is_gone_is_done() -> None:
    jobs = Jobs(clock=Clock(), spawn=spawn, at_once=1)
    assert await jobs.attempt(FLUSH, failing(NotFound("no such user")))
    await jobs.attempt(FLUSH, failing(Corrupt("x")))
    jobs.forget("anna")
    assert not jobs.failing


async def test_a_waiting_job_that_nobody_starts_any_more_is_dropped() -> None:
    clock = Clock()
    jobs = Jobs(clock=clock, spawn=spawn, at_once=1)
    other = Job("sweep", "ben", "inbox")
    for job in (FLUSH, other):
        await jobs.attempt(job, failing(Unavailable("the bucket does not answer")))
    clock.now = FIRST_DELAY_S + STALE_S
    jobs.drop_stale()
    assert jobs.failing.keys() == {FLUSH, other}, "they may be started late"
    release = asyncio.Event()

    async def work() -> None:
        await release.wait()
        raise Unavailable("the bucket does not answer")

    jobs.start(other, work)
    clock.now += 1.0
    jobs.drop_stale()
    assert jobs.failing.keys() == {other}, "it runs"
    assert jobs.ready(FLUSH)
    release.set()
    await until(lambda: jobs.idle)
    assert jobs.failing[other].attempts == 2


async def test_a_job_that_runs_while_its_user_goes_does_not_fail_later() -> None:
    jobs = Jobs(clock=Clock(), spawn=spawn, at_once=1)
    release = asyncio.Event()

    async def work() -> None:
        await release.wait()
        raise Unavailable("the bucket does not answer")

    jobs.start(FLUSH, work)
    await asyncio.sleep(0)
    assert jobs.users() == {"anna"}
    jobs.forget("anna")
    release.set()
    with capture_logs() as logs:
        await until(lambda: jobs.idle)
    assert not jobs.failing
    assert not jobs.failures
    assert [entry["log_level"] for entry in logs] == ["debug"]
    # The user has come back.
    assert not await jobs.attempt(FLUSH, failing(Corrupt("x")))
    assert jobs.failing.keys() == {FLUSH}


# -- the store -----------------------------------------------------------------------------------------------------


async def with_mail(life: Life, name: str) -> Any:
    user = await life.user(name)
    await user.append("INBOX", [NewMail(simple(number)) for number in range(20)])
    return user


def bundles(keys: list[str], user: str) -> list[str]:
    return [key for key in keys if f"/{user}/x/" in key and "/root/" not in key]


async def uploaded(bucket: Bucket, user: str) -> set[str]:
    """Return the mailboxes of a user that have a bundle."""
    return {key.split("/")[3] for key in bundles(await bucket.keys(), user)}


async def test_a_mailbox_that_cannot_be_flushed_delays_nobody(
    machine: Machine, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Mailbox.flush

    async def flush(self: Mailbox, *, everything: bool = False) -> bool:
        if self.user.storage_id == "bad":
            raise Corrupt("poisoned")
        return await plain(self, everything=everything)

    monkeypatch.setattr(Mailbox, "flush", flush)
    async with machine.run(kill=True) as life:
        for name in ("bad", "anna", "ben"):
            user = await with_mail(life, name)
            await user.release()
        with capture_logs() as logs:
            life.time.move(400.0)
            await until(lambda: not {"anna", "ben"} & life.store.users.keys(), lambda: life.time.move(5.0))
        keys = await bucket.keys()
        assert bundles(keys, "anna")
        assert bundles(keys, "ben")
        assert "bad" in life.store.users, "what is not in the bucket stays in memory"
        named = [entry for entry in logs if entry["event"] == "upkeep failed, it tries again"]
        assert {(entry["user"], entry["error"]) for entry in named} == {("bad", "poisoned")}
        assert all(len(entry["mailbox"]) == 32 for entry in named)
        assert life.store.metadata()["upkeep_flush_failing"] == 1


async def test_a_user_who_cannot_be_flushed_keeps_nobody_from_the_nightly_flush_and_the_last_one(
    machine: Machine, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bug with one mailbox of a user does not keep the other mailboxes of that user
    from it either."""
    plain = Mailbox.flush
    poisoned: set[str] = set()

    async def flush(self: Mailbox, *, everything: bool = False) -> bool:
        if self.guid in poisoned:
            raise KeyError("poisoned")
        return await plain(self, everything=everything)

    monkeypatch.setattr(Mailbox, "flush", flush)
    async with machine.run() as life:
        for name in ("anna", "bad", "ben"):
            user = await with_mail(life, name)
            await user.append("Sent", [NewMail(simple(1))])
            if name == "bad":
                poisoned.add((await user.select("INBOX")).guid)
        await flush_all(life.store)
        assert {name: len(await uploaded(bucket, name)) for name in ("anna", "bad", "ben")} == dict(
            anna=2, bad=1, ben=2
        )
        for name in ("anna", "bad", "ben"):
            await (await life.user(name)).append("Drafts", [NewMail(simple(1))])
        with capture_logs() as logs:
            await life.store.close()
        assert {name: len(await uploaded(bucket, name)) for name in ("anna", "bad", "ben")} == dict(
            anna=3, bad=2, ben=3
        )
        failed = [entry["user"] for entry in logs if entry["event"].startswith("user not flushed at stop")]
        assert failed == ["bad"]


@pytest.mark.parametrize("again", [False, True])
async def test_a_boot_that_is_read_again_while_its_users_are_recorded(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """A sweep finds meanwhile that the boot is clean, or reads it anew."""
    ended = Ended(Boot("b1", "boot1", {}), 3, 0, closed_before=True, clean=False, adopted=frozenset(), modseq_floor=0)
    later = replace(ended, seq=9)

    async def record(*_: Any) -> Ended:
        store.takeover.boots = [later] if again else []
        return replace(ended, seq=4, adopted=frozenset({"anna"}))

    monkeypatch.setattr("obox.store.backend.upkeep.record", record)
    async with machine.run(kill=True) as life:
        store = life.store
        store.takeover.boots, store.takeover.users["b1", "boot1"] = [ended], {"anna"}
        await store.upkeep.record_end(ended)
        assert store.takeover.boots == ([later] if again else [])
        store.takeover.boots = []


async def test_one_user_that_cannot_be_unloaded_or_swept_delays_nobody(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = User.sync_totals

    def sync_totals(self: User, *of: Any) -> bool:
        if self.storage_id == "bad":
            raise KeyError("poisoned")
        return plain(self, *of)

    swept: set[str] = set()
    sweep = Chores.sweep

    def noted(self: Chores) -> None:
        swept.update(sid for sid, user in life.store.users.items() if user.chores is self)
        sweep(self)

    async with machine.run(kill=True) as life:
        for name in ("bad", "anna"):
            await (await with_mail(life, name)).release()
        await life.let_pass(301.0)
        monkeypatch.setattr(User, "sync_totals", sync_totals)
        monkeypatch.setattr(Chores, "sweep", noted)
        life.time.move(4000.0)
        await until(lambda: "anna" not in life.store.users, lambda: life.time.move(5.0))
        assert swept == {"anna"}
        assert {job.kind for job in life.store.upkeep.jobs.failing if job.user == "bad"} >= {"sweep"}
        monkeypatch.undo()


async def test_a_mailbox_that_cannot_be_counted_delays_no_other(
    machine: Machine, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other mailboxes of its user are flushed, swept and unloaded, and the list of
    mailboxes is uploaded. It does not say that its totals are exact."""
    swept: set[tuple[str, str]] = set()
    poisoned: set[str] = set()
    plain, sweep = Mailbox.totals, chores.sweep

    def totals(self: Mailbox) -> Totals:
        if self.guid in poisoned:
            raise KeyError("poisoned")
        return plain(self)

    async def noted(self: Mailbox) -> None:
        swept.add((self.user.storage_id, self.guid))
        await sweep(self)

    async with machine.run(kill=True) as life:
        wanted: set[tuple[str, str]] = set()
        for name in ("bad", "anna"):
            user = await with_mail(life, name)
            for box in ("Sent", "Drafts"):
                await user.append(box, [NewMail(simple(number)) for number in range(20)])
            sent = await user.select("Sent")
            await sent.expunge(uids(1))
            await sent.release()
            wanted.add((name, sent.guid))
        bad = life.store.users[StorageId("bad")]
        poisoned.add(bad.entry("INBOX").guid)
        before = bad.root.totals.get(Guid(min(poisoned)))
        monkeypatch.setattr(Mailbox, "totals", totals)
        monkeypatch.setattr(chores, "sweep", noted)
        with capture_logs() as logs:
            await life.let_pass(400.0)
            await until(lambda: not any(box.is_due() for box in bad.boxes.values()))
            assert len(await uploaded(bucket, "bad")) == 3
            await bad.flush(everything=True)
            assert bad.rootbox.change is Change.NONE, "the list is uploaded"
            assert not bad.rootbox.stamp.clean
            assert bad.root.totals[Guid(bad.entry("Drafts").guid)].messages == 20
            assert bad.root.totals.get(Guid(min(poisoned))) == before
            life.time.move(life.settings.delete_delay_s + 3700.0)
            await until(lambda: swept >= wanted, lambda: life.time.move(1.0))
            for user in life.users:
                await user.release()
            life.users.clear()
            await until(
                lambda: life.store.users.keys() == {"bad"} and bad.boxes.keys() == poisoned, lambda: life.time.move(5.0)
            )
        failed = [entry for entry in logs if entry["event"] == "upkeep failed, it tries again"]
        assert {(entry["user"], entry["mailbox"]) for entry in failed} == {("bad", min(poisoned))}
        assert {entry["job"] for entry in failed} == {"totals", "unload"}
        monkeypatch.undo()


@pytest.mark.parametrize("error", [Corrupt("poisoned"), Unavailable("the bucket does not answer")])
async def test_a_sweep_that_fails_is_named_and_tried_again(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    swept: list[str] = []
    plain = chores.sweep

    async def sweep(self: Mailbox) -> None:
        swept.append(self.guid)
        if self.guid == poisoned and swept.count(poisoned) < 3:
            raise error
        await plain(self)

    monkeypatch.setattr(chores, "sweep", sweep)
    async with machine.run() as life:
        user = await with_mail(life, "anna")
        await user.append("Sent", [NewMail(simple(1))])
        for name in ("INBOX", "Sent"):
            box = await user.select(name)
            await box.expunge(uids(1))
            await box.release()
        poisoned = user.entry("INBOX").guid
        await user.flush(everything=True)
        jobs = life.store.upkeep.jobs
        with capture_logs() as logs:
            life.time.move(life.settings.delete_delay_s + 3700.0)
            await until(lambda: bool(jobs.failures["sweep"]), lambda: life.time.move(1.0))
            assert [job for job in jobs.failing if job.kind == "sweep"] == [Job("sweep", "anna", poisoned)]
            await until(lambda: swept.count(poisoned) == 3 and not user.chores.due, lambda: life.time.move(1.0))
        assert swept.count(user.entry("Sent").guid) == 1
        assert jobs.figures()["upkeep_sweep_failing"] == 0
        assert jobs.failures["sweep"] == 2
        failed = [(entry["job"], entry["user"], entry["mailbox"]) for entry in logs if "attempts" in entry]
        assert set(failed) == {("sweep", "anna", poisoned)}


async def test_a_deleted_mailbox_that_cannot_be_cleared_is_named_and_tried_again(
    machine: Machine, bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, broken = mailboxes.homes_of, True

    async def homes(self: Mailbox, *of: Any) -> Any:
        if broken and self.guid == gone:
            raise Corrupt("poisoned")
        return await plain(self, *of)

    async with machine.run() as life:
        user = await life.user()
        await user.create("Gone")
        await user.append("Gone", [NewMail(simple(1))])
        gone = user.entry("Gone").guid
        await user.delete("Gone")
    monkeypatch.setattr(mailboxes, "homes_of", homes)
    bucket.time.move(machine.settings.delete_delay_s + 60.0)
    async with machine.run() as life:
        with capture_logs() as logs:
            user = await life.user()
            jobs = life.store.upkeep.jobs
            await until(lambda: bool(jobs.failures["clear"]))
        assert jobs.figures()["upkeep_clear_failing"] == 1
        failed = [(entry["job"], entry["user"], entry["mailbox"]) for entry in logs if "attempts" in entry]
        assert failed == [("clear", "anna", gone)]
        broken = False
        await until(lambda: not user.chores.due, lambda: life.time.move(1.0))
        assert jobs.figures()["upkeep_clear_failing"] == 0


async def test_a_user_stays_in_memory_while_objects_are_deleted(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the deletion would go on beside a second object of the same user."""
    begun, release = asyncio.Event(), asyncio.Event()

    async def sweep(self: Mailbox) -> None:
        begun.set()
        await release.wait()

    monkeypatch.setattr(chores, "sweep", sweep)
    async with machine.run(kill=True) as life:
        user = await with_mail(life, "anna")
        box = await user.select("INBOX")
        await box.expunge(uids(1))
        await box.release()
        await user.flush(everything=True)
        await user.release()
        life.users.clear()
        life.time.move(life.settings.delete_delay_s + 3700.0)
        await until(begun.is_set, lambda: life.time.move(1.0))
        for _ in range(3):
            life.store.upkeep.tick()
        assert user.busy()
        assert life.store.users
        release.set()
        await until(lambda: not life.store.users, lambda: life.time.move(5.0))


@pytest.mark.parametrize("how", ["uploaded", "deleted"])
async def test_a_flush_that_is_not_needed_any_more_fails_no_longer(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """After an outage, something else uploads the mailbox, or the mailbox is
    deleted."""
    plain, refused = Mailbox.flush, True

    async def flush(self: Mailbox, *, everything: bool = False) -> bool:
        if refused and not everything:
            raise Unavailable("the bucket does not answer")
        return await plain(self, everything=everything)

    monkeypatch.setattr(Mailbox, "flush", flush)
    async with machine.run() as life:
        user = await life.user()
        await user.create("Box")
        await user.append("Box", [NewMail(simple(number)) for number in range(20)])
        job = Job("flush", "anna", user.entry("Box").guid)
        jobs = life.store.upkeep.jobs
        life.time.move(301.0)
        await until(lambda: job in jobs.failing)
        await life.quiet()
        if how == "deleted":
            await user.delete("Box")
        await user.flush(everything=True)
        refused = False
        await until(lambda: not jobs.failing, lambda: life.time.move(5.0))
        assert jobs.figures()["upkeep_flush_failing"] == 0


async def test_many_mailboxes_leave_memory_in_linear_work(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A user may have ten thousand mailboxes, and upkeep unloads a few of them at a
    time."""
    calls: list[int] = []
    inside = False
    plain = Mailbox.totals

    def totals(self: Mailbox) -> Totals:
        if inside:
            calls[-1] += 1
        return plain(self)

    def counted(user: User, before: float) -> None:
        nonlocal inside
        calls.append(0)
        inside = True
        unload_idle(user, before)
        inside = False

    async with machine.run(kill=True) as life:
        user = await life.user("anna")
        for i in range(150):
            await user.create(f"box{i}")
        assert len(life.store.users[user.storage_id].boxes) >= 150
        await user.release()
        monkeypatch.setattr(Mailbox, "totals", totals)
        monkeypatch.setattr(upkeep, "unload_idle", counted)
        await life.let_pass(301.0)
        await until(lambda: not life.store.users, lambda: life.time.move(5.0))
        assert sum(calls) >= 150
        assert max(calls) <= UNLOAD_AT_ONCE


async def test_adoption_is_recorded_while_others_are_still_adopted(
    machine: Machine, bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A crash in a long adoption loses little of it, and a user who comes meanwhile
    does not wait for its end."""
    async with machine.run(kill=True) as life:
        for name in ("slow", "anna", "ben"):
            await with_mail(life, name)
        await life.store.journal.sync()
    release = asyncio.Event()
    plain = User.flush

    async def flush(self: User, *, everything: bool = False) -> None:
        if self.storage_id == "slow":
            await release.wait()
        await plain(self, everything=everything)

    monkeypatch.setattr(User, "flush", flush)
    second = machine.renamed("second", tmp_path / "second")
    async with second.run(kill=True) as life:
        takeover = life.store.takeover
        await until(lambda: takeover.left == {"slow"}, lambda: life.time.move(1.0))
        await until(lambda: takeover.boots[0].adopted == {"anna", "ben"}, lambda: life.time.move(1.0))
        takeover.left.add("carl")
        await until(lambda: takeover.left == {"slow"}, lambda: life.time.move(1.0))
        assert not life.store.upkeep.adoption_done()
    async with second.run() as life:
        takeover = life.store.takeover
        (first,) = [ended for ended in takeover.boots if ended.boot.backend == "first"]
        assert first.adopted == {"anna", "ben"}, "the bucket has the record"
        release.set()
        await until(lambda: not takeover.boots, lambda: life.time.move(1.0))


@pytest.mark.parametrize("poison", ["line", "root line", "root bundle"])
async def test_adoption_goes_on_past_a_user_that_cannot_be_read(
    machine: Machine, bucket: Bucket, tmp_path: Path, poison: str
) -> None:
    async with machine.run(kill=True) as life:
        for name in ("bad", "anna", "ben"):
            user = await with_mail(life, name)
            if name == "bad":
                guid = user.entry("INBOX").guid
                if poison != "root bundle":
                    life.store.journal.add("bad", guid if poison == "line" else "root", b"\xc1 no delta")
        await life.store.journal.sync()
    if poison == "root bundle":
        (root,) = [key for key in await bucket.keys() if "/bad/x/root/" in key]
        store = bucket.open()
        await store.delete([root], kind="index")
        await store.put(root, b"obox, but nothing that decodes", kind="index")
        await store.close()
    with capture_logs() as logs:
        async with machine.renamed("second", tmp_path / "other").run(kill=True) as life:
            store = life.store
            await until(lambda: bool(store.upkeep.jobs.failing) and store.upkeep.jobs.idle)
            keys = await bucket.keys()
            assert bundles(keys, "anna")
            assert bundles(keys, "ben")
            assert [job.user for job in store.upkeep.jobs.failing] == ["bad"]
            assert store.takeover.boots, "a boot is not done while it says what no bundle has"
            assert not [key for key in keys if key.startswith("_journal/first/") and key.endswith("clean")]
            ben = await life.user("ben")
            assert (await ben.status("INBOX")).messages == 20
    assert any(entry.get("user") == "bad" for entry in logs)
