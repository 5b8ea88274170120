"""The verbs of `oboxadm cluster` for backends and sites: lists, orders, evacuations."""

from __future__ import annotations

import asyncio

import pytest
from board import GROUPS, Board

from obox.cluster import (
    Assigned,
    Kind,
    Move,
    Orders,
    Site,
    State,
    group_key,
    read_tables,
)


async def test_backends_are_listed(board: Board) -> None:
    got = await board.rows("clusterBackendList")
    assert [(row["backend"], row["site"], row["status"]) for row in got] == [
        ("a", "north", "online"), ("b", "south", "online"), ("c", "south", "standby"),
    ]  # fmt: skip
    assert [row["backend"] for row in await board.rows("clusterBackendList", site="south")] == ["b", "c"]
    assert await board.rows("clusterBackendList", mask="z*") == []
    code, text = await board.fails("clusterBackendList", mask="zoe")
    assert code == 65
    assert "allowed: a, b, c" in text


async def test_status_of_a_backend(board: Board) -> None:
    a, b, c = await board.rows("clusterBackendStatus")
    assert (a["groups"], b["groups"], c["groups"]) == (5, 3, 0)
    assert (a["alive"], a["cpu"], a["memory"], a["started"], a["version"]) == (True, 25, 50, 900, "1")
    assert a["beat"] <= 15
    assert (c["alive"], c["beat"], c["cpu"], c["started"]) == (False, "", "", "")


async def test_a_backend_is_added_changed_and_removed(board: Board) -> None:
    got = await board.row("clusterBackendAdd", backend="d")
    assert got == {"backend": "d", "site": "", "address": "", "status": "standby", "load_factor": 100}
    assert (await board.fails("clusterBackendAdd", backend="d"))[0] == 73
    assert (await board.row("clusterBackendUpdate", backend="d", status="online", loadFactor=25))["load_factor"] == 25
    assert await board.orders("d") == Orders(State.ONLINE, 25)
    assert (await board.row("clusterBackendRemove", backend="d"))["result"] == "removed"
    assert (await board.fails("clusterBackendRemove", backend="d"))[0] == 65
    assert (await board.row("clusterBackendAdd", backend="d", status="offline"))["status"] == "offline"
    assert (await board.fails("clusterBackendAdd", backend="no/name"))[0] == 65


async def test_what_a_backend_cannot_be(board: Board) -> None:
    code, text = await board.fails("clusterBackendUpdate", backend="a", status="onlin")
    assert (code, text) == (65, "no status 'onlin'; allowed: online, standby, offline")
    assert (await board.fails("clusterBackendUpdate", backend="a", status="removed"))[0] == 65
    code, text = await board.fails("clusterBackendUpdate", backend="z", status="online")
    assert (code, text) == (65, "no backend 'z'; allowed: a, b, c")
    assert "no change is given" in (await board.fails("clusterBackendUpdate", backend="a"))[1]
    assert (await board.fails("clusterBackendUpdate", backend="a", loadFactor=101))[0] == 65
    assert "named in one way" in (await board.fails("clusterBackendUpdate", status="online"))[1]
    assert "named in one way" in (await board.fails("clusterBackendUpdate", backend="b", self=True, status="online"))[1]
    assert await board.orders("a") == Orders()


async def test_a_backend_that_has_groups_is_not_removed(board: Board) -> None:
    code, text = await board.fails("clusterBackendRemove", backend="a")
    assert code == 75
    assert "a has 5 groups" in text
    await board.put(Kind.MOVES, "00002", Move("c", 1.0))
    code, text = await board.fails("clusterBackendRemove", backend="c")
    assert code == 75
    assert "00002" in text
    assert await board.orders("c") == Orders(State.STANDBY)


async def asked(board: Board, name: str) -> None:
    while not (await board.orders(name)).evacuate:  # noqa: ASYNC110 - the directory has no events
        await asyncio.sleep(0.01)


async def drain(board: Board, name: str, *, standby: bool = True) -> None:
    """Do what the members do when a backend is evacuated: the groups go one after
    another, and at the end the backend is on standby."""
    await asked(board, name)
    for unit in (await read_tables(board.directory)).groups_of(name):
        await board.put(Kind.GROUPS, unit, Assigned("b", 100, 1, released=True))
        await asyncio.sleep(0.01)
    if standby:
        await board.put(Kind.ORDERS, name, Orders(State.STANDBY, (await board.orders(name)).load_factor, evacuate=True))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("obox.admin.clusterbackends.POLL_S", 0.01)


@pytest.mark.usefixtures("quick")
async def test_evacuate_waits_until_the_backend_is_standby(board: Board) -> None:
    await board.put(Kind.ORDERS, "a", Orders(load_factor=40))
    members = asyncio.ensure_future(drain(board, "a"))
    got = await board.row("clusterBackendEvacuate", self=True)
    await members
    assert got == {"backend": "a", "groups": 0, "status": "standby", "result": "evacuated"}
    assert await board.row("clusterBackendEvacuate", backend="a") == got, "again: there is nothing left to do"
    online = await board.row("clusterBackendUpdate", backend="a", status="online")
    assert (online["evacuate"], online["load_factor"]) == (False, 40)
    assert await board.orders("a") == Orders(load_factor=40)


@pytest.mark.usefixtures("quick")
async def test_an_evacuation_can_be_waited_for_again(board: Board) -> None:
    got = await board.row("clusterBackendEvacuate", backend="a", noWait=True)
    assert got == {"backend": "a", "groups": 5, "status": "online", "result": "asked"}
    assert (await board.orders("a")).evacuate
    outcome = await board.ask("clusterBackendEvacuate", backend="a", timeout=1)
    assert outcome.code == 75
    assert "a has 5 groups after 1 s" in outcome.message
    assert outcome.rows == [{"backend": "a", "groups": 5, "status": "online", "result": "goes on"}]
    members = asyncio.ensure_future(drain(board, "a"))
    assert (await board.row("clusterBackendEvacuate", backend="a"))["result"] == "evacuated"
    await members


@pytest.mark.usefixtures("quick")
async def test_an_evacuation_that_is_called_off_ends(board: Board) -> None:
    waiting = asyncio.ensure_future(board.ask("clusterBackendEvacuate", backend="a"))
    await asked(board, "a")
    await board.rows("clusterBackendUpdate", backend="a", status="online")
    outcome = await waiting
    assert outcome.code == 75
    assert "cancelled" in outcome.message


@pytest.mark.usefixtures("quick")
async def test_a_dead_backend_is_set_to_standby_when_others_have_its_groups(board: Board) -> None:
    await board.put(Kind.ORDERS, "c", Orders())
    await board.put(Kind.GROUPS, "00000", Assigned("c", 50, 1))
    members = asyncio.ensure_future(drain(board, "c", standby=False))
    assert (await board.row("clusterBackendEvacuate", backend="c"))["result"] == "evacuated"
    await members
    assert (await board.orders("c")).state is State.STANDBY


async def test_what_cannot_be_evacuated(board: Board) -> None:
    await board.put(Kind.ORDERS, "b", Orders(load_factor=0))
    code, text = await board.fails("clusterBackendEvacuate", backend="a")
    assert code == 75
    assert "no other backend takes the groups of a" in text
    await board.put(Kind.ORDERS, "b", Orders(State.OFFLINE))
    assert "b is offline" in (await board.fails("clusterBackendEvacuate", backend="b"))[1]
    assert not (await board.orders("a")).evacuate
    assert (await board.fails("clusterBackendEvacuate", backend="z"))[0] == 65


async def test_sites(board: Board) -> None:
    assert [row["site"] for row in await board.rows("clusterSiteList")] == ["north", "south"]
    added = {"site": "west", "status": "online", "comment": "Cork"}
    assert await board.row("clusterSiteAdd", site="west", comment="Cork") == added
    assert (await board.fails("clusterSiteAdd", site="west"))[0] == 73
    assert (await board.fails("clusterSiteAdd", site="no/name"))[0] == 65
    assert added in await board.rows("clusterSiteList")
    got = {row["site"]: (row["backends"], row["alive"], row["groups"]) for row in await board.rows("clusterSiteStatus")}
    assert got == {"north": (1, 1, 5), "south": (2, 1, 3), "west": (0, 0, 0)}
    assert await board.row("clusterSiteRemove", site="west") == {"site": "west", "result": "removed"}
    assert len(await board.rows("clusterSiteList")) == 2
    assert (await board.fails("clusterSiteRemove", site="west"))[0] == 65
    assert (await read_tables(board.directory)).sites["west"].state is State.REMOVED, "a state, never a DELETE"
    code, text = await board.fails("clusterSiteRemove", site="south")
    assert code == 75
    assert "south has backends: b, c;" in text
    await board.put(Kind.SITES, "south", Site(State.REMOVED))
    assert len(await board.rows("clusterSiteList")) == 2, "it has members again"


async def test_a_site_is_set_offline_and_comes_back(board: Board) -> None:
    assert (await board.fails("clusterSiteUpdate", site="south"))[0] == 65
    assert "allowed: north, south" in (await board.fails("clusterSiteUpdate", site="z", status="online"))[1]
    assert "allowed: online, standby, offline" in (await board.fails("clusterSiteUpdate", site="south", status="x"))[1]
    got = await board.row("clusterSiteUpdate", site="south", status="offline", comment="Cork")
    assert got == {"site": "south", "status": "offline", "comment": "Cork", "backends": 2}
    assert [(await board.orders(name)).state for name in "abc"] == [State.ONLINE, State.OFFLINE, State.OFFLINE]
    code, text = await board.fails("clusterSiteUpdate", site="north", status="offline")
    assert code == 75
    assert "no backend of another site" in text
    assert (await board.row("clusterSiteUpdate", site="south", status="online"))["comment"] == "Cork"
    assert (await board.orders("b")) == Orders()


async def test_a_site_is_evacuated(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    """All backends of the site are evacuated at once, so that none of them gets the
    groups of another. The verb counts the groups that are left."""
    monkeypatch.setattr("obox.admin.clustersites.POLL_S", 0.01)
    asked = await board.row("clusterSiteEvacuate", site="south", noWait=True)
    assert asked == {"site": "south", "groups": 3, "status": "online", "result": "asked"}
    assert [(await board.orders(name)).evacuate for name in "abc"] == [False, True, True]
    outcome = await board.ask("clusterSiteEvacuate", site="south", timeout=1)
    assert outcome.code == 75
    assert outcome.rows == [{"site": "south", "groups": 3, "status": "online", "result": "goes on"}]
    for number in range(5, GROUPS):
        await board.put(Kind.GROUPS, group_key(number), Assigned("a", 20 + number, 1))
    await board.put(Kind.ORDERS, "b", Orders(State.STANDBY, evacuate=True))
    done = await board.row("clusterSiteEvacuate", site="south")
    assert done == {"site": "south", "groups": 0, "status": "standby", "result": "evacuated"}
    assert "no backend of another site" in (await board.fails("clusterSiteEvacuate", site="north"))[1]
