"""Verbs for groups and users of a cluster: cluster group, cluster user."""

from __future__ import annotations

import asyncio
import base64
import fnmatch
import http.client
import json
import ssl
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta
from msgspec.structs import replace

from ..accounts import Account
from ..errors import Invalid, NoPerm, NotFound, OboxError, Temporary, Unavailable
from .directory import backend_named, group_named, listed, read, write
from .exits import NO_HOST, NoSession
from .params import Params, Selection
from .parts import Admin, ClusterParts
from .sessions import KICK_REASON, kicked
from .table import Event, Needs, user_verb, verb

if TYPE_CHECKING:
    from ..cluster import Assigned, Member, Move, Tables

ASK_S: Final = 10.0
"""The owner of a user must answer within this time."""

ANSWER_BYTES_MAX: Final = 64 * 1024

GROUP: Final = ("group", "backend", "alternative", "to", "number")


class GroupListParams(Params, kw_only=True):
    mask: Annotated[str | None, Meta(description="Groups that match this mask")] = None
    backend: Annotated[str, Meta(description="Only groups of this backend")] = ""


@verb("cluster group list", GroupListParams, needs=Needs.DIRECTORY, columns=GROUP)
async def cluster_group_list(admin: Admin, params: GroupListParams) -> AsyncIterator[Event]:
    """Show the groups of the cluster, who has them, and where they move to."""
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        if params.backend:
            backend_named(tables, params.backend)
        for unit in tables.group_keys():
            row = _group(tables, unit)
            if fnmatch.fnmatchcase(unit, params.mask or "*") and params.backend in ("", row["backend"]):
                yield row


def _group(tables: Tables, unit: str) -> dict[str, Any]:
    from ..cluster import rank

    row, move = tables.groups.get(unit), tables.pending().get(unit)
    backend = row.backend if row is not None else ""
    others = {name: weight for name, weight in tables.weights().items() if name != backend}
    near = {name: weight for name, weight in others.items() if tables.site_of(name) == tables.site_of(backend)}
    heirs = rank(unit, near if any(near.values()) else others)
    return {
        "group": unit,
        "backend": backend,
        "alternative": heirs[0] if heirs else "",
        "to": move.to if move is not None else "",
        "number": row.number if row is not None else 0,
    }


class GroupMoveParams(Params, kw_only=True):
    group: Annotated[str, Meta(description="The number of the group")]
    backend: Annotated[str, Meta(description="Backend that the group moves to")]


@verb("cluster group move", GroupMoveParams, needs=Needs.DIRECTORY, columns=("group", "backend", "to", "result"))
async def cluster_group_move(admin: Admin, params: GroupMoveParams) -> AsyncIterator[Event]:
    """Ask the owner of a group to give it to another backend.

    The owner does it within seconds: it finishes commands, uploads, and ends the
    sessions of the users, who connect again. The command does not wait for that;
    cluster group list shows the rest. A move back to the owner cancels the move.
    """
    from ..cluster import Kind, Move

    async with admin.cluster() as cluster:
        tables = await read(cluster)
        unit = group_named(tables, params.group)
        row = _group(tables, unit)
        to = _taker(tables, params.backend, row["backend"])
        if not row["backend"]:
            raise NotFound(f"no backend has group {unit} yet; a backend acquires it within seconds")
        result = "asked"
        if to == row["backend"]:
            result = "cancelled" if row["to"] else "already there"
        if result != "already there":
            done = result == "cancelled"
            await write(
                cluster,
                Kind.MOVES,
                unit,
                Move(to, time.time(), by=f"cluster group move at {cluster.backend}", done=done),
            )
        yield {"group": unit, "backend": row["backend"], "to": to, "result": result}


def _taker(tables: Tables, name: str, owner: str) -> str:
    """Return the backend of a name. It must take groups, unless it is the owner. Raises
    NotFound, Invalid."""
    from ..cluster import State

    to, orders = backend_named(tables, name)
    fit = [
        name
        for name, one in tables.backends().items()
        if one.state is State.ONLINE and not one.evacuate and name in tables.members
    ]
    if to != owner and to not in fit:
        state = "evacuated" if orders.evacuate else orders.state.value
        raise Invalid(f"{to} takes no groups (it is {state}); allowed: {listed(fit)}")
    return to


class UserStatusParams(Selection, kw_only=True):
    pass


@user_verb(
    "cluster user status",
    UserStatusParams,
    needs=Needs.DIRECTORY,
    columns=("storage_id", "group", "pinned", "backend", "site", "address", "to"),
)
async def cluster_user_status(admin: Admin, account: Account, params: UserStatusParams) -> AsyncIterator[Event]:
    """Show which group a user is in, and which backend serves the user."""
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        row, move = _user(tables, account)
        backend = row.backend if row is not None else ""
        member = tables.members.get(backend)
        yield {
            "storage_id": account.storage_id,
            "group": tables.group_of(account.storage_id),
            "pinned": _is_pinned(tables, account),
            "backend": backend,
            "site": tables.site_of(backend),
            "address": member.address if member is not None else "",
            "to": move.to if move is not None else "",
        }


def _user(tables: Tables, account: Account) -> tuple[Assigned | None, Move | None]:
    """Return the assignment of a user, and the pending move."""
    from ..cluster import user_key

    moves, unit = tables.pending(), tables.unit_of(account.storage_id)
    return tables.row(unit), moves.get(user_key(account.storage_id)) or moves.get(unit)


def _is_pinned(tables: Tables, account: Account) -> bool:
    pin = tables.pins.get(account.storage_id)
    return pin is not None and not pin.removed


class UserMoveParams(Selection, kw_only=True):
    backend: Annotated[str, Meta(description="Backend that the user moves to")] = ""
    unpin: Annotated[bool, Meta(description="Let the user follow the user's group again")] = False


@user_verb("cluster user move", UserMoveParams, needs=Needs.DIRECTORY, columns=("group", "backend", "to", "result"))
async def cluster_user_move(admin: Admin, account: Account, params: UserMoveParams) -> AsyncIterator[Event]:
    """Move a single user to another backend, and pin the user there.

    A pinned user does not move with the group of the user, nor when groups are
    balanced. If the backend is evacuated or dies, another acquires the user, who stays
    pinned. The owner makes the move within seconds, as in cluster group move; cluster
    user status shows the rest. A move to the backend that has the user pins the user
    there, and cancels a pending move. With --unpin and without a backend the user moves
    to the backend of the group, and follows the group from then on.
    """
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        row, _ = _user(tables, account)
        group = tables.group_of(account.storage_id)
        if params.unpin == bool(params.backend):
            raise Invalid("where to? allowed: the name of a backend, or --unpin")
        if params.unpin:
            leader = tables.groups.get(group)
            to = leader.backend if leader is not None else ""
            result = await _unpin(cluster, tables, account)
        elif row is None:
            raise NotFound(f"no backend has group {group} yet; a backend acquires it within seconds")
        else:
            to = _taker(tables, params.backend, row.backend)
            result = await _pin(cluster, tables, account, row, to)
        yield {"group": group, "backend": row.backend if row is not None else "", "to": to, "result": result}


async def _pin(cluster: ClusterParts, tables: Tables, account: Account, row: Assigned, to: str) -> str:
    """Write the rows that pin a user at a backend. Return what was done."""
    from ..cluster import Kind, Move, user_key

    sid = account.storage_id
    key = user_key(sid)
    asked = key in tables.pending()
    done = row.backend == to and sid in tables.pins
    if done and row.removed:
        # The assignment stays: its number and its token are those that the owner has.
        await write(cluster, Kind.PINS, sid, replace(row, removed=False))
    if not done or asked:
        await write(cluster, Kind.MOVES, key, Move(to, time.time(), f"cluster user move at {cluster.backend}", done))
    if not done:
        return "asked"
    return "pinned" if row.removed else "cancelled" if asked else "already there"


async def _unpin(cluster: ClusterParts, tables: Tables, account: Account) -> str:
    """Let a user follow the group again. Return what was done."""
    from ..cluster import Kind, user_key

    sid = account.storage_id
    key = user_key(sid)
    if key in tables.pending():
        await write(cluster, Kind.MOVES, key, replace(tables.moves[key], done=True))
    if not _is_pinned(tables, account):
        return "cancelled" if key in tables.pending() else "not pinned"
    await write(cluster, Kind.PINS, sid, replace(tables.pins[sid], removed=True))
    return "unpinned"


async def unpin(admin: Admin, account: Account) -> bool:
    """Let a user who was deleted follow the group. Returns whether the user was pinned.
    Raises Unavailable, ConfigError, Temporary."""
    if admin.find_cluster is None:
        return False
    async with admin.cluster() as cluster:
        return await _unpin(cluster, await read(cluster), account) == "unpinned"


class UserKickParams(Selection, kw_only=True):
    pass


@user_verb("cluster user kick", UserKickParams, needs=Needs.DIRECTORY, columns=("backend", "connections"))
async def cluster_user_kick(admin: Admin, account: Account, params: UserKickParams) -> AsyncIterator[Event]:
    """Disconnect a user wherever in the cluster, each session as soon as its command is
    done.

    The owner of the user ends the sessions, also those that come through other members,
    and those of other names of the same mail. It is asked over the trusted link, also
    while no member runs here. Without cluster.secret_file it is asked on its [http]
    with the http.api_key of this configuration. The exit code is 68 if the user is not
    logged in, 77 if the owner does not accept the secret or the key, and 75 or 69 if
    the owner does not answer.
    """
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        row, _ = _user(tables, account)
        owner = row.backend if row is not None else ""
        if owner == cluster.backend and admin.server is not None:
            sessions = kicked(admin.server.sessions(), account)
            admin.server.kick(sessions, KICK_REASON)
            count = len(sessions)
        elif owner not in tables.members:
            raise Unavailable(f"no backend serves {account.name} at the moment")
        elif cluster.kick is not None and row is not None:
            count = await cluster.kick(owner, tables.members[owner], account, row)
        else:
            count = await _kick_there(admin, owner, tables.members[owner], account.name)
        if not count:
            raise NoSession(f"no session of {account.name}")
        yield {"backend": owner, "connections": count}


async def _kick_there(admin: Admin, owner: str, member: Member, user: str) -> int:
    """Ask another backend. Return how many sessions it has ended. Raises Unavailable,
    NoPerm."""
    clear, secure = member.ports.get("http", 0), member.ports.get("https", 0)
    if not admin.own_http.key:
        raise NoPerm(
            f"{owner} serves the user, and this configuration has no cluster.secret_file; "
            "set it, or http.api_key, as the members have it"
        )
    if member.address.startswith("unix:") or not (clear or secure):
        raise Unavailable(f"{owner} serves the user, and has no [http] section, so it cannot be asked")
    key = base64.b64encode(admin.own_http.key.encode()).decode()

    def ask() -> tuple[int, bytes]:
        connection: http.client.HTTPConnection
        if secure:
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(member.address, secure, timeout=ASK_S, context=context)
        else:
            connection = http.client.HTTPConnection(member.address, clear, timeout=ASK_S)
        try:
            body = json.dumps([["kick", {"user": user}, "cluster"]])
            connection.request("POST", "/doveadm/v1", body, {"Authorization": f"X-Dovecot-API {key}"})
            answer = connection.getresponse()
            return answer.status, answer.read(ANSWER_BYTES_MAX)
        finally:
            connection.close()

    try:
        status, body = await asyncio.to_thread(ask)
    except (OSError, http.client.HTTPException) as error:
        raise Unavailable(
            f"{owner} does not answer: {getattr(error, 'strerror', None) or type(error).__name__}"
        ) from error
    return _kicked_there(owner, status, body)


def _kicked_there(owner: str, status: int, body: bytes) -> int:
    """Return how many sessions the owner has ended, from its answer to `kick`."""
    if status == 401:
        raise NoPerm(f"{owner} does not accept the key: all members need the same http.api_key")
    if status == 404:
        raise NoPerm(f"{owner} has no admin API: it needs http.api_key")
    failure: OboxError = Unavailable(f"{owner}: HTTP {status}")
    if status != 200:
        raise failure
    try:
        ((kind, result, _),) = json.loads(body)
        if kind == "doveadmResponse":
            return sum(int(row["connections"]) for row in result)
        if result["exitCode"] == NO_HOST:
            return 0
        failure = Temporary(f"{owner}: exit {int(result['exitCode'])}")
    except (ValueError, TypeError, KeyError):
        pass
    raise failure
