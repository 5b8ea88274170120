"""What each store must do, whatever bucket is behind it."""

from __future__ import annotations

import asyncio

import pytest

from obox.objectstore import AlreadyExists, Missing, OpenStore, probe
from obox.objectstore.faults import Plan
from obox.objectstore.put_once import find_outcome, put_once
from obox.types import Oid

from .conftest import Opened


async def test_get_returns_what_put_stored(store: OpenStore) -> None:
    await store.put("ab/user@example.org/m/x", b"hello", kind="mail")
    assert await store.get("ab/user@example.org/m/x", kind="mail") == b"hello"


async def test_an_empty_object_is_an_object(store: OpenStore) -> None:
    await store.put("a/empty", b"", kind="mail")
    assert await store.get("a/empty", kind="mail") == b""
    assert await store.get("a/empty", kind="mail", end=52) == b""
    assert [(i.key, i.size) for i in await store.list("a/", kind="mail")] == [("a/empty", 0)]
    with pytest.raises(AlreadyExists):
        await store.put("a/empty", b"x", kind="mail")


async def test_a_big_object(store: OpenStore) -> None:
    # 7 MiB is more than clients send in a single part.
    data = bytes(range(256)) * 4096 * 7
    await store.put("a/big", data, kind="mail")
    assert await store.get("a/big", kind="mail") == data
    assert await store.get("a/big", kind="mail", start=5_000_001, end=5_000_300) == data[5_000_001:5_000_300]


async def test_put_never_replaces(store: OpenStore) -> None:
    await store.put("a/b", b"first", kind="mail")
    with pytest.raises(AlreadyExists):
        await store.put("a/b", b"second", kind="mail")
    assert await store.get("a/b", kind="mail") == b"first"


async def test_a_key_is_free_again_after_delete(store: OpenStore) -> None:
    await store.put("a/b/c", b"first", kind="mail")
    await store.delete(["a/b/c"], kind="mail")
    with pytest.raises(Missing):
        await store.get("a/b/c", kind="mail")
    await store.put("a/b/c", b"second", kind="mail")
    assert await store.get("a/b/c", kind="mail") == b"second"


async def test_of_many_racers_one_wins(opened: Opened) -> None:
    stores = [opened.store, opened.again(), opened.again()]
    for turn in range(opened.racers // 4):

        async def race(number: int, key: str = f"race/{turn}") -> int | None:
            try:
                await stores[number % 3].put(key, b"%d" % number, kind="journal")
            except AlreadyExists:
                return None
            return number

        winners = [n for n in await asyncio.gather(*map(race, range(opened.racers))) if n is not None]
        assert len(winners) == 1
        assert await opened.store.get(f"race/{turn}", kind="journal") == b"%d" % winners[0]


async def test_missing(store: OpenStore) -> None:
    with pytest.raises(Missing):
        await store.get("not/there", kind="mail")
    with pytest.raises(Missing):
        await store.get("not/there", kind="mail", start=3, end=9)
    with pytest.raises(Missing):
        await store.copy("not/there", "a/copy", kind="mail")
    assert await store.list("not/", kind="mail") == []


@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (0, 4), (2, 5), (6, None), (9, 10), (0, 99), (8, 99), (10, None), (10, 12), (50, 60), (3, 3)],
)
async def test_ranges_are_slices(store: OpenStore, start: int, end: int | None) -> None:
    await store.put("a/range", b"0123456789", kind="mail")
    assert await store.get("a/range", kind="mail", start=start, end=end) == b"0123456789"[start:end]


async def test_list_is_in_key_order(store: OpenStore) -> None:
    names = ["00000001", "0000000a", "00000010", "a", "a-b", "a.b", "ab", "b%2fc", "root"]
    keys = [f"hh/u@x/x/{name}/{leaf}" for name in names for leaf in ("0.w.base", "1.w.diff")]
    await asyncio.gather(*(store.put(key, key.encode(), kind="index") for key in reversed(keys)))
    await store.put("hh/u@x.y/m/1", b"neighbour", kind="mail")
    found = await store.list("hh/u@x/x/", kind="index")
    assert [info.key for info in found] == sorted(keys)
    assert all(info.size == len(info.key) for info in found)
    assert [info.key for info in await store.list("hh/u@x/x/a/", kind="index")] == [
        "hh/u@x/x/a/0.w.base",
        "hh/u@x/x/a/1.w.diff",
    ]


async def test_list_after_and_limit(store: OpenStore) -> None:
    keys = [f"u/m/{i:08x}" for i in range(20)]
    await asyncio.gather(*(store.put(key, b"x", kind="mail") for key in keys))

    async def names(after: str = "", limit: int | None = None) -> list[str]:
        return [info.key for info in await store.list("u/m/", kind="mail", after=after, limit=limit)]

    assert await names() == keys
    assert await names(after=keys[4]) == keys[5:]
    assert await names(after="u/m/00000004x") == keys[5:]
    assert await names(after="u/l") == keys
    assert await names(after="u/n") == []
    assert await names(after=keys[-1]) == []
    assert await names(limit=3) == keys[:3]
    assert await names(after=keys[2], limit=2) == keys[3:5]
    assert await names(limit=0) == []


@pytest.mark.parametrize("names", [("a", "a-b"), ("a", "a.b", "a+b"), ("mail", "mail-2", "mx")])
async def test_list_names_each_key_once_whatever_lies_beside(opened: Opened, names: tuple[str, ...]) -> None:
    """There are directories whose names begin alike, and pages that end inside such a
    directory."""
    count = 60 if opened.slow else 1200
    keys = [f"j/{name}/{at:016x}" for name in names for at in range(count)]
    for at in range(0, len(keys), 100):
        await asyncio.gather(*(opened.store.put(key, b"", kind="journal") for key in keys[at : at + 100]))
    listed = [info.key for info in await opened.store.list("j/", kind="journal")]
    assert listed == sorted(keys)
    assert await opened.store.list_names("j/", kind="journal") == sorted(names)
    for name in names:
        here = [key for key in keys if key.startswith(f"j/{name}/")]
        assert [info.key for info in await opened.store.list(f"j/{name}/", kind="journal")] == here
        after = await opened.store.list(f"j/{name}/", kind="journal", after=here[count // 3])
        assert [info.key for info in after] == here[count // 3 + 1 :]


async def test_names_are_those_of_directories_alone(store: OpenStore) -> None:
    for key in ("d/a/1", "d/a/b/2", "d/c", "d/e-f/x", "e/g/y"):
        await store.put(key, b"", kind="index")
    assert await store.list_names("d/", kind="index") == ["a", "e-f"]
    assert await store.list_names("", kind="index") == ["d", "e"]
    assert await store.list_names("d/a/", kind="index") == ["b"]
    assert await store.list_names("nothing/", kind="index") == []


async def test_modified_is_unix_time(store: OpenStore) -> None:
    await store.put("a/b", b"x", kind="mail")
    (info,) = await store.list("a/", kind="mail")
    assert info.modified > 1_700_000_000


async def test_a_prefix_ends_with_a_slash(store: OpenStore) -> None:
    with pytest.raises(ValueError, match="prefix"):
        await store.list("a", kind="mail")


async def test_more_than_one_page_and_one_batch(store: OpenStore) -> None:
    keys = [f"many/{i:08x}" for i in range(1203)]
    for at in range(0, len(keys), 100):
        await asyncio.gather(*(store.put(key, b"", kind="mail") for key in keys[at : at + 100]))
    assert [info.key for info in await store.list("many/", kind="mail")] == keys
    assert [info.key for info in await store.list("many/", kind="mail", limit=1100)] == keys[:1100]
    assert [info.key for info in await store.list("many/", kind="mail", after=keys[900], limit=200)] == keys[901:1101]
    before = store.stats.snapshot()
    await store.delete([*keys[:-1], "many/nobody", "never/was/there"], kind="mail")
    assert store.stats.since(before).count("delete") - store.stats.since(before).errors("delete") == 2
    assert [info.key for info in await store.list("many/", kind="mail")] == keys[-1:]


async def test_delete_of_nothing_sends_nothing(store: OpenStore) -> None:
    before = store.stats.snapshot()
    await store.delete([], kind="mail")
    assert store.stats.since(before).count() == 0


async def test_copy_is_create_only(store: OpenStore) -> None:
    await store.put("a/source", b"data", kind="mail")
    await store.copy("a/source", "b/target", kind="mail")
    assert await store.get("b/target", kind="mail") == b"data"
    with pytest.raises(AlreadyExists):
        await store.copy("a/source", "b/target", kind="mail")


async def test_probe_leaves_nothing_and_copy_works_after_it(opened: Opened) -> None:
    store = opened.store
    await probe(store)
    assert await store.list("", kind="format") == []
    await store.put("a/source", b"data", kind="mail")
    before = store.stats.snapshot()
    await store.copy("a/source", "b/target", kind="mail")
    grown = store.stats.since(before)
    assert (grown.count("copy") - grown.errors("copy"), grown.count("get"), grown.count("put")) == (
        (1, 0, 0) if opened.copies_create_only else (0, 1, 1)
    )
    with pytest.raises(AlreadyExists):
        await store.copy("a/source", "b/target", kind="mail")


async def test_two_stores_see_one_bucket(opened: Opened) -> None:
    other = opened.again()
    await opened.store.put("a/b", b"x", kind="mail")
    assert await other.get("a/b", kind="mail") == b"x"
    assert [info.key for info in await other.list("", kind="mail")] == ["a/b"]


async def test_put_once_and_its_outcome(store: OpenStore) -> None:
    def encoded(fill: bytes) -> bytes:
        return b"obox\x01\x00\x01\x00" + bytes(8) + fill * 16 + bytes(100)

    ours, other = Oid(b"a" * 16), Oid(b"b" * 16)
    assert await put_once(store, "u/1", encoded(b"a"), ours, "mail")
    # The client repeats the PUT as if the first answer had been lost.
    assert await put_once(store, "u/1", encoded(b"a"), ours, "mail")
    assert not await put_once(store, "u/1", encoded(b"b"), other, "mail")
    assert await find_outcome(store, "u/1", ours, "mail") == "ours"
    assert await find_outcome(store, "u/1", other, "mail") == "other"
    assert await find_outcome(store, "u/2", ours, "mail") == "burnt"
    assert await find_outcome(store, "u/2", ours, "mail") == "burnt"
    assert not await put_once(store, "u/2", encoded(b"a"), ours, "mail")


async def test_counters_by_operation_and_kind(opened: Opened) -> None:
    if opened.faults is not None:
        opened.faults.plan = Plan()
    store = opened.store
    await store.put("a/1", b"12345", kind="mail")
    await store.put("a/2", b"123", kind="index")
    with pytest.raises(AlreadyExists):
        await store.put("a/2", b"123", kind="index")
    before = store.stats.snapshot()
    await store.get("a/1", kind="mail", end=2)
    await store.list("a/", kind="fts")
    await store.delete(["a/1", "a/2"], kind="mail")
    assert store.stats.count(op="put", kind="mail") == 1
    assert store.stats.count(op="put", kind="index") == 2
    assert store.stats.count(op="put") == 3
    assert store.stats.bytes(op="put") == 11
    assert store.stats.errors() == 0
    since = store.stats.since(before)
    assert since.requests() == {("get", "mail"): 1, ("list", "fts"): 1, ("delete", "mail"): 1}
    assert since.bytes("get") == 2
    assert sum(before["put", "index"].buckets) == 2


async def test_replace(opened: Opened) -> None:
    """The object is replaced as a whole, also while others read it. Only its bytes
    change."""
    store, other = opened.store, opened.again()
    await store.put("a/b", b"first" * 50_000, kind="mail")
    await store.put("a/c", b"c", kind="mail")
    versions = {b"first" * 50_000, b"other" * 50_000, b"again" * 50_000}

    async def read() -> set[bytes]:
        return {await other.get("a/b", kind="mail") for _ in range(8)}

    async def write() -> None:
        for data in sorted(versions)[:2]:
            await store.replace("a/b", data, kind="mail")

    seen, _ = await asyncio.gather(read(), write())
    assert seen <= versions
    await store.replace("a/b", b"last", kind="mail")
    assert await other.get("a/b", kind="mail") == b"last"
    assert [(info.key, info.size) for info in await other.list("a/", kind="mail")] == [("a/b", 4), ("a/c", 1)]
    with pytest.raises(AlreadyExists):
        await store.put("a/b", b"new", kind="mail")
