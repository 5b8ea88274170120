"""Verbs for the process and its sessions: who, kick, reload, stop, log errors, auth
test.
"""

from __future__ import annotations

import asyncio
import ipaddress
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Final

from msgspec import Meta

from ..accounts import Account
from ..errors import Invalid, OboxError, Temporary
from .exits import NoSession
from .masks import mask_of, masked
from .params import DryRun, Nothing, Params
from .parts import Admin, Session
from .table import Event, Needs, Progress, verb

KICK_REASON: Final = "Disconnected by the administrator"
STOP_REASON: Final = "Server is shutting down, please reconnect"
POLL_S: Final = 0.1
FLUSHES_AT_ONCE: Final = 8


class WhoParams(Params, kw_only=True):
    mask: Annotated[str | None, Meta(description="Users that match this mask")] = None
    ip: Annotated[str | None, Meta(description="Clients at this address or in this network, such as 10.0.0.0/8")] = None
    separate_connections: Annotated[bool, Meta(description="Show a row for each connection")] = False


def _chosen(admin: Admin, mask: str | None, ip: str | None) -> list[Session]:
    """Return the sessions of matching users and addresses. Raises Invalid."""
    try:
        network = ipaddress.ip_network(ip, strict=False) if ip else None
    except ValueError as error:
        raise Invalid(f"ip {ip!r}: allowed: an address or a network") from error
    fits = mask_of((mask or "*").lower())
    return [
        one
        for one in admin.backend.sessions()
        if (not mask or (one.user and fits(one.user))) and (network is None or _inside(one, network))
    ]


def _inside(session: Session, network: ipaddress.IPv4Network | ipaddress.IPv6Network) -> bool:
    try:
        return ipaddress.ip_address(session.remote.partition("%")[0]) in network
    except ValueError:
        return False


@verb("who", WhoParams, needs=Needs.BACKEND)
async def who(admin: Admin, params: WhoParams) -> AsyncIterator[Event]:
    """Show who is logged in.

    There is a row for each user and protocol, with the number of connections and the
    addresses of the clients. Connections that have not logged in are shown only with
    separateConnections, with an empty username.
    """
    chosen = _chosen(admin, params.mask, params.ip)
    if params.separate_connections:
        for one in chosen:
            yield {
                "username": one.user,
                "service": one.service,
                "id": one.id,
                "ip": one.remote,
                "tls": one.tls,
                "state": one.state,
                "mailbox": one.mailbox,
                "idle": one.idle,
                "since": int(one.since),
            }
        return
    users: dict[tuple[str, str], list[Session]] = {}
    for one in chosen:
        if one.user:
            users.setdefault((one.user, one.service), []).append(one)
    for (user, service), sessions in sorted(users.items()):
        ips = sorted({one.remote for one in sessions if one.remote})
        yield {"username": user, "connections": len(sessions), "service": service, "ips": " ".join(ips)}


class KickParams(Params, kw_only=True):
    user: Annotated[str | None, Meta(description="Users that match this mask")] = None
    ip: Annotated[str | None, Meta(description="Clients at this address or in this network")] = None


@verb("kick", KickParams, needs=Needs.BACKEND, columns=("username", "connections"))
async def kick(admin: Admin, params: KickParams) -> AsyncIterator[Event]:
    """Disconnect users, each session as soon as its command is done.

    Sessions of other names of the same mail (storage_id=) end too. The exit code is 68
    if none of them is logged in.
    """
    if not params.user and not params.ip:
        raise Invalid("no user is named; allowed: user, ip, or both")
    chosen = _chosen(admin, params.user, params.ip)
    if params.user:
        mails = _mails(admin, params.user)
        known = {one.id for one in chosen}
        chosen += [one for one in _chosen(admin, None, params.ip) if one.mail in mails and one.id not in known]
    if not chosen:
        raise NoSession(f"no session of {params.user or params.ip}")
    admin.backend.kick(chosen, KICK_REASON)
    counts: dict[str, int] = {}
    for one in chosen:
        counts[one.user] = counts.get(one.user, 0) + 1
    for user, count in sorted(counts.items()):
        yield {"username": user, "connections": count}


@verb("reload", Nothing, needs=Needs.BACKEND, columns=("setting", "used"))
async def reload(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """Read the configuration again and use it.

    It shows each setting that has changed, and whether it is used now or after a
    restart. Settings of connections apply to new connections. docs/config.md says which
    settings need a restart. If the configuration is wrong, nothing changes, and the
    exit code is 78.
    """
    applied, waiting = await admin.backend.reload()
    for names, used in ((applied, "now"), (waiting, "after a restart")):
        for name in names:
            yield {"setting": name, "used": used}


def _mails(admin: Admin, mask: str) -> set[str]:
    """Return the storage ids of users who match: of those who are logged in, and of the
    user who is named."""
    mails = {one.mail for one in _chosen(admin, mask, None)}
    if not masked(mask):
        try:
            entry = admin.users.lookup(mask)
        except OboxError:
            entry = None  # the names of sessions must do
        if entry is not None:
            mails.add(entry.sid)
    return mails - {""}


class StopParams(Params, kw_only=True):
    time_limit: Annotated[int, Meta(ge=1, le=86400, description="Seconds until the process ends in any case")] = 60
    no_flush: Annotated[bool, Meta(description="End as SIGTERM does, without flushing while clients still work")] = (
        False
    )
    dry_run: DryRun = False


@verb("stop", StopParams, needs=Needs.BACKEND, columns=("step", "count", "seconds"), asks="End this backend?")
async def stop(admin: Admin, params: StopParams) -> AsyncIterator[Event]:
    """Stop the backend step by step, so that the end itself has little left to do.

    The steps are: flush important changes; accept no more logins and deliveries; kick;
    flush; wait; kick; flush; end. The row of a step says if the time limit cut it
    short. The end itself flushes what is left.
    """
    server = admin.backend
    if params.dry_run:
        yield {"step": "kick", "count": len(server.sessions()), "seconds": 0.0}
        return
    deadline = time.monotonic() + params.time_limit
    if params.no_flush:
        server.stop()
        yield {"step": "end", "count": 0, "seconds": 0.0}
        return
    for step in ("flush", "stop logins", "kick", "flush", "wait", "kick", "flush"):
        began = time.monotonic()
        count, what = 0, step
        yield Progress(step, 0)
        try:
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                if step == "flush":
                    count = await flush_important(admin)
                elif step == "stop logins":
                    server.stop_logins()
                elif step == "kick":
                    count = len(sessions := server.sessions())
                    server.kick(sessions, STOP_REASON)
                else:
                    await _until_gone(admin)
        except TimeoutError:
            what = f"{step} (cut short)"
        except OboxError as error:
            what = f"{step} ({error})"
        yield {"step": what, "count": count, "seconds": round(time.monotonic() - began, 2)}
    server.stop()
    yield {"step": "end", "count": 0, "seconds": 0.0}


async def _until_gone(admin: Admin) -> None:
    """Wait until clients are gone, and at least a second as doveadm does."""
    await asyncio.sleep(1.0)
    for _ in range(int(5.0 / POLL_S)):
        if not admin.backend.sessions():
            return
        await asyncio.sleep(POLL_S)


async def flush_important(admin: Admin) -> int:
    from ..store.backend import upload

    store = admin.store
    sids = await upload.changed_users(store, important_only=True)
    gate = asyncio.Semaphore(FLUSHES_AT_ONCE)

    async def flush_user(sid: str) -> None:
        async with gate:
            user = await store.load_user(admin.name_of(sid), type(sids[0])(sid))
            await upload.flush(user, important_only=True)

    results = await asyncio.gather(*(flush_user(sid) for sid in sids), return_exceptions=True)
    failed = [error for error in results if isinstance(error, BaseException)]
    if failed:
        raise Temporary(f"{len(failed)} of {len(sids)} users are not flushed: {failed[0]}")
    return len(sids)


class LogErrorsParams(Params, kw_only=True):
    since: Annotated[int, Meta(description="Unix time: only events after it")] = 0
    limit: Annotated[int, Meta(ge=1, description="Largest number of events")] = 1000


@verb("log errors", LogErrorsParams, needs=Needs.BACKEND, columns=("timestamp", "type", "text"))
async def log_errors(admin: Admin, params: LogErrorsParams) -> AsyncIterator[Event]:
    """Show the last warnings and errors of the running process, the oldest first.

    The process keeps a thousand of them.
    """
    found = [one for one in admin.recent() if _unix(str(one.get("timestamp", ""))) >= params.since]
    for one in found[-params.limit :]:
        yield {
            "timestamp": one.get("timestamp", ""),
            "type": one.get("level", ""),
            "text": _text(one),
        }


def _text(event: object) -> str:
    assert isinstance(event, dict)
    more = [f"{key}={value}" for key, value in event.items() if key not in ("timestamp", "level", "event")]
    return " ".join([str(event.get("event", "")), *more])


def _unix(timestamp: str) -> float:
    import datetime as dt

    try:
        return dt.datetime.fromisoformat(timestamp).timestamp()
    except ValueError:
        return 0.0


class AuthTestParams(Params, kw_only=True):
    user: Annotated[str, Meta(description="Name, as a client would send it")]
    password: Annotated[str, Meta(description="Password, as a client would send it")]


@verb("auth test", AuthTestParams, needs=Needs.CONFIG, columns=("username", "storage_id", "quota_bytes"))
async def auth_test(admin: Admin, params: AuthTestParams) -> AsyncIterator[Event]:
    """Try a login as IMAP does; the exit code is 77 if it is refused."""
    account = await admin.authenticator().verify(params.user, params.password, remote="")
    yield {
        "username": account.name,
        "storage_id": account.storage_id,
        "quota_bytes": account.quota.storage_bytes,
    }


def kicked(sessions: Sequence[Session], account: Account) -> list[Session]:
    """Return the sessions of a user, by whatever name of the same mail."""
    return [one for one in sessions if one.user == account.name or one.mail == account.storage_id]
