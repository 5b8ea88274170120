"""PARTIAL over a socket, RFC 9394."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from harness import Client, serving


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    """Yield mils 2 to 8, of which 2, 4, 6 and 8 are \\Seen. The sizes are
    descending."""
    async with serving(tmp_path) as running:
        client = await running.client(login="anna")
        for number in range(1, 9):
            flags = "" if number % 2 else "(\\Seen) "
            await client.append("INBOX", b"Subject: x\r\n\r\n" + b"y" * (90 - number), flags)
        await client.ok("SELECT INBOX")
        await client.ok("STORE 1 +FLAGS.SILENT (\\Deleted)")
        await client.ok("EXPUNGE")
        yield client


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ("PARTIAL 1:2", "PARTIAL (1:2 2,4)"),
        ("PARTIAL 2:1", "PARTIAL (2:1 2,4)"),
        ("PARTIAL 3:9", "PARTIAL (3:9 6,8)"),
        ("PARTIAL 5:9", "PARTIAL (5:9 NIL)"),
        ("PARTIAL -1:-3", "PARTIAL (-1:-3 4,6,8)"),
        ("PARTIAL -9:-4", "PARTIAL (-9:-4 2)"),
        ("partial -5:-6", "PARTIAL (-5:-6 NIL)"),
        ("MIN PARTIAL 4294967295:1 COUNT", "MIN 2 PARTIAL (4294967295:1 2,4,6,8) COUNT 4"),
    ],
)
async def test_search(client: Client, options: str, wanted: str) -> None:
    assert (await client.ok(f"UID SEARCH RETURN ({options}) SEEN"))[0].endswith(f") UID {wanted}".encode())


async def test_search_by_number_and_without_results(client: Client) -> None:
    assert (await client.ok("SEARCH RETURN (PARTIAL -1:-1) SEEN"))[0].endswith(b") PARTIAL (-1:-1 7)")
    assert (await client.ok("SEARCH RETURN (PARTIAL 1:1 MIN COUNT) DRAFT"))[0].endswith(b") PARTIAL (1:1 NIL) COUNT 0")


@pytest.mark.parametrize(
    ("options", "saved"),
    [
        ("SAVE PARTIAL 2:3", [4, 6]),
        ("SAVE PARTIAL 2:3 MIN", [2, 4, 6]),
        ("SAVE PARTIAL 2:3 MAX", [4, 6, 8]),
        ("SAVE PARTIAL 2:3 MIN MAX", [2, 4, 6, 8]),
        ("SAVE PARTIAL 2:3 COUNT", [2, 4, 6, 8]),
        ("SAVE PARTIAL 2:3 COUNT MIN", [2, 4, 6, 8]),
        ("SAVE PARTIAL 9:10", []),
    ],
)
@pytest.mark.parametrize("command", ["SEARCH", "SORT"])
async def test_what_is_saved(client: Client, command: str, options: str, saved: list[int]) -> None:
    """RFC 9394 §3.2, table 1 has the cases. The order of SORT is that of the UIDs
    here."""
    order = " (REVERSE SIZE) UTF-8" if command == "SORT" else ""
    lines = await client.ok(f"UID {command} RETURN ({options}){order} SEEN")
    assert b"PARTIAL (" in lines[0]
    lines = await client.ok("UID SEARCH RETURN (ALL) UID $")
    found = lines[0].partition(b" ALL ")[2]
    assert found == ",".join(map(str, saved)).encode()


async def test_sort_counts_in_its_own_order(client: Client) -> None:
    lines = await client.ok("UID SORT RETURN (PARTIAL 1:2) (SIZE) UTF-8 ALL")
    assert lines[0].endswith(b" UID PARTIAL (1:2 8,7)")
    await client.ok("UID SORT RETURN (SAVE PARTIAL -1:-2 MIN) (SIZE) UTF-8 ALL")
    assert (await client.ok("UID SEARCH $"))[0] == b"* SEARCH 2 3 8"


async def test_fetch(client: Client) -> None:
    async def uids(command: str) -> list[int]:
        lines = await client.ok(command)
        return [int(line.split()[4].rstrip(b")")) for line in lines if b" FETCH (UID" in line]

    assert await uids("UID FETCH 1:* UID (PARTIAL 1:2)") == [2, 3]
    assert await uids("UID FETCH 4:7 (UID) (PARTIAL -1:-3)") == [5, 6, 7]
    assert await uids("UID FETCH 4:7 UID (PARTIAL 5:6)") == []
    status = [line for line in await client.ok("STATUS INBOX (HIGHESTMODSEQ)") if b"STATUS" in line]
    modseq = status[0].split()[-1].rstrip(b")").decode()
    await client.ok("UID STORE 3,7 +FLAGS.SILENT (\\Flagged)")
    assert await uids(f"UID FETCH 1:* UID (PARTIAL -1:-2 CHANGEDSINCE {modseq})") == [7]
    assert await uids(f"UID FETCH 1:* UID (CHANGEDSINCE {modseq} PARTIAL 1:2)") == [3]


@pytest.mark.parametrize(
    "command",
    [
        *("SEARCH RETURN (PARTIAL 1:2 ALL) ALL", "SEARCH RETURN (PARTIAL 1:2 PARTIAL 1:2) ALL"),
        *("SEARCH RETURN (PARTIAL) ALL", "SEARCH RETURN (PARTIAL 1) ALL", "SEARCH RETURN (PARTIAL 0:1) ALL"),
        *("SEARCH RETURN (PARTIAL 1:-2) ALL", "SEARCH RETURN (PARTIAL -1:2) ALL", "SEARCH RETURN (PARTIAL 1:*) ALL"),
        *("SEARCH RETURN (PARTIAL 1:4294967296) ALL", "SEARCH RETURN (PARTIAL 1:99999999999) ALL"),
        *("FETCH 1 UID (PARTIAL 1:2)", "UID FETCH 1 UID (PARTIAL)", "UID FETCH 1 UID (PARTIAL 1)"),
    ],
)
async def test_what_is_no_range(client: Client, command: str) -> None:
    assert (await client.cmd(command))[-1].startswith(b"BAD ")
