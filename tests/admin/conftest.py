"""Backends in this process, with the admin API on their socket."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from adminservice import Service, running, write_config


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[Service]:
    async with running(write_config(tmp_path, "memory://")) as one:
        yield one


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., Any]:
    """Start backends on one directory as a bucket, each with its own state."""

    def begin(name: str = "first", more: str = "") -> Any:
        return running(write_config(tmp_path / name, f"file://{tmp_path}/bucket", more))

    return begin
