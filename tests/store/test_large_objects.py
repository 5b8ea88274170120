"""A large object of any kind is decoded in a thread."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from machines import Machine, uids, whole
from mails import simple

from obox.mailbox import Delta
from obox.objectstore.codec import Codec, Decoded
from obox.store import NewMail

LARGE = 100
"""A payload of more octets counts as large here."""


@pytest.fixture
def on_the_loop(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the owners of large objects that were decoded on the loop."""
    found: list[str] = []
    decode, decode_many, decode_delta = Codec.decode, Codec.decode_many, Delta.decode

    def decoding(codec: Codec, data: bytes, owner: Any, **more: Any) -> Any:
        decoded = decode(codec, data, owner, **more)
        if threading.current_thread() is threading.main_thread() and len(decoded.payload) > LARGE:
            found.append(owner.decode())
        return decoded

    def decoding_many(codec: Codec, objects: Any, owners: Any) -> Any:
        decoded = decode_many(codec, objects, owners)
        if threading.current_thread() is threading.main_thread():
            found.extend(
                owner.decode()
                for owner, one in zip(owners, decoded, strict=True)
                if isinstance(one, Decoded) and len(one.payload) > LARGE
            )
        return decoded

    def decoding_delta(data: bytes) -> Delta:
        if threading.current_thread() is threading.main_thread() and len(data) > 1000:
            found.append("delta")
        return decode_delta(data)

    for room in ("env", "mails.read", "box.box", "box.load"):
        monkeypatch.setattr(f"obox.store.{room}.INLINE_DECODED_BYTES", LARGE, raising=False)
    monkeypatch.setattr(Codec, "decode", decoding)
    monkeypatch.setattr(Codec, "decode_many", decoding_many)
    monkeypatch.setattr(Delta, "decode", decoding_delta)
    return found


async def test_bundles_claims_journals_and_mails_of_a_takeover(
    machine: Machine, tmp_path: Path, on_the_loop: list[str]
) -> None:
    async with machine.run(kill=True) as life:
        user = await life.user()
        for first in (0, 10):
            await user.append("INBOX", [NewMail(simple(number)) for number in range(first, first + 10)])
        box = await user.select("INBOX")
        await user.copy(box, uids(*range(1, 11)), "Archive")
        await user.flush(everything=True)
        await user.copy(box, uids(*range(1, 11)), "Trash")
        await box.store_flags(box.state.uids, "add", ["\\Seen", "word"])
        await user.journal.sync()
        before = await whole(user)
    on_the_loop.clear()
    async with machine.renamed("second", tmp_path / "empty").run() as life:
        user = await life.user()
        assert await whole(user) == before
        assert on_the_loop == []


async def test_a_mail_that_is_read_again_because_its_file_is_damaged(machine: Machine, on_the_loop: list[str]) -> None:
    async with machine.run() as life:
        user = await life.user()
        await user.append("INBOX", [NewMail(b"Subject: x\r\n\r\n" + b"a" * 5000)])
    for file in (machine.path / "fscache").rglob("*"):
        if file.is_file() and file.stat().st_size > 100:
            file.write_bytes(file.read_bytes()[:-1] + b"?")
    async with machine.run() as life:
        user = await life.user()
        box = await user.select("INBOX")
        on_the_loop.clear()
        assert len(await box.mail(1)) == 5014
        assert on_the_loop == []
        await box.release()
