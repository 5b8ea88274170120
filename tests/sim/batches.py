"""Lets the backends of a simulated cluster write batches."""

from __future__ import annotations

from typing import Any, Protocol

from msgspec.structs import replace

from obox.cluster import Kind, MemoryReplica, decode
from obox.cluster.records import SETTINGS_KEY, Settings
from obox.forms import reads

ON = True
"""Whether lives have batches: not with `python -m tests.sim --no-batches`."""

READS = reads()
"""What a simulated backend registers."""


class Cluster(Protocol):
    """What is used of a story."""

    seed: int
    steps: int
    replica: MemoryReplica

    def put(self, kind: Kind, key: str, record: Any) -> None:
        """Write a row of the directory."""


def allow_batches(cluster: Cluster, step: int) -> None:
    """Write into the directory what `cluster upgrade` writes, in some lives at the
    first step, in others in the middle, in others never."""
    if not ON:
        return
    row = cluster.replica.rows().get((Kind.SETTINGS, SETTINGS_KEY))
    now = cluster.steps // 2 if cluster.seed % 3 == 0 else 0
    if row is not None and cluster.seed % 4 and step == now:
        cluster.put(Kind.SETTINGS, SETTINGS_KEY, replace(decode(row.value, Settings), forms={"mails": 2}))
