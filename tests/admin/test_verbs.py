"""Each verb, run against a backend in the process of the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adminservice import Service, mail
from patience import PATIENT_S
from structlog.testing import capture_logs

from obox import mime
from obox.admin import TABLE
from obox.store import NewMail
from obox.types import StorageId

ANNA = "anna@example.org"
BEN = "ben@example.org"


class Client:
    """An IMAP session with the few commands that these tests need."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def login(cls, service: Service, user: str = ANNA) -> Client:
        one = cls(*await asyncio.open_connection("127.0.0.1", service.imap_port()))
        await one.reader.readline()
        await one.ask(f"LOGIN {user} secret")
        return one

    async def ask(self, command: str) -> list[str]:
        self.writer.write(f"t {command}\r\n".encode())
        lines = []
        while not (line := (await self.reader.readline()).decode()).startswith("t "):
            assert line, "closed"
            lines.append(line)
        assert line.startswith("t OK"), line
        return lines

    async def rest(self) -> str:
        return (await asyncio.wait_for(self.reader.read(), PATIENT_S)).decode()


# -- sessions ----------------------------------------------------------------------------------------------------------


async def test_who_and_kick(service: Service) -> None:
    assert await service.call("who") == []
    first, second = await Client.login(service), await Client.login(service)
    other = await Client.login(service, BEN)
    await first.ask("SELECT INBOX")
    rows = await service.call("who")
    assert rows[0] == {"username": ANNA, "connections": 2, "service": "imap", "ips": "127.0.0.1"}
    assert [row["username"] for row in rows] == [ANNA, BEN]
    assert await service.call("who", mask="ben*") == rows[1:]
    assert await service.call("who", ip="127.0.0.0/8") == rows
    assert await service.call("who", ip="10.0.0.0/8") == []
    assert (await service.fails("who", ip="nowhere"))[0] == 65
    each = await service.call("who", separateConnections=True, mask="anna*")
    assert [row["mailbox"] for row in each] == ["INBOX", ""]
    assert (await service.fails("kick"))[0] == 65
    assert (await service.fails("kick", user="zoe"))[0] == 68
    assert await service.call("kick", user="anna*") == [{"username": ANNA, "connections": 2}]
    assert "* BYE" in await first.rest()
    assert "* BYE" in await second.rest()
    await other.ask("NOOP")
    assert await service.call("kick", ip="127.0.0.1") == [{"username": BEN, "connections": 1}]


async def test_reload_reports_what_is_wrong(service: Service) -> None:
    assert await service.call("reload") == []
    file = service.backend.parts.config.file
    assert file is not None
    file.write_text(file.read_text() + "\n[imap2]\n")
    code, message = await service.fails("reload")
    assert code == 78
    assert "imap2" in message


async def test_auth_test(service: Service) -> None:
    row = (await service.call("authTest", user="Anna@Example.org", password="secret"))[0]
    assert row == {"username": ANNA, "storage_id": ANNA, "quota_bytes": 1 << 20}
    assert (await service.fails("authTest", user=ANNA, password="other"))[0] == 77
    assert (await service.fails("authTest", user="eve@other.org", password="secret"))[0] == 77


async def test_log_errors(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from obox.server import log

    monkeypatch.setattr(log, "recent", type(log.recent)(maxlen=2))
    for number, level in enumerate(("info", "warning", "error", "error")):
        when = f"2026-01-0{number + 1}T00:00:00Z"
        log.remember(None, "", {"event": f"event {number}", "level": level, "timestamp": when, "n": 1})
    rows = await service.call("logErrors")
    assert [(row["type"], row["text"]) for row in rows] == [("error", "event 2 n=1"), ("error", "event 3 n=1")]
    assert len(await service.call("logErrors", limit=1)) == 1
    assert len(await service.call("logErrors", since=1767484800 - 3600)) == 1


async def test_stop_in_order(start: Callable[..., Any]) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1)])
        client = await Client.login(service)
        await client.ask("SELECT INBOX")
        await client.ask("STORE 1 +FLAGS (\\Flagged)")
        rows = await service.call("stop", timeLimit=20)
        assert [row["step"] for row in rows] == [
            "flush", "stop logins", "kick", "flush", "wait", "kick", "flush", "end"
        ]  # fmt: skip
        assert [row["count"] for row in rows][:3] == [1, 0, 1]
        assert "* BYE" in await client.rest()
        async with asyncio.timeout(PATIENT_S):
            while not service.backend.lifecycle.draining:  # noqa: ASYNC110 - it has no event
                await asyncio.sleep(0.01)


async def test_stop_within_its_time(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    from obox.admin import sessions

    async def slow(admin: Any) -> int:
        await asyncio.sleep(60)
        return 0

    monkeypatch.setattr(sessions, "flush_important", slow)
    rows = await service.call("stop", timeLimit=1)
    assert [row["step"] for row in rows] == [
        "flush (cut short)", "stop logins", "kick", "flush (cut short)", "wait (cut short)", "kick",
        "flush (cut short)", "end"
    ], "a step that would wait is cut short at once when the time is over"  # fmt: skip


# -- users and mailboxes -----------------------------------------------------------------------------------------------


async def test_users(service: Service) -> None:
    rows = await service.call("userList", mask="*@example.org")
    assert [row["user"] for row in rows] == [ANNA, BEN]
    await service.call("userAdd", user="Zoe", password="pw", scheme="PLAIN", extra="quota_rule=*:storage=1M")
    assert (await service.call("userList", mask="zoe"))[0]["quota_bytes"] == 1 << 20
    assert (await service.fails("userAdd", user="zoe", password="pw", scheme="PLAIN"))[0] == 73
    assert (await service.fails("userList", mask="nobody"))[0] == 67


async def test_a_user_added_by_hand_is_known_to_the_next_command(service: Service) -> None:
    """The tool edits the file itself. The backend looks at the file once a second, but
    reads it at once for a command of an administrator."""
    for name in ("zoe", "yan", "xia"):
        await service.call("quotaGet", user=ANNA)
        path = service.backend.parts.config.auth.passwd_file
        path.write_text(path.read_text() + f"{name}:{{PLAIN}}secret\n")
        (row,) = await service.call("mailboxStatus", user=name, mailboxMask=["INBOX"])
        assert row["messages"] == 0


async def test_mailboxes(service: Service) -> None:
    async def names(**more: Any) -> list[str]:
        return [row["mailbox"] for row in await service.call("mailboxList", user=ANNA, **more)]

    before = await names()
    assert before[0] == "INBOX"
    await service.call("mailboxCreate", user=ANNA, mailbox=["Work", "Work/a", "Wörk"], subscriptions=True)
    assert set(await names()) - set(before) == {"Work", "Work/a", "Wörk"}
    assert await names(mailboxMask=["W*k", "inbox"]) == ["INBOX", "Work", "Wörk"]
    assert (await service.fails("mailboxCreate", user=ANNA, mailbox=["Work"]))[0] == 73
    assert (await service.fails("mailboxCreate", user=ANNA, mailbox=["a//b"]))[0] == 65
    await service.call("mailboxUnsubscribe", user=ANNA, mailbox=["Work"])
    await service.call("mailboxSubscribe", user=ANNA, mailbox=["INBOX"])
    subscribed = await names(subscriptions=True)
    assert "Work/a" in subscribed
    assert "Work" not in subscribed
    await service.call("mailboxRename", user=ANNA, mailbox="Work", newName="Play", subscriptions=True)
    assert await names(mailboxMask=["Play*"]) == ["Play", "Play/a"]
    assert (await service.fails("mailboxRename", user=ANNA, mailbox="Work", newName="x"))[0] == 65
    await service.deliver(ANNA, [mail(1)], "Play/a")
    assert (await service.fails("mailboxDelete", user=ANNA, mailbox=["Play/a"], requireEmpty=True))[0] == 73
    # INBOX is refused before the verb asks for a confirmation or deletes a mailbox.
    for asked in ({"dryRun": True}, {}):
        refused = await service.fails("mailboxDelete", user=ANNA, mailbox=["Play/a", "inbox"], **asked)
        assert refused == (77, "INBOX cannot be deleted")
    await service.call("mailboxDelete", user=ANNA, mailbox=["Play"], recursive=True, subscriptions=True)
    assert await names(mailboxMask=["Play*"]) == []
    assert (await service.fails("mailboxDelete", user=ANNA, mailbox=["Play"]))[0] == 65


async def test_status_and_quota(service: Service) -> None:
    mails = [mail(1), mail(2), mail(3)]
    await service.deliver(ANNA, mails)
    await service.deliver(ANNA, [mail(4)], "Sent", "\\Seen")
    size = sum(map(len, mails))
    (row,) = await service.call("mailboxStatus", user=ANNA, mailboxMask=["INBOX"])
    assert (row["messages"], row["unseen"], row["uidnext"], row["vsize"]) == (3, 3, 4, size)
    assert len(row["guid"]) == 32
    (row,) = await service.call("mailboxStatus", user=ANNA, field=["messages vsize"], totalSum=True)
    assert row == {"messages": 4, "vsize": size + len(mail(4))}
    assert (await service.fails("mailboxStatus", user=ANNA, field=["nosuch"]))[0] == 65
    storage, message = await service.call("quotaGet", user=ANNA)
    assert (storage["type"], storage["value"], storage["limit"], storage["percent"]) == ("STORAGE", 1, 1024, 0)
    assert (message["type"], message["value"], message["limit"], message["percent"]) == ("MESSAGE", 4, 100, 4)
    assert (await service.call("quotaGet", user=BEN))[0]["limit"] is None
    (row,) = await service.call("quotaRecalc", user=ANNA)
    assert (row["bytes"], row["messages"]) == (size + len(mail(4)), 4)


async def test_a_look_does_not_lift_a_quota(service: Service) -> None:
    client = await Client.login(service)
    await service.call("mailboxList", user=ANNA)
    await service.call("metacacheFlush", user=ANNA)
    await service.call("metacacheFlush", user=ANNA, noUserdbLookup=True)
    user = service.backend.parts.store.users[ANNA]
    assert user.quota.messages_max == 100
    await client.ask("LOGOUT")


# -- mails -------------------------------------------------------------------------------------------------------------


async def test_fetch(service: Service) -> None:
    await service.deliver(ANNA, [mail(1), mail(2, sender="bob@example.com")])
    fields = ["uid seq flags hdr.subject hdr.from size.physical date.sent mailbox user"]
    rows = await service.call("fetch", user=ANNA, field=fields, query=["mailbox", "INBOX", "from", "bob"])
    assert rows == [
        {
            "uid": 2, "seq": 2, "flags": "", "hdr.subject": "númber 2", "hdr.from": "bob@example.com",
            "size.physical": len(mail(2, sender="bob@example.com")), "date.sent": "2026-01-05 10:02:00 +0100",
            "mailbox": "INBOX", "user": ANNA,
        }
    ]  # fmt: skip
    every = [
        "text", "text.utf8", "hdr", "body", "guid", "mailbox-guid", "modseq", "date.received", "date.saved",
        "size.virtual", "imap.envelope", "imap.body", "imap.bodystructure", "storageid",
    ]  # fmt: skip
    (row,) = await service.call("fetch", user=ANNA, field=every, query=["MAILBOX", "INBOX", "UID", "1"])
    assert row["text"] == mail(1).decode()
    assert row["hdr"] + row["body"] == row["text"]
    assert row["text.utf8"].strip() == "text 1"
    assert len(row["guid"]) == 32
    assert row["storageid"] == f"{row['mailbox-guid']}/00000001"
    assert row["imap.bodystructure"].startswith('"text" "plain"') or "text" in row["imap.bodystructure"].lower()
    assert (await service.fails("fetch", user=ANNA, field=["nosuch"], query=["ALL"]))[0] == 65
    assert (await service.fails("fetch", user=ANNA, field=["uid"], query=["NOSUCH"]))[0] == 65
    assert (await service.fails("fetch", user=ANNA, field=["uid"], query=["SINCE", "x"]))[0] == 65


async def test_fetch_searches_the_header(service: Service) -> None:
    """HEADER names any field. The text is a part of its decoded value, in any case;
    without a text the field only has to be there."""
    marked = [
        b"X-Mark: =?utf-8?q?Gr=C3=BCn?=\r\n" + mail(1),
        b'X-Mark: a "quoted" \\ word\r\nX-Other: green\r\n' + mail(2),
        b"X-Mark:\r\n" + mail(3),
        # This header is too long to be kept in the index.
        b"X-Long: " + b"a\r\n " * 10_000 + b"\r\nX-Mark: end\r\n" + mail(4),
        mail(5),
    ]
    await service.deliver(ANNA, marked)

    async def found(*words: str) -> list[int]:
        query = ["MAILBOX", "INBOX", *words]
        rows = await service.call("fetch", user=ANNA, field=["uid hdr.x-mark"], query=query)
        return [row["uid"] for row in rows]

    assert await found("HEADER", "X-Mark", "") == [1, 2, 3, 4]
    assert await found("header", "x-mark", "GRÜN") == [1]
    assert await found("HEADER", "X-Mark", '"quoted" \\') == [2]
    assert await found("HEADER", "X-Mark", "end") == [4]
    assert await found("HEADER", "X-Other", "end") == []
    assert await found("NOT", "HEADER", "X-Mark", "") == [5]
    assert await found("HEADER", "X-Mark", "green", "OR", "HEADER", "X-Other", "green") == [2]
    assert await found("HEADER", ":sent", "2026") == [], "the index has keys of its own, which are no fields"
    (row,) = await service.call("fetch", user=ANNA, field=["hdr.x-mark"], query=["HEADER", "X-Mark", "grün"])
    assert row == {"hdr.x-mark": "Grün"}
    for words in (["HEADER"], ["HEADER", "X-Mark"], ["HEADER", "X-Mark", "a\nb"], ["HEADER", "X-Mark\r\n", "a"]):
        assert (await service.fails("fetch", user=ANNA, field=["uid"], query=words))[0] == 65, words


async def test_fetch_decodes_large_mails_in_a_thread(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    aside: list[bool] = []
    plain = mime.text_of

    def text_of(*given: Any) -> list[str]:
        aside.append(threading.current_thread() is not threading.main_thread())
        return list(plain(*given))

    monkeypatch.setattr(mime, "text_of", text_of)
    await service.deliver(ANNA, [mail(1), mail(2) + b"x" * 100_000])
    rows = await service.call("fetch", user=ANNA, field=["uid text.utf8 seq"], query=["MAILBOX", "INBOX"])
    assert [(row["uid"], row["seq"]) for row in rows] == [(1, 1), (2, 2)]
    assert [list(row) for row in rows] == [["uid", "text.utf8", "seq"]] * 2
    assert aside == [False, True]


async def test_search_flags_expunge_copy_move(service: Service) -> None:
    await service.deliver(ANNA, [mail(n) for n in range(1, 6)])
    await service.deliver(ANNA, [mail(9)], "Sent")

    async def found(*query: str) -> list[int]:
        return [row["uid"] for row in await service.call("search", user=ANNA, query=list(query))]

    assert await found("ALL") == [1, 2, 3, 4, 5, 1]
    assert await found("MAILBOX", "inbox", "2:3") == [2, 3]
    assert await found("mailbox", "IN*", "UID", "4:*") == [4, 5]
    assert await found("(", "MAILBOX", "Sent", "OR", "MAILBOX", "INBOX", "UID", "1", ")") == [1, 1]
    assert await found("MAILBOX", "INBOX", "SUBJECT", "NÚMBER 4") == [4]
    assert await found("MAILBOX", "INBOX", "savedsince", "1d") == [1, 2, 3, 4, 5]
    assert await found("MAILBOX", "INBOX", "SENTBEFORE", "2026-01-05") == []
    rows = await service.call("flagsAdd", user=ANNA, flag=["\\seen", "$Label1"], query=["MAILBOX", "INBOX", "1:2"])
    assert rows == [{"mailbox": "INBOX", "changed": 2}]
    assert await found("MAILBOX", "INBOX", "SEEN", "KEYWORD", "$Label1") == [1, 2]
    await service.call("flagsRemove", user=ANNA, flag=["$Label1"], query=["MAILBOX", "INBOX", "UID", "1"])
    assert await found("KEYWORD", "$label1") == [2]
    await service.call("flagsReplace", user=ANNA, flag=["\\Flagged"], query=["MAILBOX", "INBOX", "UID", "2"])
    (row,) = await service.call("fetch", user=ANNA, field=["flags"], query=["MAILBOX", "INBOX", "UID", "2"])
    assert row["flags"] == "\\Flagged"
    assert (await service.fails("flagsAdd", user=ANNA, flag=["\\Nosuch"], query=["ALL"]))[0] == 65
    rows = await service.call("copy", user=ANNA, destinationMailbox="Archive", query=["MAILBOX", "INBOX", "FLAGGED"])
    assert rows == [{"mailbox": "INBOX", "copied": 1}]
    rows = await service.call("move", user=ANNA, destinationMailbox="Archive", query=["MAILBOX", "INBOX", "UID", "4:5"])
    assert rows == [{"mailbox": "INBOX", "moved": 2}]
    assert await found("MAILBOX", "Archive", "ALL") == [1, 2, 3]
    assert (await service.fails("copy", user=ANNA, destinationMailbox="None", query=["ALL"]))[0] == 65
    assert (await service.fails("expunge", user=ANNA, query=["ALL"]))[0] == 65
    assert (await service.fails("expunge", user=ANNA, query=["MAILBOX", "INBOX"]))[0] == 65
    rows = await service.call("expunge", user=ANNA, query=["MAILBOX", "INBOX", "UNFLAGGED"])
    assert rows == [{"mailbox": "INBOX", "expunged": 2}]
    assert await found("MAILBOX", "INBOX", "ALL") == [2]
    rows = await service.call("mailboxCreate", user=ANNA, mailbox=["Gone"])
    await service.deliver(ANNA, [mail(1)], "Gone")
    await service.call("expunge", user=ANNA, query=["MAILBOX", "Gone", "ALL"], deleteEmptyMailbox=True)
    assert await service.call("mailboxList", user=ANNA, mailboxMask=["Gone"]) == []


# -- caches and the bucket ---------------------------------------------------------------------------------------------


async def test_metacache(start: Callable[..., Any]) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(n) for n in range(3)])
        await service.call("flagsAdd", user=ANNA, flag=["\\Seen"], query=["MAILBOX", "INBOX", "UID", "1"])
        (row,) = await service.call("metacacheList", changed=True)
        assert (row["username"], row["changes"]) == (ANNA, "important")
        assert row["bytes-used(2)"] > 0
        code, message = await service.fails("metacacheClean", user=ANNA)
        assert code == 75
        assert "not uploaded" in message
        assert (await service.call("metacacheFlush", user=ANNA))[0] == {"bundles": 1, "changes": "important"}
        assert await service.call("metacacheList", changed=True) == []
        assert await service.call("metacacheFlushall") == []
        status = (await service.call("metacacheStatus"))[0]
        assert status["bytes-used(2)"] == row["bytes-used(2)"] or status["bytes-used(2)"] > 0
        assert (await service.call("metacacheRescan"))[0]["right"] is True
        client = await Client.login(service)
        await client.ask("SELECT INBOX")
        code, message = await service.fails("metacacheClean", user=ANNA)
        assert "in use" in message
        await client.ask("LOGOUT")
        await service.call("metacacheFlush", user=ANNA)
        (row,) = await service.call("metacacheClean", user=ANNA, minPriority=2)
        assert row["kept"] == 0
        assert row["copies"] >= 1
        (row,) = await service.call("metacacheList")
        assert row["bytes-used(2)"] == 0
        (mails,) = await service.call("fetch", user=ANNA, field=["flags"], query=["MAILBOX", "INBOX", "UID", "1"])
        assert mails["flags"] == "\\Seen"
        assert await service.call("metacacheRefresh", user=ANNA) == [{"asked": 1}]
        await service.call("metacacheFlush", user=ANNA)
        await service.backend.parts.fscache.flush()
        assert (await service.call("fscacheStatus"))[0]["files"] == 3


async def test_flushall_reaches_who_is_not_in_the_user_database(service: Service) -> None:
    await service.deliver("stranger", [mail(1)])
    rows = await service.call("metacacheFlushall")
    assert "stranger" in [row["username"] for row in rows]
    rows = await service.call("metacacheRemove", mask="stran*")
    assert [row["username"] for row in rows] == ["stranger"]
    assert rows[0]["kept"] == 0
    assert (await service.fails("metacacheRemove", mask="stranger"))[0] == 65


async def test_unpack(start: Callable[..., Any]) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1), mail(2)], "INBOX", "\\Flagged")
        await service.call("copy", user=ANNA, destinationMailbox="Archive", query=["MAILBOX", "INBOX", "UID", "1"])
        await service.call("metacacheFlush", user=ANNA)
        env = service.backend.parts.store.env
        kinds = {}
        for info in await env.listing("", kind="index"):
            (row,) = await service.call("metacacheUnpack", bundle=info.key)
            kinds[row["kind"]] = row
        assert {"base", "mail", "claim", "cache", "journal", "format"} <= set(kinds)
        assert kinds["mail"]["meta"]["size"] == len(mail(1))
        (root,) = [
            (await service.call("metacacheUnpack", bundle=info.key))[0]
            for info in await env.listing("", kind="index")
            if info.key.endswith("first.base")
        ]
        assert "INBOX" in str(root["content"]["entries"])
        boxes = []
        for info in await env.listing("", kind="index"):
            if "/x/" in info.key and "/root/" not in info.key and info.key.endswith(".base"):
                boxes += await service.call("metacacheUnpack", bundle=info.key)
        (box,) = [row for row in boxes if len(row["content"].get("rows", ())) == 2]
        assert [one["uid"] for one in box["content"]["rows"]] == [1, 2]
        assert box["content"]["rows"][0]["flags"] == ["\\Flagged"]
        assert (await service.fails("metacacheUnpack", bundle="no/such"))[0] == 65
        bad = service.backend.parts.config.state_dir / "bad"
        bad.write_bytes(b"rubbish")
        key = next(info.key for info in await env.listing("", kind="index") if "/m/" in info.key)
        assert (await service.fails("metacacheUnpack", bundle=str(bad), file=True))[0] == 65, "which key had it?"
        assert (await service.fails("metacacheUnpack", bundle=str(bad), file=True, key=key))[0] == 70
        bad.write_bytes(await env.get(key, kind="mail") or b"")
        (row,) = await service.call("metacacheUnpack", bundle=str(bad), file=True, key=key)
        assert row["version"] == 2
        other = key[:-1] + "7"
        assert (await service.fails("metacacheUnpack", bundle=str(bad), file=True, key=other))[0] == 70


@pytest.mark.parametrize("key", ["e\u0301/m", "a//b", "a/../b", ".hidden", "a\\\x07", "k" * 1025, ""])
async def test_a_key_that_cannot_be_is_no_fault_of_the_storage(service: Service, key: str) -> None:
    """The command used to send such a key to the storage. The storage refused the key,
    and the log called that an error of the storage."""
    with capture_logs() as logged:
        code, error = await service.fails("metacacheUnpack", bundle=key)
    assert code == 65
    assert "allowed" in error
    assert not [line for line in logged if line["log_level"] == "error"]


@pytest.mark.parametrize("command", ["mailboxStatus", "forceResync"])
async def test_a_mailbox_that_is_named_must_be_there(service: Service, command: str) -> None:
    """The command used to exit with 0 and without a row, as if the mailbox were
    there."""
    await service.deliver(ANNA, [mail(1)])
    rows = await service.call(command, user=ANNA, mailboxMask=["INBOX", "Nowhere*"])
    assert [row["mailbox"] for row in rows] == ["INBOX"]
    result = await service.refused(command, user=ANNA, mailboxMask=["Nowhere", "INBOX"])
    assert result["exitCode"] == 65
    assert "no mailbox 'Nowhere'" in str(result)
    assert [row["mailbox"] for row in result["rows"]] == ["INBOX"], "the others are shown all the same"


async def test_storage_check(service: Service) -> None:
    rows = await service.call("storageCheck")
    assert {row["result"] for row in rows} == {"ok"}
    assert [row["check"] for row in rows][:5] == ["rights", "create-only", "race", "range", "list order"]
    env = service.backend.parts.store.env
    assert await env.listing("_probe/", kind="format") == []


async def test_storage_check_counts_mails_alone_and_in_batches(service: Service) -> None:
    store = service.backend.parts.store
    before = {row["check"]: row for row in await service.call("storageCheck", count=True)}
    user = await store.open_user("count", StorageId("count"))
    await user.append("INBOX", [NewMail(b"Subject: 0\r\n\r\n")])
    await user.append("INBOX", [NewMail(b"Subject: %d\r\n\r\n" % number) for number in range(3)])
    box = await user.select("INBOX")
    await user.copy(box, np.array([2, 3], dtype=np.uint32), "Trash")
    await box.expunge(np.array([3, 4], dtype=np.uint32))
    await box.release()
    await user.flush(everything=True)
    room = int(box.state.column("place")[1, 2])
    await user.release()
    rows = {row["check"]: row for row in await service.call("storageCheck", count=True)}

    def numbers(row: Mapping[str, Any]) -> list[int]:
        return [int(word) for word in row["detail"].replace(",", "").split() if word.isdigit()]

    alone = [now - was for now, was in zip(numbers(rows["mails"]), numbers(before["mails"]), strict=True)]
    assert alone == [1, 1, 0], "a mail, and the claim of the copy"
    batches, mails, size, dead = (
        now - was for now, was in zip(numbers(rows["batches"]), numbers(before["batches"]), strict=True)
    )
    # Mail 3 is expunged, and its copy needs it. Nobody needs mail 4.
    assert (batches, mails, dead) == (1, 3, room)
    assert size > 3 * room
    assert "damaged" not in rows


async def test_storage_check_finds_a_store_that_overwrites(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = service.backend.parts.bucket.driver
    inner: Any = driver.inner
    put = inner.put

    async def overwrite(key: str, data: bytes, *, kind: Any) -> None:
        await inner.delete_batch([key], kind=kind)
        await put(key, data, kind=kind)

    monkeypatch.setattr(inner, "put", overwrite)
    result = await service.refused("storageCheck")
    assert result["exitCode"] == 65, result
    assert next(row for row in result["rows"] if row["check"] == "create-only")["result"] == "wrong"


# -- the whole of a user -----------------------------------------------------------------------------------------------


async def test_delete_a_user(start: Callable[..., Any], tmp_path: Path) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(n) for n in range(20)])
        await service.deliver(BEN, [mail(1)])
        await service.call("copy", user=ANNA, destinationMailbox="Archive", query=["MAILBOX", "INBOX", "UID", "1:3"])
        await service.call("metacacheFlush", user=ANNA)
        await service.deliver(ANNA, [mail(99)], "Sent")
        client = await Client.login(service)
        assert (await service.fails("oboxUserDelete", user=ANNA))[0] == 65
        rows = await service.call("oboxUserDelete", user=ANNA, kick=True)
        assert "* BYE" in await client.rest()
        what = {row["what"]: row for row in rows}
        assert what["mails"]["objects"] == 22
        assert what["index"]["objects"] > 0
        assert what["local copies"]["objects"] > 0
        assert what["user database"]["result"].startswith("still known")
        assert {"journal lines", "backups", "other backends"} <= set(what)
        assert "object versions" not in what, "a directory has none"
        env = service.backend.parts.store.env
        keys = [info.key for info in await env.listing("", kind="mail")]
        assert [key for key in keys if "anna" in key] == []
        assert [key for key in keys if "ben" in key]
        assert [space.user for space in env.metacache.users()] == [BEN]
        again = await service.call("oboxUserDelete", user=ANNA)
        assert "mails" not in {row["what"] for row in again}
        assert await service.call("search", user=ANNA, query=["ALL"]) == [], "a new user"
        await service.call("oboxUserDelete", user=ANNA)
    # The journal must not bring the deleted user back.
    async with start() as service:
        assert ANNA not in service.backend.parts.store.users
        keys = [info.key for info in await service.backend.parts.store.env.listing("", kind="mail")]
        assert [key for key in keys if "anna" in key] == []


async def test_a_deleted_user_does_not_come_back_after_a_crash(tmp_path: Path, start: Callable[..., Any]) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1)])
        await service.call("flagsAdd", user=ANNA, flag=["\\Seen"], query=["MAILBOX", "INBOX", "ALL"])
        await service.backend.parts.store.journal.sync()
        await service.call("oboxUserDelete", user=ANNA)
        from obox.store.log import takeover

        env = service.backend.parts.store.env
        found = await takeover.take_over(env, None, lambda backend: False)
        assert ANNA not in found.pending


async def test_an_interrupted_deletion_is_begun_again(
    start: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from obox.errors import Unavailable
    from obox.store.operate import users as operate

    async with start() as service:
        await service.deliver(ANNA, [mail(n) for n in range(5)])
        real = operate.delete_keys
        done = 0

        async def failing(store: Any, batch: Any) -> Any:
            nonlocal done
            done += 1
            if done == 2:
                raise Unavailable("the storage does not answer")
            return await real(store, batch)

        monkeypatch.setattr(operate, "delete_keys", failing)
        assert (await service.fails("oboxUserDelete", user=ANNA))[0] == 69
        with service.backend.parts.store.pulling(ANNA):
            pass  # the user is not barred any more
        await service.call("oboxUserDelete", user=ANNA)
        keys = [info.key for info in await service.backend.parts.store.env.listing("", kind="mail")]
        assert [key for key in keys if "anna" in key] == []


async def test_wait_for_a_user(service: Service) -> None:
    assert await service.call("oboxUserWait", user=ANNA) == []
    client = await Client.login(service)
    code, message = await service.fails("oboxUserWait", user=ANNA, timeout=0)
    assert code == 65
    assert "1 sessions" in message
    waiting = asyncio.create_task(service.call("oboxUserWait", user=ANNA, timeout=10))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await client.ask("LOGOUT")
    assert await waiting == []


def test_the_table() -> None:
    for verb in TABLE.values():
        assert verb.doc.splitlines()[0].rstrip(":").endswith((".", ";")) or len(verb.doc.splitlines()) > 1, verb.words
        assert verb.name == "".join(verb.name.split())
