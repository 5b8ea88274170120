"""Backends for end-to-end tests. Their bucket is a directory or a real S3 server, and
objects may be encrypted."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from pathlib import Path

import pytest
from processes import Backend, make, s3_storage  # make: a fixture
from servers import s3_bucket, seaweedfs  # fixtures

__all__ = ["make", "s3_bucket", "seaweedfs"]


@pytest.fixture
def backend(make: Callable[..., Backend]) -> Backend:
    """Start a backend whose bucket is a directory."""
    one = make()
    one.start()
    return one


@pytest.fixture(params=["file", "seaweedfs", "encrypted"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, object]:
    """Return the [storage] settings of a kind of bucket."""
    if request.param == "seaweedfs":
        return s3_storage(request.getfixturevalue("s3_bucket"))
    settings: dict[str, object] = {"url": f"file://{tmp_path}/bucket"}
    if request.param == "encrypted":
        key = tmp_path / "key"
        key.write_text(secrets.token_hex(32))
        settings["encryption_keys"] = {"k1": str(key)}
        settings["compress"] = "none"
    return settings
