"""`force-resync` and `rebuild` after somebody has deleted and damaged objects without
the backend's knowledge; `metacache boots`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from adminservice import Service, mail

from metacache import Change
from obox.mailbox import Delta
from obox.mailbox.invariants import check
from obox.types import StorageId

ANNA = "anna@example.org"
Start = Callable[..., Any]


async def uids(service: Service, *query: str) -> list[int]:
    return [row["uid"] for row in await service.call("search", user=ANNA, query=list(query))]


async def guid_of(service: Service, name: str) -> str:
    return str((await service.call("mailboxStatus", user=ANNA, mailboxMask=[name]))[0]["guid"])


def files(tmp_path: Path, part: str) -> list[Path]:
    return sorted(path for path in (tmp_path / "bucket").rglob("*") if path.is_file() and part in str(path))


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0xFF
    path.chmod(0o600)
    path.write_bytes(bytes(data))


async def test_lost_mails(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(n) for n in range(1, 6)])
        await service.call("copy", user=ANNA, destinationMailbox="Archive", query=["MAILBOX", "INBOX", "UID", "2"])
        guid = await guid_of(service, "INBOX")
        for name in ("00000002", "00000004"):
            (path,) = files(tmp_path, f"{guid}/{name}")
            path.unlink()
        (row,) = await service.call("forceResync", user=ANNA, mailboxMask=["INBOX"], keepLost=True)
        assert row == {"mailbox": "INBOX", "mails": 5, "new": 0, "lost": 2, "dropped": 0, "unknown": 0, "uidnext": 6}
        rows = await service.call("forceResync", user=ANNA, mailboxMask=["*"])
        found = {row["mailbox"]: (row["mails"], row["lost"], row["dropped"]) for row in rows}
        assert found["INBOX"] == (3, 2, 2)
        assert found["Archive"] == (0, 1, 1)
        assert await uids(service, "MAILBOX", "INBOX", "ALL") == [1, 3, 5]


async def test_uids_are_skipped_after_a_restore(start: Start, tmp_path: Path) -> None:
    """A client has seen UIDs that a restored bucket does not know. After `--skip-uids`
    no new mail gets one of these UIDs."""
    async with start() as service:
        await service.deliver(ANNA, [mail(1), mail(2)])
        await service.call("metacacheFlush", user=ANNA)
        shutil.copytree(tmp_path / "bucket", tmp_path / "backup")
        await service.deliver(ANNA, [mail(3), mail(4)])
        assert await uids(service, "MAILBOX", "INBOX", "ALL") == [1, 2, 3, 4]
    shutil.rmtree(tmp_path / "bucket")
    shutil.copytree(tmp_path / "backup", tmp_path / "bucket")
    async with start("second") as service:
        code, text = await service.fails("forceResync", user=ANNA, mailboxMask=["INBOX"], skipUids=1_000_001)
        assert code == 65
        assert "1000000" in text
        rows = await service.call("forceResync", user=ANNA, mailboxMask=["*"], skipUids=1000)
        assert {row["mailbox"]: row["uidnext"] for row in rows}["INBOX"] == 1003
        assert {row["uidnext"] for row in rows} == {1003, 1001}
        await service.deliver(ANNA, [mail(5)])
        assert await uids(service, "MAILBOX", "INBOX", "ALL") == [1, 2, 1003]
    # The third backend has no local copies. Until a flush only the object of the claim
    # records that UIDs were skipped.
    async with start("third") as service:
        await service.deliver(ANNA, [mail(6)])
        assert await uids(service, "MAILBOX", "INBOX", "ALL") == [1, 2, 1003, 1004]
        (row,) = await service.call("forceResync", user=ANNA, mailboxMask=["INBOX"])
        assert row == {"mailbox": "INBOX", "mails": 4, "new": 0, "lost": 0, "dropped": 0, "unknown": 0, "uidnext": 1005}


async def test_no_more_uids_are_skipped_than_there_are(start: Start) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1)])
        store = service.backend.parts.store
        user = await store.load_user(ANNA, StorageId(ANNA))
        box = await user.box(user.entry("INBOX").guid)
        box.apply(Delta(uidnext=2**32 - 10), Change.IMPORTANT)
        code, text = await service.fails("forceResync", user=ANNA, mailboxMask=["INBOX"], skipUids=100)
        assert code != 0
        assert "4294967286" in text
        assert await uids(service, "MAILBOX", "INBOX", "ALL") == [1]


async def test_a_lost_mail_is_shown_with_nothing_in_it(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1), mail(2)])
        await service.call("metacacheFlush", user=ANNA)
        guid = await guid_of(service, "INBOX")
    (path,) = files(tmp_path, f"/m/{guid}/00000001")
    path.unlink()
    async with start("second") as service:
        rows = await service.call("fetch", user=ANNA, field=["uid", "text", "hdr.subject"], query=["MAILBOX", "INBOX"])
        assert [row["uid"] for row in rows] == [1, 2]
        assert rows[0]["text"] == ""
        assert rows[1]["text"] == mail(2).decode()
        assert await uids(service, "MAILBOX", "INBOX", "BODY", "x") == [2]


async def test_another_backends_mails_are_found(start: Start) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1)])
        guid = await guid_of(service, "INBOX")
        env = service.backend.parts.store.env
        from obox.objectstore.codec import ObjectKind
        from obox.objectstore.keys import mail_key, owner_of
        from obox.store.mails.meta import MailMeta
        from obox.types import Guid, StorageId, Uid

        source = mail(2)
        meta = MailMeta(guid, 2, len(source), 1700000000, 0, env.now_ms())
        key = mail_key(StorageId(ANNA), Guid(guid), Uid(2))
        data = env.codec.encode(ObjectKind.MAIL, owner_of(key), env.new_oid(), meta.encode(), source)
        await env.bucket.put(key, data, kind="mail")
        (row,) = await service.call("forceResync", user=ANNA, mailboxMask=["INBOX"])
        assert (row["mails"], row["new"], row["lost"]) == (2, 1, 0)
        assert await uids(service, "MAILBOX", "INBOX", "ALL") == [1, 2]


async def test_rebuild_a_damaged_mailbox(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(n) for n in range(1, 6)], "INBOX", "\\Flagged")
        await service.call("flagsAdd", user=ANNA, flag=["\\Seen"], query=["MAILBOX", "INBOX", "ALL"])
        await service.call("expunge", user=ANNA, query=["MAILBOX", "INBOX", "UID", "5"])
        await service.call("copy", user=ANNA, destinationMailbox="Archive", query=["MAILBOX", "INBOX", "UID", "1:2"])
        await service.call("metacacheFlush", user=ANNA)
        before = (await service.call("mailboxStatus", user=ANNA, mailboxMask=["INBOX"]))[0]
    for path in files(tmp_path, f"/x/{before['guid']}/"):
        damage(path)
    async with start("second") as service:
        assert (await service.fails("search", user=ANNA, query=["MAILBOX", "INBOX", "ALL"]))[0] == 70
        assert await uids(service, "MAILBOX", "Archive", "ALL") == [1, 2]
        (row,) = await service.call("rebuild", user=ANNA)
        assert (row["mailbox"], row["mails"]) == ("INBOX", 5)
        assert "flags" in row["unknown"]
        assert await uids(service, "MAILBOX", "INBOX", "FLAGGED") == [1, 2, 3, 4, 5]
        after = (await service.call("mailboxStatus", user=ANNA, mailboxMask=["INBOX"]))[0]
        assert after["uidvalidity"] == before["uidvalidity"]
        assert after["uidnext"] >= before["uidnext"]
        assert after["highestmodseq"] >= before["highestmodseq"]
        box = service.backend.parts.store.users[ANNA].boxes[before["guid"]]
        check(box.state)
        assert box.state.holders.needed().tolist() == [1, 2], "the copies in Archive still need these objects"
        assert await service.call("rebuild", user=ANNA) == []
        await service.call("expunge", user=ANNA, query=["MAILBOX", "INBOX", "UID", "5"])
    # The bucket alone still has this state.
    async with start("third") as service:
        assert await uids(service, "MAILBOX", "INBOX", "ALL") == [1, 2, 3, 4]
        (row,) = await service.call("fetch", user=ANNA, field=["body"], query=["MAILBOX", "Archive", "UID", "2"])
        assert row["body"] == "text 2\r\n"


async def test_rebuild_a_lost_list_of_mailboxes(start: Start, tmp_path: Path) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1), mail(2)])
        await service.call("mailboxCreate", user=ANNA, mailbox=["Work"])
        await service.deliver(ANNA, [mail(3)], "Work")
        work = await guid_of(service, "Work")
        await service.call("metacacheFlush", user=ANNA)
    for path in files(tmp_path, "/x/root/"):
        damage(path)
    async with start("second") as service:
        assert (await service.fails("mailboxList", user=ANNA))[0] == 70
        rows = await service.call("rebuild", user=ANNA)
        assert rows[0]["result"] == "list of mailboxes rebuilt"
        assert "names" in rows[0]["unknown"]
        found = {row["mailbox"]: row["mails"] for row in rows[1:]}
        assert sorted(found.values()) == [1, 2]
        name = f"recovered-lost-folder-{work[:8]}"
        assert found[name] == 1
        assert await uids(service, "MAILBOX", name, "ALL") == [1]
        assert await uids(service, "MAILBOX", "INBOX", "ALL") == []
        assert await service.call("rebuild", user=ANNA) == []


async def test_rebuild_what_is_named(service: Service) -> None:
    await service.deliver(ANNA, [mail(1), mail(2)])
    await service.call("flagsAdd", user=ANNA, flag=["\\Seen"], query=["MAILBOX", "INBOX", "ALL"])
    assert await service.call("rebuild", user=ANNA) == []
    (row,) = await service.call("rebuild", user=ANNA, mailboxMask=["INBOX"])
    assert (row["mails"], row["result"]) == (2, "rebuilt")
    assert await uids(service, "MAILBOX", "INBOX", "SEEN") == []


async def test_a_rebuild_says_before_it_begins_what_is_not_there(service: Service) -> None:
    await service.deliver(ANNA, [mail(1)])
    rows = await service.call("rebuild", user=ANNA, mailboxMask=["INBOX", "nosuch"], dryRun=True)
    assert [(row["mailbox"], row["result"]) for row in rows[:2]] == [
        ("INBOX", "would be rebuilt"),
        ("nosuch", "no such mailbox"),
    ]


async def test_boots(start: Start) -> None:
    async with start() as service:
        (row,) = await service.call("metacacheBoots")
        assert (row["copies"], row["before"], row["ended"]) == ("none", "unknown", None)
        await service.deliver(ANNA, [mail(1)])
    async with start() as service:
        first, second = await service.call("metacacheBoots")
        assert first["ended"] >= first["began"]
        assert (second["copies"], second["before"]) == ("kept", "clean")


async def test_fscache_rescan(start: Start) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1), mail(2)])
        await service.backend.parts.fscache.flush()
        (row,) = await service.call("fscacheRescan")
        assert (row["files"], row["right"]) == (2, True)
        (row,) = await service.call("fscacheRescan", maxAge=0)
        assert row["files"] == 2
