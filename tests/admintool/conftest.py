"""Homes of backends for `oboxadm`: a backend serves the first, and no process serves
the second."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from toolhome import Home


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("OBOX")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nowhere"))


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    home = Home(tmp_path_factory.mktemp("served"))
    home.start()
    yield home
    home.stop()


@pytest.fixture
def alone(tmp_path: Path) -> Home:
    return Home(tmp_path / "alone")
