"""What a backend as a member asks of its store."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

from obox.cluster import (
    Assigned,
    BackendMember,
    Beat,
    DeadWatch,
    Kind,
    Member,
    MemoryDirectory,
    MemoryReplica,
    Orders,
    View,
    World,
    encode,
    group_key,
    make_settings,
)

GROUPS = 4


class Store:
    """A `member.Store` that serves all groups and counts."""

    def __init__(self) -> None:
        self.gained: list[Sequence[tuple[str, str]]] = []
        self.units = {group_key(number): (1, 7) for number in range(GROUPS)}

    def held(self) -> Mapping[str, tuple[int, int]]:
        return self.units

    def boot(self) -> str:
        return "boot1"

    async def gain(self, units: Mapping[str, Assigned], fence: Sequence[tuple[str, str]], *, orderly: bool) -> None:
        assert not units
        self.gained.append(fence)

    async def release(self, units: Sequence[str], hand: Callable[[], Awaitable[bool]]) -> bool:
        raise AssertionError("nothing is released")

    async def lose(self, units: Sequence[str]) -> int:
        raise AssertionError("nothing is lost")

    async def doubt(self, units: Sequence[str]) -> None:
        raise AssertionError("nothing is merged")

    async def sweep(self) -> None:
        return


async def make(store: Store) -> tuple[BackendMember, DeadWatch, MemoryDirectory]:
    """Backend c has been found dead."""
    now = [1000.0]

    async def sleep(seconds: float) -> None:
        now[0] += seconds

    directory = MemoryDirectory(MemoryReplica(lambda: now[0]), sleep=sleep)
    await make_settings(directory, GROUPS, now=lambda: now[0], sleep=sleep, random_bytes=bytes)
    for number in range(GROUPS):
        await directory.put(Kind.GROUPS, group_key(number), encode(Assigned("a", 1, 7)), 1)
    await directory.put(Kind.ORDERS, "a", encode(Orders()), 1)
    await directory.put(Kind.MEMBERS, "a", encode(Member("backend", "s", "host")), 1)
    await directory.put(Kind.BEATS, "c", encode(Beat(9, "boot7")), 1)

    async def greets(member: Member | None) -> bool:
        return False

    view = View(directory, clock=lambda: now[0], now=lambda: now[0], sleep=sleep)
    world = World(lambda: now[0], lambda: now[0], sleep, bytes, dict, greets)
    watch = DeadWatch("a", "s", 15.0, {"c"})
    return BackendMember(view, store, watch, world), watch, directory


async def test_a_dead_backend_that_owns_nothing_is_fenced_once() -> None:
    """A fence reads the journals of all backends."""
    store = Store()
    member, watch, directory = await make(store)
    for _ in range(5):
        await member.step()
    assert store.gained == [[("c", "boot7")]]
    await directory.put(Kind.BEATS, "c", encode(Beat(1, "boot8")), 2)
    await member.step()
    assert len(store.gained) == 1
    watch.dead.add("c")  # it has died again
    for _ in range(5):
        await member.step()
    assert store.gained == [[("c", "boot7")], [("c", "boot8")]]
