"""Real backends for the procedures of the manual. They are run with the helpers of
tests/e2e."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "e2e"))

from manual import Machine, commands, live
from manual import machine as new_machine
from processes import make
from servers import S3Server, s3_bucket, seaweedfs

__all__ = ["make", "s3_bucket", "seaweedfs"]


@pytest.fixture
def machine(seaweedfs: S3Server) -> Iterator[Machine]:
    """Yield a machine without anything, with an empty bucket."""
    with new_machine(seaweedfs) as made:
        yield made


@pytest.fixture
def served(machine: Machine) -> Machine:
    """Return a machine as the manual installs it, with mails of a user, flags, a copy
    and an expunge."""
    machine.certificate("/etc/obox")
    machine.run(re.sub(r"^obox(adm)? .*(config|check).*\n", "", commands("operations.md", "install"), flags=re.M))
    live(machine)
    return machine
