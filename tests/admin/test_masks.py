"""Masks of an administrator select names. Long masks and long lists do not delay other
clients."""

from __future__ import annotations

import asyncio
import glob

import pytest

from obox.admin.masks import MASK_CHARS_MAX, MASKS_MAX, Masks, entries_that_match, mask_of, matching, require_named
from obox.errors import Invalid, NotFound
from tests.turns import turns

NAMES = ["INBOX", "INBOX/Lists", "Archive", "Archive/2026", "50%", "[x]"]


@pytest.mark.parametrize(
    ("masks", "chosen"),
    [
        ([], NAMES),
        (["inbox"], ["INBOX"]),
        (["inbox/*"], ["INBOX/Lists"]),
        (["Archive", "5?%"], ["Archive", "50%"]),
        (["[AI]*"], ["INBOX", "INBOX/Lists", "Archive", "Archive/2026"]),
        (["archive"], []),
        (["[[]x]"], ["[x]"]),
        (["[[]*]"], ["[x]"]),
        (["5[?]%"], []),
    ],
)
async def test_matching(masks: list[str], chosen: list[str]) -> None:
    assert await matching(NAMES, masks) == chosen


async def test_a_name_without_wildcards_must_be_there() -> None:
    await require_named(NAMES, ["inbox", "Archive", "no*"])
    with pytest.raises(NotFound, match="'Nowhere'"):
        await require_named(NAMES, ["inbox", "Nowhere"])


async def test_a_name_with_the_signs_of_masks_can_be_written() -> None:
    """A mask that escapes all its signs matches exactly the name, even if the name is
    as long as possible and consists of such signs."""
    names = ["*" * 255, "/".join(["[?*" * 83] * 4), "*[\u0301", "a"]
    for name in names:
        assert await matching(names, [glob.escape(name)]) == [name]
        assert await matching(names, [glob.escape(name) + "*"]) == [name]
    with pytest.raises(NotFound, match=r"'no\*'"):
        await require_named(names, ["no[*]"])


async def test_limits_of_masks() -> None:
    for long in ("x*" * MASK_CHARS_MAX, "*" * (MASK_CHARS_MAX + 1)):
        with pytest.raises(Invalid, match=f"allowed: {MASK_CHARS_MAX}"):
            mask_of(long)
        with pytest.raises(Invalid, match=f"allowed: {MASK_CHARS_MAX}"):
            await Masks.of([long])
    with pytest.raises(Invalid, match=f"allowed: {MASKS_MAX}"):
        await Masks.of(["x*"] * (MASKS_MAX + 1))


async def test_others_run_while_long_lists_are_compared() -> None:
    """The request has a hundred masks and a hundred thousand names; they are compared
    with ten thousand mailboxes, and then with two hundred thousand users."""
    names = [f"Lists/{n:05}/é" for n in range(10_000)]
    masks = [f"*{n}*a*b*c*d?" for n in range(MASKS_MAX)] + [f"Nowhere/{n}é" for n in range(100_000)]

    async def compare() -> None:
        assert await matching(names, masks) == []
        with pytest.raises(NotFound, match="Nowhere/0"):
            await require_named(names, masks)
        assert await entries_that_match([f"u{n}@example.org" for n in range(200_000)], "*x*y*z", str) == []

    with turns(mine=False) as found:
        await asyncio.create_task(compare())
    found.check()
