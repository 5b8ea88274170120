"""Password checks: the cache, the delays, and the answer that each caller gets. The
test controls the clock."""

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from obox.auth import Authenticator, AuthFailed, AuthUnavailable, Disabled, PasswdFile, Penalties
from obox.auth.schemes import verify_secret
from obox.errors import NoPerm, Unavailable

FILE = """\
bob:{PLAIN}x
eve:{PLAIN}y
off:{PLAIN}x::::::disabled
out:{PLAIN}x::::::nologin reason=Moved
any:::::::nopassword
odd:{ROT13}x
none:
"""


class World:
    """A clock, a sleep that only records its calls, and a check of passwords that
    counts."""

    def __init__(self, path: Path) -> None:
        path.write_text(FILE)
        self.path = path
        self.now = 1000.0
        self.slept: list[float] = []
        self.checked: list[tuple[str, str]] = []
        self.users = PasswdFile(path, clock=self.clock)
        self.auth = self.make()

    def make(self, cache_entries_max: int = 10) -> Authenticator:
        return Authenticator(
            self.users, clock=self.clock, sleep=self.sleep, check=self.check, cache_entries_max=cache_entries_max
        )

    def clock(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds

    def check(self, secret: str, password: str) -> bool:
        self.checked.append((secret, password))
        return verify_secret(secret, password)

    async def fails(self, user: str = "bob", password: str = "wrong", remote: str = "192.0.2.1") -> None:
        with pytest.raises(AuthFailed, match=r"^Authentication failed$"):
            await self.auth.verify(user, password, remote=remote)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path / "users")
    yield made
    made.auth.close()


async def test_right_and_wrong(world: World) -> None:
    assert (await world.auth.verify("BOB", "x", remote="")).name == "bob"
    for user, password in [("bob", "y"), ("bob", ""), ("nobody", "x"), ("a/b", "x"), ("none", ""), ("bob", "z" * 2000)]:
        await world.fails(user, password, remote="")


async def test_every_failure_hashes_once(world: World) -> None:
    for user, password in [("bob", "y"), ("bob", ""), ("nobody", "x"), ("a/b", "x"), ("none", "x")]:
        world.checked.clear()
        await world.fails(user, password, remote="")
        assert len(world.checked) == 1
        # A user without a password hash is checked against a hash of the commonest
        # scheme.
        assert world.checked[0][0] == "{PLAIN}x"


async def test_an_unknown_user_never_enters_with_another_users_password(world: World) -> None:
    await world.fails("nobody", "x", remote="")
    await world.fails("none", "x", remote="")


async def test_a_file_without_secrets_hashes_as_well(world: World) -> None:
    world.path.write_text("none:\n")
    await world.fails("nobody", "x", remote="")
    assert world.checked[0][0].startswith("{SHA512-CRYPT}")


async def test_disabled_is_said_to_the_owner_alone(world: World) -> None:
    with pytest.raises(Disabled, match="disabled"):
        await world.auth.verify("off", "x", remote="")
    with pytest.raises(Disabled, match="Moved"):
        await world.auth.verify("out", "x", remote="")
    await world.fails("off", "wrong", remote="")


async def test_nopassword(world: World) -> None:
    assert (await world.auth.verify("any", "whatever", remote="")).name == "any"


async def test_kinds() -> None:
    assert issubclass(AuthFailed, NoPerm)
    assert issubclass(Disabled, NoPerm)
    assert issubclass(AuthUnavailable, Unavailable)


async def test_unavailable(world: World, tmp_path: Path) -> None:
    with pytest.raises(AuthUnavailable):
        await world.auth.verify("odd", "x", remote="")
    missing = Authenticator(PasswdFile(tmp_path / "missing"))
    with pytest.raises(AuthUnavailable):
        await missing.verify("bob", "x", remote="")
    missing.close()


async def test_cache(world: World) -> None:
    for _ in range(3):
        await world.auth.verify("bob", "x", remote="")
    assert len(world.checked) == 1
    await world.fails(password="y", remote="")
    assert len(world.checked) == 2
    world.now += 60
    await world.auth.verify("bob", "x", remote="")
    assert len(world.checked) == 3


async def test_a_changed_line_beats_the_cache(world: World) -> None:
    await world.auth.verify("bob", "x", remote="")
    world.path.write_text("bob:{PLAIN}new\n")
    world.now += 1
    await world.fails(password="x", remote="")
    await world.auth.verify("bob", "new", remote="")
    world.path.write_text("bob:{PLAIN}new::::::disabled\n")
    world.now += 1
    with pytest.raises(Disabled):
        await world.auth.verify("bob", "new", remote="")


async def test_the_cache_is_bounded(world: World) -> None:
    auth = world.make(cache_entries_max=1)
    for user, password in [("bob", "x"), ("eve", "y"), ("bob", "x")]:
        await auth.verify(user, password, remote="")
    assert len(world.checked) == 3
    auth.close()


async def test_other_users_times_and_delays(world: World, tmp_path: Path) -> None:
    """A password that was remembered is kept only as long as the new setting says.
    Failures are not forgotten."""
    await world.auth.verify("bob", "x", remote="")
    world.now += 20
    world.auth.use(world.users, cache_ttl_s=30.0, delays_s=[0.0, 1.0])
    await world.auth.verify("bob", "x", remote="")
    assert len(world.checked) == 1
    world.now += 10
    await world.auth.verify("bob", "x", remote="")
    assert len(world.checked) == 2
    world.auth.use(world.users, cache_ttl_s=0.0, delays_s=[0.0, 1.0])
    await world.auth.verify("bob", "x", remote="")
    assert len(world.checked) == 3

    for number in range(3):
        await world.fails(password=f"wrong{number}")
    assert world.slept == [1, 1]
    world.auth.use(world.users, cache_ttl_s=0.0, delays_s=[0.0, 3.0, 5.0])
    await world.fails()
    assert world.slept == [1, 1, 5]

    other = tmp_path / "other"
    other.write_text("zoe:{PLAIN}z\n")
    world.auth.use(world.users.moved(other, ""), cache_ttl_s=0.0, delays_s=[0.0])
    assert (await world.auth.verify("zoe", "z", remote="")).name == "zoe"
    await world.fails("bob", "x", remote="")


async def test_delays_grow_by_address(world: World) -> None:
    for number in range(7):
        await world.fails(password=f"wrong{number}")
    assert world.slept == [2, 4, 8, 15, 15, 15]
    await world.fails(remote="192.0.2.2")
    assert len(world.slept) == 6
    # The right password waits as well. After it all failures are forgotten.
    await world.auth.verify("bob", "x", remote="192.0.2.1")
    assert world.slept.pop() == 15
    await world.fails()
    assert len(world.slept) == 6


async def test_the_same_wrong_password_counts_once(world: World) -> None:
    for _ in range(4):
        await world.fails(password="stale")
    assert world.slept == [2, 2, 2]


async def test_failures_are_forgotten(world: World) -> None:
    await world.fails()
    world.now += 120
    await world.fails(password="other")
    assert world.slept == []


@pytest.mark.parametrize("remote", ["", "unix", "junk"])
async def test_no_address_no_delay(world: World, remote: str) -> None:
    for number in range(3):
        await world.fails(password=f"wrong{number}", remote=remote)
    assert world.slept == []


def test_addresses_that_count_as_one() -> None:
    penalties = Penalties(clock=lambda: 0.0, exempt=["10.0.0.0/8"])
    penalties.failed("2001:db8:1:2::3", b"a")
    penalties.failed("::ffff:192.0.2.1", b"a")
    penalties.failed("10.1.1.1", b"a")
    penalties.failed("127.0.0.1", b"a")
    assert penalties.delay_s("2001:db8:1:ff::1") == 2
    assert penalties.delay_s("2001:db8:2::1") == 0
    assert penalties.delay_s("192.0.2.1") == 2
    assert penalties.delay_s("10.1.1.1") == 0
    # A failure from loopback counts too, as in Dovecot.
    assert penalties.delay_s("127.0.0.1") == 2
    assert len(penalties) == 3


def test_the_table_is_bounded() -> None:
    penalties = Penalties(clock=lambda: 0.0, addresses_max=3)
    for number in range(10):
        penalties.failed(f"192.0.2.{number}", b"a")
    assert len(penalties) == 3
    assert penalties.delay_s("192.0.2.0") == 0
    assert penalties.delay_s("192.0.2.9") == 2


async def test_too_many_at_once(world: World) -> None:
    gate = threading.Event()

    def slow(secret: str, password: str) -> bool:
        return gate.wait(10) and verify_secret(secret, password)

    auth = Authenticator(world.users, waiting_max=2, check=slow)
    tasks = [asyncio.create_task(auth.verify("bob", f"wrong{number}", remote="")) for number in range(6)]
    pending = set(tasks)
    while len(pending) > 2:
        done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        assert {type(task.exception()) for task in done} == {AuthUnavailable}
    gate.set()
    done, _ = await asyncio.wait(pending)
    assert {type(task.exception()) for task in done} == {AuthFailed}
    await auth.verify("bob", "x", remote="")
    auth.close()


async def test_connections_that_come_back_at_once_are_hashed_once(world: World) -> None:
    started, gate = threading.Event(), threading.Event()
    checked = []

    def slow(secret: str, password: str) -> bool:
        checked.append(password)
        started.set()
        return gate.wait(10) and verify_secret(secret, password)

    auth = Authenticator(world.users, threads=1, check=slow)
    tasks = [asyncio.create_task(auth.verify("bob", "x", remote="")) for _ in range(5)]
    wrong = [asyncio.create_task(auth.verify("bob", "wrong", remote="")) for _ in range(2)]
    assert await asyncio.to_thread(started.wait, 10)
    gate.set()
    assert {account.name for account in await asyncio.gather(*tasks)} == {"bob"}
    assert [type(error) for error in await asyncio.gather(*wrong, return_exceptions=True)] == [AuthFailed] * 2
    # The lookups of the user, in threads, may end in another order.
    assert sorted(checked) == ["wrong", "wrong", "x"]
    auth.close()


async def test_a_first_lookup_waits_for_the_file(world: World) -> None:
    found = await asyncio.gather(*(world.users.lookup_async("bob") for _ in range(5)))
    assert all(entry is not None for entry in found)
