"""Sources of `metacache pull` that are members: which addresses are members, and what
goes over the link."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from certificates import certificate
from starlette.responses import Response, StreamingResponse
from structlog.testing import capture_logs
from test_calls import Attacker, Place

from obox.auth import Forward
from obox.cluster import Member, There
from obox.errors import NoPerm
from obox.net.httplines import PIECE_BYTES
from obox.proxy import calls
from obox.proxy.pulls import Sources

BIG = 3 * calls.STREAM_BYTES + 5
QUESTION = b'{"what":"identity"}'


class Source(Place):
    """A member that answers questions of pulls beside calls."""

    def __init__(self, stack: AsyncExitStack, path: Path) -> None:
        super().__init__(stack, path, certificate(path / "tls"))
        self.asked: list[tuple[bytes, str]] = []

    def routes(self) -> list[Any]:
        return [*super().routes(), calls.answering(self.forwarder, calls.PULL_PATH, self.answer)]

    async def answer(self, body: bytes, forward: Forward) -> Response:
        self.asked.append((body, forward.member))
        if body == b"refused":
            return Response("busy", 409)

        async def stream() -> AsyncIterator[bytes]:
            yield bytes(BIG)

        return StreamingResponse(stream())


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[Source]:
    (tmp_path / "users").write_text("")
    async with AsyncExitStack() as stack:
        made = Source(stack, tmp_path)
        await made.listen()
        yield made


def sources(place: Source, *secrets: bytes, **members: Member) -> Sources:
    """Return the sources that member b1 knows."""
    view: Any = SimpleNamespace(members=members)
    return Sources(place.member("b1", *secrets), view)


async def ask(place: Source, by: Sources, question: bytes = QUESTION) -> tuple[int, list[bytes]]:
    async with by.ask(place.there(), question) as (status, pieces):
        return status, [piece async for piece in pieces]


async def test_a_stream_comes_in_pieces(source: Source) -> None:
    status, pieces = await ask(source, sources(source))
    assert (status, sum(map(len, pieces))) == (200, BIG)
    assert max(map(len, pieces)) <= PIECE_BYTES
    assert source.asked == [(QUESTION, "b1")]


async def test_the_status_of_the_source_comes_through(source: Source) -> None:
    assert await ask(source, sources(source), b"refused") == (409, [b"busy"])


async def test_another_secret_is_no_permission(source: Source) -> None:
    by = sources(source, b"another secret")
    with capture_logs() as logs, pytest.raises(NoPerm, match=r"b2: .*cluster\.secret_file"):
        await ask(source, by)
    assert source.asked == []
    assert "trusted link failed" in [line["event"] for line in logs]


async def test_a_proof_of_a_call_opens_no_pull(source: Source) -> None:
    """The proof covers the path."""
    attacker = Attacker(source)
    await attacker.open()
    last = await attacker.proved(QUESTION)
    with capture_logs() as logs:
        assert (await attacker.send(last, QUESTION, calls.PULL_PATH))[0] == 403
    assert "trusted link refused" in [line["event"] for line in logs]
    assert source.asked == []
    attacker.writer.close()


async def test_a_source_that_is_cut_off_is_an_error(source: Source) -> None:
    async def breaks(body: bytes, forward: Forward) -> Response:
        async def stream() -> AsyncIterator[bytes]:
            yield b"x"
            raise ZeroDivisionError

        return StreamingResponse(stream())

    source.answer = breaks
    await source.listen()
    with pytest.raises(OSError, match="cut short"):
        await asyncio.wait_for(ask(source, sources(source)), 30)


# -- which sources are members -----------------------------------------------------------------------------------------

FAR = Member("backend", "", "192.0.2.7", {"http": 8080, "https": 8443})
CLEAR = Member("backend", "", "192.0.2.8", {"http": 8080})
NEAR = Member("backend", "", "127.0.0.1", {"http": 8080})
PROXY = Member("proxy", "", "192.0.2.9", {"https": 8443})


@pytest.mark.parametrize(
    ("name", "host", "port", "found"),
    [
        ("far", "far", None, "far"),
        ("192.0.2.7:8443", "192.0.2.7", 8443, "far"),
        ("192.0.2.7", "192.0.2.7", None, "far"),
        ("FAR:8080", "far", 8080, "far"),
        ("192.0.2.7:9", "192.0.2.7", 9, None),
        ("near", "near", None, "near"),
        ("clear", "clear", None, None),
        ("192.0.2.8:8080", "192.0.2.8", 8080, None),
        ("proxy", "proxy", None, None),
        ("192.0.2.1", "192.0.2.1", None, None),
    ],
)
def test_a_member_is_known_by_name_and_by_address(
    tmp_path: Path, name: str, host: str, port: int | None, found: str | None
) -> None:
    """A member off loopback whose [http] is in clear is asked with a key, as a backend
    that is no member is."""
    (tmp_path / "users").write_text("")
    with_link: Any = SimpleNamespace(secrets=[b"x" * 32])
    view: Any = SimpleNamespace(members={"far": FAR, "clear": CLEAR, "near": NEAR, "proxy": PROXY})
    there = Sources(with_link, view).find(name, host, port)
    assert (there.backend if there is not None else None) == found
    without: Any = SimpleNamespace(secrets=())
    assert Sources(without, view).find(name, host, port) is None


def test_an_address_of_two_members_needs_a_port() -> None:
    second = Member("backend", "", "127.0.0.1", {"http": 8081})
    with_link: Any = SimpleNamespace(secrets=[b"x" * 32])
    view: Any = SimpleNamespace(members={"b1": NEAR, "b2": second})
    found = Sources(with_link, view)
    assert found.find("127.0.0.1", "127.0.0.1", None) is None
    there = found.find("127.0.0.1:8081", "127.0.0.1", 8081)
    assert isinstance(there, There)
    assert there.backend == "b2"
