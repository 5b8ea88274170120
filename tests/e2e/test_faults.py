"""A real backend behind a proxy that does what object stores do on a bad day. Each mail
that was acknowledged is there once, and each mail that was refused once at most."""

from __future__ import annotations

import asyncio
import random
import smtplib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from patience import PATIENT_S
from processes import USERS, Backend, s3_storage
from servers import S3Bucket

from tests.objectstore.faultproxy import FAULTS, FaultProxy

SENDERS = 3
FAULT_S = 3.0
"""The time of the fault. Attempts of PUTs are then on their way in all states."""
AFTER = 3
"""Mails of each sender that are acknowledged after the end of the fault."""


class Sender:
    """Deliver mails one after the other, each once, until enough were acknowledged
    after the fault."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.over = False
        self.replies: dict[str, int] = {}

    def run(self, backend: Backend) -> None:
        late = 0
        deadline = time.monotonic() + PATIENT_S
        while late < AFTER:
            assert time.monotonic() < deadline, "nothing is acknowledged after the fault"
            subject = f"{self.number}-{len(self.replies)}"
            over = self.over
            self.replies[subject] = self._deliver(backend, subject)
            late += over and self.replies[subject] == 250

    def _deliver(self, backend: Backend, subject: str) -> int:
        try:
            return backend.deliver(f"Subject: {subject}\r\n\r\nbody\r\n".encode())[0][0]
        except (OSError, smtplib.SMTPException):
            return 0


def subjects(backend: Backend) -> Counter[str]:
    with backend.login(USERS[0]) as client:
        client.select_folder("INBOX", readonly=True)
        mails = client.fetch(client.search(), ["BODY.PEEK[HEADER.FIELDS (SUBJECT)]"])
    texts = [mail[b"BODY[HEADER.FIELDS (SUBJECT)]"] for mail in mails.values()]
    return Counter(text.decode().strip().removeprefix("Subject: ") for text in texts)


@pytest.mark.needs("weed")
@pytest.mark.parametrize("fault", FAULTS)
async def test_what_was_acknowledged_is_there_once(
    fault: str, make: Callable[..., Backend], s3_bucket: S3Bucket, tmp_path: Path
) -> None:
    proxy = FaultProxy(s3_bucket.server.endpoint_url, random.Random(3))
    await proxy.open()
    storage = {**s3_storage(s3_bucket, proxy.endpoint_url), "deadline": "3s"}
    backend = make(storage=storage)
    await asyncio.to_thread(backend.start)
    senders = [Sender(number) for number in range(SENDERS)]
    sending = asyncio.gather(*(asyncio.to_thread(sender.run, backend) for sender in senders))
    await asyncio.sleep(1.0)
    if fault == "down":
        await proxy.close()
    proxy.fault = fault
    await asyncio.sleep(FAULT_S)
    proxy.fault = ""
    if fault == "down":
        await proxy.open()
    for sender in senders:
        sender.over = True
    await sending
    assert proxy.met or fault == "down"
    replies = {subject: code for sender in senders for subject, code in sender.replies.items()}
    acknowledged = {subject for subject, code in replies.items() if code == 250}
    seen = await asyncio.to_thread(subjects, backend)
    backend.kill()
    # Another machine has the bucket alone. It has seen what the dead backend knew.
    other = make(storage=storage, name="second")
    await asyncio.to_thread(other.start)
    for found in (seen, await asyncio.to_thread(subjects, other)):
        assert acknowledged <= set(found) <= set(replies)
        assert max(found.values()) == 1
    other.kill()
    await proxy.close()
