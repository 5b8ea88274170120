"""`storage upgrade` and `storage finish-upgrade` as the API runs them.
tests/store/test_old_envelopes.py tests what they do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import version1
from adminservice import mail

from obox.objectstore.keys import mail_key, user_prefix
from obox.store.mails.meta import MailMeta
from obox.types import Guid, StorageId, Uid

ANNA = "anna@example.org"
BEN = "ben@example.org"
SID = StorageId(ANNA)


async def test_upgrade_and_finish(start: Callable[..., Any]) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1), mail(2)])
        env = service.backend.parts.store.env
        env.codec.major_min = 1
        (found,) = await service.call("mailboxStatus", user=ANNA, mailboxMask=["INBOX"], field=["guid"])
        key = mail_key(SID, Guid(found["guid"]), Uid(3))
        meta = MailMeta(found["guid"], 3, len(mail(3)), 1, 0, 1)
        await env.bucket.put(key, version1.encode(1, bytes(16), meta.encode(), mail(3)), kind="mail")
        (row,) = await service.call("storageUpgrade", user=ANNA, dryRun=True)
        assert (row["outdated"], row["upgraded"]) == (1, 0)
        code, message = await service.fails("storageFinishUpgrade")
        assert (code, "outdated" in message) == (65, True)
        rows = await service.call("storageUpgrade", allUsers=True, rate=10_000)
        assert {row["username"]: (row["outdated"], row["upgraded"]) for row in rows if row["upgraded"]} == {
            ANNA: (1, 1)
        }
        (row,) = await service.call("storageFinishUpgrade")
        assert (row["what"], row["outdated"]) == ("bucket", 0)
        assert env.codec.major_min == 2


async def test_a_user_who_is_there_takes_over_no_copy(start: Callable[..., Any]) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1)])
        assert (await service.fails("storageUpgrade", user=ANNA, copiedFrom=BEN))[0] == 75
        assert (await service.fails("storageUpgrade", user=BEN, copiedFrom="no/sid"))[0] == 65
        env = service.backend.parts.store.env
        for info in await env.listing(user_prefix(SID), kind="mail"):
            data = await env.get(info.key, kind="mail")
            await env.bucket.put(user_prefix(StorageId(BEN)) + info.key.split("/", 2)[2], data or b"", kind="mail")
        assert (await service.fails("mailboxStatus", user=BEN, mailboxMask=["*"], field=["messages"]))[0] == 70
        (row,) = await service.call("storageUpgrade", user=BEN, copiedFrom=ANNA)
        assert row["upgraded"] == row["objects"] > 0
        rows = await service.call("mailboxStatus", user=BEN, mailboxMask=["INBOX"], field=["messages"])
        assert [row["messages"] for row in rows] == [1]
