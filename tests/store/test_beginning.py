"""A client opens a user before the store has started. The open waits for the start, for
a bounded time, and only a bounded number of opens may wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from machines import SID, Life, Machine
from patience import PATIENT_S

from obox.errors import Unavailable
from obox.store.backend import beginning as _beginning
from obox.store.backend import store


@pytest.fixture
def takeover(monkeypatch: pytest.MonkeyPatch) -> asyncio.Event:
    """Delay the takeover until this event is set."""
    gate, real = asyncio.Event(), store.take_over

    async def slow(*given: Any) -> Any:
        await gate.wait()
        return await real(*given)

    monkeypatch.setattr(store, "take_over", slow)
    return gate


async def turns() -> None:
    """Let all tasks run that can run."""
    for _ in range(50):
        await asyncio.sleep(0)


async def test_an_opening_waits_for_the_start(machine: Machine, takeover: asyncio.Event) -> None:
    async with machine.run(start=False) as life:
        starting = asyncio.ensure_future(life.store.start())
        opening = asyncio.ensure_future(life.user())
        loading = asyncio.ensure_future(life.store.load_user("ben", SID, make=True))
        await turns()
        assert not opening.done()
        assert not loading.done()
        takeover.set()
        await starting
        assert (await opening).name == "anna"
        await loading
        assert life.store.beginning.waiting == 0


async def test_it_waits_no_longer_than_for_its_user(
    machine: Machine, takeover: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with machine.run(start=False) as life:
        starting = asyncio.ensure_future(life.store.start())
        with monkeypatch.context() as patch:
            patch.setattr(store, "OPEN_S", 0.05)
            for opening in (life.user(), life.store.load_user("anna", SID)):
                with pytest.raises(Unavailable, match="does not answer"):
                    await opening
        assert life.store.beginning.waiting == 0
        takeover.set()
        await starting
        await life.user()


async def test_few_enough_wait(machine: Machine, takeover: asyncio.Event, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_beginning, "WAITING_MAX", 3)
    async with machine.run(start=False) as life:
        starting = asyncio.ensure_future(life.store.start())
        waiting = [asyncio.ensure_future(life.user()) for _ in range(3)]
        await turns()
        with pytest.raises(Unavailable):
            await life.user()
        # A client that has gone makes room for another client.
        waiting.pop().cancel()
        await turns()
        waiting.append(asyncio.ensure_future(life.user()))
        await turns()
        takeover.set()
        await asyncio.gather(starting, *waiting)


async def test_a_stop_ends_the_waiting(
    machine: Machine, takeover: asyncio.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "OPEN_S", 10 * PATIENT_S)
    async with machine.run(start=False) as life:
        starting = asyncio.ensure_future(life.store.start())
        opening = asyncio.ensure_future(life.user())
        await turns()
        await life.store.close()
        await refused(opening, life)
        starting.cancel()


async def refused(opening: asyncio.Future[Any], life: Life) -> None:
    """Assert that this open and the next open are refused without waiting."""
    async with asyncio.timeout(PATIENT_S):
        with pytest.raises(Unavailable):
            await opening
        with pytest.raises(Unavailable):
            await life.user()
