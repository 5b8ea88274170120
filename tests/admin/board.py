"""A directory with rows of a small cluster, on which `oboxadm cluster` runs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from obox.admin import rows
from obox.admin.parts import Admin, ClusterParts
from obox.admin.run import Outcome
from obox.auth import Authenticator, PasswdFile
from obox.cluster import (
    Assigned,
    Beat,
    Directory,
    Kind,
    Member,
    MemoryDirectory,
    MemoryReplica,
    Orders,
    Settings,
    State,
    decode,
    group_key,
    next_timestamp,
    open_lmdb,
)

GROUPS = 8


READS = {"envelope": 2, "journal": 1}


ANNA = "anna@example.org"


class Board:
    """A directory with its rows, and verbs that are run on it."""

    def __init__(self, directory: Directory, users: PasswdFile) -> None:
        self.directory = directory
        self.probe: Any = None
        self.kick: Any = None
        self.serves: dict[str, Assigned] | None = None
        self.reads = dict(READS)
        """What the code of the member that is asked can read."""

        @asynccontextmanager
        async def find(*, make: bool = False) -> AsyncIterator[ClusterParts]:
            serves = None if self.serves is None else self._serves
            yield ClusterParts(directory, "memory", "a", 15.0, self.reads, serves, self.probe, self.kick)

        self.admin = Admin(
            users=users,
            authenticator=lambda: Authenticator(users),
            parse_search=cast(Any, lambda _: None),
            find_cluster=find,
        )

    def _serves(self) -> dict[str, Assigned]:
        assert self.serves is not None
        return self.serves

    async def put(self, kind: Kind, key: str, record: msgspec.Struct) -> None:
        row = await self.directory.get(kind, key)
        await self.directory.put(kind, key, msgspec.msgpack.encode(record), next_timestamp(time.time, row))

    async def fill(self) -> None:
        """Write two backends that are alive and a third whose beat stopped long ago.
        Backend a has 5 groups, b has 3."""
        await self.put(Kind.SETTINGS, "directory", Settings(GROUPS, "f" * 32, 1000.0))
        for name, site in (("a", "north"), ("b", "south"), ("c", "south")):
            await self.put(
                Kind.MEMBERS, name, Member("backend", site, f"{name}.example.org", {"imap": 143}, READS, "1")
            )
            await self.put(Kind.ORDERS, name, Orders(State.STANDBY if name == "c" else State.ONLINE))
        for name in ("a", "b"):
            beat = Beat(7, f"boot-{name}", started=900.0, load={"cpu": 0.25, "memory": 0.5})
            await self.put(Kind.BEATS, name, beat)
        for number in range(GROUPS):
            await self.put(Kind.GROUPS, group_key(number), Assigned("a" if number < 5 else "b", number + 1, 1))

    async def ask(self, name: str, /, **params: Any) -> Outcome:
        outcome = Outcome()
        await outcome.gather(self.admin, name, params)
        for row in outcome.rows:
            assert [column for column in row if not rows.names(name, column)] == []
        return outcome

    async def rows(self, name: str, /, **params: Any) -> list[dict[str, Any]]:
        outcome = await self.ask(name, **params)
        assert outcome.code == 0, outcome.message
        return outcome.rows

    async def row(self, name: str, /, **params: Any) -> dict[str, Any]:
        (found,) = await self.rows(name, **params)
        return found

    async def fails(self, name: str, /, **params: Any) -> tuple[int, str]:
        outcome = await self.ask(name, **params)
        assert outcome.code, outcome.rows
        return outcome.code, outcome.message

    async def orders(self, name: str) -> Orders:
        row = await self.directory.get(Kind.ORDERS, name)
        assert row is not None
        return decode(row.value, Orders)


@pytest.fixture(params=["memory", "lmdb"])
async def empty(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Board]:
    (tmp_path / "users").write_text(f"{ANNA}:{{PLAIN}}secret:::::\n")
    directory: Directory
    if request.param == "memory":
        directory = MemoryDirectory(MemoryReplica(asyncio.get_running_loop().time), sleep=asyncio.sleep)
    else:
        directory = await open_lmdb(tmp_path / "cluster")
    yield Board(directory, PasswdFile(tmp_path / "users", ""))
    await directory.close()


@pytest.fixture
async def board(empty: Board) -> Board:
    await empty.fill()
    return empty
