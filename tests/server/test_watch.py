"""Files that are replaced in each of the ways that programs use."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENT_S

from obox.server._watching import Watching
from obox.server.watch import FileWatch

QUIET_S = 0.05


class Seen:
    def __init__(self) -> None:
        self.count = 0
        self.more = asyncio.Event()

    async def changed(self) -> None:
        self.count += 1
        self.more.set()

    async def wait(self) -> None:
        async with asyncio.timeout(PATIENT_S):
            await self.more.wait()
        self.more.clear()


@asynccontextmanager
async def watching(log: Any, *files: Path) -> AsyncIterator[Seen]:
    seen = Seen()
    task = asyncio.create_task(FileWatch(files, seen.changed, log=log, quiet_s=QUIET_S).run())
    await asyncio.sleep(4 * QUIET_S)
    try:
        yield seen
    finally:
        task.cancel()
        await asyncio.wait([task])


def in_place(path: Path) -> None:
    path.write_text("two, longer")


def renamed(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_text("two")
    new.rename(path)


def removed_and_made(path: Path) -> None:
    path.unlink()
    path.write_text("two, made anew")


@pytest.mark.parametrize("replace", [in_place, renamed, removed_and_made])
async def test_a_replaced_file_is_seen_once(tmp_path: Path, log: Any, replace: Callable[[Path], None]) -> None:
    path = tmp_path / "cert.pem"
    path.write_text("one")
    async with watching(log, path) as seen:
        replace(path)
        await seen.wait()
        await asyncio.sleep(4 * QUIET_S)
        assert seen.count == 1
        path.with_name("beside").write_text("another file is none of ours")
        path.read_text()
        await asyncio.sleep(4 * QUIET_S)
        assert seen.count == 1


async def test_two_files_one_after_the_other_are_one_change(tmp_path: Path, log: Any) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert.write_text("one")
    key.write_text("one")
    async with watching(log, cert, key) as seen:
        renamed(cert)
        await asyncio.sleep(QUIET_S / 2)
        renamed(key)
        await seen.wait()
        await asyncio.sleep(4 * QUIET_S)
        assert seen.count == 1


async def test_a_link_that_points_elsewhere(tmp_path: Path, log: Any) -> None:
    """ACME clients renew certificates in this way: live/ has links into archive/. The
    second time, the new file is in a third directory."""
    for number in (1, 2, 3):
        (tmp_path / f"archive{number}").mkdir()
        (tmp_path / f"archive{number}" / "cert.pem").write_text(f"number {number}")
    live = tmp_path / "live"
    live.mkdir()
    link = live / "cert.pem"
    link.symlink_to("../archive1/cert.pem")
    async with watching(log, link) as seen:
        for number in (2, 3):
            other = live / "new"
            other.symlink_to(f"../archive{number}/cert.pem")
            os.rename(other, link)
            await seen.wait()
        await asyncio.sleep(4 * QUIET_S)
        (tmp_path / "archive3" / "cert.pem").write_text("written where the link points now")
        await seen.wait()
        assert seen.count == 3


async def test_a_directory_behind_a_link(tmp_path: Path, log: Any) -> None:
    """Secrets are mounted into containers in this way: the file is a link to data/file,
    and data is a link to one of two directories."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "tls.crt").write_text(f"certificate {name}")
    (tmp_path / "data").symlink_to("one")
    (tmp_path / "tls.crt").symlink_to("data/tls.crt")
    async with watching(log, tmp_path / "tls.crt") as seen:
        (tmp_path / "new").symlink_to("two")
        os.rename(tmp_path / "new", tmp_path / "data")
        await seen.wait()
        assert seen.count == 1


async def test_a_directory_that_is_always_written_hides_no_change(tmp_path: Path, log: Any) -> None:
    """A log lies beside the certificate, and other files come and go there. A backend
    used to wait for a quiet second of the directory, which never came."""
    path = tmp_path / "cert.pem"
    path.write_text("one")

    async def busy() -> None:
        with (tmp_path / "log").open("a", buffering=1) as written:
            for number in itertools.count():
                written.write("a line\n")
                (tmp_path / f"other{number % 3}").write_text("x")
                await asyncio.sleep(QUIET_S / 10)

    writing = asyncio.create_task(busy())
    try:
        async with watching(log, path) as seen:
            renamed(path)
            await seen.wait()
            await asyncio.sleep(4 * QUIET_S)
            assert seen.count == 1
    finally:
        writing.cancel()


async def test_lines_of_a_log_beside_the_file_make_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event costs a turn of a thread and the interpreter's lock: a fifth of a
    delivery."""
    heard: list[str] = []
    monkeypatch.setattr(Watching, "on_any_event", lambda _, event: heard.append(os.path.basename(event.src_path)))
    done = tmp_path / "done"
    watched = Watching({str(tmp_path): frozenset({"done"})}, lambda: None)
    watched.start()
    try:
        with (tmp_path / "log").open("w", buffering=1) as written:
            for _ in range(1_000):
                written.write("a line\n")
            done.write_text("the last event")
            async with asyncio.timeout(PATIENT_S):
                while "done" not in heard:  # noqa: ASYNC110 - a thread appends to the list
                    await asyncio.sleep(0.01)
            assert heard.count("log") <= 1
    finally:
        watched.stop()
