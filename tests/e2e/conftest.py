"""Backends for end-to-end tests: on a directory, on a real S3 server, and with encryption on."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from processes import Backend
from servers import S3Bucket, s3_bucket, seaweedfs  # fixtures

__all__ = ["s3_bucket", "seaweedfs"]


def s3_storage(bucket: S3Bucket, endpoint: str = "") -> dict[str, object]:
    return {
        "url": f"{bucket.url}/mail",
        "endpoint_url": endpoint or bucket.server.endpoint_url,
        "access_key_id": bucket.server.access_key_id,
        "secret_access_key": bucket.server.secret_access_key,
        "region": bucket.server.region,
    }


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., Backend]]:
    """Make backends; what still runs at the end of the test is killed."""
    made: list[Backend] = []

    def backend(**more: object) -> Backend:
        more.setdefault("storage", {"url": f"file://{tmp_path}/bucket"})
        one = Backend(tmp_path / f"machine{len(made)}", **more)  # type: ignore[arg-type]
        made.append(one)
        return one

    yield backend
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.kill()


@pytest.fixture
def backend(make: Callable[..., Backend]) -> Backend:
    """One that runs, on a directory."""
    one = make()
    one.start()
    return one


@pytest.fixture(params=["file", "seaweedfs", "encrypted"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """[storage] settings of every kind."""
    if request.param == "seaweedfs":
        return s3_storage(request.getfixturevalue("s3_bucket"))
    settings: dict[str, object] = {"url": f"file://{tmp_path}/bucket"}
    if request.param == "encrypted":
        key = tmp_path / "key"
        key.write_text(secrets.token_hex(32))
        settings["encryption_keys"] = {"k1": str(key)}
        settings["compress"] = "none"
    return settings
