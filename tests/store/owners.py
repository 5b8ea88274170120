"""A directory in which each user is a unit, and backends that are its members."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from machines import Life, Machine, uids

from obox.store import NewMail
from obox.store.backend import handover
from obox.store.owned import Tag
from obox.types import StorageId

ANNA, BEN = StorageId("anna"), StorageId("ben")
MAIL = NewMail(b"a: b\r\n\r\ntext")


class Rows:
    """A directory in which each user is a unit of its own."""

    def __init__(self) -> None:
        self.owners: dict[str, tuple[str, Tag]] = {}
        self.highest = 0

    def give(self, backend: str, *units: str) -> dict[str, Tag]:
        self.highest += 1
        tags = dict.fromkeys(units, Tag(self.highest, 7))
        self.owners |= {unit: (backend, tag) for unit, tag in tags.items()}
        return tags


class Member:
    """The `store.owned.Cluster` of a backend."""

    def __init__(self, rows: Rows, name: str) -> None:
        self.rows, self.name = rows, name
        self.life: Life

    def unit_of(self, sid: str) -> str:
        return sid

    async def ready(self) -> None:
        pass

    def units(self) -> dict[str, Tag]:
        return {unit: tag for unit, (name, tag) in self.rows.owners.items() if name == self.name}

    def number(self) -> int:
        return self.rows.highest

    async def confirm(self) -> None:
        pass

    async def fenced(self, boot: str) -> None:
        store = self.life.store
        store.spawn(handover.continue_after_fence(store, boot))
        store.env.owned.lose([unit for unit in store.env.owned.units if unit not in self.units()])

    async def kick(self, users: Collection[StorageId]) -> None:
        for sid in users:
            if (user := self.life.store.users.get(sid)) is not None:
                user.sessions = 0
                for box in user.boxes.values():
                    box.sessions = 0
        self.life.users.clear()

    async def gain(self, *units: str, dead: tuple[tuple[str, str], ...] = (), orderly: bool = False) -> None:
        await handover.gain(self.life.store, self.rows.give(self.name, *units), dead, orderly=orderly)


@asynccontextmanager
async def member(machine: Machine, rows: Rows, *, kill: bool = False) -> AsyncIterator[Member]:
    one = Member(rows, machine.settings.backend)
    async with machine.run(cluster=one, kill=kill) as life:
        one.life = life
        yield one
        await one.kick(list(life.store.users))


@pytest.fixture
def rows() -> Rows:
    return Rows()


@pytest.fixture
def other(machine: Machine, tmp_path: Path) -> Machine:
    return machine.renamed("second", tmp_path / "second")


async def with_flag(life: Life, name: str) -> None:
    """Make a user with a mail. Only the journal knows that the mail was seen."""
    user = await life.user(name)
    await user.append("INBOX", [MAIL])
    box = await user.select("INBOX")
    await user.flush(everything=True)
    await box.store_flags(uids(1), "add", ["\\Seen"])
    await life.store.journal.sync()


async def adopted(one: Member) -> None:
    """Wait until all users whom this backend has to adopt from dead boots are in
    bundles, and the bucket records that."""
    async with asyncio.timeout(30):
        while one.life.store.takeover.left or not one.life.store.upkeep.adoption_done():  # noqa: ASYNC110 - the store has no event for it
            await asyncio.sleep(0.01)
