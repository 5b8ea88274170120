"""The engines of the directory for the conformance suite. Each test begins with an
empty directory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fleet import fleet  # noqa: F401 - a fixture
from patience import PATIENT_S

from obox.cluster import Directory, MemoryDirectory, MemoryReplica, open_lmdb
from obox.cluster import lmdb as engine


@pytest.fixture(params=["memory", "lmdb"])
async def pair(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Directory, Directory]]:
    """Return the directory as two members see it. A process can open an LMDB file only
    once, so both members share one object there. test_lmdb.py tests LMDB with several
    processes."""
    monkeypatch.setattr(engine, "DEADLINE_S", PATIENT_S)
    one: Directory
    other: Directory
    if request.param == "memory":
        replica = MemoryReplica(asyncio.get_running_loop().time)
        one, other = (MemoryDirectory(replica, sleep=asyncio.sleep) for _ in range(2))
    else:
        one = other = await open_lmdb(tmp_path / "cluster")
    yield one, other
    await one.close()
    await other.close()


@pytest.fixture
def directory(pair: tuple[Directory, Directory]) -> Directory:
    return pair[0]
