"""Backends for end-to-end tests: on a directory, on a real S3 server, and with
encryption on."""

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
    """A backend that runs, on a directory as bucket."""
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
