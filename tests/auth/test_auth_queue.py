"""A client must not keep others from logging in: the addresses have turns for the
hashing of passwords. The tests count hashes and measure no time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from patience import PATIENT_S

from obox.auth import Authenticator, AuthFailed, AuthUnavailable, PasswdFile, Penalties
from obox.auth._queue import FairQueue, Refused

ATTACKERS = ("192.0.2.1", "192.0.2.2", "2001:db8::1", "2001:db8:0:1::1")


class Hasher:
    """A hasher that hashes nothing. It waits until the gate is open, and records its
    calls."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.passwords: list[str] = []

    def __call__(self, secret: str, password: str) -> bool:
        assert self.gate.wait(30)
        self.passwords.append(password)
        return secret == "{PLAIN}" + password


@pytest.fixture
def hasher() -> Hasher:
    return Hasher()


@pytest.fixture
def penalties() -> Penalties:
    return Penalties(clock=lambda: 0.0)


@pytest.fixture
def auth(tmp_path: Path, hasher: Hasher, penalties: Penalties) -> Iterator[Authenticator]:
    path = tmp_path / "users"
    path.write_text("honest:{PLAIN}right\nother:{PLAIN}other\n")
    users = PasswdFile(path)
    # The file is read before anybody waits.
    users.lookup("honest")
    made = Authenticator(users, threads=1, penalties=penalties, sleep=no_time, check=hasher)
    yield made
    hasher.gate.set()
    made.close()


def attack(auth: Authenticator, remote: str, count: int) -> list[asyncio.Task[object]]:
    return [
        asyncio.create_task(auth.verify(f"user{number}", f"wrong{number}", remote=remote)) for number in range(count)
    ]


async def no_time(seconds: float) -> None:
    await asyncio.sleep(0)


async def let_others_run() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_an_honest_user_waits_for_one_hash_of_each_address(auth: Authenticator, hasher: Hasher) -> None:
    attempts = [task for remote in ATTACKERS for task in attack(auth, remote, 100)]
    await let_others_run()
    assert all(not task.done() or isinstance(task.exception(), AuthUnavailable) for task in attempts)
    honest = asyncio.create_task(auth.verify("honest", "right", remote="198.51.100.7"))
    await let_others_run()
    hasher.gate.set()
    assert (await honest).name == "honest"
    before = hasher.passwords.index("right")
    assert before <= len(ATTACKERS) + 1, "one hash was under way, then each address had its turn"
    await asyncio.wait(attempts)
    assert {type(task.exception()) for task in attempts} == {AuthFailed, AuthUnavailable}
    assert len(hasher.passwords) <= 257, "the queue is bounded"


async def test_a_password_that_was_right_lately_is_not_hashed(auth: Authenticator, hasher: Hasher) -> None:
    hasher.gate.set()
    await auth.verify("honest", "right", remote="198.51.100.7")
    hasher.gate.clear()
    attempts = attack(auth, ATTACKERS[0], 100)
    await let_others_run()
    assert (await auth.verify("honest", "right", remote="198.51.100.8")).name == "honest"
    assert hasher.passwords == ["right"]
    hasher.gate.set()
    await asyncio.wait(attempts)


async def test_the_share_of_an_address_and_the_penalty_of_what_is_refused(
    auth: Authenticator, hasher: Hasher, penalties: Penalties
) -> None:
    """Addresses of the same /64 share their turns. A refused login costs no hash, and
    counts as a failure."""
    attempts = attack(auth, "2001:db8::1", 60) + attack(auth, "2001:db8::ffff:2", 60)
    await let_others_run()
    refused = [task for task in attempts if task.done()]
    assert len(refused) == 120 - 64
    assert {str(task.exception()) for task in refused} == {"Too many logins are being checked, try again later"}
    assert penalties.delay_s("2001:db8::3") == 15, "before any of them was hashed"
    assert penalties.delay_s("192.0.2.9") == 0
    hasher.gate.set()
    await asyncio.wait(attempts)
    assert len(hasher.passwords) == 64


async def test_this_machines_own_may_use_the_whole_queue(auth: Authenticator, hasher: Hasher) -> None:
    """A webmail runs on this machine, so all its users come from this address."""
    attempts = attack(auth, "127.0.0.1", 200)
    await let_others_run()
    assert not any(task.done() for task in attempts)
    hasher.gate.set()
    await asyncio.wait(attempts)


async def test_who_leaves_gives_its_place_back(auth: Authenticator, hasher: Hasher) -> None:
    attempts = attack(auth, ATTACKERS[0], 64)
    await let_others_run()
    for task in attempts[1:]:
        task.cancel()
    await let_others_run()
    more = attack(auth, ATTACKERS[0], 63)
    await let_others_run()
    assert not any(task.done() for task in more)
    hasher.gate.set()
    await asyncio.wait(attempts + more)
    assert {type(task.exception()) for task in more} == {AuthFailed}
    assert len(hasher.passwords) == 64


async def test_the_queue() -> None:
    """The addresses have turns. If the queue is full, the youngest entry of the longest
    queue is dropped. An address with as many entries as others drops none of theirs."""
    queue = FairQueue(running_max=1, total_max=6, address_max=9)
    order: list[str] = []
    refused: list[tuple[str, bool]] = []

    async def one(address: str, name: str) -> None:
        try:
            await queue.enter(address)
        except Refused as error:
            refused.append((name, error.own))
            return
        order.append(name)
        await asyncio.sleep(0)
        queue.leave(address)

    tasks = []
    for name in ("a1", "a2", "a3", "a4", "b1", "b2", "c1", "d1", "e1", "a5", "e2"):
        tasks.append(asyncio.create_task(one(name[0], name)))
    await asyncio.wait(tasks)
    assert sorted(refused) == [("a3", True), ("a4", True), ("a5", True), ("b2", True), ("e2", False)]
    assert order == ["a1", "a2", "b1", "c1", "d1", "e1"]
    assert len(queue) == 0


@pytest.mark.parametrize("steps", [1, 2, 3])
async def test_a_place_is_never_lost(steps: int) -> None:
    """A login is cancelled before its turn, in the moment of its turn, or during it."""
    queue = FairQueue(running_max=1, total_max=4)
    await queue.enter("a")
    waiting = [asyncio.create_task(queue.enter(address)) for address in ("b", "b", "c")]
    await asyncio.sleep(0)
    # This gives the turn to the first login of b.
    queue.leave("a")
    for task in waiting[:steps]:
        task.cancel()
    await asyncio.wait(waiting[:steps])
    # The turn of c comes before the second login of b.
    for task in reversed(waiting[steps:]):
        await asyncio.wait_for(task, PATIENT_S)
        queue.leave("b" if task is waiting[1] else "c")
    assert len(queue) == 0
    await asyncio.wait_for(queue.enter("z"), PATIENT_S)
