"""Two members of a cluster without an `api_key`: what one asks of the other goes over
the trusted link. Two names of one mail are one user at both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import adminservice
import pytest
from adminservice import KEY, Service, mail, running, write_config
from patience import PATIENT_S
from test_verbs import ANNA, BEN, Client

from obox import backend, wiring
from obox.accounts import storage_id
from obox.admin import arrivals, pull
from obox.admin.run import Outcome
from obox.cluster import Directory, MemoryDirectory, MemoryReplica, group_of
from obox.cluster.initial import GROUPS_LOCAL
from obox.config import load
from obox.errors import Corrupt, Unavailable

ANNE = "anne@example.org"
"""Another name of the mail of ANNA."""
USERS = "".join(f"{name}:{{PLAIN}}secret::::::storage_id={ANNA}\n" for name in (ANNA, ANNE))


def member(tmp_path: Path, name: str, secret: str = "shared") -> Path:
    """Return the configuration of a member without a key."""
    file = tmp_path / f"{secret}.secret"
    file.write_text(secret * 8)
    file.chmod(0o600)
    cluster = (
        f'[cluster]\nbackend = "{name}"\ndirectory = "lmdb://{tmp_path}/cluster"\naddress = "127.0.0.1"\n'
        f'secret_file = "{file}"\n'
    )
    config = write_config(tmp_path / name, f"file://{tmp_path}/bucket", cluster)
    config.write_text(config.read_text().replace(f'api_key = "{KEY}"', ""))
    others = [line for line in adminservice.USERS.splitlines(keepends=True) if not line.startswith(ANNA)]
    (config.parent / "users").write_text(USERS + "".join(others))
    return config


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB opens a file once in a process, so the directory is in memory."""
    replica = MemoryReplica(time.monotonic)
    (tmp_path / "cluster").mkdir()

    async def opened(*_: object, **__: object) -> Directory:
        return MemoryDirectory(replica, sleep=asyncio.sleep)

    for module in ("obox.membership", "obox.cluster.open"):
        monkeypatch.setattr(f"{module}.open_directory", opened)


@asynccontextmanager
async def two(tmp_path: Path) -> AsyncIterator[tuple[Service, Service]]:
    """The first has all groups, since it was there first. Both know each other."""
    async with running(member(tmp_path, "first")) as first:
        await until(lambda: len(first.backend.parts.store.env.owned.units) == GROUPS_LOCAL)
        async with running(member(tmp_path, "second")) as second:
            await until(lambda: {"first", "second"} <= set(known(first)) & set(known(second)))
            yield first, second


def known(service: Service) -> Any:
    joining = service.backend.parts.joining
    assert joining is not None
    return joining.membership.member.view.members


async def until(met: Any) -> None:
    async with asyncio.timeout(PATIENT_S):
        while not met():  # noqa: ASYNC110 - a view has no event for a test
            await asyncio.sleep(0.02)


async def asked_offline(config: Path, command: str, **params: Any) -> tuple[int, list[dict[str, Any]], str]:
    """Run a verb as `oboxadm` does where no member runs."""
    admin, outcome = wiring.of_config(load(str(config))), Outcome()
    await outcome.gather(admin, command, params)
    return outcome.code, outcome.rows, outcome.message


async def test_a_pull_and_a_kick_need_no_key(directory: None, tmp_path: Path) -> None:
    async with two(tmp_path) as (first, second):
        await first.deliver(ANNA, [mail(n) for n in range(20)], "INBOX", "\\Flagged")
        await first.deliver(BEN, [mail(1)])
        port = first.backend.listeners.addresses("http")[0].rpartition(":")[2]
        source = f"127.0.0.1:{port}"
        (row,) = await second.call("metacachePull", user=BEN, sourceBackendHost=source)
        assert (row["mailboxes"], row["result"]) == (1, "pulled")
        (row,) = await second.call("metacachePull", user=ANNA, sourceBackendHost="first", clean=True)
        assert (row["mailboxes"], row["cleaned"], row["result"]) == (1, 2, "pulled")
        assert ANNA in {row["username"] for row in await second.call("metacacheList") if row["backend"] == "second"}
        code, message = await second.fails("metacachePull", user="eve@other.org", sourceBackendHost="second")
        assert (code, "itself" in message) == (65, True), message
        code, message = await second.fails("metacachePull", user=ANNA, sourceBackendHost=source, apiKey="a key")
        assert (code, "no admin API" in message) == (77, True), "a key that is given is used"

        # No member runs where the operator is, who has the configuration and the
        # secret.
        elsewhere = member(tmp_path, "third")
        client = await Client.login(first)
        code, rows, message = await asked_offline(elsewhere, "clusterUserKick", user=ANNA)
        assert (code, rows) == (0, [{"backend": "first", "connections": 1}]), message
        async with asyncio.timeout(PATIENT_S):
            assert (await client.reader.readline()).startswith(b"* BYE")
        assert (await asked_offline(elsewhere, "clusterUserKick", user=ANNA))[0] == 68
        code, rows, message = await asked_offline(member(tmp_path, "third", "other"), "clusterUserKick", user=ANNA)
        assert (code, rows) == (77, [])
        assert "cluster.secret_file" in message


async def copies(service: Service) -> set[str]:
    """The users of whom a member has local copies."""
    await service.backend.parts.store.env.commit_staged()
    return {space.user for space in service.backend.parts.metacache.users()}


async def test_copies_come_from_a_backend_that_is_evacuated(
    directory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (backend, arrivals):
        monkeypatch.setattr(module, "EVACUATIONS_S" if module is backend else "EVERY_S", 0.02)
    async with two(tmp_path) as (first, second):
        for user in (ANNA, BEN):
            await first.deliver(user, [mail(n) for n in range(20)])
        assert await copies(first) >= {storage_id(ANNA), storage_id(BEN)}
        assert await copies(second) == set()
        (row,) = await second.call("clusterBackendEvacuate", backend="first")
        assert row["result"] == "evacuated"
        async with asyncio.timeout(PATIENT_S):
            while await copies(first):  # noqa: ASYNC110 - a cache has no event for a test
                await asyncio.sleep(0.02)
        assert await copies(second) == {storage_id(ANNA), storage_id(BEN)}
        stats = second.backend.parts.bucket.stats
        before = stats.snapshot()
        client = await Client.login(second, ANNA)
        assert "* STATUS INBOX (MESSAGES 20)\r\n" in await client.ask("STATUS INBOX (MESSAGES)")
        made = stats.since(before).requests()
        assert made, "the copies are compared with the bucket"
        assert {op for op, _ in made} <= {"list", "put"}, "no bundle is read"


async def test_a_user_whose_copies_cannot_be_pulled_delays_no_other(
    directory: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (backend, arrivals):
        monkeypatch.setattr(module, "EVACUATIONS_S" if module is backend else "EVERY_S", 0.02)
    tried: list[str] = []
    bring = pull.bring

    async def poisoned(*given: Any) -> None:
        tried.append(given[-1])
        if given[-1] == storage_id(ANNA):
            raise Corrupt("what the source sends does not decode")
        if tried.count(storage_id(BEN)) == 1:
            raise Unavailable("the bucket does not answer")
        await bring(*given)

    monkeypatch.setattr(pull, "bring", poisoned)
    async with two(tmp_path) as (first, second):
        for user in (ANNA, BEN):
            await first.deliver(user, [mail(1)])
        await second.call("clusterBackendEvacuate", backend="first")
        async with asyncio.timeout(PATIENT_S):
            while await copies(second) != {storage_id(BEN)} or await copies(first) != {storage_id(ANNA)}:  # noqa: ASYNC110 - nothing to wait for
                await asyncio.sleep(0.02)
        assert tried.count(storage_id(ANNA)) == 1, "it is left to the operator"
        assert tried.count(storage_id(BEN)) == 2, "an outage is over some time"


async def delivered(service: Service, *recipients: str) -> bytes:
    """Deliver a mail over LMTP; the replies."""
    port = service.backend.listeners.addresses("lmtp")[0].rpartition(":")[2]
    reader, writer = await asyncio.open_connection("127.0.0.1", int(port))
    named = "".join(f"RCPT TO:<{one}>\r\n" for one in recipients)
    writer.write(f"LHLO x\r\nMAIL FROM:<>\r\n{named}DATA\r\n\r\nhello\r\n.\r\nQUIT\r\n".encode())
    async with asyncio.timeout(PATIENT_S):
        replies = await reader.read()
    writer.close()
    return replies


async def test_two_names_of_one_mail_are_one_user(directory: None, tmp_path: Path) -> None:
    """The storage id decides about the group and the owner, and not the name."""
    assert group_of(storage_id(ANNA), GROUPS_LOCAL) != group_of(storage_id(ANNE), GROUPS_LOCAL)
    async with two(tmp_path) as (first, second):
        names = (ANNA, ANNE)
        status = await second.call("clusterUserStatus", users=list(names))
        assert [row["username"] for row in status] == [*names]
        assert len({(row["storage_id"], row["group"], row["backend"]) for row in status}) == 1

        # A pin of the one is a pin of the other.
        await second.call("clusterUserMove", user=ANNE, backend="first")
        status = await second.call("clusterUserStatus", users=list(names))
        assert [row["backend"] for row in status] == ["first", "first"]

        # Mails come through the other member, and lie in one mailbox.
        replies = await delivered(second, *names)
        for name in names:
            assert f"\r\n250 2.0.0 <{name}> ".encode() in replies
        for kicked in names:
            clients = [await Client.login(second, name) for name in names]
            for client in clients:
                assert (await client.ask("STATUS INBOX (MESSAGES)"))[0] == "* STATUS INBOX (MESSAGES 2)\r\n"
            for asked in (first, second):
                rows = await asked.call("who")
                assert [(row["backend"], row["username"], row["connections"]) for row in rows] == [
                    ("first", name, 1) for name in names
                ]
            rows = await second.call("kick", user=kicked)
            assert {(row["username"], row["connections"]) for row in rows} == {(name, 1) for name in names}
            for client in clients:
                assert "BYE" in await client.rest()
        client = await Client.login(second, ANNA)
        assert await second.call("clusterUserKick", user=ANNE) == [{"backend": "first", "connections": 1}]
        assert "BYE" in await client.rest()
