"""A cluster under load loses nothing while its backends are evacuated, stopped, killed
and suspended.

This is a short form of `python -m bench.cluster`. The test prints the times without
service, and asserts nothing about them.
"""

from __future__ import annotations

from pathlib import Path

from bench.cluster import Size, run
from bench.servers import Bucket

ACTIONS = ("evacuate", "kill", "suspend", "lose the disk", "evacuate and stop", "kill a proxy")
SIZE = Size(seconds=45, backends=3, proxies=1, rate=5, users=12, sessions=6, seed=1, actions=ACTIONS)


async def test_nothing_is_lost_while_backends_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    home = tmp_path / "run"
    home.mkdir()
    outcome = await run(SIZE, home, Bucket((tmp_path / "bucket").as_uri()), f"lmdb://{tmp_path}/cluster", say=print)
    print(outcome.table())
    witness = outcome.witness
    assert outcome.lost == []
    assert witness.complaints == []
    assert len(outcome.actions) >= 2
    for user in outcome.clients.users:
        assert witness.mails[user], "each user got mail, so that something could be lost"
    assert {"STORE", "MOVE", "COPY", "EXPUNGE", "APPEND"} <= witness.times.keys()
