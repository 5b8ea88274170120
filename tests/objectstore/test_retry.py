"""Deadlines, retries, lost answers and late PUTs, under a virtual clock."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

import pytest

from obox.objectstore import (
    AlreadyExists,
    Codec,
    MemoryDriver,
    Missing,
    ObjectKind,
    OpenStore,
    OutcomeUnknown,
    Refused,
    Settings,
    Truncated,
    Unreachable,
    find_outcome,
    new_oid,
    open_store,
    put_once,
)
from obox.objectstore._retry import in_seconds
from obox.objectstore.faults import FaultyDriver, Plan, Rates
from obox.types import Oid, Owner

from .virtual import VirtualTime

OWNER = Owner(b"anna/m/0/1")


class NoJitter(random.Random):
    def random(self) -> float:
        return 0.0


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def debug(self, event: str, **fields: Any) -> None:
        self.lines.append(("debug", event, fields))

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append(("warning", event, fields))


class World:
    """A memory bucket with faults that the test chooses, under retries, in virtual
    time."""

    def __init__(self, *, seed: int = 1, jitter: bool = False, plan: Plan | None = None, **settings: Any) -> None:
        self.time = VirtualTime()
        self.log = Log()
        self.bucket = MemoryDriver(wall=self.time.clock)
        self.faults = FaultyDriver(self.bucket, rng=random.Random(seed), plan=plan, sleep=self.time.sleep)
        self.rng = random.Random(seed)
        self.codec = Codec({}, None)
        self.store: OpenStore = open_store(
            Settings("memory://", **settings),
            clock=self.time.clock,
            sleep=self.time.sleep,
            rng=random.Random(seed) if jitter else NoJitter(),
            log=self.log,
            driver=self.faults,
        )

    def pauses(self) -> list[float]:
        return [fields["pause_s"] for _, event, fields in self.log.lines if event == "request retried"]

    def mail(self) -> tuple[Oid, bytes]:
        oid = new_oid(self.rng)
        return oid, self.codec.encode(ObjectKind.MAIL, OWNER, oid, b"meta", b"body")


async def test_the_schedule() -> None:
    """A store that answers again after an outage is asked within a second. The last
    attempt begins before the deadline."""
    world = World()
    world.faults.fail_next("put", times=99)
    began = world.time.now
    with pytest.raises(Unreachable):
        await world.time.run(world.store.put("k", b"x", kind="mail"))
    assert world.pauses() == [0.05, 0.2, 0.5, *[1.0] * 9, pytest.approx(0.125)]
    assert world.time.now - began == pytest.approx(9.875)
    assert world.store.stats.requests() == {("put", "mail"): 14}
    assert world.store.stats.errors() == 14


async def test_jitter_shortens_pauses_by_a_quarter_at_most() -> None:
    seen = []
    for seed in range(5):
        world = World(seed=seed, jitter=True)
        world.faults.fail_next("get", times=99)
        with pytest.raises(Unreachable):
            await world.time.run(world.store.get("k", kind="mail"))
        seen.append(world.pauses())
        for pause, longest in zip(world.pauses()[:6], (0.05, 0.2, 0.5, 1, 1, 1), strict=True):
            assert 0.75 * longest - 0.001 <= pause <= longest + 0.001
    assert len({tuple(pauses) for pauses in seen}) == 5


@pytest.mark.parametrize("times", [1, 2, 3, 4])
async def test_it_succeeds_when_the_store_comes_back(times: int) -> None:
    world = World()
    world.faults.fail_next("put", times=times)
    await world.time.run(world.store.put("k", b"x", kind="mail"))
    assert await world.bucket.get("k", kind="mail") == b"x"
    assert world.store.stats.requests() == {("put", "mail"): times + 1}
    assert world.store.stats.errors("put") == times


async def test_what_is_permanent_is_not_retried() -> None:
    world = World()
    world.faults.fail_next("put", fault="refused")
    with pytest.raises(Refused):
        await world.time.run(world.store.put("k", b"x", kind="mail"))
    with pytest.raises(Missing):
        await world.time.run(world.store.get("k", kind="mail"))
    assert world.store.stats.requests() == {("put", "mail"): 1, ("get", "mail"): 1}
    assert world.pauses() == []


async def test_a_refusal_after_a_lost_answer_is_unknown() -> None:
    world = World()
    world.faults.fail_next("put", fault="lost")
    world.faults.fail_next("put", fault="refused")
    with pytest.raises(OutcomeUnknown):
        await world.time.run(world.store.put("k", b"x", kind="mail"))


async def test_truncated_is_retried_and_reported() -> None:
    world = World()
    await world.bucket.put("k", b"data", kind="mail")
    world.faults.fail_next("get", fault="truncate", times=2)
    assert await world.time.run(world.store.get("k", kind="mail")) == b"data"
    world.faults.fail_next("get", fault="truncate", times=99)
    with pytest.raises(Truncated):
        await world.time.run(world.store.get("k", kind="mail"))


@pytest.mark.parametrize("op", ["put", "get", "list", "delete"])
async def test_a_request_that_hangs_in_silence_has_another_beside_it_after_a_second(op: Any) -> None:
    world = World()
    await world.bucket.put("k", b"data", kind="mail")
    world.faults.fail_next(op, fault="hang")
    began = world.time.now
    match op:
        case "put":
            await world.time.run(world.store.put("new", b"x", kind="mail"))
        case "get":
            assert await world.time.run(world.store.get("k", kind="mail", end=4)) == b"data"
        case "list":
            assert [info.key for info in await world.time.run(world.store.list("", kind="mail"))] == ["k"]
        case "delete":
            await world.time.run(world.store.delete(["k"], kind="mail"))
    assert world.time.now - began == pytest.approx(1, abs=0.01)
    assert world.store.stats.count(op) == 2


async def test_of_a_body_of_unknown_size_a_second_is_asked_after_half_of_the_deadline() -> None:
    world = World()
    await world.bucket.put("k", b"data", kind="mail")
    world.faults.fail_next("get", fault="hang")
    began = world.time.now
    assert await world.time.run(world.store.get("k", kind="mail")) == b"data"
    assert world.time.now - began == pytest.approx(5)


async def test_a_slow_request_has_none_beside_it_while_others_are_answered() -> None:
    """Until half of the deadline the request has no second attempt. Otherwise a slow
    store would get each request twice."""
    world = World()
    await world.bucket.put("k", b"data", kind="mail")
    world.faults.fail_next("put", fault="delay", seconds=4)

    async def others() -> None:
        for _ in range(40):
            await world.store.get("k", kind="index", end=4)
            await world.time.sleep(0.1)

    async def both() -> None:
        await asyncio.gather(world.store.put("new", b"x", kind="mail"), others())

    await world.time.run(both())
    assert world.store.stats.count("put") == 1


async def test_a_put_that_is_answered_late_is_still_waited_for() -> None:
    """All PUTs hang for 8 s and then take effect. The first attempt of each is kept, so
    that no caller gets "unknown"."""
    world = World(plan=Plan(rates={"put": Rates(delay=100)}, delay_s=(8.0, 8.0)))
    oid, data = world.mail()
    began = world.time.now
    assert await world.time.run(put_once(world.store, "k", data, oid, "mail")) is True
    assert world.time.now - began == pytest.approx(8, abs=0.1)
    assert await world.bucket.get("k", kind="mail") == data


@pytest.mark.parametrize("fault", ["hang", "outage"])
@pytest.mark.parametrize("lasts_s", [0.7, 3.3, 7.9, 9.1, 13.4, 20.0, 37.7])
async def test_after_an_outage_the_first_put_lands_within_two_seconds(fault: str, lasts_s: float) -> None:
    """The test makes the calls of a delivery: put_once, then find_outcome again and
    again, and then the next mail."""
    world = World(plan=Plan(every=Rates(hang=100)) if fault == "hang" else Plan(outage=True), jitter=True)
    began = world.time.now
    landed: list[float] = []

    async def back() -> None:
        await world.time.sleep(lasts_s)
        world.faults.plan.every, world.faults.plan.outage = Rates(), False

    async def deliveries() -> None:
        number = 0
        while not landed:
            oid, data = world.mail()
            number += 1
            key = f"k{number}"
            try:
                if await put_once(world.store, key, data, oid, "mail"):
                    landed.append(world.time.now)
                continue
            except (Unreachable, OutcomeUnknown):
                pass
            while True:
                try:
                    if await find_outcome(world.store, key, oid, "mail") == "ours":
                        landed.append(world.time.now)
                    break
                except (Unreachable, OutcomeUnknown):
                    await world.time.sleep(0.5)

    async def all_of_it() -> None:
        await asyncio.gather(back(), deliveries())

    await world.time.run(all_of_it())
    assert landed[0] - began - lasts_s <= 2


async def test_an_attempt_never_begins_past_the_deadline() -> None:
    """On a loaded machine a pause may last longer than its length. A PUT that is known
    not to be done must stay known as not done."""
    world = World()
    world.faults.fail_next("put", times=3)
    slept = world.time.sleep

    async def sleep(seconds: float) -> None:
        # The pause lasts a minute instead of half a second.
        await slept(seconds if seconds < 0.3 else 60.0)

    world.store.inner.sleep = sleep
    with pytest.raises(Unreachable) as caught:
        await world.time.run(world.store.put("k", b"x", kind="mail"))
    assert not caught.value.maybe_done
    assert world.store.stats.requests() == {("put", "mail"): 3}
    with pytest.raises(Missing):
        await world.bucket.get("k", kind="mail")


class Breaking(MemoryDriver):
    """A LIST in pages of 10 keys. The pages with these numbers fail."""

    page_keys = 10

    def __init__(self, fails: Sequence[int], **words: Any) -> None:
        super().__init__(**words)
        self.fails = set(fails)
        self.asked = 0

    async def list_page(self, *args: Any, **words: Any) -> Any:
        self.asked += 1
        if self.asked in self.fails:
            raise Unreachable("list: broken off", maybe_done=False)
        return await super().list_page(*args, **words)


@pytest.mark.parametrize("fails", [(), (1,), (3,), (3, 5, 8), (10,), (4, 5, 6)])
async def test_a_list_that_breaks_begins_again_and_names_each_key_once(fails: tuple[int, ...]) -> None:
    world = World()
    bucket = Breaking(fails)
    keys = [f"k/{number:02}" for number in range(95)]
    for key in keys:
        await bucket.put(key, b"", kind="mail")
    world.faults.inner = bucket
    found = await world.time.run(world.store.list("k/", kind="mail"))
    assert [info.key for info in found] == keys


async def test_a_list_that_breaks_at_one_page_for_ever_ends() -> None:
    world = World()
    # Two pages succeed. The third fails at each attempt.
    bucket = Breaking(range(3, 10_000, 3))
    for number in range(95):
        await bucket.put(f"k/{number:02}", b"", kind="mail")
    world.faults.inner = bucket
    with pytest.raises(Unreachable, match="again and again"):
        await world.time.run(world.store.list("k/", kind="mail"))
    assert bucket.asked < 40


async def test_a_list_that_goes_round_in_circles_ends() -> None:
    class Circle(MemoryDriver):
        asked = 0

        async def list_page(self, *args: Any, **words: Any) -> Any:
            self.asked += 1
            return (await super().list_page(*args, **words))._replace(next="")

    world = World()
    bucket = Circle()
    await bucket.put("k/1", b"", kind="mail")
    world.faults.inner = bucket
    with pytest.raises(Unreachable, match="again and again"):
        await world.time.run(world.store.list("k/", kind="mail"))
    assert bucket.asked < 3000


async def test_outage_is_unreachable_within_the_deadline() -> None:
    world = World()
    world.faults.plan.outage = True
    for call in (
        lambda: world.store.put("k", b"x", kind="mail"),
        lambda: world.store.get("k", kind="mail"),
        lambda: world.store.list("", kind="mail"),
        lambda: world.store.delete(["k"], kind="mail"),
        lambda: world.store.copy("k", "l", kind="mail"),
    ):
        began = world.time.now
        with pytest.raises(Unreachable) as caught:
            await world.time.run(call())
        assert world.time.now - began <= 10
        assert not caught.value.permanent
    world.faults.plan.outage = False
    await world.time.run(world.store.put("k", b"x", kind="mail"))


async def test_everything_hangs_until_the_deadline_and_no_longer() -> None:
    world = World(plan=Plan(every=Rates(hang=100)))
    for call, error in (
        (lambda: world.store.put("k", b"x", kind="mail"), OutcomeUnknown),
        (lambda: world.store.copy("k", "l", kind="mail"), OutcomeUnknown),
        (lambda: world.store.get("k", kind="mail"), Unreachable),
        (lambda: world.store.list("", kind="mail"), Unreachable),
        (lambda: world.store.delete(["k"], kind="mail"), Unreachable),
    ):
        began = world.time.now
        with pytest.raises(error):
            await world.time.run(call())
        assert world.time.now - began == pytest.approx(10)


@pytest.mark.parametrize(("seconds", "shown"), [(10.0, "10 s"), (1.26, "1.3 s"), (4.83e-05, "0.1 s")])
def test_what_was_left_of_a_deadline_is_said_in_numbers_for_people(seconds: float, shown: str) -> None:
    assert in_seconds(seconds) == shown


async def test_a_lost_answer_is_recognised() -> None:
    world = World()
    oid, data = world.mail()
    world.faults.fail_next("put", fault="lost")
    assert await world.time.run(put_once(world.store, "k", data, oid, "mail")) is True
    assert world.store.stats.requests() == {("put", "mail"): 2, ("get", "mail"): 1}


async def test_a_lost_answer_of_somebody_elses_key_is_not_ours() -> None:
    world = World()
    oid, data = world.mail()
    await world.bucket.put("k", world.mail()[1], kind="mail")
    world.faults.fail_next("put", fault="lost", times=2)
    assert await world.time.run(put_once(world.store, "k", data, oid, "mail")) is False


async def test_put_without_put_once_says_already_exists() -> None:
    world = World()
    world.faults.fail_next("put", fault="lost")
    with pytest.raises(AlreadyExists):
        await world.time.run(world.store.put("k", b"x", kind="mail"))


async def test_a_lost_answer_whose_header_cannot_be_read_is_unknown() -> None:
    for fault in ("error", "truncate", "refused"):
        world = World()
        oid, data = world.mail()
        world.faults.fail_next("put", fault="lost")
        world.faults.fail_next("get", fault=fault, times=99)
        with pytest.raises(OutcomeUnknown):
            await world.time.run(put_once(world.store, "k", data, oid, "mail"))
        world.faults.scripts.clear()
        assert await world.time.run(find_outcome(world.store, "k", oid, "mail")) == "ours"


async def test_all_answers_lost_is_unknown_and_turns_out_to_be_ours() -> None:
    world = World()
    oid, data = world.mail()
    world.faults.fail_next("put", fault="lost", times=99)
    with pytest.raises(OutcomeUnknown):
        await world.time.run(put_once(world.store, "k", data, oid, "mail"))
    world.faults.scripts.clear()
    assert await world.time.run(find_outcome(world.store, "k", oid, "mail")) == "ours"
    assert await world.bucket.get("k", kind="mail") == data


@pytest.mark.parametrize("fault", ["late", "late_hang"])
async def test_a_late_put_is_burnt_and_never_lands(fault: Any) -> None:
    world = World()
    oid, data = world.mail()
    world.faults.fail_next("put", "k", fault, seconds=60)
    world.faults.fail_next("put", "k", "error", times=99)
    with pytest.raises(OutcomeUnknown):
        await world.time.run(put_once(world.store, "k", data, oid, "mail"))
    world.faults.scripts.clear()
    assert await world.time.run(find_outcome(world.store, "k", oid, "mail")) == "burnt"
    await world.time.advance(120)
    assert await world.bucket.get("k", kind="mail") == b""
    assert world.faults.history[-1].fault == f"{fault}: refused"
    assert await world.time.run(find_outcome(world.store, "k", oid, "mail")) == "burnt"
    assert await world.time.run(put_once(world.store, "k", data, oid, "mail")) is False


async def test_a_late_put_that_lands_before_its_outcome_is_asked_is_ours() -> None:
    world = World()
    oid, data = world.mail()
    world.faults.fail_next("put", "k", "late_hang", seconds=12)
    world.faults.fail_next("put", "k", "hang", times=99)
    with pytest.raises(OutcomeUnknown):
        await world.time.run(put_once(world.store, "k", data, oid, "mail"))
    await world.time.advance(5)
    world.faults.scripts.clear()
    assert await world.time.run(find_outcome(world.store, "k", oid, "mail")) == "ours"


async def test_an_outcome_whose_own_answer_is_lost_is_burnt() -> None:
    world = World()
    oid, _ = world.mail()
    world.faults.fail_next("put", fault="lost")
    assert await world.time.run(find_outcome(world.store, "k", oid, "mail")) == "burnt"


async def test_an_outcome_during_an_outage_stays_unknown() -> None:
    world = World()
    oid, _ = world.mail()
    world.faults.plan.outage = True
    with pytest.raises(Unreachable):
        await world.time.run(find_outcome(world.store, "k", oid, "mail"))


async def test_an_object_that_goes_between_the_two_requests_is_unknown() -> None:
    world = World()
    oid, data = world.mail()
    await world.bucket.put("k", data, kind="mail")
    inner_get = world.bucket.get

    async def get(key: str, **rest: Any) -> bytes:
        await world.bucket.delete_batch([key], kind="mail")
        return await inner_get(key, **rest)

    world.bucket.get = get
    with pytest.raises(OutcomeUnknown):
        await world.time.run(find_outcome(world.store, "k", oid, "mail"))


async def test_damaged_and_newer_headers_are_other() -> None:
    world = World()
    oid, data = world.mail()
    for key, there in {"a": b"garbage", "b": b"obox\x03" + data[5:], "c": data[:20]}.items():
        await world.bucket.put(key, there, kind="mail")
        assert await world.time.run(find_outcome(world.store, key, oid, "mail")) == "other"


@pytest.mark.parametrize("seed", range(40))
async def test_many_writers_under_faults_agree(seed: int) -> None:
    """Whatever fails, each key has a single owner, which knows that it owns the key.
    Burnt keys stay burnt."""
    rates = Rates(error=10, lost=10, delay=10, late=8, late_hang=4, truncate=5, hang=3)
    world = World(seed=seed, jitter=True, plan=Plan(every=rates))
    verdicts: dict[str, list[tuple[str, Oid]]] = {f"k{i}": [] for i in range(6)}

    async def writer() -> None:
        for key, reported in verdicts.items():
            oid, data = world.mail()
            outcome = ""
            try:
                outcome = "ours" if await put_once(world.store, key, data, oid, "mail") else "other"
            except Unreachable:
                outcome = "nothing"
            except OutcomeUnknown:
                while not outcome:
                    try:
                        outcome = await find_outcome(world.store, key, oid, "mail")
                    except (OutcomeUnknown, Unreachable):
                        continue
            reported.append((outcome, oid))

    async def writers() -> None:
        await asyncio.gather(*(writer() for _ in range(4)))

    await world.time.run(writers())
    await world.time.advance(1000)
    for key, reported in verdicts.items():
        try:
            stored = await world.bucket.get(key, kind="mail")
        except Missing:
            stored = b""
        owners = [oid for outcome, oid in reported if outcome == "ours"]
        assert len(owners) <= 1, f"seed {seed}: {world.faults.history}"
        if owners:
            assert world.codec.decode(stored, OWNER).oid == owners[0], f"seed {seed}: {world.faults.history}"
        nothing = [oid for outcome, oid in reported if outcome in ("nothing", "other")]
        assert stored == b"" or world.codec.decode(stored, OWNER).oid not in nothing, (
            f"seed {seed}: {world.faults.history}"
        )
        if any(outcome == "burnt" for outcome, _ in reported):
            assert stored == b"", f"seed {seed}: {world.faults.history}"


async def test_the_same_seed_makes_the_same_faults() -> None:
    histories = []
    for _ in range(2):
        world = World(seed=5, plan=Plan(every=Rates(error=20, lost=20, delay=20)))
        for i in range(30):
            try:
                await world.time.run(world.store.put(f"k{i}", b"x", kind="mail"))
            except (AlreadyExists, OutcomeUnknown):
                continue
        histories.append(world.faults.history)
    assert histories[0] == histories[1] != []


async def test_cancellation_passes_at_once() -> None:
    world = World(plan=Plan(every=Rates(hang=100)))
    task = asyncio.ensure_future(world.store.put("k", b"x", kind="mail"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (world.store.stats.count(), world.store.stats.errors()) == (1, 1)
    hang = world.faults.plan
    real = open_store(Settings("memory://"), wrap=lambda d: FaultyDriver(d, rng=random.Random(1), plan=hang))
    task = asyncio.ensure_future(real.get("k", kind="mail"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_loops_own_timer_keeps_the_deadline() -> None:
    plan = Plan(every=Rates(hang=100))
    store = open_store(
        Settings("memory://", deadline_s=0.02),
        wrap=lambda inner: FaultyDriver(inner, rng=random.Random(1), plan=plan),
    )
    with pytest.raises(OutcomeUnknown):
        await store.put("k", b"x", kind="mail")


async def test_slow_requests_are_logged_with_their_attempt() -> None:
    world = World(slow_s=0.5)
    world.faults.fail_next("put", fault="error")
    world.faults.fail_next("put", fault="delay", seconds=0.75)
    await world.time.run(world.store.put("u/k", b"x", kind="mail"))
    assert [line for line in world.log.lines if line[0] == "warning"] == [
        ("warning", "slow request", {"op": "put", "kind": "mail", "key": "u/k", "ms": 750, "attempt": 2, "ok": True})
    ]


async def test_slow_probes_are_not_logged() -> None:
    """A race of 160 PUTs used to log a line for each slow PUT. The row of the check
    says how long the PUTs took."""
    world = World(slow_s=0.5)
    world.faults.fail_next("put", fault="delay", seconds=0.75)
    await world.time.run(world.store.put("_probe/00/race/01", b"x", kind="format"))
    assert [line for line in world.log.lines if line[0] == "warning"] == []


async def test_a_copy_before_the_probe_is_get_and_put_where_the_store_may_overwrite() -> None:
    world = World()
    world.store.driver.copies_create_only = False
    await world.bucket.put("a", b"x", kind="mail")
    await world.time.run(world.store.copy("a", "b", kind="mail"))
    assert world.store.stats.requests() == {("get", "mail"): 1, ("put", "mail"): 1}
    with pytest.raises(AlreadyExists):
        await world.time.run(world.store.copy("a", "b", kind="mail"))
