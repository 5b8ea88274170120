"""How long a fuzzer runs: OBOX_FUZZ_SECONDS, 5 by default; CI gives each a minute."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

# Harness: a server and a client.
sys.path.insert(0, str(Path(__file__).parent.parent / "imap"))


@pytest.fixture
def fuzz_seconds() -> float:
    """Seconds of one fuzzer."""
    return float(os.environ.get("OBOX_FUZZ_SECONDS", "5"))
