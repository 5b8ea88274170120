"""The store over its two caches when they are small: parts, room, what is uploaded before it is dropped."""

from __future__ import annotations

import os
import shutil

from machines import Machine, fill


async def test_a_huge_mail_read_in_parts_is_loaded_once(machine: Machine) -> None:
    """64 KiB at a time, as clients do: each frame is asked of the bucket once, whoever asks and however often."""
    mail = b"Subject: huge\r\n\r\n" + os.urandom(3 << 20).hex().encode()
    async with machine.run() as life:
        user = await life.user()
        await fill(user, "INBOX", [mail])
    shutil.rmtree(machine.path / "fscache")
    async with machine.run() as life:
        user = await life.user()
        box = await user.select("INBOX")
        with life.counting() as requests:
            for low in range(0, len(mail), 64 << 10):
                assert await box.part(1, low, low + (64 << 10)) == mail[low : low + (64 << 10)]
            for low in (5, 1 << 20, len(mail) - 10):
                assert await box.part(1, low, low + 100) == mail[low : low + 100]
        pieces = -(-len(mail) // (256 << 10)) + 1
        assert 2 <= requests.count("get") <= pieces
        await box.release()
