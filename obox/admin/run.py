"""Runs a verb: checks its parameters, selects its users, and reports the failure of a
user beside the results of the others.

The exit code of a run is 0 if it succeeded. It is the failure's own code if the failure
ended the verb or if the verb failed for all users, and 2 if it failed for some of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

import msgspec
import structlog

from ..errors import ConfigError, Invalid, OboxError
from . import exits
from .loading import loaded
from .parts import Admin
from .table import TABLE, Event, Failure, Needs, Progress, Row, Verb

log = structlog.get_logger("obox.admin")

LOGGED_CHARS_MAX: Final = 500
"""Characters that are logged of an error, a name or a command in a request."""


TURN_S: Final = 0.005
"""Rows are made and sent for this time before other tasks run."""


class UnknownVerb(Invalid):
    """There is no such verb."""


def prepare(name: str, raw: object) -> tuple[Verb, Any]:
    """Return the verb and the parameters of a request.

    Raises Invalid, which says what is wrong and what is allowed.
    """
    verb = TABLE.get(name)
    if verb is None:
        raise UnknownVerb(f"unknown command {name!r}: GET /doveadm/v1 lists them")
    try:
        return verb, msgspec.convert(raw, verb.params)
    except msgspec.ValidationError as error:
        allowed = ", ".join(msgspec.structs.fields(verb.params)[at].encode_name for at in range(_count(verb)))
        raise Invalid(f"{name}: {error}; parameters: {allowed or 'none'}") from error


def _count(verb: Verb) -> int:
    return len(msgspec.structs.fields(verb.params))


async def run(admin: Admin, verb: Verb, params: Any) -> AsyncIterator[Event]:
    """Run a verb. Raises OboxError or ConfigError if a failure ends it."""
    if verb.run is not None:
        async for event in verb.run(admin, params):
            yield event
        return
    assert verb.run_for is not None
    accounts = await admin.select(params)
    if params.all_users and verb.needs is not Needs.DIRECTORY and admin.find_store is not None:
        # In a cluster each backend looks after its own users, also while none runs.
        owned = admin.find_store.env.owned
        accounts = [one for one in accounts if owned.owns(one.storage_id)]
    if verb.begin is not None:
        await verb.begin(admin, params)
    many = len(accounts) > 1 or params.all_users
    failed: list[OboxError] = []
    for at, account in enumerate(accounts):
        if many:
            yield Progress(verb.words, at, len(accounts))
        try:
            async for event in verb.run_for(admin, account, params):
                yield {"username": account.name, **event} if many and isinstance(event, dict) else event
        except OboxError as error:
            failed.append(error)
            if len(accounts) == 1:
                raise
            yield Failure(account.name, exits.of(error), exits.said(error))
    if failed and len(failed) == len(accounts):
        raise failed[0]


class Outcome:
    """The result of a run."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self.failures: list[Failure] = []
        self.code = 0
        self.message = ""

    async def gather(self, admin: Admin, name: str, raw: object) -> None:
        await self.take(guarded(admin, name, raw, self))

    async def take(self, events: AsyncIterator[Event]) -> None:
        """Take the events of a run with this outcome."""
        async for event in events:
            if isinstance(event, dict):
                self.rows.append(event)
            elif isinstance(event, Failure):
                self.failures.append(event)


async def guarded(admin: Admin, name: str, raw: object, outcome: Outcome, *, backend: str = "") -> AsyncIterator[Event]:
    """Run a verb by name. Afterwards `outcome` has its result.

    backend: names another backend; only a member of a cluster can ask it.

    Raises nothing but cancellation.
    """
    partial, until = False, time.monotonic() + TURN_S
    try:
        await loaded()
        verb, params = prepare(name, raw)
        if backend:
            raise Invalid(f"backend {backend!r}: this process knows no other backends; allowed: no backend")
        async for event in run(admin, verb, params):
            partial = partial or isinstance(event, Failure)
            yield event
            if time.monotonic() > until:
                # A verb may have a hundred thousand rows at hand.
                await asyncio.sleep(0)
                until = time.monotonic() + TURN_S
        outcome.code = exits.PARTIAL if partial else 0
    except (OboxError, ConfigError) as error:
        outcome.code, outcome.message = exits.of(error), exits.said(error)
    except Exception as error:
        log.exception("admin command failed", command=name[:LOGGED_CHARS_MAX])
        outcome.code, outcome.message = exits.SOFTWARE, f"{type(error).__name__}; the log has more"
    if outcome.code == 0:
        return
    log.info(
        "admin command",
        command=name[:LOGGED_CHARS_MAX],
        user=_who(raw),
        exit_code=outcome.code,
        error=outcome.message[:LOGGED_CHARS_MAX],
    )


def _who(raw: object) -> str:
    """Return the users that a request names. The request may have any content, also
    content that its parameters do not allow.
    """
    named = raw.get("user") or raw.get("users") if isinstance(raw, Mapping) else None
    if isinstance(named, list):
        named = ", ".join(name for name in named[:10] if isinstance(name, str))
    return named[:LOGGED_CHARS_MAX] if isinstance(named, str) else ""


def line(event: Event) -> dict[str, Any]:
    """Return an event as it is written in the lines of a streamed answer."""
    match event:
        case Progress():
            return {"progress": event._asdict()}
        case Failure(user, code, message):
            return {"failure": {"user": user, "exitCode": code, "message": message}}
        case _:
            return {"row": event}
