"""Real backends for the procedures of the manual, with what tests/e2e uses to run them."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))

from processes import Backend  # noqa: E402 - the path first
from servers import s3_bucket, seaweedfs  # noqa: E402

__all__ = ["s3_bucket", "seaweedfs"]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Backend]]:
    """Make backends; what still runs at the end of the test is killed."""
    made: list[Backend] = []

    def backend(**more: object) -> Backend:
        more.setdefault("storage", {"url": f"file://{tmp_path}/bucket"})
        one = Backend(tmp_path / f"machine{len(made)}", **more)  # type: ignore[arg-type]
        made.append(one)
        return one

    yield backend
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.kill()
