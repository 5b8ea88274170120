"""A writer of batches finds another writer of the same mailbox. tests/sim/test_fair.py
shows that both make progress then."""

from __future__ import annotations

import asyncio

import pytest
from machines import SID, Machine, uids
from mails import simple

from obox.objectstore.keys import mail_key
from obox.store import NewMail
from obox.store.box.slots import YIELD_S
from obox.store.mails.beside import LOOK_BATCHES
from obox.types import Uid


@pytest.mark.parametrize("other", [False, True])
async def test_a_writer_of_batches_looks_for_another_writer(machine: Machine, other: bool) -> None:
    """Beside batches that follow each other, one LIST is made. Our own claims and
    single mails are no other writer's."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(simple(0))])
        box = await user.select("INBOX")
        with life.counting() as requests:
            for number in range(LOOK_BATCHES + 10):
                life.time.move(0.1)
                await user.append("INBOX", [NewMail(b"%d" % number), NewMail(b"%d" % number)])
                if number == 5:
                    await user.copy(box, uids(1, 2), "INBOX")
                    await user.append("INBOX", [NewMail(simple(0))])
                if other and number == 7:
                    key = mail_key(SID, box.guid, Uid(box.state.uidnext + 1))
                    await life.store.env.bucket.put(key, b"", kind="mail")
            await asyncio.sleep(0.05)
        assert len(box.state) == 1 + 2 + 1 + 2 * (LOOK_BATCHES + 10)
        assert (requests.count("list", "mail") > 1) == other
        assert not other or requests.count("list", "mail") < 20
        await asyncio.sleep(YIELD_S)
        life.time.move(YIELD_S)
        with life.counting() as requests:
            await user.append("INBOX", [NewMail(simple(1))])
        assert requests.count("list", "mail") == 0
        await box.release()
