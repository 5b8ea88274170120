"""What a local copy remembers of its bundles fits into its stamp, however many there were."""

from __future__ import annotations

import numpy as np
import pytest
from machines import Machine

from metacache import STAMP_BYTES_MAX
from obox.store import NewMail
from obox.store._bundles import Known


def names(count: int, form: str, writer: str = "01a318707fc4e123") -> list[str]:
    return [f"{number:016x}.{writer}.{form}" for number in range(1, count + 1)]


@pytest.mark.parametrize("count", [0, 10, 288, 1440, 86_400])
def test_superseded_bundles_fit_the_newest_first(count: int) -> None:
    """Uploads of a day: none, a few, one in five minutes, each minute, each second."""
    old = [(name, 1.8e9 + 299.7 * at) for at, name in enumerate(names(count, "diff"))]
    known = Known(heads=names(2, "base"), superseded=old)
    stamp = known.encode()
    assert len(stamp) <= STAMP_BYTES_MAX
    again = Known.decode(stamp)
    assert again is not None
    assert again.heads == known.heads
    assert again.superseded == known.superseded[len(known.superseded) - len(again.superseded) :]
    assert len(again.superseded) >= min(count, 1440)


def test_segments_of_a_huge_mailbox_fit() -> None:
    known = Known(segments=names(20_000, "cache"), superseded=[(name, 1.0) for name in names(5, "diff")])
    again = Known.decode(known.encode())
    assert again is not None
    assert known.segments[-1000:] == again.segments[-1000:]


@pytest.mark.parametrize("damage", [b"", b"Z", b"Zjunk", b"\x80junk", b"\xff"])
def test_a_damaged_stamp_is_none(damage: bytes) -> None:
    assert Known.decode(damage) is None


async def test_a_base_after_two_diffs_is_read_alone(machine: Machine) -> None:
    """It names the second diff, which had covered the first: the first is no other history, and makes no gap."""
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(b"a"), NewMail(b"b")])
        box = await user.box(user.entry("INBOX").guid)
        for at, flag in enumerate(("a", "b", "c", "d")):
            box.known.need_base |= at == 3
            await box.store_flags(np.array([1], dtype=np.uint32), "add", [flag])
            await box.flush(everything=True)
        modseq = box.state.highestmodseq
    machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        with life.counting() as stats:
            box = await user.box(user.entry("INBOX").guid)
        assert len(box.known.heads) == 1
        assert box.state.gaps == []
        assert box.state.trusted(modseq) == modseq
        assert stats.count("get") == 1


async def test_what_another_life_has_written_stays_covered(machine: Machine) -> None:
    """A second life covers the first's bundles, and its own later bases, of which the last is read, say so as well."""
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
            box.known.need_base = True
            await box.store_flags(np.array([1], dtype=np.uint32), "add", [flag])
            await box.flush(everything=True)
    machine.lose_disk()
    async with machine.run() as life:
        user = await life.user()
        with life.counting() as stats:
            box = await user.box(user.entry("INBOX").guid)
        assert (len(box.known.heads), box.state.gaps) == (1, [])
        assert stats.count("get") <= 2, "the last two are read at once"
        assert len(await life.bucket.list(f"{box.bundles._prefix}", kind="index")) > 3, "nothing was deleted yet"
