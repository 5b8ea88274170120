"""Properties of each tree of parts."""

from __future__ import annotations

from obox.mime import DEPTH_MAX, Part


def check_tree(part: Part, start: int, end: int, paths: list[tuple[int, ...]], path: tuple[int, ...]) -> None:
    """Assert that offsets are ordered and inside the parent, and that the depth is
    bounded. Return the paths of all parts."""
    assert start <= part.header_start <= part.header_end == part.body_start <= part.body_end <= end
    assert len(path) <= DEPTH_MAX
    assert not (part.children and part.message)
    paths.append(path)
    at = part.body_start
    for number, child in enumerate(part.children, 1):
        check_tree(child, at, part.body_end, paths, (*path, number))
        at = child.body_end
    if part.message is not None:
        assert (part.message.header_start, part.message.body_end) == (part.body_start, part.body_end)
        check_tree(part.message, part.body_start, part.body_end, paths, (*path, 1))
