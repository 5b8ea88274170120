"""Hostile mails over IMAP: FETCH of each section, and SEARCH with each key. All answers
are correct and come in time.

A round has its own server, a few mails, and a session that requests everything. The
checks are: no SERVERBUG; no BYE; literals have the length that they announce; ENVELOPE
and BODY structures follow the grammar; sections are parts of the mail; each mail
matches either a SEARCH or its negation; the answer from memory is the same; no turn of
the loop takes more than 50 ms; when the server has ended, the memory comes back to that
of the first rounds. The client is in the same loop, so it handles long answers in a
thread.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from fuzzing import Held
from harness import Client, Running, serving_real
from hostile import NAMES, Rng, key, mail
from rounds import rounds
from turns import turns

from obox.store import NewMail
from obox.store.user import search as _search
from obox.types import StorageId

sys.path.insert(0, str(Path(__file__).parent.parent))

from mime.imapwire import check_body, check_envelope, read

MEMORY_BYTES = 10 << 20
FIRST_ROUNDS = 5
"""Mails of these rounds load most charsets, and start the threads."""
SECTIONS = (b"", b".MIME", b".HEADER", b".TEXT", b".HEADER.FIELDS (Subject)", b".HEADER.FIELDS.NOT (To)", b".1", b".9")
STRUCTURES = (b"ENVELOPE", b"BODY", b"BODYSTRUCTURE")


async def fill(running: Running, sources: list[bytes]) -> None:
    user = await running.store.open_user("anna", StorageId("anna"))
    for source in sources:
        await user.append("INBOX", [NewMail(source)])
    await user.release()


def paths(value: Any, prefix: tuple[int, ...] = ()) -> list[tuple[int, ...]]:
    """Return the part numbers of a BODYSTRUCTURE."""
    if isinstance(value[0], list):
        parts = value[: next(at for at, one in enumerate(value) if not isinstance(one, list))]
        found = [path for at, part in enumerate(parts, 1) for path in paths(part, (*prefix, at))]
        return [prefix, *found] if prefix else found
    mine = prefix or (1,)
    if value[:2] == [b"message", b"rfc822"]:
        inner = value[8]
        return [mine, *paths(inner, mine if isinstance(inner[0], list) else (*mine, 1))]
    return [mine]


def checked(lines: list[bytes]) -> list[tuple[int, ...]]:
    """Check the grammar of STRUCTURES. Return the part numbers of the mail."""
    envelope, body, bodystructure = (
        read(line[line.index(b"(") + len(item) + 2 : -1]) for line, item in zip(lines, STRUCTURES, strict=True)
    )
    check_envelope(envelope)
    check_body(body, False)
    check_body(bodystructure, True)
    return paths(bodystructure)


async def answer(client: Client, command: bytes) -> list[bytes]:
    """Return the untagged lines. A NO or BAD must have a cause in what the client
    sent."""
    lines = await client.cmd(command)
    assert lines[-1].startswith((b"OK ", b"BAD ", b"NO ")), (command[:200], lines[-1][:200])
    assert b"SERVERBUG" not in lines[-1], command[:200]
    return lines[:-1] if lines[-1].startswith(b"OK ") else []


async def fetch_everything(client: Client, rng: Rng, sources: list[bytes]) -> None:
    for number, source in enumerate(sources, 1):
        (line,) = await answer(client, b"FETCH %d BODY.PEEK[]" % number)
        assert line.endswith(b"{%d}\r\n%b)" % (len(source), source) if source else b'"")')
        lines = [(await answer(client, b"FETCH %d %b" % (number, item)))[0] for item in STRUCTURES]
        found = await asyncio.to_thread(checked, lines)
        for path in rng.sample(found, min(12, len(found))):
            start, count = rng.randrange(2_000), rng.randint(1, 5_000)
            label = b".".join(b"%d" % one for one in path)
            items = b" ".join(b"BODY.PEEK[%b%b]" % (label, what) for what in SECTIONS)
            items += b" BODY.PEEK[%b]<%d.%d>" % (label, start, count)
            (line,) = await answer(client, b"FETCH %d (%b)" % (number, items))
            await asyncio.to_thread(check_sections, line, source, start, count)
        names = b" ".join({name for name in rng.sample(NAMES, 5) if b":" not in name} | {b"x" * rng.choice((1, 255))})
        for what in (b"HEADER", b"TEXT", b"HEADER.FIELDS (%b)" % names, b"HEADER.FIELDS.NOT (%b)" % names):
            assert len(await answer(client, b"FETCH %d BODY.PEEK[%b]" % (number, what))) == 1


def check_sections(line: bytes, source: bytes, start: int, count: int) -> None:
    """Check the sections of a part: SECTIONS, and `count` octets of the whole from
    `start` on."""
    cut: list[bytes | None] = []
    at = line.index(b"(") + 1
    while line[at : at + 1] != b")":
        at = line.index(b" ", line.index(b"]", at)) + 1
        if line[at : at + 1] == b"{":
            end = line.index(b"}", at)
            length = int(line[at + 1 : end])
            cut.append(line[end + 3 : end + 3 + length])
            at = end + 3 + length
        else:
            word = line[at : at + 3]
            assert word == b"NIL" or word[:2] == b'""', line[at : at + 40]
            cut.append(None if word == b"NIL" else b"")
            at += 3 if word == b"NIL" else 2
        at += line[at : at + 1] == b" "
    assert at == len(line) - 1
    whole, mime_header, header, text = cut[:4]
    assert whole is not None
    assert whole in source
    assert mime_header is None or mime_header in source
    assert (header is None) is (text is None)
    assert header is None or header in source
    assert cut[-1] == whole[start : start + count]


async def search_everything(client: Client, rng: Rng, count: int) -> None:
    for _ in range(8):
        one = b" ".join([key(rng) for _ in range(rng.randint(1, 4))])
        lines = await answer(client, b"SEARCH " + one)
        if not lines:
            # No field can have this name, or the command exceeds a limit.
            continue
        found = lines[-1].split()[2:]
        if rng.random() < 0.3:
            _search.MEMO.__init__()  # nobody has searched before
        again = await answer(client, b"SEARCH " + one)
        assert again[-1].split()[2:] == found, one[:300]
        others = await answer(client, b"SEARCH NOT (" + one + b")")
        if others and b"MODSEQ" not in one:
            numbers = [int(number) for number in (*found, *others[-1].split()[2:])]
            assert sorted(numbers) == list(range(1, count + 1)), one[:300]


async def one_round(state: Path, rng: Rng) -> None:
    """Serve some mails to a client. Nothing of them is left when this returns."""
    sources = [mail(rng) for _ in range(4)]
    async with serving_real(state) as running:
        with turns(mine=False) as found:
            await fill(running, sources)
            client = await running.client(login="anna")
            await client.ok("SELECT INBOX")
            await fetch_everything(client, rng, sources)
            await search_everything(client, rng, len(sources))
        found.check()


async def test_mails(tmp_path: Path, fuzz_seconds: float) -> None:
    held = Held(first=FIRST_ROUNDS)
    for number, rng in enumerate(rounds(fuzz_seconds)):
        await one_round(tmp_path / str(number), rng)
        _search.MEMO.__init__()  # it has a bound of its own
        held.check()
    print(f"memory after the last rounds: {held}")


@pytest.mark.parametrize("part", ["fetch", "search"])
async def test_memory_comes_back(tmp_path: Path, part: str) -> None:
    """The same session sends the same requests about the same mails again and again.
    The memory must not grow."""
    rng = next(iter(rounds(0)))
    sources = [mail(rng) for _ in range(4)]
    held: list[int] = []
    async with serving_real(tmp_path) as running:
        await fill(running, sources)
        client = await running.client(login="anna")
        await client.ok("SELECT INBOX")
        tracemalloc.start()
        try:
            for _ in range(3):
                if part == "fetch":
                    await fetch_everything(client, rng, sources)
                else:
                    await search_everything(client, rng, len(sources))
                gc.collect()
                held.append(tracemalloc.get_traced_memory()[0])
        finally:
            tracemalloc.stop()
    assert held[2] - held[0] < MEMORY_BYTES
