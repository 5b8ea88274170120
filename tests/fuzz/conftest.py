"""How long a fuzzer runs: OBOX_FUZZ_SECONDS, which is 5 by default. CI gives each
fuzzer a minute."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from obox.server.memory import one_arena

# The harness is a server and a client.
sys.path.insert(0, str(Path(__file__).parent.parent / "imap"))

# Memory is measured, and a process of obox uses the allocator like this.
one_arena()


@pytest.fixture
def fuzz_seconds() -> float:
    """Return how many seconds a fuzzer runs."""
    return float(os.environ.get("OBOX_FUZZ_SECONDS", "5"))
