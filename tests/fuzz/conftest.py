"""How long the fuzzers that run against a clock do so: OBOX_FUZZ_SECONDS, 5 by default, a minute in CI."""

import os

import pytest


@pytest.fixture
def fuzz_seconds() -> float:
    return float(os.environ.get("OBOX_FUZZ_SECONDS", "5"))
