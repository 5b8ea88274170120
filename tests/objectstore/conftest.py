"""The stores that the conformance suite runs against."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from patience import PATIENT_S
from servers import S3Bucket, moto, moto_bucket, s3_bucket, seaweedfs  # fixtures

from obox.objectstore import Driver, OpenStore, Settings, open_store
from obox.objectstore.faults import FaultyDriver, Plan, Rates
from tests.stores import MinioLike, SeaweedLike

__all__ = ["moto", "moto_bucket", "s3_bucket", "seaweedfs"]

LISTING: dict[str, type[MinioLike] | type[SeaweedLike]] = {"minio-like": MinioLike, "seaweed-like": SeaweedLike}

SEED = 20260
READS = Rates(error=5, lost=4, truncate=5)
# A retry of a PUT whose answer was lost is answered AlreadyExists. put_once handles
# that case.
WRITES = Rates(error=8)


def s3_settings(bucket: S3Bucket, prefix: str = "") -> Settings:
    """Return settings for a real server. Its time limit is that of a hang, because a
    loaded machine may take long for a LIST."""
    return Settings(
        url=f"{bucket.url}/{prefix}",
        endpoint_url=bucket.server.endpoint_url,
        access_key_id=bucket.server.access_key_id,
        secret_access_key=bucket.server.secret_access_key,
        region=bucket.server.region,
        deadline_s=5 * PATIENT_S,
    )


@dataclass
class Opened:
    """A store under test, and a function that opens the same bucket once more, as a
    second backend does.

    racers: the number of writers in a race for a key; SeaweedFS makes each loser wait
    for a second or more. slow: each request takes milliseconds. copies_create_only: the
    store heeds `If-None-Match` on a copy, which moto does not.
    """

    store: OpenStore
    again: Callable[[], OpenStore]
    racers: int
    slow: bool = False
    copies_create_only: bool = True
    faults: FaultyDriver | None = None


@pytest.fixture(
    params=["memory", "file", "minio-like", "seaweed-like", "faults-none", "faults-retried", "seaweedfs", "moto"]
)
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Opened]:
    opened_stores: list[OpenStore] = []
    faulty: list[FaultyDriver] = []
    kind = request.param
    memory: Driver = open_store(Settings("memory://")).driver
    if kind in LISTING:
        memory = LISTING[kind](page_keys=100)
    fixture = {"seaweedfs": "s3_bucket", "moto": "moto_bucket"}.get(kind)
    bucket: S3Bucket | None = request.getfixturevalue(fixture) if fixture else None

    async def quick(seconds: float) -> None:
        await asyncio.sleep(seconds / 100)

    def again() -> OpenStore:
        if kind == "file":
            store = open_store(Settings(f"file://{tmp_path}/bucket"))
        elif bucket is not None:
            store = open_store(s3_settings(bucket, "some/prefix"))
        elif kind == "memory" or kind in LISTING:
            store = open_store(Settings("memory://"), driver=memory)
        else:
            plan = Plan(every=READS, rates={"put": WRITES, "copy": WRITES}) if kind == "faults-retried" else Plan()

            def wrap(inner: Driver) -> Driver:
                faulty.append(FaultyDriver(inner, rng=random.Random(SEED), plan=plan))
                return faulty[-1]

            store = open_store(
                Settings("memory://", deadline_s=1000),
                driver=memory,
                wrap=wrap,
                clock=time.monotonic,
                sleep=quick,
            )
        opened_stores.append(store)
        return store

    store = again()
    yield Opened(
        store,
        again,
        faults=faulty[0] if faulty else None,
        racers=4 if kind == "seaweedfs" else 24,
        slow=bucket is not None,
        copies_create_only=kind != "moto",
    )
    for store in opened_stores:
        await store.close()


@pytest.fixture
def store(opened: Opened) -> OpenStore:
    return opened.store
