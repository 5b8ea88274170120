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

from ..accounts import Account
from ..errors import Invalid, NoPerm, NotFound, OboxError, Temporary, Unavailable
from .directory import backend_named, group_named, listed, read, write
from .exits import NO_HOST, NoSession
from .params import Params, Selection
from .parts import Admin
from .sessions import KICK_REASON, kicked
from .table import Event, Needs, user_verb, verb

if TYPE_CHECKING:
    from ..cluster import Member, Tables

ASK_S: Final = 10.0
"""How long the owner of a user has to answer."""

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
    heirs = rank(unit, {name: weight for name, weight in tables.weights().items() if name != backend})
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
    sessions of the users, who connect again. It does not wait for that; cluster group
    list shows the rest. A move back to the owner calls a move off.
    """
    from ..cluster import Kind, Move, State

    async with admin.cluster() as cluster:
        tables = await read(cluster)
        unit = group_named(tables, params.group)
        to, orders = backend_named(tables, params.backend)
        row = _group(tables, unit)
        fit = [name for name, one in tables.backends().items() if one.state is State.ONLINE and name in tables.members]
        if to != row["backend"] and (to not in fit or orders.evacuate):
            raise Invalid(f"{to} takes no groups (it is {orders.state.value}); allowed: {listed(fit)}")
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


class UserStatusParams(Selection, kw_only=True):
    pass


@user_verb(
    "cluster user status",
    UserStatusParams,
    needs=Needs.DIRECTORY,
    columns=("storage_id", "group", "backend", "site", "address", "to"),
)
async def cluster_user_status(admin: Admin, account: Account, params: UserStatusParams) -> AsyncIterator[Event]:
    """Show which group a user is in, and which backend serves the user."""
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        unit = _unit(tables, account)
        row = _group(tables, unit)
        member = tables.members.get(row["backend"])
        yield {
            "storage_id": account.storage_id,
            "group": unit,
            "backend": row["backend"],
            "site": tables.site_of(row["backend"]),
            "address": member.address if member is not None else "",
            "to": row["to"],
        }


def _unit(tables: Tables, account: Account) -> str:
    from ..cluster import group_key, group_of

    assert tables.settings is not None
    return group_key(group_of(account.storage_id, tables.settings.groups))


class UserMoveParams(Selection, kw_only=True):
    backend: Annotated[str, Meta(description="Backend that the user moves to")]


@user_verb("cluster user move", UserMoveParams, needs=Needs.DIRECTORY, columns=("group", "backend", "to"))
async def cluster_user_move(admin: Admin, account: Account, params: UserMoveParams) -> AsyncIterator[Event]:
    """Move a single user to another backend, which no backend can do yet: exit 77.

    The error names the user's group, which can be moved.
    """
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        to, _ = backend_named(tables, params.backend)
        unit = _unit(tables, account)
        row = _group(tables, unit)
        if row["backend"] == to:
            yield {"group": unit, "backend": row["backend"], "to": to}
            return
        raise NoPerm(
            f"a single user cannot move apart from its group yet; {account.name} is in group {unit} of "
            f"{row['backend'] or 'nobody'}: oboxadm cluster group move {unit} {to}"
        )


class UserKickParams(Selection, kw_only=True):
    pass


@user_verb("cluster user kick", UserKickParams, needs=Needs.DIRECTORY, columns=("backend", "connections"))
async def cluster_user_kick(admin: Admin, account: Account, params: UserKickParams) -> AsyncIterator[Event]:
    """Disconnect a user wherever in the cluster, each session as soon as its command is
    done.

    The owner of the user ends the sessions, also those that come through other members.
    It is asked on its [http] with the http.api_key of this configuration. Exit 68 if
    the user is not logged in, and 69 if the owner does not answer.
    """
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        row = _group(tables, _unit(tables, account))
        owner = row["backend"]
        if owner == cluster.backend and admin.server is not None:
            sessions = kicked(admin.server.sessions(), account.name)
            admin.server.kick(sessions, KICK_REASON)
            count = len(sessions)
        elif owner not in tables.members:
            raise Unavailable(f"no backend serves {account.name} at the moment")
        else:
            count = await _kick_there(admin, owner, tables.members[owner], account.name)
        if not count:
            raise NoSession(f"no session of {account.name}")
        yield {"backend": owner, "connections": count}


async def _kick_there(admin: Admin, owner: str, member: Member, user: str) -> int:
    """Ask another backend; how many sessions it ended. Raises Unavailable, NoPerm."""
    clear, secure = member.ports.get("http", 0), member.ports.get("https", 0)
    if not admin.own_http.key:
        raise NoPerm(f"{owner} serves the user, and is asked with http.api_key, which this configuration lacks")
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
    """What the owner answered to `kick`."""
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
