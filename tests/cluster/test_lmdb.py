"""The directory of a single host, with real processes: killed, stopped, and on a file
system that LMDB does not support."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lmdb
import pytest
import structlog.testing
from patience import PATIENT_S
from turns import TURN_S_MAX, turns

from obox.cluster import Assigned, Directory, Kept, KeptFile, Kind, Row, View, encode, open_lmdb
from obox.cluster import lmdb as engine
from obox.errors import ConfigError, Unavailable

NOW = 1_800_000_000_000_000
ROOT = Path(__file__).parent.parent.parent

WRITER = """
import asyncio, sys
from pathlib import Path
from obox.cluster import Kind, open_lmdb

async def main(path, name):
    directory = await open_lmdb(Path(path))
    for number in range(1, 1 << 60):
        await directory.put(Kind.BEATS, name, b"%d" % number, number)
        await directory.put(Kind.PINS, f"{name}-{number % 500}", bytes(number % 3000), number)
        if number == 3:
            print("ready", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""

HOLDER = """
import sys
from obox.cluster import lmdb as engine
directory = engine.LmdbDirectory(engine.Path(sys.argv[1]), engine.MAP_BYTES)
directory._open()
with directory._locked(1e18), directory._env.begin(write=True) as txn:
    txn.put(b"half", b"done")
    print("ready", flush=True)
    sys.stdin.read()
"""


@contextmanager
def process(program: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run a Python program. Yield when it has printed "ready", and kill it at the
    end."""
    running = subprocess.Popen(
        [sys.executable, "-c", program, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    try:
        assert running.stdout
        assert running.stdout.readline() == "ready\n"
        yield running
    finally:
        running.kill()
        running.wait(PATIENT_S)
        for pipe in (running.stdin, running.stdout):
            if pipe:
                pipe.close()


async def changed(directory: Directory, name: str) -> None:
    """Wait until another process has changed the row of a beat."""
    before = await directory.get(Kind.BEATS, name)
    async with asyncio.timeout(PATIENT_S):
        while await directory.get(Kind.BEATS, name) == before:  # noqa: ASYNC110 - another process writes
            await asyncio.sleep(0.005)


async def test_two_processes_see_each_other(tmp_path: Path) -> None:
    directory = await open_lmdb(tmp_path)
    with process(WRITER, str(tmp_path), "b"):
        await changed(directory, "b")
        await directory.put(Kind.GROUPS, "00001", b"a", NOW)
        await changed(directory, "b")
        assert await directory.get(Kind.GROUPS, "00001") == Row(b"a", NOW)
    await directory.close()


async def test_a_writer_that_is_killed_at_any_moment_stops_nobody(tmp_path: Path) -> None:
    directory = await open_lmdb(tmp_path)
    for turn in range(8):
        with process(WRITER, str(tmp_path), "b") as other:
            await asyncio.sleep(0.003 * turn)
            other.kill()
            other.wait(PATIENT_S)
            await directory.put(Kind.GROUPS, "00001", b"%d" % turn, NOW + turn)
            assert await directory.get(Kind.GROUPS, "00001") == Row(b"%d" % turn, NOW + turn)
    await directory.close()


async def test_a_writer_that_is_killed_within_a_transaction_stops_nobody(tmp_path: Path) -> None:
    directory = await open_lmdb(tmp_path)
    with process(HOLDER, str(tmp_path)) as other:
        other.kill()
        other.wait(PATIENT_S)
        await directory.put(Kind.GROUPS, "00001", b"a", NOW)
    assert await directory.get(Kind.GROUPS, "00001") == Row(b"a", NOW)
    await directory.close()
    with lmdb.open(str(tmp_path)) as env, env.begin() as txn:
        assert txn.get(b"half") is None


async def test_a_writer_that_is_stopped_costs_unavailable_and_never_a_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "DEADLINE_S", 0.2)
    directory = await open_lmdb(tmp_path)
    await directory.put(Kind.GROUPS, "00001", b"a", NOW)
    with process(HOLDER, str(tmp_path)) as other:
        os.kill(other.pid, signal.SIGSTOP)
        with structlog.testing.capture_logs() as logs:
            for _ in range(3):
                with pytest.raises(Unavailable, match="another process"):
                    await directory.put(Kind.GROUPS, "00001", b"b", NOW + 1)
                assert await directory.get(Kind.GROUPS, "00001") == Row(b"a", NOW), "reads go on"
        said = [line["process"] for line in logs if line.get("path") == str(tmp_path)]
        assert said == [str(other.pid)], "once a minute, and which process"
        # A member that starts meanwhile gets the error as well.
        with pytest.raises(Unavailable):
            await open_lmdb_again(tmp_path)
        os.kill(other.pid, signal.SIGCONT)
        other.kill()
        other.wait(PATIENT_S)
    monkeypatch.setattr(engine, "DEADLINE_S", PATIENT_S)
    await directory.put(Kind.GROUPS, "00001", b"c", NOW + 1)
    assert await directory.get(Kind.GROUPS, "00001") == Row(b"c", NOW + 1)
    await directory.close()


async def open_lmdb_again(path: Path) -> None:
    """Try to open the directory as another process would. The call asks for the lock
    first, which a stopped process holds, so LMDB does not open the same file twice
    here."""
    directory = engine.LmdbDirectory(path, engine.MAP_BYTES)
    try:
        await directory.open()
    finally:
        await directory.close()


async def test_a_writer_in_a_loop_that_is_stopped_and_goes_on(tmp_path: Path) -> None:
    directory = await open_lmdb(tmp_path)
    with process(WRITER, str(tmp_path), "b") as other:
        for turn in range(5):
            await asyncio.sleep(0.002 * turn)
            os.kill(other.pid, signal.SIGSTOP)
            assert await directory.get(Kind.BEATS, "b")
            os.kill(other.pid, signal.SIGCONT)
            await directory.put(Kind.BEATS, "a", b"%d" % turn, NOW + turn)
            await changed(directory, "b")
    await directory.close()


async def test_no_transaction_runs_on_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads: set[int] = set()
    opened = lmdb.open

    class Watched:
        """An LMDB environment that records which threads begin a transaction. It is a
        wrapper because LMDB's class cannot be derived from."""

        def __init__(self, *args: Any, **words: Any) -> None:
            self._env = opened(*args, **words)

        def begin(self, **words: Any) -> Any:
            threads.add(threading.get_ident())
            return self._env.begin(**words)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._env, name)

    monkeypatch.setattr(lmdb, "open", Watched)
    directory = await open_lmdb(tmp_path)
    await directory.put(Kind.GROUPS, "00001", b"a", NOW)
    await directory.get(Kind.GROUPS, "00001")
    await directory.all(Kind.GROUPS)
    await directory.close()
    assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_many_writes_at_once_are_few_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = await open_lmdb(tmp_path)
    written: list[int] = []
    write_once = engine.LmdbDirectory.write_once
    monkeypatch.setattr(
        engine.LmdbDirectory,
        "write_once",
        lambda self, env, puts: written.append(len(puts)) or write_once(self, env, puts),
    )
    await asyncio.gather(*(directory.put(Kind.GROUPS, f"{n:05}", b"a", NOW) for n in range(256)))
    await directory.close()
    assert sum(written) == 256
    assert max(written) <= engine.BATCH_ROWS
    assert len(written) < 64


async def test_polls_of_very_many_rows_leave_the_loop_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory has 100,000 pinned users, and a single row changes between the
    polls. The test measures the turns of the loop, not how long a poll takes."""
    monkeypatch.setattr(engine, "DEADLINE_S", 120.0)
    with lmdb.open(str(tmp_path / "cluster"), map_size=engine.MAP_BYTES) as env, env.begin(write=True) as txn:
        txn.put(b"\0format", b"1")
        for number in range(100_000):
            key = f"user{number}@example.org"
            value = engine.HEAD.pack(NOW, len(key)) + key.encode() + encode(Assigned("mail-1", 1, number))
            txn.put(engine.place_of(Kind.PINS, key), value)
    directory = await open_lmdb(tmp_path / "cluster")
    keeper = KeptFile(tmp_path / "kept")
    view = View(directory, clock=time.monotonic, now=time.time, sleep=asyncio.sleep, keeper=keeper)
    for number in range(3):
        await directory.put(Kind.PINS, "anna", encode(Assigned("mail-1", number, 1)), NOW + number)
        with turns() as found:
            assert await view.poll()
        # The test looks at the loop's turns alone: rows are decoded in threads beside
        # the loop, and the scheduler of a loaded machine decides when these threads
        # run.
        assert found.longest_s / found.slowdown <= TURN_S_MAX, found.report()
    assert len(view.pins) == 100_001
    kept = keeper.load()
    assert isinstance(kept, Kept)
    assert len(kept.rows["pins"]) == 100_001
    await directory.close()


async def test_a_full_map_says_so_and_reads_go_on(tmp_path: Path) -> None:
    directory = await open_lmdb(tmp_path, map_bytes=1 << 20)

    async def fill() -> None:
        for number in range(1000):
            await directory.put(Kind.MEMBERS, str(number), bytes(60_000), NOW)

    with structlog.testing.capture_logs() as logs, pytest.raises(Unavailable, match="full"):
        await fill()
    assert [line["bytes_max"] for line in logs] == [1 << 20]
    assert await directory.get(Kind.MEMBERS, "0") == Row(bytes(60_000), NOW)
    await directory.close()


async def test_readers_that_died_are_forgotten_at_the_next_start(tmp_path: Path) -> None:
    # LMDB does not remove the entries of dead readers by itself while a process has the
    # file open.
    directory = await open_lmdb(tmp_path)

    def readers() -> set[str]:
        return {line.split()[0] for line in directory._env.readers().splitlines()[1:]}

    for _ in range(3):
        with process(WRITER, str(tmp_path), "b") as last:
            pass
    assert str(last.pid) in readers()
    with process(WRITER, str(tmp_path), "b") as other:
        assert readers() == {str(os.getpid()), str(other.pid)}
    await directory.close()


MOUNTS = """\
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
30 22 0:40 / /srv rw - nfs4 server:/export rw
31 22 8:2 / /srv/local\\040disk rw - xfs /dev/sdb1 rw
32 22 0:41 / /srvother rw - tmpfs tmpfs rw
33 22 0:42 / /over rw - ext4 /dev/sdc1 rw
34 22 0:43 / /over rw - fuse.sshfs mail@host:/ rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/srv/obox", "nfs4"), ("/srv", "nfs4"), ("/over/obox/deep", "fuse.sshfs")]
    + [(path, "") for path in ("/var/lib/obox", "/srvother/obox", "/srv/local disk/obox")],
)
def test_the_table_of_mounts(tmp_path: Path, path: str, kind: str) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS)
    assert engine.network_mount(Path(path), table) == kind


def test_a_system_without_a_table_of_mounts(tmp_path: Path) -> None:
    assert engine.network_mount(tmp_path, tmp_path / "none") == ""


async def test_a_network_file_system_is_refused(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTS + f"40 22 0:50 / {tmp_path} rw - cifs //server/share rw\n")
    with pytest.raises(ConfigError, match=r"cluster\.directory.*cifs.*allowed: .*cassandra://"):
        await open_lmdb(tmp_path / "cluster", mounts=table)
    assert not (tmp_path / "cluster").exists()


async def test_a_file_of_another_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"something else" * 1000)
    with pytest.raises(ConfigError, match=r"cluster\.directory.*cannot be read.*write their rows back"):
        await open_lmdb(tmp_path)


async def test_a_format_of_another_version_is_refused(tmp_path: Path) -> None:
    with lmdb.open(str(tmp_path)) as env, env.begin(write=True) as txn:
        txn.put(b"\0format", b"2")
    with pytest.raises(ConfigError, match="has format 2, this version reads 1"):
        await open_lmdb(tmp_path)


async def test_a_path_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"cluster\.directory.*cannot open"):
        await open_lmdb(tmp_path / "file" / "cluster")


async def test_a_folder_that_was_removed_is_noticed(tmp_path: Path) -> None:
    directory = await open_lmdb(tmp_path / "cluster")
    await directory.put(Kind.GROUPS, "00001", b"a", NOW)
    (tmp_path / "cluster").rename(tmp_path / "gone")
    for work in (directory.all(Kind.GROUPS), directory.put(Kind.GROUPS, "00001", b"b", NOW)):
        with pytest.raises(Unavailable, match="removed or replaced"):
            await work
    await directory.close()


async def test_a_file_that_was_cut_short_ends_no_process(tmp_path: Path) -> None:
    directory = await open_lmdb(tmp_path)
    for number in range(50):
        await directory.put(Kind.MEMBERS, str(number), bytes(20_000), NOW)
    await directory.close()
    os.truncate(tmp_path / "data.mdb", 3 * 4096)
    program = (
        "import asyncio, sys; from pathlib import Path; from obox.cluster import Kind, open_lmdb\n"
        "async def main(): print(len(await (await open_lmdb(Path(sys.argv[1]))).all(Kind.MEMBERS)))\n"
        "asyncio.run(main())"
    )
    arguments = [sys.executable, "-c", program, str(tmp_path)]
    ended = await asyncio.to_thread(
        subprocess.run, arguments, capture_output=True, text=True, cwd=ROOT, check=False, timeout=PATIENT_S
    )
    assert ended.returncode == 1, "an exception, and no signal"
    assert re.search(r"(ConfigError|Unavailable): ", ended.stderr)


async def test_after_close_everything_is_unavailable(tmp_path: Path) -> None:
    directory = await open_lmdb(tmp_path)
    await directory.close()
    for work in (directory.get(Kind.GROUPS, "a"), directory.all(Kind.GROUPS), directory.put(Kind.GROUPS, "a", b"", 1)):
        with pytest.raises(Unavailable):
            await work
    await directory.close()
