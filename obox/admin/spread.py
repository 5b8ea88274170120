"""Which process answers a verb where several serve one mail system, and how their
answers become one.

The workers of one unit (`obox.workers`) and the backends of a cluster (`obox.relay`)
use it. The caller says how a process is asked; this module does not know sockets, links
or HTTP.

Invariant: rows of one process come in its order. A process that did not answer is never
left out silently: the outcome names it.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import AsyncIterable, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import structlog

from . import exits
from .masks import masked
from .params import Selection
from .parts import Admin
from .run import Outcome, guarded
from .table import Event, Failure, Needs, Progress, Verb

log = structlog.get_logger("obox.admin")


class Goes(enum.Enum):
    """Which process runs a verb."""

    HERE = enum.auto()
    """The process that is asked. The verb is about this process, the configuration, or
    the directory, which all processes have."""
    OWNER = enum.auto()
    """The process that serves the user."""
    ALL = enum.auto()
    """Every process. The rows of all are joined."""
    ONE = enum.auto()
    """Any process. The verb is about the bucket or a file, and each process would give
    the same answer."""


ONE: Final = frozenset(
    {
        "storageCheck",
        "storageFinishUpgrade",
        "metacacheUnpack",
        "eventsLag",
        "eventsDeadLettersList",
        "eventsDeadLettersShow",
        "eventsDeadLettersRedeliver",
        "eventsDeadLettersPurge",
    }
)
JOINED: Final = frozenset(
    {"who", "kick", "metacacheList", "metacacheStatus", "metacacheFlushall", "fscacheStatus", "logErrors"}
)
"""A cluster joins the rows of these verbs. Other verbs of a server run at the backend
that is asked."""
NAMED: Final = frozenset({"oboxUserRename"})
"""Verbs about a single user, whom the parameter `user` names. They select no users."""
OWNERS: Final = frozenset({"clusterUserKick"})
"""These verbs are about the directory, and the owner of the user runs them."""
OWN_COPIES: Final = frozenset({"metacacheClean", "metacachePull"})
"""These verbs are about copies on the disk of one backend. Their users may have another
owner."""


def among_workers(verb: Verb) -> Goes:
    """Return where a verb goes in a unit of several workers, which is one server."""
    if verb.needs is Needs.CONFIG or verb.name == "reload" or _of_directory(verb):
        return Goes.HERE
    if verb.name in ONE:
        return Goes.ONE
    return Goes.OWNER if verb.per_user or verb.name in NAMED else Goes.ALL


def among_backends(verb: Verb) -> Goes:
    """Return where a verb goes in a cluster, whose backends are servers of their
    own."""
    if verb.name in OWNERS:
        return Goes.OWNER
    if verb.needs in (Needs.CONFIG, Needs.DIRECTORY) or verb.name in OWN_COPIES:
        return Goes.HERE
    if verb.per_user or verb.name in NAMED:
        return Goes.OWNER
    return Goes.ALL if verb.name in JOINED else Goes.HERE


def _of_directory(verb: Verb) -> bool:
    """Return whether a verb needs the directory alone. Each process has it open, so
    each gives the same answer."""
    return verb.needs is Needs.DIRECTORY and not verb.per_user


@dataclass
class Call:
    """A verb for one process.

    users: names, if the verb is for users. code, message: the result, and until there
    is a result the failure that counts; silent: the process did not answer.
    """

    to: str
    params: Mapping[str, Any]
    users: Sequence[str] = ()
    code: int = exits.UNAVAILABLE
    message: str = ""
    silent: bool = False


Ask = Callable[[Call], AsyncIterator[Event]]
"""A function that runs a call, and sets its code and message. Raises OSError: there is
no answer, or only a part of it."""


def for_users(params: Selection, users: Sequence[str], *, single: bool) -> dict[str, Any]:
    """Return the parameters of a verb for some of the selected users. single: the
    selection names a single user."""
    given = msgspec.to_builtins(params)
    rest = {key: value for key, value in given.items() if key not in ("user", "users", "allUsers")}
    return {**rest, **({"user": users[0]} if single else {"users": list(users)})}


def is_single(params: Selection, count: int) -> bool:
    """Return whether a selection names a single user, so that rows need no name."""
    return count == 1 and not params.all_users and not masked(params.user or "")


async def joined(
    calls: Sequence[Call], ask: Ask, verb: Verb, *, many: bool, column: str, always: bool = False
) -> AsyncIterator[Event]:
    """Ask all at the same time, and join their events into one stream.

    many: rows of users begin with the name. column: names the process in rows of a
    server that have no user, or in all of them (always).
    """
    async for call, event in events_of(calls, ask):
        if isinstance(event, Progress):
            if len(calls) == 1:
                yield event
        elif isinstance(event, Failure):
            yield event
        elif verb.per_user:
            yield {"username": call.users[0], **event} if many and "username" not in event else event
        elif len(calls) > 1 and (always or "username" not in event):
            yield {column: call.to, **event}
        else:
            yield event
    for call in calls:
        if call.code not in (0, exits.PARTIAL) and many and len(calls) > 1 and (call.silent or len(call.users) == 1):
            for user in call.users:
                yield Failure(user, call.code, call.message)


async def events_of(calls: Sequence[Call], ask: Ask) -> AsyncIterator[tuple[Call, Event]]:
    """Ask all at the same time, and yield their events as they come."""
    events: asyncio.Queue[tuple[Call, Event] | None] = asyncio.Queue(maxsize=100)

    async def one(call: Call) -> None:
        try:
            async for event in ask(call):
                await events.put((call, event))
        except OSError as error:
            call.message, call.silent = f"{call.to}: {reason(error)}", True
        except Exception as error:
            log.exception("admin command failed", backend=call.to)
            call.code, call.message = exits.SOFTWARE, f"{call.to}: {type(error).__name__}; the log has more"
        await events.put(None)

    tasks = [asyncio.ensure_future(one(call)) for call in calls]
    try:
        left = len(tasks)
        while left:
            found = await events.get()
            if found is None:
                left -= 1
            else:
                yield found
    finally:
        for task in tasks:
            task.cancel()


def reason(error: OSError) -> str:
    """Return why a process did not answer, for people."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    return error.strerror or str(error) or type(error).__name__


async def decoded(lines: AsyncIterable[bytes], call: Call) -> AsyncIterator[Event]:
    """Yield the events of an answer in lines, as `obox.admin.http` writes it. Raises
    OSError: it was cut short."""
    ended = False
    async for line in lines:
        try:
            event = msgspec.json.decode(line, type=dict[str, Any])
        except msgspec.DecodeError as error:
            raise ConnectionError(f"the answer cannot be read: {error}") from error
        if "row" in event:
            yield event["row"]
        elif "progress" in event:
            yield Progress(**event["progress"])
        elif "failure" in event:
            yield Failure(event["failure"]["user"], event["failure"]["exitCode"], event["failure"]["message"])
        elif "end" in event:
            ended, call.code, call.message = True, event["end"]["exitCode"], event["end"]["message"]
    if not ended:
        raise ConnectionError("the answer was cut short")


async def here(admin: Admin, name: str, call: Call) -> AsyncIterator[Event]:
    """Run a call in this process."""
    outcome = Outcome()
    async for event in guarded(admin, name, call.params, outcome):
        yield event
    call.code, call.message = outcome.code, outcome.message


def judged(calls: Sequence[Call], *, partial: bool) -> tuple[int, str]:
    """Return the exit code and message of all answers together. partial: a user
    failed."""
    codes = {call.code for call in calls}
    if len(codes) > 1:
        codes.discard(exits.NO_HOST)  # one process had nobody to kick, and another had
    worst = next((call for call in calls if call.code in codes and call.code), None)
    if worst is None:
        return (exits.PARTIAL if partial else 0), ""
    if len(codes) == 1:
        return worst.code, worst.message
    return exits.PARTIAL, worst.message
