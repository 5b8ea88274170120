"""Commands at any member: which backends the member asks, how it joins their answers,
and that a backend never forwards a call again.

The calls go from relay to relay without a socket. `test_calls.py` tests them with
sockets.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from members import FakeRouter, Rows

from obox.accounts import Account
from obox.admin import TABLE, Admin, Event, Failure, Needs, Selection, Verb
from obox.admin.loading import loaded
from obox.admin.removal import OboxUserRenameParams
from obox.admin.run import Outcome
from obox.auth import Authenticator, Forward, PasswdFile, Penalties
from obox.cluster import Assigned, Beat, Member, Orders, State, There
from obox.proxy import Forwarder, calls
from obox.relay import FORWARDED, Relay

USERS = ("anna", "ben", "carl")
Row = dict[str, Any]


@dataclass
class Session:
    id: int
    user: str
    state: str = "selected"
    remote: str = "192.0.2.1"
    tls: bool = False
    mailbox: str = "INBOX"
    idle: bool = False
    since: float = 0.0
    mail: str = ""
    service: str = "imap"


@dataclass(eq=False)
class Process:
    """A fake `admin.Server`."""

    all: list[Session] = field(default_factory=list)

    def sessions(self) -> list[Session]:
        return list(self.all)

    def kick(self, sessions: list[Session], reason: str) -> None:
        self.all = [one for one in self.all if one not in sessions]

    async def reload(self) -> tuple[list[str], list[str]]:
        return [], []

    def stop_logins(self) -> None: ...

    def stop(self) -> None: ...


class Node:
    """A member of the cluster: a backend, or a proxy."""

    def __init__(self, cluster: Cluster, name: str, *, proxy: bool = False) -> None:
        users = PasswdFile(cluster.users, "")
        authenticator = Authenticator(users, penalties=Penalties((0.0, 0.0)))
        self.router, self.server = FakeRouter(cluster.rows, name), Process()
        self.forwarder = Forwarder(self.router, [b"x" * 32], authenticator, member=name)
        self.admin = Admin(users, lambda: authenticator, lambda program: NotImplemented, server=self.server)
        self.ran: list[tuple[str, str]] = []
        self.calls: list[str] = []
        self.up = True

        def owner(sid: str) -> str | None:
            return cluster.rows.owners[sid].backend

        view: Any = SimpleNamespace(members=cluster.members, orders=cluster.orders, beats=cluster.beats)
        self.relay = Relay(self.admin, self.forwarder, view, owner, serves=not proxy)

    async def run(self, name: str, *, backend: str = "", **params: Any) -> tuple[int, list[Row], list[Failure], str]:
        outcome = Outcome()
        await outcome.take(self.relay.run(self.admin, name, params, outcome, backend=backend))
        return outcome.code, outcome.rows, outcome.failures, outcome.message


class Cluster:
    def __init__(self, path: Path) -> None:
        self.rows, self.users = Rows(), path / "users"
        self.users.write_text("".join(f"{user}:{{PLAIN}}x::::::\n" for user in USERS))
        self.members: dict[str, Member] = {}
        self.orders: dict[str, Orders] = {}
        self.beats: dict[str, Beat] = {}
        self.nodes: dict[str, Node] = {}

    def add(self, name: str, *, proxy: bool = False) -> Node:
        self.members[name] = Member("proxy" if proxy else "backend", "", "127.0.0.1", {"http": 1})
        self.nodes[name] = Node(self, name, proxy=proxy)
        return self.nodes[name]

    async def call(self, forwarder: Forwarder, there: There, body: bytes) -> AsyncIterator[bytes]:
        """Do what `calls.call` does, without a socket."""
        node = self.nodes[there.backend]
        if not node.up:
            raise ConnectionRefusedError(111, "Connection refused")
        node.calls.append(forwarder.member)
        forward = Forward("", "", "", listener="admin", member=forwarder.member, backend=there.backend)
        text = b"".join([piece async for piece in node.relay.serve(body, forward)])
        for line in text.splitlines():
            yield line


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Make backends b1 and b2 and a proxy p. b1 serves anna; b2 serves ben and carl.
    The verb `probe` for users says where it ran."""
    cluster = Cluster(tmp_path)
    for name in ("b1", "b2"):
        cluster.add(name)
    cluster.add("p", proxy=True)
    for user, owner in (("anna", "b1"), ("ben", "b2"), ("carl", "b2")):
        cluster.rows.own(user, owner)
    monkeypatch.setattr(calls, "call", cluster.call)

    async def probe(admin: Admin, account: Account, params: Selection) -> AsyncIterator[Event]:
        (at,) = (name for name, node in cluster.nodes.items() if node.server in (admin.server, _inner(admin)))
        yield {"at": at, "user": account.name}

    verb = Verb("probe", Selection, None, probe, Needs.STATE, ("at", "user"), "", "Probe.")
    monkeypatch.setitem(TABLE, "probe", verb)
    return cluster


def _inner(admin: Admin) -> object:
    return getattr(admin.server, "_server", None)


# -- verbs of users --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", ["b1", "b2", "p"])
async def test_a_user_is_looked_after_by_the_owner(made: Cluster, asked: str) -> None:
    assert await made.nodes[asked].run("probe", user="anna") == (0, [{"at": "b1", "user": "anna"}], [], "")
    code, rows, failures, _ = await made.nodes[asked].run("probe", users=["anna", "ben"])
    assert (code, failures) == (0, [])
    assert sorted((row["username"], row["at"]) for row in rows) == [("anna", "b1"), ("ben", "b2")]


@pytest.mark.parametrize("asked", ["b1", "b2", "p"])
async def test_a_rename_is_done_by_the_owner(made: Cluster, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
    """It names its user in a parameter of its own. An owner that has given the user
    away refers the caller, as in verbs for users."""
    ran: list[tuple[str, str, str]] = []

    async def rename(admin: Admin, params: OboxUserRenameParams) -> AsyncIterator[Event]:
        (at,) = (name for name, node in made.nodes.items() if node.server in (admin.server, _inner(admin)))
        ran.append((at, params.user, params.new_user))
        yield {"user": params.new_user}

    verb = replace((await loaded())["oboxUserRename"], run=rename)
    monkeypatch.setitem(TABLE, "oboxUserRename", verb)
    call = made.nodes[asked].run
    assert await call("oboxUserRename", user="anna", newUser="anne") == (0, [{"user": "anne"}], [], "")
    made.rows.own("anna", "b2")
    for name in ("b1", "b2"):
        made.nodes[name].router.read["anna"] = made.rows.owners["anna"]
    assert await call("oboxUserRename", user="anna", newUser="anne") == (0, [{"user": "anne"}], [], "")
    assert ran == [("b1", "anna", "anne"), ("b2", "anna", "anne")]
    code, _, _, message = await call("oboxUserRename", user="nobody", newUser="anne")
    assert (code, len(ran)) == (67, 2), message


async def test_all_users_are_those_of_the_backend_that_is_asked(made: Cluster) -> None:
    """A backend selects only its own users, so a nightly job on each backend does
    nothing twice. A proxy has no users of its own, and asks all backends."""
    for asked, wanted in (("b1", {"anna"}), ("b2", {"ben", "carl"}), ("p", set(USERS))):
        code, rows, _, _ = await made.nodes[asked].run("probe", allUsers=True)
        assert (code, {row["username"] for row in rows}) == (0, wanted)
    assert made.nodes["b1"].calls == made.nodes["b2"].calls == ["p"]


async def test_who_has_given_a_user_away_refers_and_the_caller_reads_the_row(made: Cluster) -> None:
    b1, b2, proxy = (made.nodes[name] for name in ("b1", "b2", "p"))
    await proxy.run("probe", user="anna")
    made.rows.own("anna", "b2")
    b1.router.read["anna"] = b2.router.read["anna"] = made.rows.owners["anna"]
    b1.calls.clear()
    assert await proxy.run("probe", user="anna") == (0, [{"at": "b2", "user": "anna"}], [], "")
    assert (b1.calls, b2.calls) == (["p"], ["p"])
    assert len(proxy.router.rereads) == 1


async def test_who_has_an_old_row_reads_it_again(made: Cluster) -> None:
    """The number of the caller's assignment is higher than the owner's. The owner reads
    its row again, and sends no referral."""
    made.nodes["b2"].router.read["anna"] = made.rows.owners["anna"]
    made.rows.own("anna", "b2")
    assert await made.nodes["p"].run("probe", user="anna") == (0, [{"at": "b2", "user": "anna"}], [], "")
    assert len(made.nodes["b2"].router.rereads) == 1
    assert made.nodes["p"].router.rereads == []


async def test_a_call_is_never_forwarded_again(made: Cluster) -> None:
    """Each of two backends takes the other for the owner, and what they read does not
    change that."""
    b1, b2, proxy = (made.nodes[name] for name in ("b1", "b2", "p"))
    for node, other in ((b1, "b2"), (b2, "b1")):
        node.router.read["anna"] = Assigned(other, 9, 1)
    code, rows, failures, message = await proxy.run("probe", user="anna")
    assert (code, rows) == (75, [])
    assert "do not agree" in message
    assert [failure.user for failure in failures] == ["anna"]
    assert (b1.calls, b2.calls) == (["p", "p"], []), "the one whom the row names, twice, and nobody by a backend"


async def test_a_user_who_is_another_there_is_refused(made: Cluster) -> None:
    other = made.users.with_name("other")
    other.write_text("anna:{PLAIN}x::::::storage_id=someone\n")
    made.nodes["b1"].admin.users = PasswdFile(other, "")
    code, rows, _, message = await made.nodes["p"].run("probe", user="anna")
    assert (code, rows) == (77, [])
    assert "storage_id" in message
    code, rows, failures, _ = await made.nodes["p"].run("probe", users=["anna", "ben"])
    assert (code, [row["username"] for row in rows]) == (2, ["ben"])
    assert [(failure.user, failure.code) for failure in failures] == [("anna", 77)]


async def test_a_user_whom_nobody_serves(made: Cluster) -> None:
    made.nodes["p"].router.down = True
    code, rows, _, message = await made.nodes["p"].run("probe", user="anna")
    assert (code, rows, message) == (75, [], "the directory does not answer")


async def test_an_owner_who_does_not_answer_is_named_and_the_others_are_done(made: Cluster) -> None:
    made.nodes["b2"].up = False
    code, rows, failures, message = await made.nodes["p"].run("probe", users=list(USERS))
    assert (code, [row["username"] for row in rows]) == (75, ["anna"])
    assert message == "no answer from b2: Connection refused"
    assert {(failure.user, failure.code) for failure in failures} == {("ben", 75), ("carl", 75)}
    assert (await made.nodes["p"].run("probe", user="ben"))[0] == 75


# -- verbs of servers ------------------------------------------------------------------------------------------------


async def test_who_shows_each_session_once(made: Cluster) -> None:
    b1, b2, proxy = (made.nodes[name] for name in ("b1", "b2", "p"))
    b1.server.all = [Session(1, "anna"), Session(2, "ben", "forwarded to b2")]
    b2.server.all = [Session(1, "ben")]
    proxy.server.all = [Session(5, "anna", "forwarded to b1")]
    for node in (b1, b2, proxy):
        code, rows, _, _ = await node.run("who")
        assert (code, sorted((row["backend"], row["username"]) for row in rows)) == (0, [("b1", "anna"), ("b2", "ben")])
    code, rows, _, _ = await b2.run("who", backend="b1")
    assert (code, {row["username"] for row in rows}) == (0, {"anna", "ben"}), "what it sees itself"


async def test_kick_ends_sessions_at_their_backends(made: Cluster) -> None:
    b1, b2 = made.nodes["b1"], made.nodes["b2"]
    b2.server.all = [Session(1, "ben")]
    assert await b1.run("kick", user="ben") == (0, [{"backend": "b2", "username": "ben", "connections": 1}], [], "")
    assert b2.server.all == []
    assert (await b1.run("kick", user="ben"))[0] == 68


async def test_check_asks_other_backends_for_their_units(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend that does not answer is left out. A member without a secret asks
    nobody."""
    two = {"00002": Assigned("b2", 5, 8), "u:ben": Assigned("b2", 6, 9)}
    units = {"b1": {"00001": Assigned("b1", 4, 7)}, "b2": two}

    def find(name: str) -> Any:
        @asynccontextmanager
        async def found(*, make: bool = False) -> AsyncIterator[Any]:
            yield SimpleNamespace(serves=(lambda: units[name]) if name in units else None)

        return found

    seen: list[Any] = []

    async def check(admin: Admin, params: Any) -> AsyncIterator[Event]:
        seen.append(None if admin.claims is None else await admin.claims())
        yield {}

    for name, node in made.nodes.items():
        node.admin.find_cluster = find(name)
    verb = replace((await loaded())["clusterCheck"], run=check)
    monkeypatch.setitem(TABLE, "clusterCheck", verb)
    for asked in ("p", "b1"):
        assert (await made.nodes[asked].run("clusterCheck"))[0] == 0
    made.nodes["b2"].up = False
    await made.nodes["p"].run("clusterCheck")
    assert seen == [units, {"b2": two}, {"b1": units["b1"]}]
    made.nodes["p"].forwarder.secrets = []
    await made.nodes["p"].run("clusterCheck")
    assert seen[-1] is None


async def test_balance_asks_other_backends_for_their_sessions(made: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session counts at its owner. A backend that does not answer is left out."""
    made.nodes["b1"].server.all = [
        Session(1, "anna", mail="anna"), Session(2, "", state="login"), Session(3, "ben", f"{FORWARDED}b2", mail="ben")
    ]  # fmt: skip
    made.nodes["b2"].server.all = [Session(n, name, mail=name) for n, name in enumerate(("ben", "ben", "carl"))]
    seen: list[Any] = []

    async def balance(admin: Admin, params: Any) -> AsyncIterator[Event]:
        assert admin.connections is not None
        seen.append(dict(await admin.connections()))
        yield {}

    monkeypatch.setitem(TABLE, "clusterBalance", replace((await loaded())["clusterBalance"], run=balance))
    for asked in ("p", "b1", "b2"):
        assert (await made.nodes[asked].run("clusterBalance"))[0] == 0
    assert seen == [{"anna": 1, "ben": 2, "carl": 1}] * 3
    made.nodes["b2"].up = False
    await made.nodes["b1"].run("clusterBalance")
    assert seen[-1] == {"anna": 1}
    made.nodes["b2"].forwarder.secrets = ()
    await made.nodes["b2"].run("clusterBalance")
    assert seen[-1] == {"ben": 2, "carl": 1}


async def test_a_backend_that_does_not_answer_is_named(made: Cluster) -> None:
    made.nodes["b1"].server.all = [Session(1, "anna")]
    made.nodes["b2"].up = False
    code, rows, _, message = await made.nodes["b1"].run("who")
    assert (code, [row["username"] for row in rows]) == (75, ["anna"])
    assert message == "no answer from b2: Connection refused"


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        (b"rubbish", 75, "b2: the answer cannot be read"),
        (b'{"row":{"username":"x"}}', 75, "b2: the answer was cut short"),
        (b'{"end":{}}', 2, "b2: KeyError"),
    ],
)
async def test_a_broken_answer_ends_the_command(
    made: Cluster, monkeypatch: pytest.MonkeyPatch, line: bytes, code: int, said: str
) -> None:
    async def broken(forwarder: Forwarder, there: There, body: bytes) -> AsyncIterator[bytes]:
        yield line

    monkeypatch.setattr(calls, "call", broken)
    async with asyncio.timeout(30):
        found, _, _, message = await made.nodes["b1"].run("who")
    assert (found, said in message) == (code, True), message


@pytest.mark.parametrize("how", ["offline", "removed", "stopped"])
async def test_who_has_left_is_not_asked(made: Cluster, how: str) -> None:
    made.nodes["b2"].up = False
    if how == "stopped":
        made.beats["b2"] = Beat(1, ending=True)
    else:
        made.orders["b2"] = Orders(State(how))
    assert (await made.nodes["b1"].run("who"))[0] == 0


async def test_an_operator_names_a_backend(made: Cluster) -> None:
    assert await made.nodes["b1"].run("probe", backend="b2", user="anna") == (0, [{"at": "b2", "user": "anna"}], [], "")
    code, _, _, message = await made.nodes["b1"].run("who", backend="b9")
    assert (code, message) == (65, "no backend 'b9'; allowed: b1, b2")
    assert (await made.nodes["b1"].run("userList", backend="b2"))[0] == 65


async def test_without_a_secret_each_answers_for_itself(made: Cluster) -> None:
    b1 = made.nodes["b1"]
    b1.forwarder.secrets = ()
    b1.server.all = [Session(1, "anna")]
    assert await b1.run("who") == (0, [{"username": "anna", "connections": 1, "service": "imap", "ips": "192.0.2.1"}],
                                   [], "")  # fmt: skip
    assert made.nodes["b2"].calls == []
