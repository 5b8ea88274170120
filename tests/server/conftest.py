"""Both kinds of event loops, and a log."""

import asyncio
from collections.abc import Callable

import pytest
from listening import LOOPS, Log


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    return LOOPS


@pytest.fixture
def log() -> Log:
    return Log()
