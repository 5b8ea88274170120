"""A mailbox that must be loaded, although nobody waits for it, is loaded until that
succeeds."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from machines import Machine, uids
from mails import simple
from patience import PATIENT_S

from obox.errors import Corrupt, Unavailable
from obox.store import NewMail
from obox.store.jobs import Job
from obox.store.user import discover
from obox.store.user.mailbox import Mailbox
from obox.store.user.unload import unload_idle


@pytest.mark.parametrize("error", [Corrupt("poisoned"), Unavailable("the bucket does not answer")])
async def test_a_mailbox_whose_holders_wait_is_loaded_again_and_named(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """A LIST has found copies of its mails, while it was not in memory."""
    plain, failing = discover.load, True

    async def load(box: Mailbox, infos: Any, pending: list[bytes]) -> None:
        if failing and box.guid == home:
            raise error
        await plain(box, infos, pending)

    async with machine.run(kill=True) as life:
        user = await life.user("anna")
        await user.append("INBOX", [NewMail(simple(1))])
        source, jobs = await user.select("INBOX"), life.store.upkeep.jobs
        await user.copy(source, uids(1), "Archive")
        home, target = source.guid, await user.select("Archive")
        await source.release()
        await user.flush(everything=True)
        unload_idle(user, life.store.env.clock() + 1.0)
        assert home not in user.boxes
        monkeypatch.setattr(discover, "load", load)
        edit = user.edit()
        user.hold(edit, target.guid, target.state.rows())
        life.store.log.stage(edit)
        async with asyncio.timeout(PATIENT_S):
            while Job("load", "anna", home) not in jobs.failing:  # noqa: ASYNC110 - no event says it
                await asyncio.sleep(0.001)
        assert (jobs.failing[Job("load", "anna", home)].error, user.opening()) == (str(error), True)
        failing = False
        async with asyncio.timeout(PATIENT_S):
            while user.opening():
                life.time.move(1.0)
                await asyncio.sleep(0.001)
        assert not jobs.failing
        assert (await user.box(home)).state.holders
        await target.release()
