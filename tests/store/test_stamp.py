"""The stamp of a local copy names bundles. It keeps to its size limit, however many
bundles there were."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from machines import Machine
from msgspec.structs import replace

from metacache import STAMP_BYTES_MAX, Change, Copy
from obox.objectstore.keys import bundles_prefix
from obox.store import NewMail
from obox.store.box.slots import Slots
from obox.store.owned import Owned
from obox.store.stamp import Assignment, Stamp, Trust, trust


def names(count: int, form: str, writer: str = "01a318707fc4e123") -> list[str]:
    return [f"{number:016x}.{writer}.{form}" for number in range(1, count + 1)]


@pytest.mark.parametrize("count", [0, 10, 288, 1440, 86_400])
def test_superseded_bundles_fit_the_newest_first(count: int) -> None:
    """The counts are the uploads of a day: none, a few, one in five minutes, one a
    minute, one a second."""
    old = [(name, 1.8e9 + 299.7 * at) for at, name in enumerate(names(count, "diff"))]
    known = Stamp(heads=tuple(names(2, "base")), superseded=tuple(old))
    stamp = known.encode()
    assert len(stamp) <= STAMP_BYTES_MAX
    again = Stamp.decode(stamp)
    assert again is not None
    assert again.heads == known.heads
    assert again.superseded == known.superseded[len(known.superseded) - len(again.superseded) :]
    assert len(again.superseded) >= min(count, 1440)


def test_segments_of_a_huge_mailbox_fit() -> None:
    known = Stamp(segments=tuple(names(20_000, "cache")), superseded=tuple((name, 1.0) for name in names(5, "diff")))
    again = Stamp.decode(known.encode())
    assert again is not None
    assert known.segments[-1000:] == again.segments[-1000:]


@pytest.mark.parametrize("damage", [b"", b"Z", b"Zjunk", b"\x80junk", b"\xff"])
def test_a_damaged_stamp_is_none(damage: bytes) -> None:
    assert Stamp.decode(damage) is None


async def test_a_base_after_two_diffs_is_read_alone(machine: Machine) -> None:
    """The base names the second diff, which covered the first diff. The first diff is
    therefore no other history, and makes no gap."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(b"a"), NewMail(b"b")])
        box = await user.box(user.entry("INBOX").guid)
        for at, flag in enumerate(("a", "b", "c", "d")):
            box.stamp = replace(box.stamp, need_base=box.stamp.need_base or at == 3)
            await box.store_flags(np.array([1], dtype=np.uint32), "add", [flag])
            await box.flush(everything=True)
        modseq = box.state.highestmodseq
    machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        with life.counting() as stats:
            box = await user.box(user.entry("INBOX").guid)
        assert len(box.stamp.heads) == 1
        assert box.state.gaps == []
        assert box.state.trusted(modseq) == modseq
        assert stats.count("get") == 1


async def test_what_another_life_has_written_stays_covered(machine: Machine) -> None:
    """A second life covers the bundles of the first life. The later bases of the second
    life cover them too, and only the last base is read."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(b"a"), NewMail(b"b")])
        box = await user.box(user.entry("INBOX").guid)
        for flag in ("a", "b"):
            await box.store_flags(np.array([1], dtype=np.uint32), "add", [flag])
            await box.flush(everything=True)
    machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        box = await user.box(user.entry("INBOX").guid)
        for flag in ("c", "d", "e"):
            box.stamp = replace(box.stamp, need_base=True)
            await box.store_flags(np.array([1], dtype=np.uint32), "add", [flag])
            await box.flush(everything=True)
    machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        with life.counting() as stats:
            box = await user.box(user.entry("INBOX").guid)
        assert (len(box.stamp.heads), box.state.gaps) == (1, [])
        assert stats.count("get") <= 2, "the last two are read at once"
        assert len(await life.bucket.list(bundles_prefix(box.sid, box.box), kind="index")) > 3, (
            "nothing was deleted yet"
        )


async def test_a_list_of_bundles_from_before_a_fence_trusts_nothing_after_it(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second fence comes while mailboxes are compared after the first fence. The
    bundles that the second fence makes doubtful are not in the LIST."""
    async with machine.run() as life:
        user = await life.user()
        boxes = [await user.select(name) for name in ("INBOX", "Archive")]
        plain = Slots.recheck

        async def recheck(self: Slots) -> None:
            monkeypatch.undo()
            life.store.doubt()
            await plain(self)

        life.store.doubt()
        monkeypatch.setattr(Slots, "recheck", recheck)
        await user.recheck()
        assert not any(box.assignment.covers(box.stamp) for box in [*boxes, user.rootbox])
        await user.recheck()
        assert all(box.assignment.covers(box.stamp) for box in [*boxes, user.rootbox])
        for box in boxes:
            await box.release()


@pytest.mark.parametrize(
    ("stamp", "base_next", "merged", "since"),
    [
        (Stamp(), True, False, 0),
        (Stamp(heads=("b",), need_base=False, base_modseq=7), False, False, 7),
        (Stamp(heads=("b", "d"), need_base=False, base_modseq=7), False, False, 7),
        (Stamp(heads=("b", "c"), base_modseq=7), True, True, 0),
        (Stamp(heads=("b",), need_base=False, base_modseq=7).for_new_base(), True, True, 0),
        # No base is there, whatever the stamp says.
        (Stamp(need_base=False, base_modseq=7), True, False, 0),
    ],
)
def test_what_the_next_bundle_must_have(stamp: Stamp, base_next: bool, merged: bool, since: int) -> None:
    assert (stamp.base_next, stamp.merged, stamp.since) == (base_next, merged, since)


def test_only_the_stamp_says_what_its_fields_mean_together() -> None:
    """Others use `base_next`, `merged` and `since`. They may write `need_base`, and not
    read it."""
    tree = Path(__file__).parent.parent.parent / "obox"
    readers = [path.name for path in tree.rglob("*.py") if re.search(r"\.need_base\b", path.read_text())]
    assert readers == ["stamp.py"]


COPY = Copy(stamp=b"", base=b"", deltas=[], change=Change.NONE)
FRAGMENTS = Copy(stamp=b"", base=None, deltas=[b""], change=Change.IMPORTANT)

# The table of docs/format.md, "Opening a mailbox". The columns are: copy, its stamp,
# whether this backend made the mailbox, and the verdict. The user is of this backend.
CASES = [
    (None, None, True, Trust.NEW),
    (None, None, False, Trust.REBUILD),
    (FRAGMENTS, None, True, Trust.NEW),
    (FRAGMENTS, None, False, Trust.REBUILD),
    # The stamp does not decode.
    (COPY, None, True, Trust.NEW),
    (COPY, None, False, Trust.REBUILD),
    (COPY, Stamp(generation=7, checked=100.0), False, Trust.TRUSTED),
    (COPY, Stamp(generation=7, checked=100.0), True, Trust.TRUSTED),
    (COPY, Stamp(generation=7, checked=99.9), False, Trust.COMPARE),
    (COPY, Stamp(generation=6, checked=100.0), False, Trust.COMPARE),
    (COPY, Stamp(generation=8, checked=100.0), False, Trust.COMPARE),
    (COPY, Stamp(generation=None, checked=100.0), False, Trust.COMPARE),
]


@pytest.mark.parametrize(("copy", "stamp", "made_here", "verdict"), CASES)
def test_what_a_local_copy_is_worth(copy: Copy | None, stamp: Stamp | None, made_here: bool, verdict: Trust) -> None:
    assert trust(copy, stamp, Assignment(7, compared_since=100.0), made_here=made_here) is verdict


@pytest.mark.parametrize("made_here", [True, False])
@pytest.mark.parametrize("generation", [7, 1, None])
def test_no_local_copy_is_trusted_for_a_user_of_another_backend(generation: int | None, made_here: bool) -> None:
    stamp = Stamp(generation=generation, checked=100.0)
    assert trust(COPY, stamp, Assignment(None), made_here=made_here) is Trust.COMPARE


def test_a_stamp_of_an_earlier_version_that_no_backend_confirmed() -> None:
    """An earlier version wrote -1 or 0 for "of no generation". All other fields are as
    today."""
    for generation in (-1, 0):
        data = msgspec.msgpack.encode(
            {"generation": generation, "version": 3, "heads": ["a"], "superseded": [["b", 1.5]]}
        )
        assert Stamp.decode(data) == Stamp(version=3, heads=("a",), superseded=(("b", 1.5),))


def test_an_earlier_version_reads_a_stamp_that_no_backend_confirmed() -> None:
    """An earlier version takes a field that is left out for 0, and no generation is
    0."""
    raw = msgspec.msgpack.decode(Stamp(version=3).encode())
    assert "generation" not in raw
    assert msgspec.msgpack.decode(Stamp(generation=1).encode()) == {"generation": 1}


def test_no_copy_is_current_for_a_user_of_another_backend() -> None:
    """Nothing is deleted for such a user, whatever this backend has compared."""
    owned = Owned(lambda sid: "group 1")
    elsewhere = Assignment(owned.generation_of("anna"))
    for generation in (None, 0, 1):
        assert not elsewhere.covers(Stamp(generation=generation))
