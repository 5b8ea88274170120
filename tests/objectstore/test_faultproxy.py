"""A real S3 server behind a proxy with faults. What was acknowledged is in the bucket,
and nothing is stored twice."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest
from patience import PATIENT_S
from servers import S3Bucket

from obox.objectstore import (
    Codec,
    ObjectKind,
    OutcomeUnknown,
    Refused,
    StoreError,
    find_outcome,
    new_oid,
    open_store,
    put_once,
)
from obox.objectstore import _retry as retry
from obox.types import Owner

from .conftest import s3_settings
from .faultproxy import FAULTS, FaultProxy

SENDERS = 3
BURST = 4
"""The number of mails of each sender while the fault lasts."""


@pytest.mark.needs("weed")
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_is_reported_is_true(fault: str, s3_bucket: S3Bucket) -> None:
    """The test stores mails as a delivery does. It PUTs each mail, and finds the
    outcome of a PUT whose outcome is unknown. Half of the requests meet the fault, or
    all if the store is away. The fault ends after a while."""
    rng = random.Random(7)
    proxy = FaultProxy(s3_bucket.server.endpoint_url, rng)
    await proxy.open()
    settings = replace(s3_settings(s3_bucket), endpoint_url=proxy.endpoint_url, deadline_s=3.0)
    store = open_store(settings)
    codec = Codec({}, None)
    reported: dict[str, str] = {}
    data_of: dict[str, bytes] = {}
    away = fault in ("down", "hang")

    async def deliver(key: str) -> None:
        oid = new_oid(rng)
        data_of[key] = codec.encode(ObjectKind.MAIL, Owner(key.encode()), oid, b"meta", key.encode())
        try:
            reported[key] = "ours" if await put_once(store, key, data_of[key], oid, "mail") else "other"
            return
        except StoreError as error:
            if not isinstance(error, OutcomeUnknown):
                reported[key] = "nothing"
                return
        while True:
            try:
                reported[key] = await find_outcome(store, key, oid, "mail")
                return
            except StoreError:
                await asyncio.sleep(0.05)

    async def sender(name: int) -> None:
        for number in range(BURST):
            await deliver(f"s{name}/{number:08x}")

    await store.put("first", b"", kind="mail")
    proxy.fault, proxy.share = fault, 1.0 if away else 0.5
    if fault == "down":
        await proxy.close()
    sending = asyncio.gather(*(sender(name) for name in range(SENDERS)))
    await asyncio.sleep(1.2)
    proxy.fault = ""
    if fault == "down":
        await proxy.open()
    await asyncio.wait_for(sending, 60)
    assert proxy.met or fault == "down"
    assert len(reported) == SENDERS * BURST
    assert "ours" in reported.values()
    for key, outcome in reported.items():
        try:
            there = await store.get(key, kind="mail")
        except StoreError:
            there = None
        if outcome == "ours":
            assert there == data_of[key]
        elif outcome == "burnt":
            assert there == b""
        else:
            assert there != data_of[key], f"{key}: told {outcome}"
    assert {info.key for info in await store.list("", kind="mail")} <= {"first", *reported}
    await store.close()
    await proxy.close()


@pytest.mark.needs("weed")
async def test_a_refusal_is_reported_at_once(s3_bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    # A slow server gets no second request.
    monkeypatch.setattr(retry, "SILENCE_S", PATIENT_S)
    proxy = FaultProxy(s3_bucket.server.endpoint_url, random.Random(1))
    await proxy.open()
    store = open_store(replace(s3_settings(s3_bucket), endpoint_url=proxy.endpoint_url))
    proxy.fault = "forbidden"
    with pytest.raises(Refused, match="AccessDenied"):
        await store.put("k", b"x", kind="mail")
    assert proxy.met == 1
    await proxy.close()
