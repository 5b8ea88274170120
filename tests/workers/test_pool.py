"""Workers as processes: the rows of the directory for workers that end. A small program
stands in for the backend."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
from patience import PATIENT_S
from test_derive import config_of

from obox.cluster import (
    Assigned,
    Directory,
    Kind,
    Member,
    MemoryDirectory,
    MemoryReplica,
    Orders,
    State,
    View,
    encode,
    group_key,
    rank,
)
from obox.errors import ConfigError
from obox.workers import pool as pools
from obox.workers import worker as workers
from obox.workers.derive import of_worker
from obox.workers.orders import Start
from obox.workers.pool import Pool

PROGRAM = """
import os, socket, sys, time
home = os.path.dirname(os.environ["NOTIFY_SOCKET"])
out = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
os.read(0, 1 << 20)
if os.path.exists(home + "/ends"):
    sys.exit(1)
out.sendto(b"READY=1", os.environ["NOTIFY_SOCKET"])
if os.path.exists(home + "/refuses later"):
    sys.exit(78)
for line in sys.stdin:
    with open(home + "/orders", "a") as file:
        file.write(line)
    if line == "reload\\n":
        answer = "refused no" if os.path.exists(home + "/refuses") else "prepared"
        out.sendto(("X_RELOAD=" + answer).encode(), os.environ["NOTIFY_SOCKET"])
"""


@dataclass
class Unit:
    pool: Pool
    view: View
    directory: Directory
    home: Path

    def orders(self, number: int) -> list[str]:
        """Return what a worker got on its standard input."""
        path = self.home / f"worker-{number}/orders"
        return path.read_text().splitlines() if path.exists() else []

    def state(self, number: int) -> State:
        return self.view.orders[f"mail-{number}"].state


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENT_S):
        while True:
            if true():
                return
            await asyncio.sleep(0.01)


@asynccontextmanager
async def unit(path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Unit]:
    """Yield a unit of two workers that are stand-ins, and its directory."""
    (path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(workers, "PROGRAM", (sys.executable, str(path / "program.py")))
    config = config_of(path, SERVER__WORKERS="2")
    directory = MemoryDirectory(MemoryReplica(time.monotonic), sleep=asyncio.sleep)
    view = View(directory, clock=time.monotonic, now=time.time, sleep=asyncio.sleep)
    starts = [Start(of_worker(config, number), number, 2) for number in (1, 2)]
    pool = Pool(starts, view, lambda: None, None)
    yield Unit(pool, view, directory, path)


async def test_a_worker_that_ends_again_and_again_loses_its_groups_and_gets_them_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "REST_S", 0.2)
    # A worker gets its groups again only after it has run so long.
    monkeypatch.setattr(pools, "CRASHES_S", 0.2)
    async with unit(tmp_path, monkeypatch) as one, asyncio.TaskGroup() as tasks:
        await one.pool.register(one.directory)
        assert {one.state(number) for number in (1, 2)} == {State.ONLINE}
        one.pool.start(tasks)
        first, second = one.pool.workers.values()
        await first.ready.wait()
        await second.ready.wait()
        assert one.pool.answers()
        (first.home / "ends").touch()
        first.signal(9)
        await until(lambda: first.resting)
        assert not first.ready.is_set()
        assert one.pool.answers(), "a worker that rests keeps nobody from being answered"
        await until(lambda: one.state(1) is State.OFFLINE)
        await until(lambda: "gone mail-1" in one.orders(2))
        # The other workers have acquired its groups meanwhile.
        for number in range(64):
            await one.view.put(Kind.GROUPS, group_key(number), Assigned("mail-2", 7, 1))
        (first.home / "ends").unlink()
        await until(first.ready.is_set)
        # Therefore the next boot of this worker is not fenced.
        await until(lambda: one.orders(2)[-1] == "gone")
        await until(lambda: one.state(1) is State.ONLINE)
        wanted = {group_key(number) for number in range(64)}
        wanted = {unit for unit in wanted if rank(unit, {"mail-1": 100.0, "mail-2": 100.0})[0] == "mail-1"}
        await until(lambda: set(one.view.moves) == wanted)
        assert {move.to for move in one.view.moves.values()} == {"mail-1"}
        await one.pool.stop(to_return=False)
        await one.pool.kill()


async def test_a_worker_that_refuses_its_configuration_twice_ends_the_unit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backend serves while it races writers over keys. If the store is not fit, the
    backend ends, and its next start ends before it serves. The workers used to be
    started again and again."""
    async with unit(tmp_path, monkeypatch) as one:
        await one.pool.register(one.directory)
        for worker in one.pool.workers.values():
            worker.home.mkdir(parents=True)
            (worker.home / "refuses later").touch()
        with pytest.raises(BaseExceptionGroup) as caught:
            async with asyncio.timeout(PATIENT_S), asyncio.TaskGroup() as tasks:
                one.pool.start(tasks)
        assert caught.group_contains(ConfigError, match="cannot start")
        for worker in one.pool.workers.values():
            assert worker.process is not None
            await worker.process.wait()


async def test_workers_that_are_no_more_are_removed_and_new_workers_get_their_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with unit(tmp_path, monkeypatch) as one, asyncio.TaskGroup() as tasks:
        # An earlier start had workers 1 and 3.
        for number in (1, 3):
            await one.view.put(Kind.MEMBERS, f"mail-{number}", Member("backend", "default", "unix:/nowhere"))
            await one.view.put(Kind.ORDERS, f"mail-{number}", Orders())
        for number in range(64):
            await one.view.put(Kind.GROUPS, group_key(number), Assigned(f"mail-{1 + number % 2 * 2}", 3, 1))
        await one.directory.put(Kind.MEMBERS, "mail", encode(Member("proxy", "default", "host")), 1)
        await one.pool.register(one.directory)
        assert one.state(3) is State.REMOVED
        assert "mail" not in one.view.orders, "a proxy has no orders"
        assert one.view.members["mail-1"].address == f"unix:{tmp_path}/worker-1"
        one.pool.start(tasks)
        await until(lambda: "gone mail-3" in one.orders(1))
        await until(lambda: one.view.moves)
        assert {move.to for move in one.view.moves.values()} == {"mail-2"}
        await one.pool.stop(to_return=True)
        await one.pool.kill()


async def test_a_reload_that_one_refuses_is_dropped_by_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with unit(tmp_path, monkeypatch) as one, asyncio.TaskGroup() as tasks:
        await one.pool.register(one.directory)
        one.pool.start(tasks)
        for worker in one.pool.workers.values():
            await worker.ready.wait()
        use = await one.pool.prepare_reload()
        assert one.orders(1)[-1] == "reload"
        use()
        await until(lambda: one.orders(1)[-1] == one.orders(2)[-1] == "use")
        (tmp_path / "worker-2/refuses").touch()
        with pytest.raises(Exception, match=r"^no$"):
            await one.pool.prepare_reload()
        await until(lambda: one.orders(1)[-1] == one.orders(2)[-1] == "drop")
        await one.pool.stop(to_return=False)
        await one.pool.kill()


class _Closed:
    """A pipe as uvloop leaves it after the pipe was closed and before the end of the
    process was noticed."""

    def write(self, data: bytes) -> None:
        raise RuntimeError("the handle is closed")


async def test_an_order_for_a_process_that_is_ending_is_lost_and_nothing_else(tmp_path: Path) -> None:
    worker = workers.Worker(Start(of_worker(config_of(tmp_path), 1), 1, 2), lambda _: None, None)
    worker.process = SimpleNamespace(returncode=None, stdin=_Closed())
    worker.order("gone")
