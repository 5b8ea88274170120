"""A running backend gains and loses units of users
(docs/cluster.md, "Acquiring groups").

    gain     the row names this backend: fence, read the journals, compare, serve
    release  orderly: hold, end sessions, flush, let the caller write the row, forget
    lose     another backend has the units: end sessions, upload what was staged, forget
    doubt    another backend has written to units of this backend: compare

Invariant: nothing is acknowledged between `hold` and the row that names another
backend. After the row is written, nothing of the unit is left in memory, journal,
takeover or upkeep. Changes of a lost user are uploaded as bundles, which join with the
bundles of the other backend. This module does not know the directory, and does not
decide. Diagnostics: `gain` and `release` raise Unavailable if the bucket does not
answer; call them again. `lose` tries until it has uploaded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import structlog

from metacache import Change

from ...errors import Corrupt, InUse, NotFound, OboxError
from ...objectstore.keys import ROOT
from ...types import Guid, StorageId
from ..box.load import restate
from ..log.fence import Ended, boots_of, list_journals, look, replay
from ..log.takeover import survey
from ..owned import Tag
from ..user.identity import is_gone
from ..user.journaled import join_journaled
from ..user.unclean import FLOOR_MARGIN_MS
from .journals import Clears, clear
from .upload import flush, unload

if TYPE_CHECKING:
    from ..user.user import User
    from .store import MailStore

log = structlog.get_logger()

KICK_S: Final = 1.0
"""Sessions must finish their command within this time before their user is handed
over."""

TICK_S: Final = 0.02
"""The interval of checks whether the sessions have ended."""

FLUSHES_AT_ONCE: Final = 8
"""The mail of eight users is uploaded at the same time. The other users of the unit
wait meanwhile."""

AGAIN_S: Final = 5.0
"""The interval of attempts to upload what was staged for users of another backend."""

Kick = Callable[[Collection[StorageId]], Awaitable[None]]
"""A function that ends the sessions and deliveries of users: first with an
announcement, then at once."""


Hand = Callable[[frozenset[str]], Awaitable[frozenset[str]]]
"""See `release`."""


async def gain(
    store: MailStore, units: Mapping[str, Tag], dead: Sequence[tuple[str, str]] = (), *, orderly: bool = False
) -> None:
    """Serve units whose rows name this backend.

    dead: (backend, boot) that are dead. Each is fenced with all earlier boots of its
    backend. orderly: whether the previous owner has released the units. Raises
    Unavailable, Corrupt; then call it again.
    """
    async with store.changing:
        env, journal, owned = store.env, store.journal, store.env.owned
        found = await survey(env, journal.boot, dead, lambda sid: owned.unit_of(sid) in units, orderly=orderly)
        journal.modseq_floor = max(
            journal.modseq_floor, found.modseq_floor, env.now_ms() + FLOOR_MARGIN_MS if found.unclean else 0
        )
        journal.assigned = max(journal.assigned, found.assigned, *(tag.number for tag in units.values()))
        await journal.announce()
        # Upkeep may have opened them. What is in memory may be older than the bucket.
        for sid in _in_memory(store, units):
            with suppress(OboxError):
                await unload(store, sid, upload=True)
        here = [user for sid, user in store.users.items() if owned.unit_of(sid) in units]
        store.takeover.add(found)
        for user in here:
            await _adopt(store, user.storage_id)
        owned.gain(units, unclean=found.unclean)
        if journal.follower is not None:
            journal.follower.gained(units, orderly=orderly)
        store.remember_units()
        for user in here:
            store.spawn(user.recheck(every=True))
        await env.commit_staged()
        log.info("units gained", units=len(units), users=len(found.replayed.pending), unclean=found.unclean)
        if store.takeover.left or store.takeover.boots:
            store.spawn(store.upkeep.adopt())


async def _adopt(store: MailStore, sid: StorageId) -> None:
    """Join the changes that journals have of a user in memory. A change that does not
    decode stays pending, so that no boot is noted as adopted; others are not
    delayed."""
    user = store.users.get(sid)
    if user is None:  # it takes them when it is opened
        return
    try:
        await join_journaled(user, store.takeover.pending.get(sid, {}))
    except Corrupt as exc:
        log.error("user cannot be adopted yet", user=sid, error=str(exc))
    else:
        if store.users.get(sid) is user:
            store.takeover.pending.pop(sid, None)


async def release(store: MailStore, units: Collection[str], kick: Kick, hand: Hand) -> frozenset[str]:
    """Give units up in an orderly way.

    hand: writes the rows of units, which name the next backend. It returns the units
    that another backend has, or may have. Returns the same units. Nothing of them is
    left here. The others stay, and so does a unit with a user who cannot be uploaded.
    Raises Unavailable, InUse, Corrupt (no unit can be uploaded); then all units stay.
    If `hand` itself raises, its units are given up, because their rows may have been
    written.
    """
    async with store.changing:
        owned, env = store.env.owned, store.env
        # Most is uploaded while nobody waits.
        units = frozenset(units) - await _flush_all(store, units)
        if not units:
            raise Corrupt("users of these units cannot be uploaded")
        owned.hold(units)
        try:
            await _end_sessions(store, units, kick)
            if await _flush_all(store, units):
                raise InUse("a user of the unit cannot be uploaded any more")
            await _at_once(unload(store, sid, upload=True) for sid in _in_memory(store, units))
            await store.journal.sync()
            if _in_memory(store, units) or _opening(store, units):
                raise InUse("a user of the unit has just been opened again")
        except BaseException:
            owned.release(units)
            raise
        given = units
        try:
            given = await hand(units)
        finally:
            owned.release(unit for unit in units if unit not in given)
            _forget(store, given)
            owned.lose(given)
            store.remember_units()
        if store.journal.follower is not None:
            store.journal.follower.released()
        await env.commit_staged()
        return given


async def lose(store: MailStore, units: Collection[str], kick: Kick) -> list[StorageId]:
    """Stop serving units that another backend has, acknowledge nothing more, and upload
    what was staged.

    Returns the users whose changes were uploaded. The other backend must compare their
    copies.
    """
    owned = store.env.owned
    owned.lose(units)
    users = {StorageId(sid) for sid, _ in store.journal.uncovered() if owned.unit_of(sid) in units}
    users |= set(_in_memory(store, units))
    await kick(users)
    store.remember_units()
    uploaded = []
    for sid in sorted(users):
        if await _upload(store, sid):
            uploaded.append(sid)
    async with store.changing:
        # A unit may have come back meanwhile.
        gone = {unit for unit in units if unit not in owned.units}
        _forget(store, gone)
    await store.env.commit_staged()
    return uploaded


async def doubt(store: MailStore, units: Collection[str]) -> None:
    """Join what another backend has written to users of these units, which this backend
    has."""
    store.doubt(units)
    for sid in _in_memory(store, units):
        store.spawn(store.users[sid].recheck(every=True))
    await store.env.commit_staged()


async def sweep(store: MailStore, clears: Clears = lambda backend: False) -> frozenset[tuple[str, str]]:
    """Look for boots that are over and name users of this backend who were not adopted.
    There are some if the groups of a backend came to several others, or to a backend
    that died before it had adopted them. Returns the boots, except the present boot,
    that are not clean.

    clears: whether this backend deletes what another backend has left in the journal.
    Raises Unavailable, Corrupt.
    """
    async with store.changing:
        owned, known = store.env.owned, {(one.boot.backend, one.boot.name) for one in store.takeover.boots}
        found = await survey(store.env, store.journal.boot, [], owned.owns, orderly=False, alive=False, known=known)
        boots = store.takeover.boots
        store.takeover.boots = [one for one in boots if (one.boot.backend, one.boot.name) in found.unclean_boots]
        if found.boots:
            store.takeover.add(found)
            for sid in found.replayed.pending:
                await _adopt(store, StorageId(sid))
            store.journal.modseq_floor = max(store.journal.modseq_floor, found.modseq_floor)
    if store.takeover.left or store.takeover.boots:
        store.spawn(store.upkeep.adopt())
    await clear(store, found, clears)
    return frozenset(found.open_boots)


async def continue_after_fence(store: MailStore, boot: str) -> None:
    """Continue after a fence: write what no bundle covers to the journal of the new
    boot, and record in the old boot that its users were adopted.

    boot: the boot that was fenced. Waits until the new boot has begun.
    """
    journal, owned = store.journal, store.env.owned
    while journal.boot == boot:
        await store.env.sleep(TICK_S)
    while True:
        try:
            await journal.sync()
            for sid, box in journal.uncovered():
                if owned.owns(sid) and not await _restate(store, StorageId(sid), box):
                    store.takeover.left.add(sid)  # upkeep tries again
            await journal.sync()
            ended = await _ended(store, boot)
            break
        except OboxError as exc:
            log.warning("changes cannot be staged in the new boot yet", boot=boot, error=str(exc))
            await store.env.sleep(AGAIN_S)
    if ended is not None:
        store.takeover.boots.append(ended)
        store.spawn(store.upkeep.adopt())


async def _restate(store: MailStore, sid: StorageId, box: str) -> bool:
    """Stage in the new boot what no bundle has of a box. Returns False if the box
    cannot be loaded for a reason that does not pass. Raises Unavailable."""
    try:
        user = await store.load_user(store.name_of(sid), sid)
        if box == ROOT:
            restate(user.rootbox, again=True)
        elif Guid(box) in user.root.entries:
            restate(await user.box(Guid(box)), again=True)
    except NotFound:
        return True
    except OboxError as exc:
        if not exc.permanent:
            raise
        log.error("box cannot be staged in the new boot", user=sid, mailbox=box, error=str(exc))
        return False
    return True


async def _ended(store: MailStore, boot: str) -> Ended | None:
    """Return a fenced boot of this backend, with the users that it names. None if
    nothing is left to do."""
    env = store.env
    for found in boots_of(await list_journals(env)):
        if (found.backend, found.name) == (env.settings.backend, boot):
            ended = await look(env, found)
            if ended.clean or ended.alive:
                return None
            replayed = await replay(env, [ended], lambda sid: False)
            store.takeover.users.update(replayed.users)
            return ended
    return None


def _in_memory(store: MailStore, units: Collection[str]) -> list[StorageId]:
    return [sid for sid in store.users if store.env.owned.unit_of(sid) in units]


def _opening(store: MailStore, units: Collection[str]) -> bool:
    return any(store.env.owned.unit_of(sid) in units for sid in store.opening_users())


async def _end_sessions(store: MailStore, units: Collection[str], kick: Kick) -> None:
    users = _in_memory(store, units)
    await kick(users)
    try:
        async with asyncio.timeout(KICK_S):
            while any(store.users[sid].sessions for sid in users if sid in store.users):
                await store.env.sleep(TICK_S)
    except TimeoutError:
        raise InUse("sessions of the unit do not end") from None


async def _flush_all(store: MailStore, units: Collection[str]) -> frozenset[str]:
    """Upload everything of the units' users. Returns the units that have a user who
    cannot be uploaded, for a reason that does not pass. Raises Unavailable."""
    owned, env, stay = store.env.owned, store.env, set[str]()
    users = {sid for sid, _ in store.journal.uncovered()} | set(_in_memory(store, units)) | store.takeover.left
    users |= {space.user for space in env.metacache.users() if _is_behind(store, space.user, units)}

    async def flush_one(sid: StorageId) -> None:
        try:
            await flush(await store.load_user(store.name_of(sid), sid), important_only=False)
        except NotFound:
            return
        except Exception as exc:
            if isinstance(exc, OboxError) and not exc.permanent:
                raise
            # The other users of this backend leave all the same.
            stay.add(owned.unit_of(sid))
            log.error("user cannot be uploaded, the groups of the user stay", user=sid, error=repr(exc))

    await _at_once(flush_one(StorageId(sid)) for sid in sorted(users) if owned.unit_of(sid) in units)
    return frozenset(stay)


async def _at_once(works: Iterable[Coroutine[Any, Any, object]]) -> None:
    """Do all works, `FLUSHES_AT_ONCE` at a time. If some fail, raise the first failure
    when all have ended."""
    gate = asyncio.Semaphore(FLUSHES_AT_ONCE)

    async def one(work: Coroutine[Any, Any, object]) -> None:
        async with gate:
            await work

    for result in await asyncio.gather(*map(one, works), return_exceptions=True):
        if isinstance(result, BaseException):
            raise result


def _is_behind(store: MailStore, sid: str, units: Collection[str]) -> bool:
    """Return whether local copies of a user of the units have changes that no bundle
    has."""
    env = store.env
    return env.owned.unit_of(sid) in units and any(
        space.change is Change.IMPORTANT for space in env.metacache.box_spaces(sid)
    )


async def _upload(store: MailStore, sid: StorageId) -> bool:
    """Upload all of a user that another backend has, and unload it. Returns whether
    there was something to upload."""
    while True:
        try:
            user = await store.load_user(store.name_of(sid), sid)
            if await is_gone(user):
                return await _drop(store, user)
            had = user.rootbox.change is not Change.NONE or any(
                box.change is not Change.NONE for box in user.boxes.values()
            )
            await flush(user, important_only=False)
            await unload(store, sid, upload=True)
        except NotFound:
            return False
        except OboxError as exc:
            if exc.permanent:
                log.error("changes of a user of another backend cannot be uploaded", user=sid, error=str(exc))
                return False
            log.warning("changes of a user of another backend cannot be uploaded yet", user=sid, error=str(exc))
            await store.env.sleep(AGAIN_S)
        else:
            return had


async def _drop(store: MailStore, user: User) -> bool:
    """Forget a user whom another backend has deleted, so that an upload does not bring
    the user back."""
    log.info("changes of a user whom another backend deleted are dropped", user=user.storage_id)
    await store.drop(user)
    store.env.metacache.drop_user(user.storage_id)
    return False


def _forget(store: MailStore, units: Iterable[str]) -> None:
    """Drop what journal, takeover and upkeep hold of the units' users."""
    units, owned = set(units), store.env.owned
    users = {sid for sid, _ in store.journal.uncovered()} | set(store.takeover.pending) | store.takeover.left
    users |= store.jobs.users()
    for sid in users:
        if owned.unit_of(sid) in units:
            store.forget(StorageId(sid))
