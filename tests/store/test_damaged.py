"""LIST finds a mail that does not decode. The store skips it, and never deletes it."""

from __future__ import annotations

from machines import Machine

from obox.objectstore.keys import mail_key
from obox.store import NewMail
from obox.store.user.flush import sweep
from obox.types import Uid

MAIL = b"Subject: x\r\n\r\nbody\r\n"


async def test_a_damaged_mail_is_left_alone(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(MAIL)])
        box = await user.select("INBOX")
        key = mail_key(user.storage_id, box.guid, Uid(2))
        await life.store.env.bucket.put(key, b"no object of ours", kind="mail")
        appended = await user.append("INBOX", [NewMail(MAIL)])
        assert appended.uids == [3]
        assert box.state.uids.tolist() == [1, 3]
        await box.flush(everything=True)
        await life.let_pass(3 * 86400)
        await sweep(box)
        assert await life.store.env.bucket.get(key, kind="mail") == b"no object of ours"
        await box.release()
