"""PUTs of mails that get no answer, and what waits for them."""

from __future__ import annotations

import asyncio

from .test_scenarios import INBOX, Stage, key_of, scene

HUNG_ATTEMPTS = 10
"""Attempts of a PUT within its deadline of 10 s, while no request is answered."""


def test_hung_put_burns_its_uid() -> None:
    """A PUT that hangs delays others at most until its deadline. The mail is then
    delivered under another UID."""

    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        # The second attempt, which starts after half of the deadline, hangs as well.
        stage.fail("put", key_of(inbox, 5), "hang", times=2)
        first = asyncio.ensure_future(player.append(node, INBOX, inbox))
        await asyncio.sleep(0.1)
        began = stage.world.clock()
        assert await player.append(node, INBOX, inbox) == [6]
        assert stage.world.clock() - began < 11
        assert await first == [7]
        assert not stage.world.memory.objects[key_of(inbox, 5)][0]
        await player.finish([node])

    scene(work, batches=False)


def test_who_waits_for_a_hung_put_shares_the_next_object() -> None:
    """While no request is answered, the PUT is tried again and again until its
    deadline. Then its UID is burnt. What came meanwhile is written before the mail that
    was lost, because that mail waits again."""

    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        stage.fail("put", key_of(inbox, 5), "hang", times=HUNG_ATTEMPTS)
        first = asyncio.ensure_future(player.append(node, INBOX, inbox))
        await asyncio.sleep(0.1)
        began = stage.world.clock()
        later = [asyncio.ensure_future(player.append(node, INBOX, inbox)) for _ in range(3)]
        assert [await one for one in later] == [[6], [7], [8]]
        assert stage.world.clock() - began < 12
        assert await first == [9]
        assert not stage.world.memory.objects[key_of(inbox, 5)][0]
        assert key_of(inbox, 7) not in stage.world.memory.objects, "it lies in the batch of UID 6"
        await player.finish([node])

    scene(work)


def test_a_put_that_hangs_once_is_made_again_under_its_uid() -> None:
    async def work(stage: Stage) -> None:
        player, node = stage.player, await stage.begin()
        inbox = stage.guids[INBOX]
        stage.fail("put", key_of(inbox, 5), "hang")
        began = stage.world.clock()
        assert await player.append(node, INBOX, inbox) == [5]
        assert stage.world.clock() - began < 6
        await player.finish([node])

    scene(work)
