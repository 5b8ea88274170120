"""What a local copy remembers of its bundles fits into its stamp, however many there were."""

from __future__ import annotations

import pytest

from metacache import STAMP_BYTES_MAX
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
