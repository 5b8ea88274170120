"""A cluster under load loses nothing while its backends are evacuated, stopped, killed,
suspended and cut off, and while its proxies are killed.

Short forms of `python -m bench.cluster`. They judge what is lost. Times without service
are printed and not judged, because they depend on the machine and on how many members
are away at the same time. The benchmark judges them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from cassandra_server import PROGRAMS, CassandraServer, cassandra_server
from servers import S3Bucket

from bench.cluster import Size, run
from bench.outcome import Outcome
from bench.servers import Bucket, cassandra_directory

__all__ = ["cassandra_server"]

ACTIONS = ("evacuate", "kill", "suspend", "lose the disk", "evacuate and stop", "kill a proxy")
SMALL = Size(seconds=30, backends=3, proxies=1, rate=5, users=12, sessions=6, seed=1, dead_after="5s", actions=ACTIONS)
REAL = Size(seconds=120, backends=4, proxies=2, rate=30, users=60, sessions=30, seed=1, dead_after="5s", at_once=2)


async def test_nothing_is_lost_while_backends_come_and_go(tmp_path: Path) -> None:
    (tmp_path / "bucket").mkdir()
    home = tmp_path / "run"
    home.mkdir()
    outcome = await run(SMALL, home, Bucket((tmp_path / "bucket").as_uri()), f"lmdb://{tmp_path}/cluster", say=print)
    judge(outcome, ["evacuate"])


@pytest.mark.needs("weed", *PROGRAMS)
async def test_nothing_is_lost_with_real_parts(
    tmp_path: Path, s3_bucket: S3Bucket, cassandra_server: CassandraServer
) -> None:
    """Two minutes over SeaweedFS and Cassandra, by chance, with links that are cut."""
    server = s3_bucket.server
    bucket = Bucket(f"s3://{s3_bucket.name}", server.endpoint_url, server.access_key_id, server.secret_access_key)
    home = tmp_path / "run"
    home.mkdir()
    url = cassandra_directory(cassandra_server, tmp_path, "chaos")
    outcome = await run(REAL, home, bucket, url, str(tmp_path / "cassandra.password"), say=print)
    judge(outcome, ["cut off from the bucket", "cut off from the directory"])


def judge(outcome: Outcome, happened: list[str]) -> None:
    print(outcome.table())
    witness = outcome.witness
    assert outcome.lost == []
    assert witness.complaints == []
    assert len(outcome.actions) >= 2
    assert set(happened) <= {one.name for one in outcome.actions}
    for user in outcome.clients.users:
        assert witness.mails[user], "each user got mail, so that something could be lost"
    assert {"STORE", "MOVE", "COPY", "EXPUNGE", "APPEND"} <= witness.times.keys()
