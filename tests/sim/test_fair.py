"""Two backends deliver to the same mailbox and do not know of each other. Both make
progress, no sender waits long, and few UIDs are burnt. A backend that is the only
writer pays nothing for that."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest

from obox.errors import OboxError
from obox.objectstore import Kind, Unreachable
from obox.store import MailStore, NewMail
from obox.store.box.arrivals import BATCH_MAILS_MAX
from obox.store.box.slots import WAIT_S, YIELD_S
from obox.store.mails.beside import LOOK_BATCHES, LOOK_S

from .caches import Disk
from .loop import simulate
from .player import SID, USER
from .world import Node, World

MEET_S = {False: 0.8, True: 2.8}
"""By this time both backends know of each other: they have lost a UID, or one whose
mails lie in batches has found an object of the other between its own (LOOK_S, and the
time of LOOK_BATCHES batches)."""

RUN_S = 0.7
"""The virtual time of the run after that. It is enough for some hundred mails."""

FIND_FEET_S = 1.0
"""The second backend fences the first. The first finds that out with its next mail,
before the test counts."""

CONFLICT_S = 0.002
"""The time that a store which answers 409 takes to write an object."""

FAST, SPREAD = (0.002, 0.004), (0.001, 0.03)
"""The seconds that a request takes."""


SEEDS = [seed for seed in range(1, 100) if World(seed).page_keys == 1000 and not World(seed).old]
"""In the worlds of these seeds a page of LIST has 1,000 keys, as in real stores. Nobody
writes as many mails while a page is read. Their buckets may have batches."""

BOTH = pytest.mark.parametrize("batches", [False, True], ids=["single", "batches"])


async def deliver(store: MailStore, mails: int = 1) -> None:
    user = await store.open_user(USER, SID)
    await user.append("INBOX", [NewMail(b"Subject: x\r\n\r\nx\r\n", ())] * mails)


def answer_409(world: World) -> None:
    """Answer as S3 does when PUTs of the same key overlap: all but one of them get an
    error that asks for another try, and the next try is answered "exists"."""
    put, busy = world.faults.put, set[str]()

    async def conflicting(key: str, data: bytes, *, kind: Kind) -> None:
        if key in busy:
            raise Unreachable(f"put {key}: 409 ConditionalRequestConflict")
        busy.add(key)
        try:
            await asyncio.sleep(CONFLICT_S)
            await put(key, data, kind=kind)
        finally:
            busy.discard(key)

    world.faults.put = conflicting


async def begun(seed: int, latency_s: tuple[float, float], *, conflicts: bool, batches: bool) -> World:
    """Return a world whose bucket may have batches, or not."""
    world = World(seed)
    world.latency_s, world.batches = latency_s, batches
    if not batches:
        await world.make_without_batches()
    if conflicts:
        answer_409(world)
    return world


@dataclass
class Result:
    done: dict[str, int] = field(default_factory=dict)
    waits_s: list[float] = field(default_factory=list)
    refused: int = 0
    keys: int = 0
    burnt: int = 0
    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Requests for mails, by backend and verb."""

    @property
    def least(self) -> float:
        """Return the smaller of the two backends' shares of the delivered mails."""
        return min(self.done.values()) / sum(self.done.values())


def count_requests(node: Node, result: Result, since: float) -> None:
    """Count what a backend asks the bucket for mails from then on."""
    sent: Any = node.sent

    def counted(op: str, key: str) -> None:
        sent(op, key)
        if "/m/" in key and node.world.clock() >= since:
            result.requests[node.name, op] += 1

    node.sent = counted


def contend(
    seed: int,
    latency_s: tuple[float, float],
    senders: tuple[int, int],
    *,
    groups: tuple[int, int] = (1, 1),
    conflicts: bool = False,
    begins_s: tuple[float, float] = (0.0, 0.0),
    ends_s: tuple[float, float] | None = None,
    count_from_s: float | None = None,
    batches: bool = False,
) -> Result:
    """Let senders of two backends deliver to the same mailbox.

    senders: how many senders each backend has, each of which sends mail after mail
    until its backend's end; 0: there is no such backend. groups: how many mails a
    sender sends at a time, as with MULTIAPPEND. Times count from the moment when both
    backends are ready. Only what began at `count_from_s` or later is counted. batches:
    whether the bucket may have them.
    """
    result = Result()
    count_from_s = MEET_S[batches] if count_from_s is None else count_from_s
    ends_s = (MEET_S[batches] + RUN_S,) * 2 if ends_s is None else ends_s

    async def main() -> None:
        world = await begun(seed, latency_s, conflicts=conflicts, batches=batches)
        names = [name for name, count in zip(("a", "x"), senders, strict=True) if count]
        nodes = [await world.node(name, Disk()).start() for name in names]
        ready = world.clock() + FIND_FEET_S
        for node in nodes:
            await node.run(deliver)
        begin = ready + count_from_s
        result.done = {node.name: 0 for node in nodes}
        for node in nodes:
            count_requests(node, result, begin)

        async def send(node: Node, mails: int, since: float, until: float) -> None:
            await asyncio.sleep(since - world.clock())
            while (began := world.clock()) < until:
                try:
                    await node.run(lambda store: deliver(store, mails))
                except OboxError:
                    result.refused += 1
                if began >= begin:
                    result.done[node.name] += mails
                    result.waits_s.append(world.clock() - began)

        await asyncio.gather(
            *(
                send(node, mails, ready + begin_s, ready + end_s)
                for node, count, mails, begin_s, end_s in zip(nodes, senders, groups, begins_s, ends_s, strict=False)
                for _ in range(count)
            )
        )
        keys = world.keys("/m/")
        result.keys = len(keys)
        result.burnt = sum(not world.memory.objects[key][0] for key in keys)

    simulate(main)
    return result


@BOTH
@pytest.mark.parametrize("latency_s", [FAST, SPREAD])
@pytest.mark.parametrize("senders", [(1, 1), (3, 3), (10, 10), (10, 1), (3, 10)])
@pytest.mark.parametrize("seed", SEEDS[:3])
def test_neither_starves(seed: int, senders: tuple[int, int], latency_s: tuple[float, float], batches: bool) -> None:
    """Before the rule, 8 mails of a backend and 8,450 of the other were delivered: the
    writer that had lost a UID read the mailbox while the other wrote on. With batches
    it was 3 and 2,360, because the other never lost a UID."""
    result = contend(seed, latency_s, senders, conflicts=seed == SEEDS[2], batches=batches)
    # A fair share is a half.
    assert result.least >= 1 / 8, result.done
    assert result.refused == 0
    assert max(result.waits_s) < WAIT_S
    # A batch has the mails of all senders of a backend.
    assert result.keys - result.burnt >= sum(result.done.values()) / (max(senders) if batches else 1)
    assert result.burnt < result.keys / 5


@pytest.mark.parametrize("senders", [(3, 100), (100, 3), (1, 300), (300, 1), (100, 100)])
@pytest.mark.parametrize("latency_s", [FAST, SPREAD])
def test_large_batches_leave_the_other_its_turns(senders: tuple[int, int], latency_s: tuple[float, float]) -> None:
    """The other's mail lies behind the first UID of a batch, so that no UID is lost to
    it. A sender among 300 waits longer, since a turn has few UIDs."""
    result = contend(SEEDS[1], latency_s, senders, begins_s=(0.0, 0.01), ends_s=(5.0, 5.0), batches=True)
    assert result.least >= 1 / 8, result.done
    assert result.refused == 0
    assert max(result.waits_s) < WAIT_S
    # The UIDs that were skipped once: no more than a batch has.
    assert result.burnt <= BATCH_MAILS_MAX


@pytest.mark.parametrize("senders", [1, 10])
def test_alone_a_delivery_is_one_put(senders: int) -> None:
    """A writer that is alone does not wait for a turn and looks for no other writer."""
    result = contend(SEEDS[0], SPREAD, (senders, 0), count_from_s=0.0, ends_s=(1.0, 1.0))
    assert result.requests == {("a", "put"): result.done["a"]}
    assert max(result.waits_s) <= SPREAD[1]
    assert result.burnt == 0


@pytest.mark.parametrize("senders", [1, 10])
def test_alone_a_writer_of_batches_lists_seldom(senders: int) -> None:
    """All senders that wait share a PUT. A LIST is made in each LOOK_S at most, and for
    LOOK_BATCHES batches at most. A writer without batches makes none."""
    seconds = 4.0
    result = contend(
        SEEDS[0], SPREAD, (senders, 0), batches=True, count_from_s=0.0, ends_s=(seconds, seconds)
    )  # fmt: skip
    puts, lists = result.requests["a", "put"], result.requests["a", "list"]
    assert result.requests == {("a", "put"): puts} | ({("a", "list"): lists} if senders > 1 else {})
    assert puts == result.done["a"] / senders
    assert lists <= min(seconds / LOOK_S, puts / LOOK_BATCHES)
    assert lists > 0 or senders == 1
    assert max(result.waits_s) <= 2 * SPREAD[1]
    assert result.burnt == 0


@BOTH
@pytest.mark.parametrize(("groups", "latency_s"), [((40, 1), FAST), ((40, 1), SPREAD), ((40, 40), SPREAD)])
def test_a_group_of_mails_is_not_broken_by_the_other(
    groups: tuple[int, int], latency_s: tuple[float, float], batches: bool
) -> None:
    """A group must win all its UIDs, or it begins again. After some attempts it fails
    for good."""
    # A group of mails that are written singly takes up to a second.
    ends_s = (MEET_S[batches] + 4.0,) * 2
    result = contend(SEEDS[2], latency_s, (1, 3), groups=groups, ends_s=ends_s, batches=batches)
    assert result.refused == 0
    assert min(result.done.values()) > 0
    assert max(result.waits_s) < WAIT_S
    # Without batches few UIDs are burnt, and with batches those that were skipped once.
    assert result.burnt < (BATCH_MAILS_MAX if batches else result.keys / 100)


@BOTH
@pytest.mark.parametrize("latency_s", [FAST, SPREAD])
@pytest.mark.parametrize("senders", [1, 10])
def test_who_comes_upon_a_busy_writer_gets_a_mail_through(
    senders: int, latency_s: tuple[float, float], batches: bool
) -> None:
    """The busy writer has not lost a UID, so it does not know of another writer. It
    stops only when another writer takes a UID ahead of it, and if its mails lie in
    batches after the next LIST of them."""
    most_s = LOOK_S + 1.0 if batches else 1.0
    ends_s = (most_s + 0.2, most_s + 0.2)
    result = contend(
        SEEDS[0], latency_s, (10, senders), begins_s=(0.0, 0.2), count_from_s=0.2, ends_s=ends_s, batches=batches
    )
    assert result.done["x"] >= senders
    assert max(result.waits_s) < most_s
    assert result.burnt < result.keys / 5


@BOTH
@pytest.mark.parametrize("senders", [1, 10])
def test_when_the_other_has_ended_a_delivery_is_one_put_again(senders: int, batches: bool) -> None:
    ended_s = MEET_S[batches] + 0.2
    result = contend(
        SEEDS[0],
        SPREAD,
        (senders, 10),
        ends_s=(ended_s + 2.0, ended_s),
        count_from_s=ended_s + 2 * YIELD_S + SPREAD[1],
        batches=batches,
    )
    assert result.done["x"] == 0
    puts, lists = result.requests["a", "put"], result.requests["a", "list"]
    assert sum(result.requests.values()) == puts + lists
    assert puts == result.done["a"] / (senders if batches else 1)
    assert lists <= (puts / LOOK_BATCHES if batches else 0)
    assert max(result.waits_s) <= SPREAD[1] * (2 if batches else 1)
