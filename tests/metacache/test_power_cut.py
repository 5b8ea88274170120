"""Power cuts: copies of the LMDB file at the boundaries of commits, and copies in which
unsynced pages are lost.

With sync, a commit writes its pages, syncs, and then writes one of two meta pages.
Whatever pages are lost before the sync, the cache serves the state of the last commit.
Without sync, pages may be lost in any order, so after a new boot of the machine nothing
is trusted.
"""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from metacache import Change, Copy, Metacache
from metacache.layout import PAGE_BYTES

MIB = 1 << 20
META_PAGES = 2
USERS = [f"u{n}" for n in range(6)]
BOXES = ["root", "INBOX", "other"]
State = dict[tuple[str, str], tuple[Copy | None, list[bytes | None]]]
UIDS = list(range(1, 40))


def open_cache(path: Path, *, sync: bool = True) -> Metacache:
    return Metacache(path / "mc", max_space=16 * MIB, max_grace=0, clock=lambda: 1.0, sync=sync)


def state_of(cache: Metacache) -> State:
    return {(user, box): (cache.load(user, box), cache.get_fields(user, box, UIDS)) for user in USERS for box in BOXES}


def change(cache: Metacache, chance: random.Random) -> None:
    """Make a random change to the cache, from a single delta to hundreds of pages."""
    for _ in range(chance.randint(1, 12)):
        user, box = chance.choice(USERS), chance.choice(BOXES)
        blob = chance.randbytes(chance.choice((20, 300, 5000, 70_000)))
        match chance.randrange(7):
            case 0:
                cache.replace(user, box, blob, b"stamp" + blob[:4], change=Change.NONE, priority=2)
            case 1:
                cache.drop(user, box)
            case 2:
                cache.drop_user(user)
            case 3 | 4:
                cache.put_fields(user, box, [(uid, blob[:400] + bytes([uid])) for uid in chance.sample(UIDS, 12)])
            case _:
                cache.append(user, box, blob, Change.IMPORTANT)


def cut(before: bytes, after: bytes, chance: random.Random) -> bytes:
    """Return the file as a cut during the second commit may leave it: its meta page is
    not written, and any of its pages may be lost."""
    out = bytearray(before)
    for at in range(META_PAGES * PAGE_BYTES, len(after), PAGE_BYTES):
        if chance.random() < 0.5:
            if at > len(out):
                out += bytes(at - len(out))
            out[at : at + PAGE_BYTES] = after[at : at + PAGE_BYTES]
    return bytes(out)


def put_file(path: Path, data: bytes) -> None:
    shutil.rmtree(path, ignore_errors=True)
    (path / "mc").mkdir(parents=True)
    (path / "mc" / "data.mdb").write_bytes(data)


@pytest.mark.parametrize("seed", range(6))
async def test_a_cut_at_or_within_a_commit_serves_the_last_state(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    cache = open_cache(tmp_path / "live")
    data = tmp_path / "live" / "mc" / "data.mdb"
    history: list[tuple[bytes, State]] = []
    for _ in range(25):
        change(cache, chance)
        await cache.commit()
        history.append((data.read_bytes(), state_of(cache)))
    await cache.close()
    for at, (image, state) in enumerate(history):
        images = [image]
        if at + 1 < len(history):
            images += [cut(image, history[at + 1][0], chance) for _ in range(2)]
        for one in images:
            put_file(tmp_path / "after", one)
            again = open_cache(tmp_path / "after")
            assert state_of(again) == state, (seed, at)
            assert again.accounts.check() == []
            again.append("u0", "INBOX", b"goes on", Change.IMPORTANT)
            await again.commit()
            await again.close()
    assert not [name for name in os.listdir(tmp_path / "after") if "broken" in name]


@pytest.mark.parametrize("seed", range(4))
async def test_without_sync_a_cut_leaves_an_empty_cache_and_the_old_one_aside(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    cache = open_cache(tmp_path / "live", sync=False)
    images = []
    for _ in range(12):
        change(cache, chance)
        await cache.commit()
        images.append((tmp_path / "live" / "mc" / "data.mdb").read_bytes())
    await cache.close()
    for _ in range(10):
        at = chance.randrange(1, len(images))
        put_file(tmp_path / "after", cut(images[at - 1], images[at], chance)[: PAGE_BYTES * chance.randint(2, 400)])
        mark = tmp_path / "after" / "mc" / "unsynced"
        mark.write_text("an earlier boot")
        # The setting may have changed since the file was written.
        for sync in (True, False):
            again = open_cache(tmp_path / "after", sync=sync)
            assert list(again.users()) == []
            again.append("u0", "INBOX", b"goes on", Change.IMPORTANT)
            await again.close()
            mark.write_text("an earlier boot")
        assert len(list((tmp_path / "after").glob("mc.broken-*"))) == 1
