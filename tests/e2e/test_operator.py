"""The work of an operator: each verb runs on a backend under load, while the indexes
are ten times as large as metacache may be.

Clients see only errors that pass (see `crowd`). The caches are within their bounds at
each sample. Afterwards a backend with empty caches finds everything that was
acknowledged. OBOX_TEST_CROWD=N multiplies users, room and time by N.
"""

from __future__ import annotations

import asyncio
import base64
import os
import random
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from crowd import AGAIN_S, REFUSED, TRIES_MAX, Crowd, Imap
from patience import PATIENT_S
from processes import PASSWORD, Backend
from processes import USERS as PEOPLE

from obox.admin import TABLE, Needs

SCALE = int(os.environ.get("OBOX_TEST_CROWD", "1"))
USERS = 1000 * SCALE
MAILS = 6
SESSIONS = 25
DELIVERIES_PER_S = 40.0
SENDERS = 10
MAX_SPACE = (4 << 20) * SCALE
MAX_SIZE = (4 << 20) * SCALE
KEY = "operator's key"
NO_ROOM = "no room for another user's index"
PULLED = 5
"""The smallest number of users whose copies another backend must pull."""
ANSWER_S = 10 * PATIENT_S
"""The time limit for a verb. Some verbs open a hundred users in a metacache that holds
a tenth of them, beside the crowd."""

CROWD = [f"user{number:05}@example.org" for number in range(USERS)]
HANDS = {name: f"{name}@example.org" for name in ("kicked", "hands", "deleted", "renamed", "barred")}
"""Users that only the operator works on."""


def mail(number: int) -> bytes:
    """Make a mail with a large index: its headers do not compress. Mail 0 is small."""
    rng = random.Random(number)
    filler = b"".join(b"X-Filler-%d: %b\r\n" % (row, rng.randbytes(36).hex().encode()) for row in range(40))
    return (
        b"From: Crowd <crowd@example.net>\r\nTo: them@example.org\r\nSubject: mail %d\r\n"
        b"Message-ID: <%d@crowd>\r\nDate: Mon, 23 Nov 2026 10:00:00 +0000\r\n%b\r\nBody of %d.\r\n"
    ) % (number, number, filler if number else b"", number)


class Operator:
    """A client of the HTTP API that runs verbs one after another, and records the verbs
    that failed."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client
        self.done: dict[str, int] = {}
        self.failed: list[str] = []

    async def __call__(self, verb: str, **params: Any) -> Any:
        kind, payload = await self._ask(verb, params)
        self.done[verb] = self.done.get(verb, 0) + 1
        if kind == "doveadmResponse":
            return payload
        # If a verb fails for some users only, the answer itself has no message: the
        # messages of these users are in `users`.
        alone = {"user": params.get("user"), "message": payload.get("message", "")}
        failures = payload.get("users") or [alone]
        crowded = [failure["user"] for failure in failures if NO_ROOM in failure["message"]]
        for user in crowded:
            await self._again(verb, {**params, "user": user})
        # "no local copies" is no failure: the cleaner has dropped the copies meanwhile.
        if len(crowded) < len(failures) and "no local copies" not in alone["message"]:
            self.failed.append(f"{verb} {params}: {payload}")
        return payload

    async def _again(self, verb: str, params: dict[str, Any]) -> None:
        """Repeat the verb a little later for a user for whom there was no room, as
        clients do."""
        for _ in range(TRIES_MAX):
            await asyncio.sleep(AGAIN_S)
            kind, payload = await self._ask(verb, params)
            if kind == "doveadmResponse":
                return
            if NO_ROOM not in str(payload):
                break
        self.failed.append(f"{verb} {params}: {payload}")

    async def _ask(self, verb: str, params: dict[str, Any]) -> tuple[str, Any]:
        try:
            got = await self._client.post("/doveadm/v1", json=[[verb, params, "t"]])
        except httpx.HTTPError as error:
            error.add_note(f"{verb} {params}")
            raise
        assert got.status_code == 200, got.text
        kind, payload, _ = got.json()[0]
        return kind, payload

    async def when_idle(self, verb: str, **params: Any) -> None:
        """Repeat the verb a little later while a user is in use or was in use just now,
        as an operator would."""
        for _ in range(60):
            known = len(self.failed)
            await self(verb, **params)
            if not any("in use" in line for line in self.failed[known:]):
                return
            del self.failed[known:]
            await asyncio.sleep(0.5)
        self.failed.append(f"{verb} {params}: in use for 30 s")


@asynccontextmanager
async def operator(backend: Backend) -> AsyncIterator[Operator]:
    headers = {"Authorization": "X-Dovecot-API " + base64.b64encode(KEY.encode()).decode()}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{backend.http}", headers=headers, timeout=ANSWER_S
    ) as client:
        yield Operator(client)


async def sample(backend: Backend, bounds: list[str], crowd: Crowd) -> None:
    """Compare the caches with their bounds ten times a second."""
    grace = MAX_SPACE // 10
    async with httpx.AsyncClient(timeout=PATIENT_S) as client:
        while not crowd.stopping:
            text = (await client.get(f"http://127.0.0.1:{backend.http}/metrics")).text
            space, size = (
                float(re.search(rf"^obox_{name} (\S+)$", text, re.M)[1])
                for name in ("metacache_space_bytes", "fscache_bytes")
            )
            if space > MAX_SPACE + grace or size > MAX_SIZE:
                bounds.append(f"metacache {space:.0f}, fscache {size:.0f}")
            await asyncio.sleep(0.1)


async def events(run: Operator) -> None:
    """Run the verbs of events. Nothing has failed, so there is no dead letter."""
    assert [row["group"] for row in await run("eventsGroups")] == ["audit"]
    await run("eventsLag")
    assert await run("eventsDeadLettersList") == []
    await run("eventsDeadLettersRedeliver", all=True)
    await run("eventsDeadLettersPurge", all=True)
    await run("eventsDeadLettersShow", id=f"audit/someone/{1:016x}.{2:08x}")
    assert "no dead letter" in run.failed.pop()


async def every_verb(run: Operator, backend: Backend) -> None:
    """Run all verbs of the table except `stop` and `metacachePull`, and the verbs of
    the caches several times."""
    someone = CROWD[0]
    for turn in range(2):
        await run("metacacheFlush", user=CROWD[turn])
        await run("metacacheFlushall", importantOnly=True)
        await run("metacacheFlushall")
        await run("metacacheList", changed=True)
        await run("metacacheStatus")
        await run("metacacheRefresh", user="user0000*")
        await run("metacacheRescan")
        await run("metacacheBoots")
        await run("fscacheStatus")
        await run("fscacheRescan", maxAge=3600)
        await run("storageCheck")
        await run("who")
    await run("logErrors")
    await run("userList")
    await run("authTest", user=someone, password=PASSWORD)
    await run("mailboxList", user="user001*")
    await run("mailboxStatus", user="user0000*", field=["all"], mailboxMask=["*"])
    await run("quotaGet", user="user0000*")
    await run("quotaRecalc", user="user0000*")
    await run("forceResync", user="user0001*", mailboxMask=["*"])
    await run("storageUpgrade", user="user0001*")
    await run("storageFinishUpgrade")
    await run("rebuild", user=HANDS["barred"])
    await run("search", user="user0002*", query=["subject", "mail"])
    await run("fetch", user=someone, query=["mailbox", "INBOX", "uid", "1"], field=["uid", "hdr.subject", "flags"])
    await events(run)
    await hands(run)
    await run("reload")
    await removals(run)
    keys = sorted(str(path.relative_to(bucket(backend))) for path in bucket(backend).rglob("x/*/*") if path.is_file())
    await run("metacacheUnpack", bundle=keys[0])


async def hands(run: Operator) -> None:
    """Change the mail of users that only the operator works on."""
    mine = {"user": HANDS["hands"]}
    every = ["mailbox", "INBOX", "all"]
    await run("mailboxCreate", **mine, mailbox=["Work", "Work/Old"])
    await run("mailboxSubscribe", **mine, mailbox=["Work"])
    await run("mailboxUnsubscribe", **mine, mailbox=["Work"])
    await run("flagsAdd", **mine, query=every, flag=["\\Flagged"])
    await run("flagsRemove", **mine, query=every, flag=["\\Flagged"])
    await run("flagsReplace", **mine, query=every, flag=["\\Seen"])
    await run("copy", **mine, query=every, destinationMailbox="Work")
    await run("move", **mine, query=["mailbox", "Work", "all"], destinationMailbox="Work/Old")
    await run("mailboxRename", **mine, mailbox="Work/Old", newName="Kept")
    await run("expunge", **mine, query=["mailbox", "Kept", "all"])
    await run("mailboxDelete", **mine, mailbox=["Kept"])
    await run("kick", user=HANDS["kicked"])
    await run("metacacheFlush", **mine)
    await run.when_idle("metacacheClean", **mine)
    await run("metacacheFlush", user=HANDS["kicked"])
    await run.when_idle("metacacheRemove", mask=HANDS["kicked"], force=True)


async def removals(run: Operator) -> None:
    """Add, change, rename and delete users."""
    await run("userAdd", user="fresh@example.org", password="fresh")
    await run("userPassword", user="fresh@example.org", password="fresher")
    await run("userDisable", user=HANDS["barred"])
    await run("userEnable", user=HANDS["barred"])
    await run("oboxUserRename", user=HANDS["renamed"], newUser="newname@example.org")
    await run("userDisable", user=HANDS["deleted"])
    await run("oboxUserDelete", user=HANDS["deleted"], kick=True)
    await run("oboxUserWait", user=HANDS["deleted"], timeout=30)
    await run("userRemove", user=HANDS["deleted"])


async def login(client: Imap, user: str) -> None:
    """Log in. If there is no room for another user, try again a little later."""
    for _ in range(TRIES_MAX):
        answer, _ = await client.command(f"LOGIN {user} {PASSWORD}")
        if not REFUSED.match(answer):
            break
        await asyncio.sleep(AGAIN_S)
    assert answer.startswith("OK"), f"{user}: {answer}"


async def visit(backend: Backend, user: str) -> None:
    """Log in, select INBOX, and log out."""
    client = await Imap.connect(backend.imap)
    await login(client, user)
    for text in ("SELECT INBOX", "LOGOUT"):
        assert (await client.command(text))[0].startswith("OK")
    client.close()


async def pulls(run: Operator, source: Backend) -> None:
    """Pull to a second backend, which takes over the journal of the first when it
    starts. Both merge, and no client notices. Without a cluster directory each of
    the two serves every user; here the crowd stays with the first."""
    second = Backend(
        source.home.parent / "second",
        storage=source.storage,
        name="second",
        users=source.users,
        sections={"http": {"api_key": KEY}},
    )
    await asyncio.to_thread(second.start)
    pulled = refused = 0
    try:
        async with operator(second) as there:
            # Pull at least 20 users, and more while too few were pulled, because a copy
            # may be in use at each try.
            for number in range(0, len(CROWD) // 2, 5):
                if number >= 100 and pulled >= PULLED:
                    break
                # A visit changes nothing, but it makes the source load the user's
                # copies, so that it has something to send.
                await visit(source, CROWD[number])
                answer = await there(
                    "metacachePull",
                    user=CROWD[number],
                    sourceBackendHost=f"http://127.0.0.1:{source.http}",
                    latestOnly=number % 10 == 0,
                    clean=number % 15 == 0,
                )
                rows = answer if isinstance(answer, list) else answer.get("rows", [])
                done = any(row["result"] == "pulled" for row in rows)
                pulled, refused = pulled + done, refused + (not done)
            assert pulled >= PULLED, f"{refused} were refused: half of them ask for the latest only, and may be"
            run.done.update(there.done)
            # The source refuses to send copies that are in use or not the latest. The
            # crowd makes that happen, so it is no failure of the verb.
            fine = ("1003", "stay at the source")
            run.failed += [line for line in there.failed if not any(text in line for text in fine)]
    finally:
        assert await asyncio.to_thread(second.stop) == 0


def bucket(backend: Backend) -> Path:
    return Path(str(backend.storage["url"]).removeprefix("file://"))


@pytest.fixture
def loaded(make: Callable[..., Backend]) -> Backend:
    """Make a backend with a few mails for each of many users. The indexes are written
    while the cache is large."""
    users = "".join(f"{user}:{{PLAIN}}{PASSWORD}\n" for user in [*PEOPLE, *CROWD, *HANDS.values()])
    backend = make(
        users=users,
        sections={
            "metacache": {"upload_interval": "10s", "close_delay": "500ms", "max_space": 20 * MAX_SPACE},
            "fscache": {"max_size": MAX_SIZE},
            "http": {"api_key": KEY},
            "imap": {"max_address_sessions": 0},
            "events": {"audit_file": "audit"},
        },
    )
    backend.start()
    for number in range(1, MAILS + 1):
        for at in range(0, USERS, 500):
            replies = backend.deliver(mail(number), *CROWD[at : at + 500])
            assert {code for code, _ in replies} == {250}
    assert {code for code, _ in backend.deliver(mail(1), *HANDS.values())} == {250}
    assert backend.metric("obox_metacache_space_bytes") > 10 * MAX_SPACE
    assert backend.stop() == 0
    backend.sections["metacache"]["max_space"] = MAX_SPACE
    backend.write()
    backend.start()
    deadline = time.monotonic() + PATIENT_S
    while backend.metric("obox_metacache_space_bytes") > MAX_SPACE:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return backend


async def test_every_verb_under_load(loaded: Backend, make: Callable[..., Backend]) -> None:
    backend = loaded
    crowd = Crowd(backend.imap, backend.lmtp, CROWD, PASSWORD, mail, _number=1000)
    bounds: list[str] = []
    async with operator(backend) as run, asyncio.TaskGroup() as group:
        tasks = [group.create_task(crowd.session(which, 0.25)) for which in range(SESSIONS)]
        tasks += [group.create_task(crowd.sender(which, DELIVERIES_PER_S / SENDERS)) for which in range(SENDERS)]
        tasks += [group.create_task(sample(backend, bounds, crowd)), group.create_task(crowd.watch())]
        kicked = await Imap.connect(backend.imap)
        await login(kicked, HANDS["kicked"])
        begun = time.monotonic()
        try:
            await every_verb(run, backend)
            await pulls(run, backend)
            await asyncio.sleep(max(0.0, 10.0 * SCALE - (time.monotonic() - begun)))
        finally:
            await crowd.stop(tasks)
        seconds = time.monotonic() - begun
    delivered = sum(map(len, crowd.delivered.values()))
    print(f"{seconds:.0f} s, {crowd.commands} commands, {delivered} mails, {crowd.refused} times no room")
    assert crowd.complaints == []
    assert bounds == []
    assert run.failed == []
    # test_backends.py tests these verbs.
    of_a_cluster = {name for name, spec in TABLE.items() if spec.needs is Needs.DIRECTORY}
    assert set(TABLE) - set(run.done) - of_a_cluster == {"stop"}, "which comes below"
    assert delivered > 10 * SENDERS, "the load was none"
    errors = [line["event"] for line in backend.events() if line["level"] in ("error", "critical")]
    assert errors == ["fenced off by another backend, a new boot begins"], "when the second one started"
    async with operator(backend) as run:
        await run("stop")
        assert run.failed == []
    assert backend.process is not None
    assert backend.process.wait(PATIENT_S) == 0
    backend.lose_state()
    backend.start()
    for user in CROWD:
        with backend.login(user) as client:
            client.select_folder("INBOX", readonly=True)
            uids = client.search()
            found = client.fetch(uids, ["BODY.PEEK[HEADER.FIELDS (SUBJECT)]"]).values()
            subjects = sorted(int(one[b"BODY[HEADER.FIELDS (SUBJECT)]"].split()[2]) for one in found)
            assert subjects == sorted([*range(1, MAILS + 1), *crowd.delivered.get(user, ())])
            status = client.folder_status("Drafts", ["MESSAGES"])
            assert status[b"MESSAGES"] == crowd.appended.get(user, 0)
