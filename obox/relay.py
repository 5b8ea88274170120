"""The admin API of a member of a cluster. Each member takes a verb, and forwards it to
the backend that serves the user, or to all backends
(docs/cluster.md, "Commands from anywhere").

Theory of operation. `run` takes a verb of an operator, and calls the backends that the
verb is for at the same time. This member may be one of them. `serve` takes a call of
another member, and never forwards it again. If the other member is wrong about a user
whom this backend does not own, the answer *refers* the user back with the row that is
known here. The other member then reads its row, and tries once more.

Diagnostics: if a backend does not answer, the verb ends with exit code 75 and names it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import msgspec
import structlog

from .accounts import Account
from .admin import Admin, Event, Failure, Needs, Selection, Server, Session, Verb, exits
from .admin.answers import encoded
from .admin.directory import listed
from .admin.loading import loaded
from .admin.run import Outcome, guarded, line, prepare
from .admin.spread import (
    NAMED,
    Call,
    Goes,
    among_backends,
    decoded,
    events_of,
    for_users,
    here,
    is_single,
    joined,
    judged,
    reason,
)
from .auth import Forward, LinkRefused, Referred
from .cluster import Assigned, Beat, Here, Member, Orders, State, There, View
from .errors import ConfigError, Invalid, NoPerm, OboxError, Temporary, Unavailable
from .proxy import Forwarder, calls
from .types import StorageId

log = structlog.get_logger()

COLUMN: Final = "backend"
OF_PROXIES: Final = frozenset({"who", "kick", "logErrors"})
"""A proxy adds its own answer to these verbs."""
FORWARDED: Final = "forwarded to "
"""The state of a session begins with this text if it is forwarded to another backend,
which lists the session, too."""


CHECK: Final = "clusterCheck"
KICK: Final = "clusterUserKick"
SERVES: Final = "clusterServes"
"""A call that is no verb: `CHECK` asks a backend with it which units it serves."""
BALANCE: Final = "clusterBalance"
SESSIONS: Final = "clusterSessions"
"""Another call that is no verb: `BALANCE` asks a backend with it how many sessions each
mail has. An earlier version refuses the call, and its sessions do not count."""
REFERRED: Final = b'{"referred":'
"""Begins a line of an answer about a user whom the backend refers."""
DISAGREE: Final = "the backends do not agree who serves the user; try again"


class Claim(msgspec.Struct, array_like=True, frozen=True):
    """A user whom this backend should own, and the assignment that the sender knows."""

    name: str
    storage_id: str
    backend: str
    number: int
    token: int


class Asked(msgspec.Struct, frozen=True):
    """The body of a call.

    users: the users that it is for; they are not in `parameters`. named: the operator
    has named the backend, which runs the verb as if the operator had called it. single:
    a single user was named.
    """

    command: str
    parameters: dict[str, Any]
    users: list[Claim] = []
    named: bool = False
    single: bool = False


class _OwnSessions:
    """The process without its forwarded sessions, which other backends list."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self.kick, self.reload = server.kick, server.reload
        self.stop_logins, self.stop = server.stop_logins, server.stop

    def sessions(self) -> Sequence[Session]:
        return [one for one in self._server.sessions() if not one.state.startswith(FORWARDED)]


class Relay:
    """See the module's text; `run` is what `obox.admin.http.routes` takes."""

    def __init__(
        self, admin: Admin, forwarder: Forwarder, view: View, owner: Callable[[StorageId], str | None], *, serves: bool
    ) -> None:
        """owner: returns the owner of a user, None if it is not known. serves: whether
        this member is a backend."""
        self._admin = admin
        self._forwarder = forwarder
        self._view = view
        self._owner = owner
        self._serves = serves
        self._me = forwarder.member

    # -- for operators ---------------------------------------------------------------------------------------------

    async def run(
        self, admin: Admin, name: str, raw: object, outcome: Outcome, *, backend: str = ""
    ) -> AsyncIterator[Event]:
        """Run the verb as `guarded` does. backend: the backend that runs it; "" means
        the backends that the verb is for."""
        verb = (await loaded()).get(name)
        place = among_backends(verb) if verb is not None else Goes.HERE
        if verb is None or backend == self._me or not (backend or self._spreads(place)):
            if name == CHECK and self._forwarder.secrets:
                admin = replace(admin, claims=self._claims)
            elif name == BALANCE:
                admin = replace(admin, connections=self._connections)
            async for event in guarded(admin, name, raw, outcome):
                yield event
            return
        try:
            _, params = prepare(name, raw)
            if backend:
                work = self._at(verb, params, backend, outcome)
            elif verb.name in NAMED:
                work = self._for_one(admin, verb, params, raw, outcome)
            elif place is Goes.ALL:
                work = self._everywhere(admin, verb, params, outcome)
            else:
                work = self._at_owners(admin, verb, params, raw, outcome)
            async for event in work:
                yield event
        except (OboxError, ConfigError) as error:
            outcome.code, outcome.message = exits.of(error), str(error)

    def _spreads(self, place: Goes) -> bool:
        """Return whether the verb goes to other backends. That needs other backends,
        and a secret."""
        return place is not Goes.HERE and bool(self._forwarder.secrets) and bool(self._others())

    def _others(self) -> list[str]:
        """Return the backends that must answer. They are registered, and neither
        removed, nor offline, nor stopped."""
        view = self._view
        return [name for name, member in sorted(view.members.items()) if name != self._me and _answers(
            member, view.orders.get(name), view.beats.get(name)
        )]  # fmt: skip

    async def _at(self, verb: Verb, params: Any, backend: str, outcome: Outcome) -> AsyncIterator[Event]:
        """Let one backend run the verb, as if the operator had called that backend."""
        if verb.needs in (Needs.CONFIG, Needs.DIRECTORY):
            raise Invalid(f"{verb.words}: every member answers it; allowed: no --backend")
        there = self._there(backend)
        call = _call(backend, msgspec.to_builtins(params))
        asked = Asked(verb.name, dict(call.params), named=True)
        partial = False
        async for event in joined([call], lambda call: self._ask(there, call, asked), verb, many=False, column=COLUMN):
            partial = partial or isinstance(event, Failure)
            yield event
        outcome.code, outcome.message = _outcome([call], partial=partial)

    def _there(self, backend: str) -> There:
        member = self._view.members.get(backend)
        if member is None or member.role != "backend":
            found = sorted(name for name, one in self._view.members.items() if one.role == "backend")
            raise Invalid(f"no backend {backend!r}; allowed: {listed(found)}")
        return There(backend, member.address, member.ports, Assigned(backend, 0, 0))

    async def _everywhere(self, admin: Admin, verb: Verb, params: Any, outcome: Outcome) -> AsyncIterator[Event]:
        """Call all backends, and run the verb here."""
        given = msgspec.to_builtins(params)
        mine = [self._me] if self._serves or verb.name in OF_PROXIES else []
        every = [_call(name, given) for name in (*mine, *self._others())]
        own = _without_forwarded(admin)

        def ask(call: Call) -> AsyncIterator[Event]:
            if call.to == self._me:
                return here(own, verb.name, call)
            return self._ask(self._there(call.to), call, Asked(verb.name, dict(given)))

        partial = False
        async for event in joined(every, ask, verb, many=False, column=COLUMN, always=True):
            partial = partial or isinstance(event, Failure)
            yield event
        outcome.code, outcome.message = _outcome(every, partial=partial)

    async def _claims(self) -> dict[str, dict[str, Assigned]]:
        """Return the units of each other backend that answers."""
        every = [_call(name, {}) for name in self._others()]
        found: dict[str, dict[str, Assigned]] = {call.to: {} for call in every}

        def ask(call: Call) -> AsyncIterator[Event]:
            return self._ask(self._there(call.to), call, Asked(SERVES, {}))

        async for call, event in events_of(every, ask):
            if isinstance(event, dict):
                found[call.to][event["unit"]] = Assigned(call.to, event["number"], event["token"])
        return {call.to: found[call.to] for call in every if not call.code}

    async def _connections(self) -> Mapping[str, int]:
        """Return how many sessions each mail has, by its storage id, at this backend
        and at each other backend that answers."""
        found = Counter(_mails(self._admin))
        every = [_call(name, {}) for name in self._others()] if self._forwarder.secrets else []

        def ask(call: Call) -> AsyncIterator[Event]:
            return self._ask(self._there(call.to), call, Asked(SESSIONS, {}))

        async for _, event in events_of(every, ask):
            if isinstance(event, dict):
                found[event["mail"]] += event["sessions"]
        return found

    # -- verbs for users -------------------------------------------------------------------------------------------

    async def _at_owners(
        self, admin: Admin, verb: Verb, params: Selection, raw: object, outcome: Outcome
    ) -> AsyncIterator[Event]:
        accounts = await admin.select(params)
        if params.all_users and self._serves and verb.needs is not Needs.DIRECTORY:
            # Each backend looks after its own users (rule 8).
            accounts = [one for one in accounts if self._owner(one.storage_id) == self._me]
        failures: list[Failure] = []
        routes = await self._routes(accounts, failures)
        if len(accounts) == 1 and failures:
            raise Temporary(failures[0].message)
        if routes and not failures and not params.all_users and all(isinstance(at, Here) for _, at in routes):
            async for event in guarded(admin, verb.name, raw, outcome):
                yield event
            return
        many = len(accounts) > 1 or params.all_users
        single = is_single(params, len(accounts))
        for failure in failures:
            yield failure
        ended: list[Call] = []
        again: list[tuple[Account, Referred]] = []
        async for event in self._round(admin, verb, params, routes, ended, again, many=many, single=single):
            failures += [event] if isinstance(event, Failure) else []
            yield event
        if again:
            lost: list[Failure] = []
            seen = {account.name: referred for account, referred in again}
            routes, again = await self._routes([account for account, _ in again], lost, seen), []
            async for event in self._round(admin, verb, params, routes, ended, again, many=many, single=single):
                failures += [event] if isinstance(event, Failure) else []
                yield event
            lost += [Failure(account.name, exits.TEMPFAIL, DISAGREE) for account, _ in again]
            failures += lost
            for failure in lost:
                yield failure
            if len(accounts) == 1 and lost:
                raise Temporary(lost[0].message)
        outcome.code, outcome.message = _outcome(ended, partial=bool(failures))
        if failures and not ended:
            outcome.code, outcome.message = exits.TEMPFAIL, failures[0].message

    async def _for_one(
        self, admin: Admin, verb: Verb, params: Any, raw: object, outcome: Outcome
    ) -> AsyncIterator[Event]:
        """Run a verb that names a user in a parameter of its own."""
        (account,) = await admin.select(Selection(users=[params.user]))
        router, given = self._forwarder.router, msgspec.to_builtins(params)
        route = await router.route(account.storage_id)
        for _ in range(2):
            if isinstance(route, Here):
                async for event in guarded(admin, verb.name, raw, outcome):
                    yield event
                return
            call = _call(route.assigned.backend, given, [account.name])
            referred: list[tuple[Account, Referred]] = []
            asked = Asked(verb.name, dict(given), [_claim(account, route)], single=True)
            ask = self._asker(route, asked, {account.name: account}, referred)
            async for event in joined([call], ask, verb, many=False, column=COLUMN):
                yield event
            if not referred:
                outcome.code, outcome.message = _outcome([call], partial=False)
                # A file of users that members share has changed.
                admin.users.expect_change()
                admin.forget_names()
                return
            other = referred[0][1]
            route = await router.reread(account.storage_id, Assigned(other.backend, other.number, other.token))
        raise Temporary(DISAGREE)

    async def _round(
        self,
        admin: Admin,
        verb: Verb,
        params: Selection,
        routes: Sequence[tuple[Account, Here | There]],
        ended: list[Call],
        again: list[tuple[Account, Referred]],
        *,
        many: bool,
        single: bool,
    ) -> AsyncIterator[Event]:
        """Call each owner for its users. ended: it gets the calls; again: it gets the
        users whom an owner refers."""
        every = self._calls(admin, verb, params, routes, again, single=single)
        asks = {call.to: ask for call, ask in every}
        made = [call for call, _ in every]
        ended += made
        async for event in joined(made, lambda call: asks[call.to](call), verb, many=many, column=COLUMN):
            yield event

    async def _routes(
        self, accounts: Sequence[Account], failures: list[Failure], seen: Mapping[str, Referred] | None = None
    ) -> list[tuple[Account, Here | There]]:
        """Return who serves each user. seen: the assignments that other backends have
        named. A user whom nobody serves becomes a failure."""
        found: list[tuple[Account, Here | There]] = []
        router = self._forwarder.router
        for account in accounts:
            try:
                other = (seen or {}).get(account.name)
                if other is None:
                    route = await router.route(account.storage_id)
                else:
                    route = await router.reread(
                        account.storage_id, Assigned(other.backend, other.number, other.token)
                    )  # fmt: skip
                found.append((account, route))
            except Unavailable as error:
                failures.append(Failure(account.name, exits.TEMPFAIL, str(error)))
        return found

    def _calls(
        self,
        admin: Admin,
        verb: Verb,
        params: Selection,
        routes: Sequence[tuple[Account, Here | There]],
        referred: list[tuple[Account, Referred]],
        *,
        single: bool,
    ) -> list[tuple[Call, Callable[[Call], AsyncIterator[Event]]]]:
        """Return a call for each owner. referred: it gets the users whom an owner
        refers."""
        owners: dict[str, list[tuple[Account, Here | There]]] = {}
        for account, route in routes:
            owners.setdefault(route.assigned.backend if isinstance(route, There) else self._me, []).append(
                (account, route)
            )
        made: list[tuple[Call, Callable[[Call], AsyncIterator[Event]]]] = []
        for name, of in sorted(owners.items()):
            users = [account.name for account, _ in of]
            call = _call(name, for_users(params, users, single=single), users)
            there = of[0][1]
            if isinstance(there, Here):
                made.append((call, lambda call: here(admin, verb.name, call)))
                continue
            rest = {key: value for key, value in call.params.items() if key not in ("user", "users")}
            claims = [_claim(one, at) for one, at in of]
            asked = Asked(verb.name, rest, claims, single=single)
            made.append((call, self._asker(there, asked, {one.name: one for one, _ in of}, referred)))
        return made

    def _asker(
        self, there: There, asked: Asked, accounts: Mapping[str, Account], referred: list[tuple[Account, Referred]]
    ) -> Callable[[Call], AsyncIterator[Event]]:
        def back(claim: Claim) -> None:
            self._forwarder.counters.forward(calls.LISTENER, "referred")
            referred.append((accounts[claim.name], Referred(claim.backend, claim.number, claim.token)))

        return lambda call: self._ask(there, call, asked, back)

    async def _ask(
        self, there: There, call: Call, asked: Asked, back: Callable[[Claim], None] | None = None
    ) -> AsyncIterator[Event]:
        """Call another backend. back: it gets the users whom the backend refers. Raises
        OSError."""
        body = msgspec.json.encode(asked)
        if len(body) > calls.CALL_BYTES_MAX:
            raise OSError(f"the call has {len(body)} bytes; allowed: {calls.CALL_BYTES_MAX}, name fewer users")

        async def lines() -> AsyncIterator[bytes]:
            async for text in calls.call(self._forwarder, there, body):
                if back is not None and text.startswith(REFERRED):
                    back(msgspec.json.decode(text, type=_ReferredLine).referred)
                else:
                    yield text

        count = self._forwarder.counters.forward
        try:
            async for event in decoded(lines(), call):
                yield event
        except LinkRefused as refused:
            self._forwarder.no_common_secret(there, calls.LISTENER, refused)
            raise ConnectionRefusedError(str(refused)) from refused
        except OSError:
            count(calls.LISTENER, "unavailable")
            raise
        count(calls.LISTENER, "ok")

    # -- for members -----------------------------------------------------------------------------------------------

    async def serve(self, body: bytes, forward: Forward) -> AsyncIterator[bytes]:
        """Run a call of another member. It is never forwarded again."""
        outcome = Outcome()
        try:
            asked = msgspec.json.decode(body, type=Asked)
            await loaded()
            log.info("admin command of a member", member=forward.member, command=asked.command)
            params, partial = dict(asked.parameters), False
            if asked.users:
                names: list[str] = []
                async for one in self._ours(asked):
                    if isinstance(one, str):
                        names.append(one)
                    elif asked.single and isinstance(one, Failure):
                        outcome.code, outcome.message = one.code, one.message
                    else:
                        partial = partial or isinstance(one, Failure)
                        value = line(one) if isinstance(one, Failure) else {"referred": one}
                        yield msgspec.json.encode(value) + b"\n"
                if asked.command not in NAMED:
                    params |= {"user": names[0]} if asked.single and names else {"users": names}
            elif asked.command in (SERVES, SESSIONS):
                names = []
                async for row in self._units() if asked.command == SERVES else self._sessions():
                    yield msgspec.json.encode({"row": row}) + b"\n"
            else:
                names = [""]
            if names:
                admin = self._admin if asked.named else _without_forwarded(self._admin)
                async for event in guarded(admin, asked.command, params, outcome):
                    async for piece in encoded(line(event)):
                        yield piece
                    yield b"\n"
            if partial and not outcome.code:
                outcome.code = exits.PARTIAL
        except (msgspec.DecodeError, RecursionError) as error:
            outcome.code, outcome.message = exits.DATA, f"a call that cannot be read: {error}"
        except (OboxError, ConfigError) as error:
            outcome.code, outcome.message = exits.of(error), str(error)
        yield msgspec.json.encode({"end": {"exitCode": outcome.code, "message": outcome.message}}) + b"\n"

    async def _units(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the units that this backend serves. Raises ConfigError, Unavailable."""
        async with self._admin.cluster() as cluster:
            for unit, assigned in (cluster.serves() if cluster.serves is not None else {}).items():
                yield {"unit": unit, "number": assigned.number, "token": assigned.token}

    async def _sessions(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the number of sessions of each mail at this backend."""
        for mail, count in _mails(self._admin).items():
            yield {"mail": mail, "sessions": count}

    async def _ours(self, asked: Asked) -> AsyncIterator[str | Failure | Claim]:
        """Yield the name of each user whom this backend serves, the failures, and each
        user of another backend with the row that is known here."""
        names = [claim.name for claim in asked.users]
        if asked.command in NAMED:
            params = Selection(users=names)
        else:
            verb, params = prepare(asked.command, {**asked.parameters, "users": names})
            if not verb.per_user:
                raise Invalid(f"{verb.words}: it is not for users")
        accounts = await self._admin.select(params)
        for claim, account in zip(asked.users, accounts, strict=True):
            try:
                if account.storage_id != claim.storage_id:
                    raise NoPerm(f"{claim.name} has another storage_id at {self._me}: give all members the same users")
                await self._forwarder.confirm(
                    account.storage_id, Assigned(claim.backend, claim.number, claim.token)
                )  # fmt: skip
                yield account.name
            except Referred as found:
                yield Claim(claim.name, claim.storage_id, found.backend, found.number, found.token)
            except OboxError as error:
                yield Failure(claim.name, exits.of(error), str(error))


async def kick(signer: calls.Signer, there: There, account: Account) -> int:
    """Ask the owner of a user to end the user's sessions: how many it ended. For a
    process that is no member itself. Raises NoPerm, Unavailable, Temporary."""
    asked = Asked(KICK, {}, [_claim(account, there)], single=True)
    call, count = _call(there.backend, {}, [account.name]), 0

    async def lines() -> AsyncIterator[bytes]:
        async for text in calls.call(signer, there, msgspec.json.encode(asked)):
            if text.startswith(REFERRED):
                raise Temporary(DISAGREE)
            yield text

    try:
        async for event in decoded(lines(), call):
            count += event["connections"] if isinstance(event, dict) else 0
    except LinkRefused as refused:
        raise NoPerm(f"{there.backend}: {refused}; all members need the same cluster.secret_file") from refused
    except OSError as error:
        raise Unavailable(f"{there.backend}: {reason(error)}") from error
    if call.code not in (0, exits.NO_HOST):
        raise Temporary(f"{there.backend}: {call.message}")
    return count


def _call(to: str, params: Mapping[str, Any], users: Sequence[str] = ()) -> Call:
    return Call(to, params, users, exits.TEMPFAIL)


def _claim(account: Account, at: Here | There) -> Claim:
    assigned = at.assigned
    return Claim(account.name, account.storage_id, assigned.backend, assigned.number, assigned.token)


class _ReferredLine(msgspec.Struct):
    referred: Claim


def _answers(member: Member, orders: Orders | None, beat: Beat | None) -> bool:
    stopped = beat is not None and beat.ending
    away = orders is not None and orders.state in (State.REMOVED, State.OFFLINE)
    return member.role == "backend" and not stopped and not away


def _without_forwarded(admin: Admin) -> Admin:
    return admin if admin.server is None else replace(admin, server=_OwnSessions(admin.server))


def _mails(admin: Admin) -> Counter[str]:
    """Return how many sessions each mail has here. A forwarded session counts at its
    owner."""
    server = _without_forwarded(admin).server
    return Counter(one.mail for one in server.sessions() if one.mail) if server is not None else Counter()


def _outcome(every: Sequence[Call], *, partial: bool) -> tuple[int, str]:
    """Return what `judged` does. A backend that did not answer is named, with exit
    75."""
    silent = [call for call in every if call.silent]
    if silent:
        return exits.TEMPFAIL, "no answer from " + "; ".join(call.message for call in silent)
    return judged(every, partial=partial)
