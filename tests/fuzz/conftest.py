"""How long a fuzzer runs: OBOX_FUZZ_SECONDS, which is 5 by default. CI gives each
fuzzer a minute."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# The harness is a server and a client.
sys.path.insert(0, str(Path(__file__).parent.parent / "imap"))


@pytest.fixture
def fuzz_seconds() -> float:
    """Return how many seconds a fuzzer runs."""
    return float(os.environ.get("OBOX_FUZZ_SECONDS", "5"))
