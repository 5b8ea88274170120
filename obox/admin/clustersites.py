"""Verbs for the sites of a cluster: cluster site.

A site is a name that its members have in common. No site acts on another by itself:
only an operator moves groups from a site to another.
"""

from __future__ import annotations

import asyncio
import fnmatch
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta
from msgspec.structs import replace

from ..errors import Exists, InUse, Invalid, NotFound, Temporary
from .clusterbackends import POLL_S, is_evacuated
from .directory import NAME, counted, listed, read, state_named, write
from .params import Params
from .parts import Admin, ClusterParts
from .table import Event, Needs, Progress, Row, verb

if TYPE_CHECKING:
    from ..cluster import Orders, Site, State, Tables


class SiteAddParams(Params, kw_only=True):
    site: Annotated[str, Meta(pattern=NAME, description="Name of the site, as in the members' cluster.site")]
    comment: Annotated[str, Meta(max_length=500, description="Comment for operators")] = ""


class OfSite(Params, kw_only=True):
    site: Annotated[str, Meta(description="Name of the site")]


SITE: Final = ("site", "status", "comment")


@verb("cluster site add", SiteAddParams, needs=Needs.DIRECTORY, columns=SITE)
async def cluster_site_add(admin: Admin, params: SiteAddParams) -> AsyncIterator[Event]:
    """Add a site to the cluster; the exit code is 73 if the cluster has it already.

    A site also exists as soon as a member of it has started.
    """
    from ..cluster import Kind, Site, State

    async with admin.cluster() as cluster:
        tables = await read(cluster)
        if params.site in tables.sites and tables.sites[params.site].state is not State.REMOVED:
            raise Exists(f"the cluster has the site {params.site} already")
        site = Site(comment=params.comment)
        await write(cluster, Kind.SITES, params.site, site)
        yield {"site": params.site, "status": site.state.value, "comment": site.comment}


class SiteListParams(Params, kw_only=True):
    mask: Annotated[str | None, Meta(description="Sites that match this mask")] = None


@verb("cluster site list", SiteListParams, needs=Needs.DIRECTORY, columns=SITE)
async def cluster_site_list(admin: Admin, params: SiteListParams) -> AsyncIterator[Event]:
    """Show the sites of the cluster."""
    async with admin.cluster() as cluster:
        for row in _sites(await read(cluster), params):
            yield row


@verb("cluster site status", SiteListParams, needs=Needs.DIRECTORY, columns=(*SITE, "backends", "alive", "groups"))
async def cluster_site_status(admin: Admin, params: SiteListParams) -> AsyncIterator[Event]:
    """Show how many backends of each site live, and how many groups they have."""
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        for row in _sites(tables, params):
            names = list(_backends(tables, row["site"]))
            silent = [name for name in names if tables.silent(name, now=time.time(), dead_after_s=cluster.dead_after_s)]
            groups = sum(len(tables.groups_of(name)) for name in names)
            yield row | {"backends": len(names), "alive": len(names) - len(silent), "groups": groups}


class SiteUpdateParams(OfSite, kw_only=True):
    status: Annotated[str | None, Meta(description="online, standby or offline")] = None
    comment: Annotated[Annotated[str, Meta(max_length=500)] | None, Meta(description="Comment for operators")] = None


@verb("cluster site update", SiteUpdateParams, needs=Needs.DIRECTORY, columns=(*SITE, "backends"))
async def cluster_site_update(admin: Admin, params: SiteUpdateParams) -> AsyncIterator[Event]:
    """Change the status of all backends of a site, or the comment.

    A site that is offline counts as gone, and other sites take its groups at once; use
    site evacuate for a site that runs. Backends of the site that are cut off from the
    directory do not see the new status, and continue to serve their users. What both
    sides write is merged when the directory can be read again. If the site is standby,
    its backends serve the groups that they have and get no others. If it is online,
    they get groups again; no group comes back by itself, see cluster group move.
    """
    from ..cluster import Kind, Site, State

    async with admin.cluster() as cluster:
        tables = await read(cluster)
        _named(tables, params.site)
        if params.status is None and params.comment is None:
            raise Invalid("what should change? allowed: --status, --comment")
        site = tables.sites.get(params.site, Site())
        backends = _backends(tables, params.site)
        if params.status is not None:
            state = state_named(params.status, State.ONLINE, State.STANDBY, State.OFFLINE)
            site = replace(site, state=state)
            if state is State.OFFLINE:
                _refuse_last(tables, params.site)
            for name, orders in backends.items():
                await write(cluster, Kind.ORDERS, name, _ordered(orders, state))
        if params.comment is not None:
            site = replace(site, comment=params.comment)
        await write(cluster, Kind.SITES, params.site, site)
        yield _site(params.site, site) | {"backends": len(backends)}


def _ordered(orders: Orders, state: State) -> Orders:
    return replace(orders, state=state, evacuate=orders.evacuate and state.value == "standby")


class SiteEvacuateParams(OfSite, kw_only=True):
    no_wait: Annotated[bool, Meta(description="Ask for it, and do not wait until it is done")] = False
    timeout: Annotated[int, Meta(ge=0, description="Seconds to wait; 0: no limit")] = 0


@verb(
    "cluster site evacuate", SiteEvacuateParams, needs=Needs.DIRECTORY, columns=("site", "groups", "status", "result")
)
async def cluster_site_evacuate(admin: Admin, params: SiteEvacuateParams) -> AsyncIterator[Event]:
    """Move all groups of a site to other sites, and set its backends to standby.

    All backends of the site are evacuated at once, so that none gets the groups of
    another. If the command is interrupted or the time is over, it ends with exit code
    75, and the evacuation continues. Run the command again to wait for the rest. site
    update --status online undoes the evacuation, but no group comes back by itself.
    """
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        _named(tables, params.site)
        total = len(_units(tables, params.site))
        await _order(cluster, tables, params.site)
        row: Row = {"site": params.site, "groups": total, "status": "online"}
        if params.no_wait:
            yield row | {"result": "asked"}
            return
        deadline = time.monotonic() + params.timeout if params.timeout else float("inf")
        while True:
            tables = await read(cluster)
            units, backends = _units(tables, params.site), _backends(tables, params.site)
            yield Progress(f"evacuating {params.site}", max(0, total - len(units)), max(total, len(units)))
            row["groups"] = len(units)
            done = [await is_evacuated(cluster, tables, name, orders) for name, orders in backends.items()]
            if all(done):
                yield row | {"status": "standby", "result": "evacuated"}
                return
            if any(not orders.evacuate and orders.state.value == "online" for orders in backends.values()):
                yield row | {"result": "cancelled"}
                raise Temporary(f"the evacuation of {params.site} was cancelled: a status was changed")
            if time.monotonic() >= deadline:
                yield row | {"result": "goes on"}
                text = f"{params.site} has {counted(units)} after {params.timeout} s; run this again to wait on"
                raise Temporary(text)
            await asyncio.sleep(POLL_S)


async def _order(cluster: ClusterParts, tables: Tables, site: str) -> None:
    """Request an evacuation of all online backends of a site. Raises InUse."""
    from ..cluster import Kind, State

    _refuse_last(tables, site)
    for name, orders in _backends(tables, site).items():
        if orders.state is not State.OFFLINE and not orders.evacuate:
            await write(cluster, Kind.ORDERS, name, replace(orders, evacuate=True))


@verb("cluster site remove", OfSite, needs=Needs.DIRECTORY, columns=("site", "result"))
async def cluster_site_remove(admin: Admin, params: OfSite) -> AsyncIterator[Event]:
    """Remove a site from the cluster.

    The command is refused with exit code 75 while the site has backends: evacuate the
    site, and remove its backends. A member of the site that starts makes the site
    again.
    """
    from ..cluster import Kind, Site, State

    async with admin.cluster() as cluster:
        tables = await read(cluster)
        _named(tables, params.site)
        if there := _backends(tables, params.site):
            raise InUse(f"{params.site} has backends: {listed(there)}; run oboxadm cluster backend remove for each")
        site = tables.sites.get(params.site, Site())
        await write(cluster, Kind.SITES, params.site, replace(site, state=State.REMOVED))
        yield {"site": params.site, "result": "removed"}


def _backends(tables: Tables, site: str) -> dict[str, Orders]:
    return {name: orders for name, orders in tables.backends().items() if tables.site_of(name) == site}


def _units(tables: Tables, site: str) -> list[str]:
    return [unit for name in _backends(tables, site) for unit in tables.units_of(name)]


def _named(tables: Tables, name: str) -> None:
    """Raise NotFound, which names the existing sites, if there is no such site."""
    found = [row["site"] for row in _sites(tables, SiteListParams())]
    if name not in found:
        raise NotFound(f"no site {name!r}; allowed: {listed(found)}")


def _refuse_last(tables: Tables, site: str) -> None:
    """Raise InUse if no backend of another site can take the groups of a site."""
    if _units(tables, site) and not any(
        weight > 0 and tables.site_of(name) != site for name, weight in tables.weights().items()
    ):
        raise InUse(
            f"no backend of another site takes the groups of {site}; set one online, with a load factor above 0"
        )


def _sites(tables: Tables, params: SiteListParams) -> list[Row]:
    """Return the sites that have a row or a member."""
    from ..cluster import Site, State

    named = {member.site: Site() for name, member in tables.members.items() if name in tables.backends()}
    return [
        _site(name, site)
        for name, site in sorted((dict(tables.sites) | _unless_removed(named, tables)).items())
        if site.state is not State.REMOVED and fnmatch.fnmatchcase(name, params.mask or "*")
    ]


def _unless_removed(named: dict[str, Site], tables: Tables) -> dict[str, Site]:
    """Return the sites of members, with their rows. A site that was removed exists
    again once it has a member."""
    from ..cluster import Site, State

    found = {name: tables.sites.get(name, site) for name, site in named.items()}
    return {name: site if site.state is not State.REMOVED else Site() for name, site in found.items()}


def _site(name: str, site: Site) -> Row:
    return {"site": name, "status": site.state.value, "comment": site.comment}
