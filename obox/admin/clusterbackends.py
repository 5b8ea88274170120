"""Verbs for the backends of a cluster: cluster backend.

These verbs write what the operator wants into the directory, and the backends do it. So
a verb that waits can be interrupted, and can be run again on any machine.
"""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any, Final

from msgspec import Meta
from msgspec.structs import replace

from ..errors import Exists, InUse, Invalid, Temporary
from .directory import NAME, OfBackend, backend_named, backend_of, counted, listed, read, state_named, unix, write
from .params import Params
from .parts import Admin, ClusterParts
from .table import Event, Needs, Progress, Row, verb

if TYPE_CHECKING:
    from ..cluster import Orders, Tables

POLL_S: Final = 1.0
"""The interval of reads of the directory while a backend is evacuated."""

LIST: Final = ("backend", "site", "address", "status", "load_factor")
STATUS: Final = (
    "backend", "site", "status", "load_factor", "groups", "users", "evacuate", "alive", "beat", "started", "version",
    "cpu", "memory",
)  # fmt: skip


class BackendListParams(Params, kw_only=True):
    mask: Annotated[str | None, Meta(description="Backends that match this mask")] = None
    site: Annotated[str, Meta(description="Only backends of this site")] = ""


def _chosen(tables: Tables, params: BackendListParams) -> dict[str, Orders]:
    """Return the backends that match. Raises NotFound: no backend has a name without
    wildcards."""
    mask = params.mask or "*"
    if not any(sign in mask for sign in "*?["):
        backend_named(tables, mask)
    return {
        name: orders
        for name, orders in tables.backends().items()
        if fnmatch.fnmatchcase(name, mask) and params.site in ("", tables.site_of(name))
    }


def _row(tables: Tables, name: str, orders: Orders) -> Row:
    member = tables.members.get(name)
    return {
        "backend": name,
        "site": tables.site_of(name),
        "address": member.address if member is not None else "",
        "status": orders.state.value,
        "load_factor": orders.load_factor,
    }


@verb("cluster backend list", BackendListParams, needs=Needs.DIRECTORY, columns=LIST)
async def cluster_backend_list(admin: Admin, params: BackendListParams) -> AsyncIterator[Event]:
    """Show the backends of the cluster, with what the operator wants of them."""
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        for name, orders in _chosen(tables, params).items():
            yield _row(tables, name, orders)


@verb("cluster backend status", BackendListParams, needs=Needs.DIRECTORY, columns=STATUS)
async def cluster_backend_status(admin: Admin, params: BackendListParams) -> AsyncIterator[Event]:
    """Show groups, beats and load of the backends of the cluster.

    The age of a beat is the difference between two clocks: that of the backend and that
    of the machine that is asked.
    """
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        now = time.time()
        for name, orders in _chosen(tables, params).items():
            row = _row(tables, name, orders)
            del row["address"]
            beat, at = tables.beats.get(name), tables.beats_at.get(name)
            load = beat.load if beat is not None else {}
            yield row | {
                "groups": len(tables.groups_of(name)),
                "users": len(tables.users_of(name)),
                "evacuate": orders.evacuate,
                "alive": not tables.silent(name, now=now, dead_after_s=cluster.dead_after_s),
                "beat": "" if at is None else max(0, round(now - at)),
                "started": unix(beat.started) if beat is not None else "",
                "version": tables.members[name].version if name in tables.members else "",
                "cpu": _percent(load.get("cpu")),
                "memory": _percent(load.get("memory")),
            }


def _percent(share: float | None) -> Any:
    return "" if share is None else round(share * 100)


class BackendAddParams(Params, kw_only=True):
    backend: Annotated[str, Meta(pattern=NAME, description="Name of the backend, as in its cluster.backend")]
    status: Annotated[str, Meta(description="online, standby or offline")] = "standby"
    load_factor: Annotated[int, Meta(ge=0, le=100, description="Share of the load, 0 to 100")] = 100


@verb("cluster backend add", BackendAddParams, needs=Needs.DIRECTORY, columns=LIST)
async def cluster_backend_add(admin: Admin, params: BackendAddParams) -> AsyncIterator[Event]:
    """Add a backend to the cluster before it starts, or after it was removed.

    A backend that starts adds itself, too: as online where all backends are on one
    host, or if it is the first of its site, and as standby otherwise. Its site and its
    address are what its own configuration says. The exit code is 73 if the cluster has
    it already.
    """
    from ..cluster import Kind, Orders, State

    async with admin.cluster() as cluster:
        tables = await read(cluster)
        state = state_named(params.status, State.ONLINE, State.STANDBY, State.OFFLINE)
        if params.backend in tables.backends():
            raise Exists(f"the cluster has {params.backend} already; oboxadm cluster backend update changes it")
        if params.backend in tables.proxies():
            raise Exists(f"{params.backend} is a proxy")
        orders = Orders(state, params.load_factor)
        await write(cluster, Kind.ORDERS, params.backend, orders)
        yield _row(tables, params.backend, orders)


class BackendRemoveParams(OfBackend, kw_only=True):
    pass


@verb("cluster backend remove", BackendRemoveParams, needs=Needs.DIRECTORY, columns=("backend", "result"))
async def cluster_backend_remove(admin: Admin, params: BackendRemoveParams) -> AsyncIterator[Event]:
    """Remove a backend from the cluster.

    The command is refused with exit code 75 while the backend has groups, or while
    groups are to move to it: evacuate the backend first. Nothing is deleted in the
    bucket.
    """
    from ..cluster import Kind, State

    async with admin.cluster() as cluster:
        tables = await read(cluster)
        name, orders = backend_of(cluster, tables, params)
        if units := tables.units_of(name):
            raise InUse(f"{name} has {counted(units)}; run oboxadm cluster backend evacuate {name} first")
        if coming := [unit for unit, move in tables.pending().items() if move.to == name]:
            raise InUse(f"groups or users are to move to {name}: {listed(coming)}; move them elsewhere first")
        await write(cluster, Kind.ORDERS, name, replace(orders, state=State.REMOVED, evacuate=False))
        alive = not tables.silent(name, now=time.time(), dead_after_s=cluster.dead_after_s)
        yield {"backend": name, "result": "removed; it still runs, and can be stopped" if alive else "removed"}


class BackendUpdateParams(OfBackend, kw_only=True):
    status: Annotated[str | None, Meta(description="online, standby or offline")] = None
    load_factor: Annotated[
        Annotated[int, Meta(ge=0, le=100)] | None, Meta(description="Share of the load, 0 to 100")
    ] = None


@verb("cluster backend update", BackendUpdateParams, needs=Needs.DIRECTORY, columns=(*LIST, "evacuate"))
async def cluster_backend_update(admin: Admin, params: BackendUpdateParams) -> AsyncIterator[Event]:
    """Change the status or the load factor of a backend.

    A backend that is online serves its groups and gets others; this status also ends an
    evacuation. A backend that is standby serves the groups that it has and gets no
    others. A backend that is offline counts as gone, and others take its groups at
    once; use evacuate for a backend that runs. A backend with load factor 0 gets no
    groups.
    """
    from ..cluster import Kind, State

    async with admin.cluster() as cluster:
        tables = await read(cluster)
        name, orders = backend_of(cluster, tables, params)
        if params.status is None and params.load_factor is None:
            raise Invalid("no change is given; allowed: --status, --load-factor")
        if params.status is not None:
            orders = replace(orders, state=state_named(params.status, State.ONLINE, State.STANDBY, State.OFFLINE))
            orders = replace(orders, evacuate=orders.evacuate and orders.state is State.STANDBY)
        if params.load_factor is not None:
            orders = replace(orders, load_factor=params.load_factor)
        await write(cluster, Kind.ORDERS, name, orders)
        yield _row(tables, name, orders) | {"evacuate": orders.evacuate}


class BackendEvacuateParams(OfBackend, kw_only=True):
    no_wait: Annotated[bool, Meta(description="Return at once, and do not wait until the evacuation is done")] = False
    timeout: Annotated[int, Meta(ge=0, description="Seconds to wait; 0: no limit")] = 0


@verb(
    "cluster backend evacuate",
    BackendEvacuateParams,
    needs=Needs.DIRECTORY,
    columns=("backend", "groups", "status", "result"),
)
async def cluster_backend_evacuate(admin: Admin, params: BackendEvacuateParams) -> AsyncIterator[Event]:
    """Move all groups of a backend to others, and set it to standby.

    The backend gives its groups up a few at a time: it finishes commands, uploads, and
    ends the sessions of their users, who connect again. The command waits until the
    backend has no groups and is standby. If the command is interrupted or the time is
    over, it ends with exit code 75, and the evacuation continues. Run the command again
    to wait for the rest. The load factor stays, so that update --status online undoes
    the evacuation.
    """
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        name, orders = backend_of(cluster, tables, params)
        total = len(tables.units_of(name))
        await _order(cluster, tables, name, orders)
        if params.no_wait:
            yield {"backend": name, "groups": total, "status": orders.state.value, "result": "asked"}
            return
        deadline = time.monotonic() + params.timeout if params.timeout else float("inf")
        while True:
            tables = await read(cluster)
            units, orders = tables.units_of(name), backend_named(tables, name)[1]
            left = len(units)
            yield Progress(f"evacuating {name}", max(0, total - left), max(total, left))
            row = {"backend": name, "groups": left, "status": orders.state.value}
            if await is_evacuated(cluster, tables, name, orders):
                yield row | {"status": "standby", "result": "evacuated"}
                return
            if not orders.evacuate:
                yield row | {"result": "cancelled"}
                raise Temporary(f"the evacuation of {name} was cancelled: its status was changed")
            if time.monotonic() >= deadline:
                yield row | {"result": "goes on"}
                raise Temporary(f"{name} has {counted(units)} after {params.timeout} s; run this again to wait on")
            await asyncio.sleep(POLL_S)


async def _order(cluster: ClusterParts, tables: Tables, name: str, orders: Orders) -> None:
    """Request an evacuation, unless it is requested already. Raises InUse, Invalid."""
    from ..cluster import Kind, State

    if orders.state is State.OFFLINE:
        raise Invalid(f"{name} is offline: others take its groups without an evacuation; allowed: online, standby")
    if not any(weight > 0 for other, weight in tables.weights().items() if other != name):
        raise InUse(f"no other backend takes the groups of {name}; set one online, with a load factor above 0")
    if not orders.evacuate:
        await write(cluster, Kind.ORDERS, name, replace(orders, evacuate=True))


async def is_evacuated(cluster: ClusterParts, tables: Tables, name: str, orders: Orders) -> bool:
    """Return whether a backend has no groups and is standby. If the backend does not
    run, set it to standby here."""
    from ..cluster import Kind, State

    if tables.units_of(name):
        return False
    silent = tables.silent(name, now=time.time(), dead_after_s=cluster.dead_after_s)
    if orders.evacuate and orders.state is State.ONLINE and silent:
        await write(cluster, Kind.ORDERS, name, replace(orders, state=State.STANDBY))
        return True
    return orders.state is State.STANDBY
