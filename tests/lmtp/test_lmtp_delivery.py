"""The deliverer that a backend uses, on the store in memory."""

from __future__ import annotations

from pathlib import Path

from lmtp_harness import MAIL, serving

from obox.accounts import UNLIMITED, Account, Quota, storage_id
from obox.lmtp.delivery import StoreDeliverer
from obox.store.memory import MemoryStore


class Users:
    """A user database of three users. The mailboxes of bob have room for ten bytes."""

    async def account(self, user: str) -> Account | None:
        name = user.partition("@")[0]
        quota = Quota(storage_bytes=10) if name == "bob" else UNLIMITED
        return Account(name, storage_id(name), quota) if name in ("anna", "bob", "carl") else None


async def test_each_of_three_recipients_has_its_own_reply_and_mail(tmp_path: Path) -> None:
    store = MemoryStore()
    async with serving(tmp_path, StoreDeliverer(store, Users(), mail_bytes_max=1 << 20)) as world:
        client = await world.connect()
        client.write(b"MAIL FROM:<a@b>\r\n" + b"".join(b"RCPT TO:<%s@d>\r\n" % n for n in (b"anna", b"bob", b"carl")))
        client.write(b"DATA\r\n")
        replies = await client.replies(5)
        assert [reply[:9] for reply in replies] == ["250 2.1.0", *["250 2.1.5"] * 3, "354 OK, e"]
        client.write(MAIL + b".\r\n")
        replies = await client.replies(3)
        assert [reply[:9] for reply in replies] == ["250 2.0.0", "552 5.2.2", "250 2.0.0"]
        assert (await client.say("RCPT TO:<eve@d>")).startswith("503")
    for name, count in (("anna", 1), ("bob", 0), ("carl", 1)):
        user = await store.open_user(name, storage_id(name))
        box = await user.select("INBOX")
        assert box.totals().messages == count
        if count:
            mail = await box.mail(1)
            assert mail.endswith(MAIL)
            header = mail.removesuffix(MAIL).decode()
            assert "Return-Path: <a@b>\r\n" in header
            assert f"Delivered-To: {name}@d\r\n" in header
