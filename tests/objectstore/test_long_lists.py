"""A LIST of very many objects holds the loop in no turn: also in a bucket that others
use too, and from a store that has an order of its own. So does a very large object."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from obstore.store import MemoryStore
from turns import turns

from obox.objectstore import Driver, ObjectInfo, Settings, open_store

MAILS = 150_000
PREFIX = "site/9d/u0/m/0123456789abcdef0123456789abcdef/"


def shuffled() -> Driver:
    """Return a bucket that lists its objects in no order."""
    rows = [ObjectInfo(f"{PREFIX}{uid:08x}", 3000, 1e9 + uid) for uid in range(1, MAILS + 1)]
    random.Random(5).shuffle(rows)
    driver: Any = open_store(Settings("memory://")).driver

    class Shuffled(type(driver.inner)):
        async def list_page(self, prefix: str, *, after: str, limit: int, cursor: Any = None, **how: Any) -> Any:
            await asyncio.sleep(0)
            last = await super().list_page("none/", after=after, limit=limit, **how)
            at = cursor or 0
            return last._replace(items=rows[at : at + limit], next=at + limit if at + limit < MAILS else None)

    made: Driver = Shuffled()
    return made


async def test_it_is_sorted_and_cut_in_turns() -> None:
    settings = Settings("s3://bucket/site", access_key_id="a", secret_access_key="b", region="r")
    store = open_store(settings, driver=shuffled())
    with turns() as found:
        listed = await store.list(PREFIX.removeprefix("site/"), kind="mail")
    assert [int(info.key.rsplit("/", 1)[1], 16) for info in listed] == list(range(1, MAILS + 1))
    assert listed[0].key == PREFIX.removeprefix("site/") + "00000001"
    found.check()


async def test_a_very_large_object_is_copied_in_turns() -> None:
    body = random.Random(5).randbytes(1 << 20) * 160
    cloud: Any = open_store(Settings("gs://bucket")).driver
    driver = type(cloud.inner)(MemoryStore(), create_only=True, copies_create_only=True, connections_max=2)
    await driver.put("key", body, kind="index")
    with turns() as found:
        got = await asyncio.create_task(driver.get("key", kind="index"))
    assert type(got) is bytes
    assert got == body
    found.check(held=False)
