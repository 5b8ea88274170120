"""Verbs for a cluster as a whole: init, upgrade, status, check, dump, load, reboots,
merges, balance."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any, Final

import structlog
from msgspec import Meta
from msgspec.structs import replace

from ..errors import ConfigError, Exists, InUse, Invalid, Unavailable
from ..forms import OF_PROXIES, above, beyond, highest, offered, reads, spelled
from ..turn import Turn
from .directory import read, unix, write
from .exits import Incomplete
from .params import DryRun, Nothing, Params, Selection
from .parts import Admin, ClusterParts
from .table import Event, Needs, Row, verb

if TYPE_CHECKING:
    from ..cluster import Finding, Member, Settings, Tables
    from ..cluster.balance import People, Shift

log = structlog.get_logger("obox.admin")

MADE: Final = ("directory", "id", "version", "groups", "made")


class InitParams(Params, kw_only=True):
    groups: Annotated[
        Annotated[int, Meta(ge=1, le=10_000)] | None,
        Meta(description="Number of groups, about 100 for each backend of the size planned"),
    ] = None


@verb("cluster init", InitParams, needs=Needs.DIRECTORY, columns=MADE)
async def cluster_init(admin: Admin, params: InitParams) -> AsyncIterator[Event]:
    """Make the directory of a cluster: the table in Cassandra, and the settings.

    The number of groups never changes afterwards. With lmdb it is 64 if left out; then
    the first backend that starts makes the directory, too. With Cassandra it has to be
    given. A directory that exists is shown and stays as it is; the exit code is 73 if
    it has another number of groups.
    """
    from ..cluster import CassandraDirectory, make_settings, read_settings
    from ..cluster.initial import GROUPS_LOCAL

    async with admin.cluster(make=True) as cluster:
        directory = cluster.directory
        if isinstance(directory, CassandraDirectory):
            await directory.make()
            if params.groups is None and await read_settings(directory) is None:
                raise Invalid("the number of groups is missing; allowed: --groups, about 100 for each backend planned")
        made = await make_settings(
            directory,
            params.groups or GROUPS_LOCAL,
            now=time.time,
            sleep=asyncio.sleep,
            random_bytes=os.urandom,
        )
        yield _made(cluster, made)
        if params.groups not in (None, made.groups):
            raise Exists(f"the directory has {made.groups} groups, and their number does not change")


def _made(cluster: ClusterParts, settings: Settings) -> Row:
    return {
        "directory": cluster.name,
        "id": settings.id,
        "version": f"{settings.major}.{settings.minor}",
        "groups": settings.groups,
        "made": unix(settings.made),
    }


@verb("cluster upgrade", Nothing, needs=Needs.DIRECTORY, columns=("what", "version", "reads", "result"))
async def cluster_upgrade(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """Let backends write the newest forms that this version of obox offers, such as a
    newer envelope of objects.

    All members must be able to read them. It shows what each member can read. The exit
    code is 75 while a member cannot read all of these forms: upgrade that member, set
    it offline, or remove it. Proxies that do not run do not count. Backends write the
    newer forms a minute later, and an older obox does not start on the bucket any more.
    A backend without a cluster does so at once; it has to run.
    """
    from ..cluster import Kind
    from ..cluster.records import MAJOR, MINOR, SETTINGS_KEY

    if admin.find_cluster is None:
        yield await _upgrade_alone(admin)
        return
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        behind, wanted = [], offered(cluster.reads)
        for name, member in sorted(tables.members.items()):
            if not _counts(tables, name, member, cluster.dead_after_s):
                continue
            less = beyond(_wanted(wanted, member), member.reads)
            if less:
                behind.append(name)
            result = f"does not read {spelled(less)}; upgrade it, or remove it" if less else "ready"
            yield {"what": name, "version": member.version, "reads": _reads(member.reads), "result": result}
        settings = tables.settings
        assert settings is not None
        forms = highest(settings.forms, above(wanted, {}))
        raised = replace(settings, major=max(settings.major, MAJOR), minor=max(settings.minor, MINOR), forms=forms)
        text = "up to date" if raised == settings else "waits for the members above" if behind else "raised"
        if text == "raised":
            await write(cluster, Kind.SETTINGS, SETTINGS_KEY, raised)
        version = "{0.major}.{0.minor}".format(raised if text == "raised" else settings)
        yield {"what": "directory", "version": version, "reads": _reads(cluster.reads), "result": text}
        if behind:
            raise InUse(f"these members have an older obox: {', '.join(behind)}")


def _counts(tables: Tables, name: str, member: Member, dead_after_s: float) -> bool:
    """Return whether a member must be able to read what other members write."""
    if member.role != "backend":
        return not tables.silent(name, now=time.time(), dead_after_s=dead_after_s)
    return name in tables.backends() and tables.backends()[name].state != "offline"


def _wanted(reads: Mapping[str, int], member: Member) -> dict[str, int]:
    """Return the versions that a member has to read. A proxy reads the forms of
    connections, and the forms that it has registered."""
    return {
        name: version
        for name, version in reads.items()
        if member.role == "backend" or name in OF_PROXIES or name in member.reads
    }


async def _upgrade_alone(admin: Admin) -> Row:
    """Raise the versions in a bucket that a single backend uses. Raises ConfigError,
    Unavailable."""
    from ..store.backend import mark

    env, wanted, ours = admin.store.env, offered(), reads()
    if text := above(wanted, env.forms.raised):
        await mark.raise_forms(env, wanted)
    return {
        "what": "bucket",
        "version": spelled(env.forms.raised),
        "reads": _reads(ours),
        "result": "raised" if text else "up to date",
    }


def _reads(reads: Mapping[str, int]) -> str:
    return " ".join(f"{what} {version}" for what, version in sorted(reads.items()))


@verb(
    "cluster status",
    Nothing,
    needs=Needs.DIRECTORY,
    columns=(
        *MADE, "unassigned", "moving", "backends", "online", "standby", "offline", "evacuating", "silent", "proxies",
        "answer_ms",
    ),
)  # fmt: skip
async def cluster_status(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """Show the directory of the cluster, and how many backends are in which state."""
    async with admin.cluster() as cluster:
        began = time.perf_counter()
        tables = await read(cluster)
        answer_ms = round((time.perf_counter() - began) * 1000, 1)
        backends, now = tables.backends(), time.time()
        states = [orders.state.value for orders in backends.values()]
        assert tables.settings is not None
        yield _made(cluster, tables.settings) | {
            "unassigned": len(tables.unassigned()),
            "moving": len(tables.pending()),
            "backends": len(backends),
            **{state: states.count(state) for state in ("online", "standby", "offline")},
            "evacuating": sum(orders.evacuate and orders.state == "online" for orders in backends.values()),
            "silent": sum(tables.silent(name, now=now, dead_after_s=cluster.dead_after_s) for name in backends),
            "proxies": len(tables.proxies()),
            "answer_ms": answer_ms,
        }


AGAIN_S: Final = 2.0
"""A difference that a move explains is gone after this time."""

EXAMPLES_MAX: Final = 3
"""A finding names at most three users."""


class CheckParams(Params, kw_only=True):
    journals: Annotated[bool, Meta(description="Read the journals in the bucket, too; needs a backend")] = False
    login: Annotated[str, Meta(description="A user whose login is tried at each backend, without a password")] = ""


@verb("cluster check", CheckParams, needs=Needs.DIRECTORY, columns=("result", "check", "where", "detail"))
async def cluster_check(admin: Admin, params: CheckParams) -> AsyncIterator[Event]:
    """Check the directory of the cluster.

    It finds rows that cannot be read, groups without an owner or with two, owners that
    are gone, moves that are pending, and boots that are not clean. It also compares
    what each backend serves. Backends are asked which units these are; of a backend
    that does not answer, or without a common secret, only the number is known.

    With --journals it reads the journals in the bucket, as a takeover does: users of
    whom two backends wrote at once, boots that are over and not adopted, and a
    directory that knows less than they do. With --login it also tries each backend that
    is not offline, over the trusted link: it lives, has the same secret, and lets the
    user in or refers to the owner. The command changes nothing. The exit code is 65 if
    something is wrong.
    """
    async with admin.cluster() as cluster:
        wrong = set()
        findings = await _findings(admin, cluster)
        if params.journals:
            findings += await _journals(admin, await read(cluster))
        for finding in findings:
            if finding.error:
                wrong.add(finding.what)
            yield {
                "result": "wrong" if finding.error else "note",
                "check": finding.what,
                "where": finding.where,
                "detail": finding.text,
            }
        if params.login:
            async for row in _logins(admin, cluster, params.login):
                if row["result"] == "wrong":
                    wrong.add("login")
                yield row
        if wrong:
            raise Incomplete(f"the directory of the cluster has errors: {', '.join(sorted(wrong))}")


async def _findings(admin: Admin, cluster: ClusterParts) -> list[Finding]:
    """Return the findings of the directory. A finding that a move may explain counts
    only if a second check finds it, too."""
    from ..cluster import check
    from ..cluster.findings import PASSING

    async def look() -> list[Finding]:
        claims = {} if admin.claims is None else dict(await admin.claims())
        if cluster.serves is not None:
            claims[cluster.backend] = cluster.serves()
        return await check(cluster.directory, now=time.time(), claims=claims)

    first = await look()
    if not any(finding.what in PASSING for finding in first):
        return first
    await asyncio.sleep(AGAIN_S)
    seen = {(finding.what, finding.where) for finding in first}
    return [finding for finding in await look() if finding.what not in PASSING or (finding.what, finding.where) in seen]


async def _journals(admin: Admin, tables: Tables) -> list[Finding]:
    """Return the findings of the journals in the bucket, compared with the directory.
    Raises Unavailable."""
    from ..cluster import Finding
    from ..store.operate.journals import boot_states, writers_at_once

    states = await boot_states(admin.store.env)
    findings = []
    for pair, users in writers_at_once(states).items():
        some = ", ".join(list(users)[:EXAMPLES_MAX])
        text = f"both wrote at the same time of {len(users)} users, such as {some}; their changes are joined"
        findings.append(Finding(True, "two-writers", f"journals {' '.join(pair)}", text))
    for state in states:
        where = f"journals {state.backend}/{state.boot}"
        if state.over:
            text = f"it is over, and names {len(state.users)} users of whom bundles may not have everything yet"
            findings.append(Finding(False, "not-adopted", where, text))
        elif (beat := tables.beats.get(state.backend)) is None or beat.boot != state.boot:
            text = f"nobody has ended it, and no beat names it; it has changes of {len(state.users)} users"
            findings.append(Finding(False, "not-ended", where, text))
    highest = max((row.number for row in (*tables.groups.values(), *tables.pins.values())), default=0)
    known = max((state.assigned for state in states), default=0)
    if known > highest:
        text = f"a journal knows of assignment {known}, and the directory only of {highest}; backends write rows back"
        findings.append(Finding(True, "old-directory", "groups", text))
    return findings


async def _logins(admin: Admin, cluster: ClusterParts, user: str) -> AsyncIterator[Row]:
    """Try a login at each backend. Raises NoUser, ConfigError."""
    from ..cluster import State

    if cluster.probe is None:
        raise ConfigError("cluster.secret_file: it is not set, and a login at other members needs it")
    (account,) = await admin.select(Selection(users=[user]))
    tables = await read(cluster)
    row = tables.row(tables.unit_of(account.storage_id))
    if row is None:
        raise Unavailable(f"no backend serves {user} at the moment")
    for name, orders in tables.backends().items():
        if orders.state is State.OFFLINE or name not in tables.members:
            continue
        works, text = await cluster.probe(name, tables.members[name], account, row)
        yield {"result": "ok" if works else "wrong", "check": "login", "where": f"members {name}", "detail": text}


@verb("cluster dump", Nothing, needs=Needs.DIRECTORY, columns=("kind", "key", "timestamp", "record"))
async def cluster_dump(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """Print the rows of the directory as lines of JSON, for cluster load.

    Beats are left out. A row that cannot be read has value instead of record, in
    base64.
    """
    import msgspec

    from ..cluster import dump

    async with admin.cluster() as cluster:
        for line in await dump(cluster.directory):
            yield msgspec.json.decode(line, type=dict[str, Any])


class LoadParams(Params, kw_only=True):
    lines: Annotated[list[str], Meta(description="The lines of a dump")]
    replace: Annotated[bool, Meta(description="Let the lines replace newer rows of the directory")] = False


@verb("cluster load", LoadParams, needs=Needs.DIRECTORY, columns=("rows",))
async def cluster_load(admin: Admin, params: LoadParams) -> AsyncIterator[Event]:
    """Write the rows of a dump into the directory.

    A row that is newer in the directory stays, unless --replace is given. If a line is
    wrong, nothing is written, and the exit code is 65. Rows that the dump does not have
    stay, too. Backends that run write newer rows of their own back. A backend that is
    asked takes at most 8 MiB; without a backend there is no limit.
    """
    from ..cluster import load

    async with admin.cluster(make=True) as cluster:
        try:
            count = await load(cluster.directory, params.lines, replace=params.replace, now=time.time)
        except ValueError as error:
            raise Invalid(str(error)) from error
        yield {"rows": count}


class RebootsParams(Params, kw_only=True):
    mask: Annotated[str | None, Meta(description="Backends that match this mask")] = None


@verb("cluster reboots", RebootsParams, needs=Needs.DIRECTORY, columns=("backend", "boot", "began", "ended", "state"))
async def cluster_reboots(admin: Admin, params: RebootsParams) -> AsyncIterator[Event]:
    """Show the boots of the backends, the latest first."""
    import fnmatch

    async with admin.cluster() as cluster:
        tables = await read(cluster)
        for key, boot in sorted(tables.boots.items(), key=lambda item: (-item[1].began, item[0])):
            backend, _, name = key.rpartition("/")
            if not fnmatch.fnmatchcase(backend, params.mask or "*"):
                continue
            beat = tables.beats.get(backend)
            runs = beat is not None and beat.boot == name and not boot.ended
            silent = tables.silent(backend, now=time.time(), dead_after_s=cluster.dead_after_s)
            state = "clean" if boot.clean else "unclean" if not runs else "silent" if silent else "runs"
            row = {"backend": backend, "boot": name, "began": unix(boot.began), "ended": unix(boot.ended)}
            yield row | {"state": state}


@verb("cluster merges", Nothing, needs=Needs.DIRECTORY, columns=("group", "backend", "at", "users"))
async def cluster_merges(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """Show the groups that two backends have written to at once, the latest first.

    The changes of both are in the bucket, and the owner of the group has joined them.
    There is a row for each group, of the last time.
    """
    async with admin.cluster() as cluster:
        tables = await read(cluster)
        for key, merge in sorted(tables.merges.items(), key=lambda item: (-item[1].at, item[0])):
            yield {"group": key, "backend": merge.by, "at": unix(merge.at), "users": merge.users}


class BalanceParams(Params, kw_only=True):
    dry_run: DryRun = False


@verb(
    "cluster balance",
    BalanceParams,
    needs=Needs.DIRECTORY,
    columns=("group", "backend", "to", "why"),
    asks="Move these groups?",
)
async def cluster_balance(admin: Admin, params: BalanceParams) -> AsyncIterator[Event]:
    """Move groups so that each backend has its share, and say why.

    Users are shared out, by load factor, at each site. A group counts for its users,
    and for one more user, because users will be added. Idle users count as all others
    do. Disabled users do not count. Pinned users stay, and count for the backend that
    has them. If a machine of the site uses half of its CPU or more, and others use 20
    percent points less, its share becomes smaller, by a quarter at most. A machine that
    uses 95 percent of its memory gets nothing. A backend gives its groups up a few at a
    time; sessions of their users end, and the clients connect again. So groups whose
    users have few sessions move before others that do as well. Backends that are
    evacuated, standby, offline or silent get and give nothing. Moves that are pending
    count as done. If the users cannot be listed, all groups count alike.
    """
    from ..cluster import Kind, Move

    async with admin.cluster() as cluster:
        tables = await read(cluster)
        for shift in _shifts(cluster, tables, await _people(admin, tables), await _sessions(admin, tables)):
            if not params.dry_run:
                await write(cluster, Kind.MOVES, shift.unit, Move(shift.to, time.time(), by="balance"))
            yield {"group": shift.unit, "backend": shift.source, "to": shift.to, "why": shift.why}


async def _people(admin: Admin, tables: Tables) -> People | None:
    """Return how many mails there are in each group, and pinned at each backend.
    Several names of a mail count once. None: the users cannot be listed."""
    from ..cluster.balance import People

    if tables.settings is None:
        return None
    try:
        await admin.users.refresh()
        entries = admin.users.users()
    except Unavailable as error:
        log.warning("users cannot be listed, groups are balanced by their number", error=str(error))
        return None
    turn, seen = Turn(), set()
    groups: Counter[str] = Counter()
    pinned: Counter[str] = Counter()
    for entry in entries:
        if turn.over():
            await turn.end()
        if entry.disabled or (sid := entry.sid) in seen:
            continue
        seen.add(sid)
        pin = tables.pins.get(sid)
        if pin is not None and not pin.removed:
            pinned[pin.backend] += 1
        else:
            groups[tables.group_of(sid)] += 1
    return People(groups, pinned)


async def _sessions(admin: Admin, tables: Tables) -> Mapping[str, int] | None:
    """Return how many sessions the users of each group have, of those backends that
    answer. None: there is no way to ask."""
    if admin.connections is None or tables.settings is None:
        return None
    groups: Counter[str] = Counter()
    for sid, count in (await admin.connections()).items():
        pin = tables.pins.get(sid)
        if pin is None or pin.removed:
            groups[tables.group_of(sid)] += count
    return groups


def _shifts(
    cluster: ClusterParts, tables: Tables, people: People | None, sessions: Mapping[str, int] | None
) -> list[Shift]:
    """Return the moves within each site, because groups stay at their site."""
    from ..cluster.balance import Load, balance

    owned, weights = _owned(cluster, tables)
    loads = {
        name: Load(beat.load["cpu"], beat.load["memory"])
        for name, beat in tables.beats.items()
        if beat.load.keys() >= {"cpu", "memory"}
    }
    shifts: list[Shift] = []
    for site in sorted({tables.site_of(name) for name in weights}):
        here = {name: weight for name, weight in weights.items() if tables.site_of(name) == site}
        shifts += balance({name: owned[name] for name in here}, here, loads, people, sessions)
    return shifts


def _owned(cluster: ClusterParts, tables: Tables) -> tuple[dict[str, list[str]], dict[str, float]]:
    """Return, for the backends that take part, the groups that each has or will have,
    and the weights."""
    now = time.time()
    weights = {
        name: weight
        for name, weight in tables.weights().items()
        if not tables.backends()[name].evacuate and not tables.silent(name, now=now, dead_after_s=cluster.dead_after_s)
    }
    moves = tables.pending()
    owned: dict[str, list[str]] = {name: [] for name in weights}
    for name in weights:
        for unit in tables.groups_of(name):
            to = moves[unit].to if unit in moves else name
            owned.setdefault(to, []).append(unit)
    return {name: owned[name] for name in weights}, weights
