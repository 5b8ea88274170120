"""Buckets and machines for tests of the store."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from machines import Bucket, Machine
from owners import other, rows  # noqa: F401 - these are fixtures

from obox.objectstore import Codec, load_keys


def plain() -> Codec:
    return Codec({}, None)


@pytest.fixture
def bucket() -> Bucket:
    """The bucket is in memory. tests/objectstore shows that all drivers keep the same
    contract."""
    return Bucket("memory://", plain)


@pytest.fixture(params=["memory", "file"])
def any_bucket(request: pytest.FixtureRequest, tmp_path: Path, bucket: Bucket) -> Bucket:
    if request.param == "memory":
        return bucket
    return Bucket(f"file://{tmp_path}/bucket", plain)


@pytest.fixture(params=["zstd", "none", "encrypted", "encrypted, not compressed"])
def any_codec(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Codec]:
    compress = "none" if "no" in request.param.split() or request.param == "none" else "zstd:3"
    if "not" in request.param:
        compress = "none"
    if "encrypted" not in request.param:
        return lambda: Codec({}, None, compress)
    key = tmp_path / "master.key"
    key.write_bytes(b"k" * 32)
    return lambda: Codec(load_keys({"k1": str(key)}), "k1", compress)


@pytest.fixture
def machine(bucket: Bucket, tmp_path: Path) -> Machine:
    return Machine(bucket, tmp_path / "disk")


@pytest.fixture
def single_mails(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each mail is an object of its own, for tests of such objects. tests/store/
    test_batch.py has those of batches."""
    monkeypatch.setattr(Machine, "batches", False)
