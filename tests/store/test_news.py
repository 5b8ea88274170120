"""News between two backends that both serve a user, over a real NATS: a session of one
sees a delivery at the other at once, and nothing depends on it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
from machines import Life, Machine
from owners import MAIL, Member, Rows
from servers import NatsServer, nats  # noqa: F401 - a fixture

from obox.events.nats import NatsBus
from obox.events.news import News
from obox.store import Mailbox


@asynccontextmanager
async def serving(machine: Machine, rows: Rows, url: str) -> AsyncIterator[tuple[Member, Life, News]]:
    """Run a backend that serves anna, even if another one does."""
    one = Member(rows, machine.settings.backend)
    async with machine.run(start=False, cluster=one) as life:
        one.life = life
        news = News(life.store, lambda news: NatsBus(url, machine.settings.backend, news))
        await life.store.start()
        news.begin()
        await one.gain("anna")
        try:
            yield one, life, news
        finally:
            await news.close()
            await one.kick(list(life.store.users))


async def until(reached: Callable[[], Any], limit_s: float = 20.0) -> None:
    async with asyncio.timeout(limit_s):
        while not reached():  # noqa: ASYNC110 - a session has no event for it
            await asyncio.sleep(0.002)


def _has(box: Mailbox, uid: int) -> bool:
    return uid in box.state.uids.tolist()


async def connected(*news: News) -> None:
    await until(lambda: all(one.is_up() for one in news))


async def test_a_delivery_at_one_backend_is_seen_at_the_other(
    machine: Machine,
    other: Machine,
    rows: Rows,
    nats: NatsServer,  # noqa: F811 - the fixture
) -> None:
    async with serving(machine, rows, nats.url) as (_, first, one), serving(other, rows, nats.url) as (_, second, two):
        await connected(one, two)
        box = await (await first.user()).select("INBOX")
        woken = asyncio.Event()
        box.watch(woken.set)
        writer = await second.user()
        await writer.append("INBOX", [MAIL])
        await until(lambda: 1 in box.state.uids.tolist())
        for uid in range(2, 12):
            woken.clear()
            await writer.append("INBOX", [MAIL])
            await until(partial(_has, box, uid))
            assert woken.is_set()
        assert sorted(box.state.uids.tolist()) == list(range(1, 12))
        assert two.figures()["published_total"] >= 10
        assert one.figures()["heard_total"] >= 10


async def test_nats_is_killed_and_restarted_and_nobody_gets_an_error(
    machine: Machine,
    other: Machine,
    rows: Rows,
    nats: NatsServer,  # noqa: F811 - the fixture
) -> None:
    """Both go on without it. When it is back, the sessions catch up by themselves."""
    async with serving(machine, rows, nats.url) as (_, first, one), serving(other, rows, nats.url) as (_, second, two):
        await connected(one, two)
        box = await (await first.user()).select("INBOX")
        writer = await second.user()
        await writer.append("INBOX", [MAIL])
        await until(lambda: len(box.state.uids) == 1)
        nats.kill()
        await until(lambda: not one.is_up() and not two.is_up())
        for _ in range(5):
            await writer.append("INBOX", [MAIL])
        assert len(box.state.uids) == 1, "there are no news"
        nats.start()
        await until(lambda: len(box.state.uids) == 6)
        await connected(one, two)
        await writer.append("INBOX", [MAIL])
        await until(lambda: len(box.state.uids) == 7)


async def test_a_backend_starts_without_the_bus(
    machine: Machine,
    rows: Rows,
    nats: NatsServer,  # noqa: F811 - the fixture
) -> None:
    nats.kill()
    async with serving(machine, rows, nats.url) as (_, life, news):
        user = await life.user()
        await user.append("INBOX", [MAIL])
        assert len((await user.select("INBOX")).state.uids) == 1
        assert not news.is_up()
        nats.start()
        await connected(news)


async def test_news_of_a_mailbox_that_left_memory_are_not_heard(
    machine: Machine,
    rows: Rows,
    nats: NatsServer,  # noqa: F811 - the fixture
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from obox.events import news as module

    monkeypatch.setattr(module, "TIDY_S", 0.01)
    async with serving(machine, rows, nats.url) as (_, life, news):
        await connected(news)
        user = await life.user()
        box = await user.select("INBOX")
        await until(lambda: news.figures()["registered"] == 1)
        await box.release()
        del user.boxes[box.guid]
        await until(lambda: news.figures()["registered"] == 0)
