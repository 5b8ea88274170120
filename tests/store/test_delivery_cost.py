"""What a delivery costs the store, in counts that do not depend on the machine.

A delivery that leaves a reference cycle behind, or makes more calls than it must, is
slower on every machine (docs/decisions/0018).
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path
from types import FrameType
from typing import Final

from machines import Machine

import obox
from obox.store import NewMail, User

ROOMS: Final = tuple(str(Path(obox.__file__).parents[1] / room) for room in ("obox", "metacache", "fscache"))

MAILS: Final = 100

CALLS_MAX: Final = 295
"""Calls of functions of this project that a delivery makes in the store."""

MAIL: Final = (
    b"From: Ann <ann@example.org>\r\nTo: Bob <bob@example.org>\r\nSubject: hello\r\n"
    b"Date: Mon, 30 Nov 2026 12:00:00 +0000\r\nMessage-ID: <1@example.org>\r\n\r\ntext\r\n"
)


async def deliver(user: User) -> None:
    for _ in range(MAILS):
        await user.append("INBOX", [NewMail(MAIL)])


async def test_a_delivery_leaves_no_cycle_to_the_garbage_collector(machine: Machine) -> None:
    async with machine.run() as life:
        user = await life.user()
        await deliver(user)
        gc.collect()
        gc.disable()
        try:
            await deliver(user)
            assert gc.collect() < MAILS
        finally:
            gc.enable()


ROUNDS: Final = 4
"""The smallest of four counts has the least of what the store does beside it."""


async def test_a_delivery_makes_few_calls(machine: Machine) -> None:
    calls, counts = 0, []

    def count(frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event == "call" and frame.f_code.co_filename.startswith(ROOMS)

    async with machine.run() as life:
        user = await life.user()
        await deliver(user)
        for _ in range(ROUNDS):
            calls = 0
            sys.setprofile(count)
            try:
                await deliver(user)
            finally:
                sys.setprofile(None)
            counts.append(calls / MAILS)
    assert min(counts) < CALLS_MAX, counts
