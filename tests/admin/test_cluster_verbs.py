"""The verbs of `oboxadm cluster` over a directory in memory and in LMDB. Each verb is
tested with what it does and with what it refuses."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from board import ANNA, GROUPS, READS, Board
from structlog.testing import capture_logs

from obox.accounts import Account
from obox.admin.clustergroups import unpin
from obox.auth import PasswdFile
from obox.cluster import (
    Assigned,
    Beat,
    BootRow,
    CassandraDirectory,
    Directory,
    Faults,
    Kind,
    Member,
    MemoryDirectory,
    Merge,
    Move,
    Orders,
    Row,
    Settings,
    State,
    group_key,
    group_of,
    read_tables,
    user_key,
)
from obox.cluster.assign import digest
from obox.errors import Unavailable
from obox.forms import FORMS, Form

# -- the directory -----------------------------------------------------------------------------------------------------


async def test_init_makes_the_directory_once(empty: Board) -> None:
    code, text = await empty.fails("clusterStatus")
    assert code == 78
    assert "cluster init" in text
    made = await empty.row("clusterInit", groups=200)
    assert (made["groups"], made["version"], made["directory"]) == (200, "1.0", "memory")
    assert await empty.row("clusterInit") == made
    assert await empty.row("clusterInit", groups=200) == made
    code, text = await empty.fails("clusterInit", groups=300)
    assert code == 73
    assert "200 groups" in text
    assert (await empty.row("clusterStatus"))["unassigned"] == 200


class WithTable(CassandraDirectory):
    """A Cassandra directory whose rows are in memory. It asserts that the table is made
    before a row is read."""

    def __init__(self, inner: Directory) -> None:
        self.inner, self.made = inner, 0

    async def make(self) -> None:
        self.made += 1

    async def get(self, kind: Kind, key: str) -> Row | None:
        assert self.made
        return await self.inner.get(kind, key)

    async def all(self, kind: Kind) -> dict[str, Row]:
        assert self.made
        return await self.inner.all(kind)

    async def put(self, kind: Kind, key: str, value: bytes, timestamp: int) -> None:
        await self.inner.put(kind, key, value, timestamp)


async def test_init_makes_the_table_in_cassandra(empty: Board) -> None:
    directory = WithTable(empty.directory)
    board = Board(directory, empty.admin.users)
    code, text = await board.fails("clusterInit")
    assert code == 65
    assert "allowed: --groups" in text
    assert (await board.row("clusterInit", groups=400))["groups"] == 400
    assert (await board.row("clusterInit"))["groups"] == 400
    assert directory.made == 3


async def test_status_counts(board: Board) -> None:
    await board.put(Kind.MOVES, "00001", Move("b", 1.0))
    await board.put(Kind.MOVES, "00002", Move("b", 1.0, done=True))
    await board.put(Kind.MEMBERS, "front", Member("proxy", "north", "front.example.org"))
    got = await board.row("clusterStatus")
    assert got.pop("answer_ms") >= 0
    assert got == {
        "directory": "memory", "id": "f" * 32, "version": "1.0", "groups": GROUPS, "made": 1000, "unassigned": 0,
        "moving": 1, "backends": 3, "online": 2, "standby": 1, "offline": 0, "evacuating": 0, "silent": 1, "proxies": 1,
    }  # fmt: skip


async def test_a_newer_directory_is_refused(board: Board) -> None:
    await board.put(Kind.SETTINGS, "directory", Settings(GROUPS, "f" * 32, 1.0, major=99))
    for name in ("clusterStatus", "clusterBackendList", "clusterUpgrade", "clusterGroupList"):
        code, text = await board.fails(name)
        assert code == 78
        assert "version 99" in text


async def test_upgrade_names_members_that_are_behind(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    got = await board.rows("clusterUpgrade")
    assert [row["result"] for row in got] == ["ready", "ready", "ready", "up to date"]
    monkeypatch.setattr("obox.cluster.records.MINOR", 3)
    old = Member("backend", "south", "b.example.org", {"imap": 143}, {"envelope": 1, "journal": 1}, "0")
    await board.put(Kind.MEMBERS, "b", old)
    outcome = await board.ask("clusterUpgrade")
    assert outcome.code == 75
    assert "these members have an older obox: b" in outcome.message

    assert "does not read envelope 2;" in outcome.rows[1]["result"]
    assert outcome.rows[-1]["version"] == "1.0"
    await board.put(Kind.ORDERS, "b", Orders(State.REMOVED))
    got = await board.rows("clusterUpgrade")
    assert got[-1]["result"] == "raised"
    assert got[-1]["version"] == "1.3"
    assert (await board.row("clusterStatus"))["version"] == "1.3"
    assert (await board.rows("clusterUpgrade"))[-1]["result"] == "up to date"


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Return the versions of a form that only tests register. This code writes its
    second version."""
    monkeypatch.setitem(FORMS, "test", Form(first=1, reads=2))
    return {**READS, "test": 2}


async def test_upgrade_lets_backends_write_newer_forms(board: Board, newer: dict[str, int]) -> None:
    """It is refused while a backend that is not offline or removed cannot read them."""
    board.reads = newer
    outcome = await board.ask("clusterUpgrade")
    assert outcome.code == 75
    assert "these members have an older obox: a, b, c" in outcome.message
    assert outcome.rows[0]["result"] == "does not read test 2; upgrade it, or remove it"
    assert outcome.rows[-1]["result"] == "waits for the members above"
    for name in ("a", "b"):
        await board.put(Kind.MEMBERS, name, Member("backend", "north", f"{name}.example.org", {}, newer, "2"))
    assert "these members have an older obox: c" in (await board.ask("clusterUpgrade")).message, "standby counts"
    assert (await read_tables(board.directory)).settings.forms == {}
    await board.put(Kind.ORDERS, "c", Orders(State.OFFLINE))
    assert (await board.rows("clusterUpgrade"))[-1] == {
        "what": "directory", "version": "1.0", "reads": "envelope 2 journal 1 test 2", "result": "raised",
    }  # fmt: skip
    assert (await read_tables(board.directory)).settings.forms == {"test": 2}
    assert (await board.rows("clusterUpgrade"))[-1]["result"] == "up to date"


async def test_a_proxy_reads_no_objects(board: Board, newer: dict[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    board.reads = newer
    for name in ("a", "b", "c"):
        await board.put(Kind.MEMBERS, name, Member("backend", "north", f"{name}.example.org", {}, newer, "2"))
    await board.put(Kind.MEMBERS, "front", Member("proxy", "north", "front.example.org", {}, {"wire": 1}))
    await board.put(Kind.BEATS, "front", Beat(1))
    assert (await board.rows("clusterUpgrade"))[-1]["result"] == "raised"
    monkeypatch.setitem(FORMS, "wire", Form(first=1, reads=2))
    board.reads = {**newer, "wire": 2}
    assert "front" in (await board.ask("clusterUpgrade")).message


async def test_upgrade_and_proxies(board: Board) -> None:
    """The verb does not ask a proxy for the formats of mails, because a proxy reads
    none. It counts the formats that a proxy says it reads only while the proxy runs."""
    await board.put(Kind.MEMBERS, "front", Member("proxy", "north", "front.example.org"))
    await board.put(Kind.BEATS, "front", Beat(1))
    await board.put(Kind.MEMBERS, "gone", Member("proxy", "north", "gone.example.org", {}, {"journal": 0}))
    assert {row["result"] for row in await board.rows("clusterUpgrade")} == {"ready", "up to date"}
    await board.put(Kind.MEMBERS, "front", Member("proxy", "north", "front.example.org", {}, {"journal": 0}))
    assert (await board.fails("clusterUpgrade"))[0] == 75


async def test_check_finds_what_is_wrong(board: Board) -> None:
    assert await board.rows("clusterCheck") == []
    await board.put(Kind.BOOTS, "b/old", BootRow(1.0, ended=2.0))
    assert [row["result"] for row in await board.rows("clusterCheck")] == ["note"]
    board.serves = {"00007": Assigned("a", 3, 1)}
    outcome = await board.ask("clusterCheck")
    assert outcome.code == 65
    assert "other-owner" in outcome.message
    assert {row["check"] for row in outcome.rows} == {"other-owner", "unclosed-boot"}


async def test_check_tries_logins(board: Board) -> None:
    assert (await board.fails("clusterCheck", login=ANNA))[0] == 78, "there is no secret"
    asked = []

    async def probe(backend: str, member: Member, account: Account, assigned: Assigned) -> tuple[bool, str]:
        asked.append((backend, member.address, account.name, assigned.backend))
        return backend != "b", "seen"

    board.probe = probe
    await board.put(Kind.ORDERS, "c", Orders(State.OFFLINE))
    outcome = await board.ask("clusterCheck", login=ANNA)
    assert outcome.code == 65
    assert "login" in outcome.message
    assert [(row["where"], row["result"]) for row in outcome.rows] == [("members a", "ok"), ("members b", "wrong")]
    owner = (await board.row("clusterUserStatus", user=ANNA))["backend"]
    assert asked == [(name, f"{name}.example.org", ANNA, owner) for name in ("a", "b")]
    assert (await board.fails("clusterCheck", login="zoe"))[0] == 67


async def test_dump_and_load(board: Board, empty: Board) -> None:
    lines = [json.dumps(row) for row in await board.rows("clusterDump")]
    assert len(lines) == 1 + 3 + 3 + GROUPS
    await board.put(Kind.GROUPS, "00000", Assigned("b", 99, 1))
    assert await board.row("clusterLoad", lines=lines) == {"rows": len(lines)}
    assert (await read_tables(board.directory)).groups["00000"].backend == "b", "the newer row stays"
    await board.rows("clusterLoad", lines=lines, replace=True)
    assert (await read_tables(board.directory)).groups["00000"].backend == "a"
    code, text = await board.fails("clusterLoad", lines=[*lines, '{"kind": "grups"}'])
    assert code == 65
    assert f"line {len(lines) + 1}" in text


async def test_reboots_and_merges(board: Board) -> None:
    assert await board.rows("clusterReboots") == []
    assert await board.rows("clusterMerges") == []
    await board.put(Kind.BOOTS, "a/boot-a", BootRow(100.0))
    await board.put(Kind.BOOTS, "a/boot-0", BootRow(50.0, ended=90.0, clean=True))
    await board.put(Kind.BOOTS, "b/boot-0", BootRow(60.0, ended=70.0))
    await board.put(Kind.BOOTS, "c/boot-c", BootRow(40.0))
    got = await board.rows("clusterReboots")
    assert [(row["backend"], row["state"], row["ended"]) for row in got] == [
        ("a", "runs", ""), ("b", "unclean", 70), ("a", "clean", 90), ("c", "unclean", ""),
    ]  # fmt: skip
    assert {row["backend"] for row in await board.rows("clusterReboots", mask="b*")} == {"b"}
    await board.put(Kind.MERGES, "00003", Merge("b", 500.0, 2))
    assert await board.rows("clusterMerges") == [{"group": "00003", "backend": "b", "at": 500, "users": 2}]


async def test_check_compares_what_other_backends_serve(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """The beat of each backend says how many units it serves. A unit that moves during
    the check is no fault."""
    monkeypatch.setattr("obox.admin.cluster.AGAIN_S", 0.05)
    units = {group_key(number): (number + 1, 1) for number in range(5, GROUPS)}

    async def beats(held: dict[str, tuple[int, int]]) -> None:
        await board.put(Kind.BEATS, "b", Beat(9, "boot-b", units=len(held), digest=digest(held)))

    async def found() -> list[str]:
        return [row["detail"] for row in (await board.ask("clusterCheck")).rows if row["check"] == "other-units"]

    await beats(units)
    assert await found() == []
    await beats({**units, group_key(0): (30, 1)})
    assert await found() == ["b serves 4 units, and not the 3 that the directory names it for"]
    await beats({**units, group_key(5): (30, 1)})
    assert await found() == ["b serves 3 units, which are not those that the directory names it for"]

    async def claims() -> dict[str, dict[str, Assigned]]:
        others = {group_key(number): Assigned("b", number + 1, 1) for number in (5, 6)}
        return {"b": {**others, group_key(5): Assigned("b", 30, 1), group_key(0): Assigned("b", 30, 1)}}

    board.admin.claims = claims
    (text,) = await found()
    assert text.endswith("; without a row: 00000; not served: 00007; by another assignment: 00005")
    assert ("other-owner", "00000") in {(row["check"], row["where"]) for row in (await board.ask("clusterCheck")).rows}
    board.admin.claims = None
    passing = asyncio.ensure_future(board.ask("clusterCheck"))
    await asyncio.sleep(0.02)
    await beats(units)
    assert "other-units" not in {row["check"] for row in (await passing).rows}


async def test_check_of_journals_needs_a_backend(board: Board) -> None:
    code, text = await board.fails("clusterCheck", journals=True)
    assert (code, text) == (69, "no backend runs here")


async def test_balance_says_why_and_moves(board: Board) -> None:
    await board.put(Kind.ORDERS, "a", Orders(load_factor=25))
    assert await board.rows("clusterBalance", dryRun=True) == [], "they are at two sites"
    await board.put(Kind.MEMBERS, "b", Member("backend", "north", "b.example.org", {"imap": 143}, READS, "1"))
    got = await board.rows("clusterBalance", dryRun=True)
    assert [(row["backend"], row["to"]) for row in got] == [("a", "b")] * 3
    used = "with 25% CPU and 50% memory in use"
    assert got[0]["why"] == (
        f"a has 0 users in 5 groups {used}, 55.6% of all, its share is 20.0%; "
        f"b has 1 user in 3 groups {used}, 44.4% of all, its share is 80.0%"
    )
    assert (await read_tables(board.directory)).pending() == {}
    assert await board.rows("clusterBalance") == got
    pending = (await read_tables(board.directory)).pending()
    assert {unit: move.to for unit, move in pending.items()} == {row["group"]: "b" for row in got}
    assert await board.rows("clusterBalance") == [], "pending moves count as done"


async def test_balance_looks_at_machines(board: Board) -> None:
    await board.put(Kind.MEMBERS, "b", Member("backend", "north", "b.example.org", {"imap": 143}, READS, "1"))
    for number in range(GROUPS):
        await board.put(Kind.GROUPS, group_key(number), Assigned("a" if number < 4 else "b", number + 1, 1))
    assert await board.rows("clusterBalance", dryRun=True) == []
    await board.put(Kind.BEATS, "a", Beat(8, "boot-a", started=900.0, load={"cpu": 0.9, "memory": 0.5}))
    (shift,) = await board.rows("clusterBalance", dryRun=True)
    assert (shift["backend"], shift["to"]) == ("a", "b")
    assert "a has 0 users in 4 groups with 90% CPU" in shift["why"]


async def test_balance_counts_users(board: Board, tmp_path: Path) -> None:
    """All users are in the groups of a. A second name of a mail and disabled users do
    not count, and pinned users count for the backend that has them."""
    await board.put(Kind.MEMBERS, "b", Member("backend", "north", "b.example.org", {"imap": 143}, READS, "1"))
    for number in range(GROUPS):
        await board.put(Kind.GROUPS, group_key(number), Assigned("a" if number < 4 else "b", number + 1, 1))
    names = [name for name in (f"user{n}" for n in range(400)) if group_of(name, GROUPS) < 4][:42]
    lines = [f"{name}:{{PLAIN}}x::::::storage_id={name}" for name in names]
    lines += [f"other:{{PLAIN}}x::::::storage_id={names[0]}", *(f"off{n}:{{PLAIN}}x::::::disabled" for n in range(9))]
    (tmp_path / "many").write_text("\n".join(lines) + "\n")
    board.admin.users = PasswdFile(tmp_path / "many", "")
    for name in names[:2]:
        await board.put(Kind.PINS, name, pinned_at("b"))
    got = await board.rows("clusterBalance", dryRun=True)
    assert got
    assert {(row["backend"], row["to"]) for row in got} == {("a", "b")}
    assert got[0]["why"].startswith("a has 40 users in 4 groups with 25% CPU")
    assert "b has 2 users in 4 groups with 25% CPU" in got[0]["why"]

    # The sessions of a pinned user do not count for the group.
    busy = group_key(group_of(names[2], GROUPS))

    async def connections() -> dict[str, int]:
        return {names[2]: 3, names[0]: 5}

    board.admin.connections = connections
    ends = {row["group"]: row["why"].rpartition("; ")[2] for row in await board.rows("clusterBalance", dryRun=True)}
    assert ends
    for group, text in ends.items():
        assert text == f"{3 if group == busy else 0} sessions of the group's users end"
    board.admin.connections = None

    # Users that cannot be listed do not count, and the log says so.
    board.admin.users = PasswdFile(tmp_path / "nothing", "")
    with capture_logs() as logs:
        assert await board.rows("clusterBalance", dryRun=True) == []
    assert "users cannot be listed, groups are balanced by their number" in [line["event"] for line in logs]


async def test_a_directory_that_does_not_answer_is_exit_69(empty: Board) -> None:
    if not isinstance(empty.directory, MemoryDirectory):
        await empty.directory.close()
    else:
        empty.directory.faults = Faults(cut=True)
    for name, params in (("clusterStatus", {}), ("clusterInit", {}), ("clusterBackendEvacuate", {"self": True})):
        code, text = await empty.fails(name, **params)
        assert code == 69
        assert "the directory" in text


# -- backends ----------------------------------------------------------------------------------------------------------


# -- sites -------------------------------------------------------------------------------------------------------------


async def test_the_alternative_of_a_group_is_at_its_site(board: Board) -> None:
    await board.put(Kind.ORDERS, "c", Orders())
    got = await board.rows("clusterGroupList")
    assert {row["alternative"] for row in got if row["backend"] == "b"} == {"c"}
    assert {row["alternative"] for row in got if row["backend"] == "a"} <= {"b", "c"}


# -- groups and users --------------------------------------------------------------------------------------------------


async def test_groups_are_listed_and_moved(board: Board) -> None:
    got = await board.rows("clusterGroupList")
    assert [row["group"] for row in got] == [group_key(number) for number in range(GROUPS)]
    assert {row["alternative"] for row in got if row["backend"] == "a"} == {"b"}
    assert len(await board.rows("clusterGroupList", backend="b")) == 3
    assert (await board.rows("clusterGroupList", mask="*7"))[0]["number"] == 8
    moved = await board.row("clusterGroupMove", group="2", backend="b")
    assert moved == {"group": "00002", "backend": "a", "to": "b", "result": "asked"}
    assert (await read_tables(board.directory)).pending()["00002"].to == "b"
    assert (await board.row("clusterGroupMove", group="00002", backend="a"))["result"] == "cancelled"
    assert (await read_tables(board.directory)).pending() == {}
    assert (await board.row("clusterGroupMove", group="00002", backend="a"))["result"] == "already there"


async def test_where_a_group_cannot_go(board: Board) -> None:
    for wrong in ("8", "-1", "x", "²", "000000000"):
        code, text = await board.fails("clusterGroupMove", group=wrong, backend="b")
        assert code == 65
        assert "allowed: 00000 to 00007" in text
    code, text = await board.fails("clusterGroupMove", group="0", backend="c")
    assert (code, text) == (65, "c takes no groups (it is standby); allowed: a, b")
    assert "allowed: a, b, c" in (await board.fails("clusterGroupMove", group="0", backend="z"))[1]
    assert "allowed: a, b, c" in (await board.fails("clusterGroupList", backend="z"))[1]
    assert (await read_tables(board.directory)).moves == {}


async def test_status_of_a_user(board: Board) -> None:
    unit = group_key(group_of(ANNA, GROUPS))
    owner = "a" if int(unit) < 5 else "b"
    got = await board.row("clusterUserStatus", user=ANNA)
    assert got == {
        "storage_id": ANNA, "group": unit, "pinned": False, "backend": owner,
        "site": {"a": "north", "b": "south"}[owner], "address": f"{owner}.example.org", "to": "",
    }  # fmt: skip
    assert (await board.fails("clusterUserStatus", user="zoe@example.org"))[0] == 67
    assert (await board.row("clusterUserStatus", user="zoe@example.org", noUserdbLookup=True))["group"]


def pinned_at(backend: str, *, removed: bool = False) -> Assigned:
    return Assigned(backend, 20, 7, removed=removed)


async def test_a_single_user_moves(board: Board) -> None:
    """The verb asks for the move with a row. The owner of the group then pins the user,
    and releases the user after that."""
    got = await board.row("clusterUserStatus", user=ANNA)
    owner, unit = got["backend"], user_key(ANNA)
    other = "b" if owner == "a" else "a"
    for code, text in (
        await board.fails("clusterUserMove", user=ANNA),
        await board.fails("clusterUserMove", user=ANNA, backend=other, unpin=True),
    ):
        assert code == 65
        assert "allowed: the name of a backend, or --unpin" in text
    assert (await board.fails("clusterUserMove", user=ANNA, backend="z"))[0] == 65
    assert "it is standby" in (await board.fails("clusterUserMove", user=ANNA, backend="c"))[1]
    assert (await board.row("clusterUserMove", user=ANNA, unpin=True))["result"] == "not pinned"
    asked = await board.row("clusterUserMove", user=ANNA, backend=other)
    assert asked == {"group": got["group"], "backend": owner, "to": other, "result": "asked"}
    assert (await board.row("clusterUserStatus", user=ANNA))["to"] == other
    tables = await read_tables(board.directory)
    assert tables.pending()[unit].to == other
    assert tables.pins == {}, "the owner of the group makes the row"
    assert (await board.row("clusterUserMove", user=ANNA, unpin=True))["result"] == "cancelled"
    assert (await read_tables(board.directory)).pending() == {}
    assert (await board.row("clusterUserMove", user=ANNA, backend=owner))["result"] == "asked", "pinned in place"


async def test_a_pinned_user(board: Board) -> None:
    group = group_key(group_of(ANNA, GROUPS))
    leader = (await board.row("clusterUserStatus", user=ANNA))["backend"]
    at = "b" if leader == "a" else "a"
    await board.put(Kind.PINS, ANNA, pinned_at(at))
    got = await board.row("clusterUserStatus", user=ANNA)
    assert (got["group"], got["backend"], got["pinned"], got["to"]) == (group, at, True, "")
    assert got["site"] == {"a": "north", "b": "south"}[at]
    assert (await board.row("clusterBackendStatus", mask=at))["users"] == 1
    assert (await board.row("clusterUserMove", user=ANNA, backend=at))["result"] == "already there"
    assert (await board.row("clusterUserMove", user=ANNA, backend=leader))["result"] == "asked"
    assert (await board.row("clusterUserMove", user=ANNA, backend=at))["result"] == "cancelled"
    assert (await read_tables(board.directory)).pending() == {}
    assert (await board.row("clusterUserMove", user=ANNA, unpin=True)) == {
        "group": group, "backend": at, "to": leader, "result": "unpinned",
    }  # fmt: skip
    assert (await read_tables(board.directory)).pins[ANNA] == pinned_at(at, removed=True), "the assignment stays"
    assert not (await board.row("clusterUserStatus", user=ANNA))["pinned"]
    assert (await board.row("clusterUserMove", user=ANNA, unpin=True))["result"] == "not pinned"
    assert (await board.row("clusterUserMove", user=ANNA, backend=at))["result"] == "pinned"
    assert (await read_tables(board.directory)).pins[ANNA] == pinned_at(at)


async def test_a_backend_with_a_pinned_user_is_not_removed(board: Board) -> None:
    await board.put(Kind.PINS, ANNA, pinned_at("c", removed=True))
    code, text = await board.fails("clusterBackendRemove", backend="c")
    assert code == 75
    assert "c has 1 single user;" in text
    await board.put(Kind.PINS, ANNA, pinned_at("a"))
    assert "5 groups and 1 single user" in (await board.fails("clusterBackendRemove", backend="a"))[1]


async def test_who_is_deleted_is_pinned_no_more(board: Board) -> None:
    account = Account(ANNA, ANNA)
    assert not await unpin(board.admin, account)
    await board.put(Kind.PINS, ANNA, pinned_at("a"))
    assert await unpin(board.admin, account)
    assert (await read_tables(board.directory)).pins[ANNA].removed, "a state, never a DELETE"


async def test_a_kick_needs_the_key_and_the_owner(board: Board) -> None:
    code, text = await board.fails("clusterUserKick", user=ANNA)
    assert code == 77
    assert "cluster.secret_file" in text
    assert "http.api_key" in text, "both ways are named"
    await board.put(Kind.MEMBERS, "b", Member("backend", "south", "127.0.0.1"))
    await board.put(Kind.MEMBERS, "a", Member("backend", "south", "127.0.0.1"))
    from obox.admin.parts import OwnHttp

    board.admin.own_http = OwnHttp("key")
    code, text = await board.fails("clusterUserKick", user=ANNA)
    assert code == 69
    assert "[http]" in text


async def test_a_kick_goes_over_the_link_where_there_is_a_secret(board: Board) -> None:
    """No key is asked for, also while no member runs here."""
    asked: list[tuple[str, str, str]] = []

    async def kick(backend: str, member: Member, account: Account, assigned: Assigned) -> int:
        asked.append((backend, member.address, account.name))
        return 2 - len(asked)

    board.kick = kick
    row = await board.row("clusterUserKick", user=ANNA)
    owner = row["backend"]
    assert row == {"backend": owner, "connections": 1}
    assert asked == [(owner, f"{owner}.example.org", ANNA)]
    assert (await board.fails("clusterUserKick", user=ANNA))[0] == 68, "nobody was logged in"


async def test_without_a_cluster(board: Board) -> None:
    board.admin.find_cluster = None
    code, text = await board.fails("clusterStatus")
    assert code == 78
    assert "there is no cluster" in text


async def test_the_reason_is_for_operators(board: Board) -> None:
    """Clients see the text of the error. A user of the tool also sees the reason."""
    failure = Unavailable("the directory does not answer")
    failure.add_note("10.0.0.1: refused")

    async def fail(*_: object) -> None:
        raise failure

    board.directory.get = fail
    assert await board.fails("clusterStatus") == (69, "the directory does not answer: 10.0.0.1: refused")
    assert str(failure) == "the directory does not answer"
