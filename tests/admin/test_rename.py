"""`obox user rename`: the user has the same mail under another name, and no other user
gets this mail."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from adminservice import Service, mail
from patience import PATIENT_S
from test_verbs import ANNA, BEN, Client

from obox.objectstore.keys import user_prefix
from obox.types import StorageId

NEW = "anna.smith@example.org"


async def requests(service: Service) -> dict[str, int]:
    stats = service.backend.parts.bucket.stats.snapshot()
    return {f"{op} {kind}": value.requests for (op, kind), value in stats.items() if kind != "journal"}


async def keys_of(service: Service) -> set[str]:
    return {info.key for info in await service.backend.parts.bucket.list(user_prefix(StorageId(ANNA)), kind="mail")}


async def rcpt(service: Service, user: str) -> str:
    """Return the code of LMTP's answer to RCPT."""
    reader, writer = await asyncio.open_connection(*service.backend.listeners.addresses("lmtp")[0].rsplit(":", 1))
    writer.write(f"LHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<{user}>\r\nQUIT\r\n".encode())
    replies = [line for line in (await reader.read()).decode().splitlines() if line[3] == " "]
    writer.close()
    return replies[3][:3]


async def test_the_mail_stays_and_the_name_changes(start: Callable[..., Any]) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1), mail(2)], "INBOX", "\\Flagged")
        await service.call("metacacheFlush", user=ANNA)
        assert await service.call("metacacheList") == [
            row | {"username": ANNA} for row in await service.call("metacacheList")
        ]
        keys = await keys_of(service)
        before = await requests(service)
        row = (await service.call("oboxUserRename", user="Anna@Example.org", newUser="Anna.Smith@example.org"))[0]
        assert row == {
            "user": NEW,
            "storage_id": ANNA,
            "connections": 0,
            "result": f"renamed; there is no alias: mail to {ANNA} is refused",
        }
        after = await requests(service)
        changed = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
        assert changed == {"list index": 1}, "one look whether the new name has mail"
        assert [row["username"] for row in await service.call("metacacheList")] == [NEW], "at once"
        assert (await service.fails("mailboxList", user=ANNA))[0] == 67
        rows = await service.call("fetch", user=NEW, field=["uid", "flags", "hdr.to"], query=["ALL"])
        assert [(row["uid"], row["flags"], row["hdr.to"]) for row in rows] == [
            (1, "\\Flagged", ANNA), (2, "\\Flagged", ANNA)
        ]  # fmt: skip
        assert await keys_of(service) == keys
        client = await Client.login(service, NEW)
        await client.ask("SELECT INBOX")


async def test_who_is_logged_in_is_asked_for(start: Callable[..., Any]) -> None:
    async with start() as service:
        client = await Client.login(service)
        code, message = await service.fails("oboxUserRename", user=ANNA, newUser=NEW)
        assert code == 65
        assert "--kick" in message
        assert await service.call("userList", mask=ANNA), "nothing was changed"
        row = (await service.call("oboxUserRename", user=ANNA, newUser=NEW, kick=True))[0]
        assert row["connections"] == 1
        assert "BYE" in await client.rest()
        with pytest.raises(AssertionError):
            await Client.login(service, ANNA)


async def test_what_is_refused(start: Callable[..., Any]) -> None:
    async with start() as service:
        await service.deliver("old@example.org", [mail(1)])
        for new, code in ((BEN, 73), (ANNA, 73), ("old@example.org", 73), ("a/b", 65), ("", 65)):
            assert (await service.fails("oboxUserRename", user=ANNA, newUser=new))[0] == code, new
        assert (await service.fails("oboxUserRename", user="zoe", newUser=NEW))[0] == 67
        assert [row["user"] for row in await service.call("userList", mask="*@example.org")] == [ANNA, BEN]


async def test_a_later_user_of_the_old_name_gets_nothing_of_it(start: Callable[..., Any]) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1)])
        await service.call("oboxUserRename", user=ANNA, newUser=NEW)
        code, message = await service.fails("userAdd", user=ANNA, password="x", scheme="PLAIN")
        assert code == 73
        assert NEW in message
        await service.call("userAdd", user=ANNA, password="secret", scheme="PLAIN", extra="storage_id=anna-2")
        status = {"field": ["messages"], "mailboxMask": ["INBOX"]}
        assert (await service.call("mailboxStatus", user=ANNA, **status))[0]["messages"] == 0
        assert (await service.call("mailboxStatus", user=NEW, **status))[0]["messages"] == 1


async def test_a_line_added_by_hand_opens_nothing(start: Callable[..., Any]) -> None:
    """An editor adds a line with the old name to the file instead of using `user add`.
    That user can then neither log in nor get mail, and all other users go on."""
    async with start() as service:
        await service.call("oboxUserRename", user=ANNA, newUser=NEW)
        file = service.backend.parts.config.auth.passwd_file
        file.write_text(file.read_text() + f"{ANNA}:{{PLAIN}}secret\n")
        rows = {row["user"]: row for row in await service.call("userList", mask="*@example.org")}
        assert (rows[ANNA]["login"], rows[NEW]["login"]) == (False, True)
        async with asyncio.timeout(PATIENT_S):
            while (reply := await rcpt(service, ANNA)) == "550":  # noqa: ASYNC110 - the file is looked at once a second
                await asyncio.sleep(0.1)
        assert reply == "451", "no mail bounces"
        assert await rcpt(service, NEW) == "250"
        assert (await service.fails("mailboxList", user=ANNA))[0] == 69
        everybody = await service.call("mailboxStatus", allUsers=True, field=["messages"], mailboxMask=["INBOX"])
        assert [row["username"] for row in everybody] == [NEW, BEN, "eve@other.org"]


async def test_back_again(start: Callable[..., Any]) -> None:
    async with start() as service:
        await service.deliver(ANNA, [mail(1)])
        await service.call("oboxUserRename", user=ANNA, newUser=NEW)
        row = (await service.call("oboxUserRename", user=NEW, newUser=ANNA))[0]
        assert (row["user"], row["storage_id"]) == (ANNA, ANNA)
        rows = await service.call("mailboxStatus", user=ANNA, field=["messages"], mailboxMask=["INBOX"])
        assert rows[0]["messages"] == 1
