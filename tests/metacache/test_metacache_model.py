"""The metacache compared with a dict: random operations, commits, background writes,
reopening, and kill -9."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from metacache import Change, Cleaner, Copy, Metacache, MetacacheFull, Weights
from metacache.layout import CHUNK_BYTES

MIB = 1 << 20
USERS = st.sampled_from(["anna", "bo", "x" * 600])
BOXES = st.sampled_from(["root", "INBOX", "é" * 200])
CHANGES = st.sampled_from(list(Change))
BLOBS = st.one_of(
    st.binary(max_size=20),
    st.sampled_from([CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 150_000, 3000]).map(lambda n: bytes([n % 251]) * n),
)
UIDS = st.integers(1, 30) | st.just(0xFFFFFFFF)


class Nobody:
    """An owner that uses no copy and uploads nothing."""

    def in_use(self, user: str, box: str) -> bool:
        return False

    def must_upload(self, user: str, box: str, copy: Copy | None) -> bool:
        return True

    async def flush(self, user: str, box: str) -> None:
        raise ConnectionError("no bucket")

    def unload(self, user: str, box: str) -> bool:
        return True


class MetacacheMachine(RuleBasedStateMachine):
    """After each operation all reads return what the dicts have, whatever has been
    committed by then."""

    max_space = 64 * MIB

    def __init__(self) -> None:
        super().__init__()
        self.dir = Path(tempfile.mkdtemp())
        self.runner = asyncio.Runner()
        self.copies: dict[tuple[str, str], Copy] = {}
        # A box that has had fields stays known, even when it has none.
        self.fields: dict[tuple[str, str], dict[int, bytes]] = {}
        self.state: dict[str, bytes] = {}
        self.priorities: dict[tuple[str, str], int] = {}
        self.open()

    def open(self) -> None:
        self.cache = Metacache(
            self.dir / "mc", max_space=self.max_space, max_grace=0, clock=lambda: 1.0, sync=False, flush_delay_s=0.001
        )

    def teardown(self) -> None:
        self.runner.run(self.cache.close())
        self.runner.close()
        shutil.rmtree(self.dir)

    @rule(user=USERS, box=BOXES, delta=BLOBS, change=CHANGES)
    def append(self, user: str, box: str, delta: bytes, change: Change) -> None:
        priority = len(delta) % 4
        self.cache.append(user, box, delta, change, priority=priority)
        old = self.copies.get((user, box))
        if old is None:
            self.copies[user, box] = Copy(b"", None, [delta], change)
            self.priorities[user, box] = priority
        else:
            self.copies[user, box] = old._replace(deltas=[*old.deltas, delta], change=max(old.change, change))

    @rule(user=USERS, box=BOXES, base=BLOBS, stamp=st.binary(max_size=3), change=CHANGES)
    def replace(self, user: str, box: str, base: bytes, stamp: bytes, change: Change) -> None:
        priority = len(stamp)
        self.cache.replace(user, box, base, stamp, change=change, priority=priority)
        self.copies[user, box] = Copy(stamp, base, [], change)
        self.priorities[user, box] = priority

    @rule(user=USERS, box=BOXES, change=CHANGES, stamp=st.none() | st.binary(max_size=9))
    def mark(self, user: str, box: str, change: Change, stamp: bytes | None) -> None:
        self.cache.mark(user, box, change, stamp)
        if (old := self.copies.get((user, box))) is not None:
            self.copies[user, box] = old._replace(change=change, stamp=old.stamp if stamp is None else stamp)

    def forget(self, keys: list[tuple[str, str]]) -> None:
        for key in keys:
            self.copies.pop(key, None)
            self.fields.pop(key, None)
            self.priorities.pop(key, None)

    @rule(user=USERS, box=BOXES)
    def drop(self, user: str, box: str) -> None:
        self.cache.drop(user, box)
        self.forget([(user, box)])

    @rule(user=USERS)
    def drop_user(self, user: str) -> None:
        self.cache.drop_user(user)
        self.forget([key for key in [*self.copies, *self.fields] if key[0] == user])

    @rule(sure=st.integers(0, 4))
    def drop_all(self, sure: int) -> None:
        if sure == 0:
            self.cache.drop_all()
            self.forget([*self.copies, *self.fields])

    @rule(user=USERS, box=BOXES, items=st.lists(st.tuples(UIDS, BLOBS), max_size=8))
    def put_fields(self, user: str, box: str, items: list[tuple[int, bytes]]) -> None:
        self.cache.put_fields(user, box, items)
        if items:
            self.fields.setdefault((user, box), {}).update(items)

    @rule(user=USERS, box=BOXES, uids=st.sets(UIDS, max_size=8))
    def drop_fields(self, user: str, box: str, uids: set[int]) -> None:
        self.cache.drop_fields(user, box, uids)
        for uid in uids:
            self.fields.get((user, box), {}).pop(uid, None)

    @rule(key=st.sampled_from(["boot", "seq"]), value=st.binary(max_size=9))
    def put_state(self, key: str, value: bytes) -> None:
        self.cache.put_state(key, value)
        self.state[key] = value

    @rule(user=USERS, box=BOXES, uids=st.lists(UIDS, max_size=8), low=UIDS, high=UIDS)
    def read_fields(self, user: str, box: str, uids: list[int], low: int, high: int) -> None:
        want = self.fields.get((user, box), {})
        assert self.cache.get_fields(user, box, uids) == [want.get(uid) for uid in uids]
        found = self.cache.iter_fields(user, box, low, high)
        assert found == sorted(item for item in want.items() if low <= item[0] <= high)

    def commit_now(self) -> None:
        """Commit. Everything is on disk afterwards. The machine with little room
        overrides this method."""
        self.runner.run(self.cache.commit())
        assert self.cache.staged() == 0

    @rule()
    def commit(self) -> None:
        self.commit_now()
        assert self.cache.accounts.check() == []
        assert self.cache.space() == sum(sum(user.space_bytes.values()) for user in self.cache.users())
        assert self.cache.accounts.by_priority() == {
            p: n for p in range(4) if (n := sum(user.space_bytes.get(p, 0) for user in self.cache.users()))
        }
        entries = {
            (user, box.box): box.change
            for batch in self.cache.accounts.entries()
            for user, _, all_of in batch
            for box in all_of
        }
        assert set(entries) == {*self.copies, *self.fields}
        boxes = {*self.copies, *self.fields}
        assert {user.user for user in self.cache.users()} == {user for user, _ in boxes}
        for user in self.cache.users():
            mine = {key for key in boxes if key[0] == user.user}
            assert set(user.space_bytes) == {self.priorities.get(key, 3) for key in mine}
            assert user.change == max((self.copies[key].change for key in mine if key in self.copies), default=0)

    @rule()
    def rescan(self) -> None:
        """The counts are right at any time, whatever is staged."""
        assert self.runner.run(self.cache.rescan()).right

    @rule(mask=st.sampled_from(["*", "b?", "anna", "none"]))
    def clean(self, mask: str) -> None:
        """Copies without a pending change are dropped. The result names the others."""
        self.commit_now()
        cleaner = Cleaner(self.cache, Nobody(), weights=Weights(), clock=lambda: 1.0)
        done = self.runner.run(cleaner.clean(mask))
        users = {"*": {"anna", "bo", "x" * 600}, "b?": {"bo"}, "anna": {"anna"}, "none": set()}[mask]
        mine = {key for key in {*self.copies, *self.fields} if key[0] in users}
        kept = {key for key in mine if key in self.copies and self.copies[key].change is not Change.NONE}
        assert {(user, box) for user, box, _ in done.refused} == kept
        assert done.boxes == len(mine) - len(kept)
        self.forget([*(mine - kept)])

    @rule(turns=st.integers(1, 40))
    def let_the_writer_run(self, turns: int) -> None:
        """Stop at any place of a background commit. Reads are right while the commit
        runs."""

        async def spin() -> None:
            commit = asyncio.create_task(self.cache.commit())
            # The cache may be full.
            commit.add_done_callback(lambda task: task.cancelled() or task.exception())
            for _ in range(turns):
                await asyncio.sleep(0)
                self.look()

        self.runner.run(self.run_on_one_loop(spin()))

    async def run_on_one_loop(self, work: object) -> None:
        await work

    @rule()
    def reopen(self) -> None:
        self.commit_now()
        self.runner.run(self.cache.close())
        self.open()

    @invariant()
    def look(self) -> None:
        for user in ("anna", "bo", "x" * 600):
            mine = {box for owner, box in [*self.copies, *self.fields] if owner == user}
            assert self.cache.boxes(user) == sorted(mine)
            for box in ("root", "INBOX"):
                want = self.copies.get((user, box))
                assert self.cache.load(user, box) == want
                peeked = self.cache.peek(user, box)
                assert (peeked and (peeked.stamp, peeked.change)) == (want and (want.stamp, want.change))
        for key in ("boot", "seq"):
            assert self.cache.get_state(key) == self.state.get(key)


class FullMachine(MetacacheMachine):
    """The same machine with room for little. Commits may fail, reads stay right, and
    dropping copies always makes room."""

    max_space = 2_000_000

    @rule(user=USERS, box=BOXES, size=st.sampled_from([400_000, 900_000]))
    def replace_large(self, user: str, box: str, size: int) -> None:
        self.replace(user, box, bytes(size), b"", Change.UNIMPORTANT)

    def commit_now(self) -> None:
        try:
            self.runner.run(self.cache.commit())
        except MetacacheFull:
            assert self.cache.full()
            assert self.cache.space() <= self.max_space
            self.look()
            for user in ("anna", "bo", "x" * 600):
                self.drop_user(user)
            self.runner.run(self.cache.commit())
        assert self.cache.staged() == 0
        assert not self.cache.full() or self.cache.space() >= self.max_space


QUICK = settings(
    max_examples=25, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
)
MetacacheMachine.TestCase.settings = QUICK
FullMachine.TestCase.settings = QUICK
TestMetacache = MetacacheMachine.TestCase
TestFull = FullMachine.TestCase


CHILD = """
import asyncio, os, sys
sys.path.insert(0, sys.argv[2])
from metacache import Change, Metacache

async def main():
    cache = Metacache(sys.argv[1], max_space=64 << 20, max_grace=0, clock=lambda: 1.0)
    start = int(cache.get_state("n") or b"0")
    async def session(s):
        for n in range(start, start + 100000):
            cache.append("u%d" % s, "INBOX", b"%d" % n, Change.IMPORTANT)
            cache.put_fields("u%d" % s, "INBOX", [(n % 50 + 1, b"%d" % n * 100)])
            if n % 50 == 0:
                cache.replace("u%d" % s, "INBOX", b"%d" % n * 20000, b"s", change=Change.NONE, priority=2)
            cache.put_state("n", b"%d" % n)
            await cache.commit()
            os.write(1, b"%d %d\\n" % (s, n))
    await asyncio.gather(*(session(s) for s in range(3)))

asyncio.run(main())
"""


def test_killed_at_any_time_what_was_committed_is_there(tmp_path: Path) -> None:
    path, root = tmp_path / "mc", Path(__file__).resolve().parents[2]
    seed = random.randrange(1 << 30)
    chance = random.Random(seed)
    for _ in range(6):
        child = subprocess.Popen([sys.executable, "-c", CHILD, str(path), str(root)], stdout=subprocess.PIPE)
        assert child.stdout is not None
        lines = [child.stdout.readline()]
        time.sleep(chance.uniform(0.0, 0.15))
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.readlines()
        child.wait()
        child.stdout.close()
        acknowledged = {int(s): int(n) for s, n in (line.split() for line in lines if line.endswith(b"\n"))}
        assert acknowledged, seed
        runner = asyncio.Runner()
        cache = Metacache(path, max_space=64 * MIB, max_grace=0, clock=lambda: 1.0)
        assert cache.accounts.check() == []
        for s, n in acknowledged.items():
            copy = cache.load(f"u{s}", "INBOX")
            assert copy is not None, seed
            last = copy.deltas[-1] if copy.deltas else (copy.base or b"")[: len(str(n))]
            assert int(last) >= n, (seed, s, n, last)
            (field,) = cache.get_fields(f"u{s}", "INBOX", [n % 50 + 1])
            assert field, seed
        assert not [name for name in os.listdir(tmp_path) if "broken" in name], seed
        runner.run(cache.close())
        runner.close()
