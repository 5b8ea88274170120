"""The quota is a bound even for writers that write at the same time. A write that fails
gives its room back."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest
from machines import Machine
from patience import PATIENT_S
from structlog.testing import capture_logs

from obox.errors import InUse, OboxError, OverQuota, Unavailable
from obox.objectstore import OutcomeUnknown, Unreachable
from obox.store import NewMail, User


async def outcomes(*work: Any) -> list[str]:
    """Return for each call the name of its error, or ""."""
    got = await asyncio.gather(*work, return_exceptions=True)
    assert all(not isinstance(one, BaseException) or isinstance(one, OboxError) for one in got), got
    return [type(one).__name__ if isinstance(one, OboxError) else "" for one in got]


def taken(user: User) -> tuple[int, int]:
    return user.quota.bytes, user.quota.messages


async def test_parallel_appends_keep_the_quota(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user(quota_bytes=10_000)
        box = ["INBOX", "Sent", "Drafts", "Archive"]
        got = await outcomes(*(user.append(box[n % 4], [NewMail(b"x" * 1900)]) for n in range(20)))
        assert got.count("") == 5, "what fits is stored"
        assert set(got) == {"", "InUse"}, "what did not fit beside these is told to come again"
        assert user.usage()[:2] == (9500, 5)
        assert taken(user) == (0, 0)
        with pytest.raises(OverQuota):
            await user.append("INBOX", [NewMail(b"x" * 1900)])
        await user.append("INBOX", [NewMail(b"x" * 500)])
        assert user.usage().storage_bytes == 10_000


async def test_several_mails_at_once_and_copies(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user(quota_messages=30)
        await user.append("INBOX", [NewMail(b"x") for _ in range(6)])
        inbox = await user.select("INBOX")
        copies = [user.copy(inbox, inbox.state.uids, name) for name in ("Sent", "Drafts", "Trash", "Junk")]
        appends = [user.append("Archive", [NewMail(b"y") for _ in range(5)]) for _ in range(6)]
        got = await outcomes(*copies, *appends)
        assert user.usage().messages <= 30
        assert got.count("") >= 4
        assert taken(user) == (0, 0)
        moved = await user.copy(inbox, inbox.state.uids, "Trash", move=True)
        assert len(moved.target) == 6, "a move adds nothing"
        assert taken(user) == (0, 0)


async def test_what_fails_gives_its_room_back(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    async with machine.run() as life:
        user = await life.user(quota_bytes=10_000)
        box = await user.select("INBOX")
        with pytest.raises(OboxError):
            await user.append("nowhere", [NewMail(b"x" * 6000)])
        box.deleted = True
        with pytest.raises(OboxError):
            await user.append("INBOX", [NewMail(b"x" * 6000)])
        box.deleted = False
        assert taken(user) == (0, 0)
        await user.append("INBOX", [NewMail(b"x" * 6000)])


async def test_what_is_undecided_keeps_its_room(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client has gone, and its PUT may still take effect. Until that is decided,
    other writers do not get its room."""
    from obox.store.mails import put

    go = asyncio.Event()
    put_once = put.put_once

    async def late(*args: Any, **kwargs: Any) -> Any:
        await go.wait()
        return await put_once(*args, **kwargs)

    async with machine.run() as life:
        user = await life.user(quota_bytes=10_000)
        monkeypatch.setattr(put, "put_once", late)
        first = asyncio.create_task(user.append("INBOX", [NewMail(b"x" * 3000), NewMail(b"x" * 3000)]))
        while not taken(user)[0]:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.wait([first])
        assert taken(user) == (6000, 2)
        with pytest.raises(InUse):
            await user.append("INBOX", [NewMail(b"x" * 5000)])
        go.set()
        async with asyncio.timeout(PATIENT_S):
            while user.usage().messages < 2:  # noqa: ASYNC110 - there is no event to wait for
                await asyncio.sleep(0.001)
        assert taken(user) == (0, 0)
        assert user.usage().storage_bytes == 6000
        await user.append("INBOX", [NewMail(b"x" * 4000)])


async def test_an_outage_writes_a_line_of_undecided_deliveries_and_not_one_for_each(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    puts: list[object] = []

    async def unknown(*args: Any, **kwargs: Any) -> Any:
        puts.append(args)
        raise OutcomeUnknown("nobody knows")

    async with machine.run() as life:
        user = await life.user()
        monkeypatch.setattr("obox.store.mails.put.put_once", unknown)
        with capture_logs() as logs:
            for _ in range(2):
                with suppress(OboxError):
                    await user.append("INBOX", [NewMail(b"x")])
            before = len(puts)
            await life.let_pass(61.0)
            with suppress(OboxError):
                await user.append("INBOX", [NewMail(b"x")])
        reported = [line["skipped"] for line in logs if line["event"] == "delivery undecided"]
        assert 1 < before < len(puts)
        assert reported == [0, before - 1], "a minute later, with the number of the others"


async def test_a_bucket_that_refuses(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a mail of a group fails for good, no mail of the group counts."""
    from obox.store.mails import put

    async def refused(*args: Any, **kwargs: Any) -> Any:
        raise Unreachable("no")

    async def burnt(*args: Any, **kwargs: Any) -> Any:
        return "burnt"

    async with machine.run() as life:
        user = await life.user(quota_bytes=10_000)
        with monkeypatch.context() as patch:
            patch.setattr(put, "put_once", refused)
            patch.setattr(put, "find_outcome", burnt)
            with pytest.raises(Unavailable):
                await user.append("INBOX", [NewMail(b"x" * 3000), NewMail(b"x" * 3000)])
        assert taken(user) == (0, 0)
