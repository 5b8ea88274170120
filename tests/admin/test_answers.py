"""Large answers: they are complete, the server makes them in pieces, and no turn of the
loop is long because of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import msgspec
import pytest
from adminservice import Service, mail
from hypothesis import given
from hypothesis import strategies as st

from obox.admin import TABLE, Row, answers
from obox.admin.run import Outcome
from tests.turns import TURN_S_MAX, turns

BEN = "ben@example.org"
LINES = {"accept": "application/x-ndjson"}

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(VALUES, st.integers(1, 60))
def test_pieces_are_the_json_of_the_value(value: Any, weight: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(answers, "PIECE_WEIGHT", weight)
        assert b"".join(answers.pieces(value)) == msgspec.json.encode(value)


@pytest.mark.parametrize(
    "value",
    [
        "x" * 3_000_000,
        ["x" * 40] * 50_000,
        {"rows": [{"uid": n, "flags": ["a", "b"]} for n in range(30_000)]},
        [0] * 300_000,
    ],
)
def test_no_piece_is_large_or_small(value: Any) -> None:
    found = list(answers.pieces(value))
    assert b"".join(found) == msgspec.json.encode(value)
    assert max(map(len, found)) <= 3 * answers.PIECE_WEIGHT
    assert len(found) <= 2 + sum(map(len, found)) // answers.PIECE_WEIGHT


async def test_the_text_of_a_large_mail_holds_nobody_up(service: Service) -> None:
    """JSON needs six characters for each character of this mail."""
    text = mail(1, body="\x01" * 9_000_000)
    await service.deliver(BEN, [text])
    call = {"user": BEN, "field": ["text"], "query": ["mailbox", "INBOX"]}
    for headers in (LINES, {}):
        with turns(mine=False) as found:
            got = await service.client.post("/doveadm/v1", json=[["fetch", call, "t"]], headers=headers)
        rows = [msgspec.json.decode(got.content.splitlines()[0])["row"]] if headers else got.json()[0][1]
        assert rows == [{"text": text.decode()}]
        assert found.longest_s / found.slowdown <= TURN_S_MAX, found.report()


async def test_others_run_between_very_many_rows(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def rows(*_: Any) -> AsyncIterator[Row]:
        for number in range(300_000):
            yield {"uid": number}

    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            ticks += 1
            await asyncio.sleep(0)

    monkeypatch.setitem(TABLE, "who", replace(TABLE["who"], run=rows))
    ticking = asyncio.create_task(tick())
    outcome = Outcome()
    await outcome.gather(service.backend.admin, "who", {})
    ticking.cancel()
    assert len(outcome.rows) == 300_000
    assert ticks >= 5
