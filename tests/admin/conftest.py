"""Backends in the process of the test. They serve the admin API on their socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from adminservice import Service, running, write_config
from board import board, empty  # noqa: F401 - these are fixtures


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running(write_config(tmp_path, "memory://")) as one:
        yield one


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Any]:
    """Return a function that starts backends. They share a directory as their bucket,
    and each has a state directory of its own."""

    def begin(name: str = "first", more: str = "") -> Any:
        return running(write_config(tmp_path / name, f"file://{tmp_path}/bucket", more))

    return begin
