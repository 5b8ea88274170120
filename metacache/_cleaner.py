"""The cleaner: it drops local copies when there is no room.

It begins when the copies take more than `max_space`, and stops when they take CLEAN_TO
of it. The copy with the lowest weight is dropped first (`metacache._weights`). If the
owner has not uploaded something of a copy, the owner flushes it before. An obsolete
copy is not flushed. A copy in use stays: `unload` is called in the same turn of the
loop in which the drop is staged, so nothing can happen in between.

Invariant: a copy in use is never dropped. A copy with changes that the bucket lacks
is dropped by `remove` only. The loop is never held for longer than a batch of users.
This module does not know what a copy means, sessions, or the bucket.
Diagnostics: each drop is a log line. A flush that fails leaves its copy. It is tried
again a second later, and logged once a minute.
"""

from __future__ import annotations

import asyncio
import heapq
import re
from collections.abc import Awaitable, Callable
from typing import NamedTuple, Protocol

import structlog

from metacache._cache import Metacache
from metacache._types import BoxSpace, Change, Copy, MetacacheError, UserInfo
from metacache._weights import PRIORITIES, Weights
from metacache._writer import LOG_INTERVAL_S

log = structlog.get_logger()

CLEAN_TO = 0.95  # of max_space, so that a clean makes room for many writes
CANDIDATES = 512  # ranked at a time; a pass over all users finds them
AT_ONCE = 8  # uploads at a time, so that a clean leaves the bucket to deliveries
RETRY_S = 1.0


class Owner(Protocol):
    """The store, which knows what a copy means."""

    def in_use(self, user: str, box: str) -> bool:
        """Return whether a session or a task works with this copy, or did so just
        now."""
        ...

    def must_upload(self, user: str, box: str, copy: Copy | None) -> bool:
        """Return whether a drop of the copy would lose changes that the bucket lacks.

        An obsolete copy has none: the bucket has newer bundles, or nobody can read it.
        """
        ...

    async def flush(self, user: str, box: str) -> None:
        """Upload what the bucket lacks of the copy. After an exception it is tried
        later."""
        ...

    def unload(self, user: str, box: str) -> bool:
        """Forget what memory has of the copy, which is about to be dropped.

        Returns False if the copy must stay: it is in use, or it has changed.
        """
        ...


class Candidate(NamedTuple):
    """A copy that may be dropped."""

    weight: float
    user: str
    space: BoxSpace


class Refused(NamedTuple):
    """A copy that an operator's command left. why: "in use" or "not uploaded"."""

    user: str
    box: str
    why: str


class Cleaned(NamedTuple):
    """What an operator's command dropped: copies and their bytes; and what it left."""

    boxes: int
    bytes: int
    refused: list[Refused]


class Cleaner:
    """Cleans `cache`. Only a single cleaner may belong to a cache.

    weights: may be replaced at any time. clock: seconds since the epoch, as the
    cache's.
    """

    def __init__(
        self,
        cache: Metacache,
        owner: Owner,
        *,
        weights: Weights,
        clock: Callable[[], float],
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._cache = cache
        self._owner = owner
        self.weights = weights
        self._clock = clock
        self._sleep = sleep
        self._wake = asyncio.Event()
        self._lock = asyncio.Lock()
        self._logged_at = -LOG_INTERVAL_S
        self.cleaned = 0
        self.cleaned_bytes = 0
        cache.on_pressure = self._wake.set

    async def run(self) -> None:
        """Clean whenever there is too much, until cancelled."""
        while True:
            if not self._cache.over():
                await self._wake.wait()
            self._wake.clear()
            try:
                await self.make_room()
            except MetacacheError as error:
                self._complain(error=str(error))
            if self._cache.over():
                await self._sleep(RETRY_S)

    async def make_room(self) -> int:
        """Clean down to CLEAN_TO of `max_space`, or to what is in use.

        Returns the bytes freed.
        """
        target = int(self._cache.max_space * CLEAN_TO)
        freed = 0
        tried: set[tuple[str, str]] = set()
        async with self._lock:
            while self._cache.over() or self._cache.space() > target:
                ranked = await self._rank(tried)
                if not ranked:
                    break
                left = max(self._cache.space() + self._cache.staged() - target, 1)
                for at in range(0, len(ranked), AT_ONCE):
                    batch, sought = [], 0
                    for candidate in ranked[at : at + AT_ONCE]:
                        if sought < left:
                            batch.append(candidate)
                            tried.add((candidate.user, candidate.space.box))
                            sought += candidate.space.space_bytes
                    done = sum(await asyncio.gather(*map(self._clean_each, _by_user(batch))))
                    freed += done
                    left -= done
                    if left <= 0:
                        break
                await self._commit()
        return freed

    async def _commit(self) -> None:
        try:
            await self._cache.commit()
        except MetacacheError as error:  # the drops are written; others do not fit
            self._complain(error=str(error))

    async def _rank(self, tried: set[tuple[str, str]]) -> list[Candidate]:
        """Return the copies of lowest weight that are neither tried nor in use."""
        found: list[Candidate] = []
        boosts = self.weights.priority_boosts(self._cache.accounts.by_priority(), self._cache.max_space)
        for batch in self._cache.accounts.entries():
            for user, groups, boxes in batch:
                for space in boxes:
                    if (user, space.box) not in tried and not self._owner.in_use(user, space.box):
                        weight = self.weights.weigh(
                            space.accessed, space.priority, groups.get(space.priority, 0), boosts
                        )
                        found.append(Candidate(weight, user, space))
            if len(found) > 8 * CANDIDATES:
                found = heapq.nsmallest(CANDIDATES, found)
            await asyncio.sleep(0)
        return heapq.nsmallest(CANDIDATES, found)

    async def _clean_each(self, candidates: list[Candidate]) -> int:
        """Clean a user's copies in turn: an upload keeps the user's others in use."""
        return sum([await self._clean(candidate) for candidate in candidates])

    async def _clean(self, candidate: Candidate) -> int:
        """Upload a copy if that is needed, and drop it. Returns the bytes freed."""
        user, box = candidate.user, candidate.space.box
        if self._owner.in_use(user, box):
            return 0
        uploaded = self._owner.must_upload(user, box, self._cache.peek(user, box))
        if uploaded:
            try:
                await self._owner.flush(user, box)
            except Exception as error:
                self._complain(user=user, box=box, error=str(error))
                return 0
        copy = self._cache.peek(user, box)
        obsolete = copy is not None and copy.change is not Change.NONE
        if (obsolete and uploaded) or not self._owner.unload(user, box):
            return 0
        return self._drop(user, candidate.space, weight=candidate.weight, uploaded=uploaded, obsolete=obsolete)

    def _drop(self, user: str, space: BoxSpace, **why: object) -> int:
        self._cache.drop(user, space.box)
        self.cleaned += 1
        self.cleaned_bytes += space.space_bytes
        log.info(
            "metacache clean",
            user=user,
            box=space.box,
            priority=space.priority,
            bytes=space.space_bytes,
            unused_s=round(max(0.0, self._clock() - space.accessed)),
            **why,
        )
        return space.space_bytes

    def _complain(self, **what: object) -> None:
        if (now := self._clock()) - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            log.warning("metacache cannot clean, it tries again", **what)

    # ---- commands of the operator ------------------------------------------------------------------------------

    async def clean(self, mask: str = "*", *, min_priority: int = 0, unused_s: float = 0.0) -> Cleaned:
        """Drop copies of the users that match `mask` (* and ?).

        min_priority: only copies of this or a less important priority. unused_s: only
        copies that were not accessed for this time. A copy that is in use or not
        uploaded stays, and the result names it: flush first.
        """
        before = self._clock() - unused_s if unused_s else float("inf")
        return await self._each(mask, min_priority, before, self._refusal)

    async def remove(self, mask: str) -> Cleaned:
        """Forget users, with changes that are not uploaded. A copy in use stays."""
        return await self._each(mask, 0, float("inf"), self._use)

    def _use(self, user: str, box: str) -> str:
        return "in use" if self._owner.in_use(user, box) else ""

    def _refusal(self, user: str, box: str) -> str:
        copy = self._cache.peek(user, box)
        pending = copy is not None and copy.change is not Change.NONE and self._owner.must_upload(user, box, copy)
        return self._use(user, box) or ("not uploaded" if pending else "")

    async def _each(self, mask: str, min_priority: int, before: float, refusal: Callable[[str, str], str]) -> Cleaned:
        matches = _mask(mask)
        boxes = nbytes = 0
        refused: list[Refused] = []
        await self._commit()  # a staged write has no entry yet
        async with self._lock:
            for batch in self._cache.accounts.entries():
                for user, _, spaces in batch:
                    if not matches(user):
                        continue
                    # The root is dropped last: without it the others mean nothing.
                    for space in sorted(spaces, key=lambda space: -space.priority):
                        if space.priority < min_priority or space.accessed > before:
                            continue
                        why = refusal(user, space.box)
                        if not why and not self._owner.unload(user, space.box):
                            why = "in use"
                        if why:
                            refused.append(Refused(user, space.box, why))
                            continue
                        nbytes += self._drop(user, space, command=True)
                        boxes += 1
                await asyncio.sleep(0)
            await self._commit()
        return Cleaned(boxes, nbytes, refused)

    async def list_users(
        self, mask: str = "*", *, changed: Change = Change.NONE, priority: int | None = None
    ) -> list[UserInfo]:
        """Return users by weight, the first to be cleaned first.

        changed: only users with at least this change. priority: only users with copies
        of this priority.
        """
        matches = _mask(mask)
        boosts = self.weights.priority_boosts(self._cache.accounts.by_priority(), self._cache.max_space)
        out: list[UserInfo] = []
        for batch in self._cache.accounts.entries():
            for user, groups, boxes in batch:
                if not matches(user) or (priority is not None and not groups.get(priority)):
                    continue
                info = self._info(user, groups, boxes, boosts)
                if info.change >= changed:
                    out.append(info)
            await asyncio.sleep(0)
        out.sort(key=lambda info: (info.weight, info.user))
        return out

    def _info(self, user: str, groups: dict[int, int], boxes: list[BoxSpace], boosts: tuple[float, ...]) -> UserInfo:
        accessed = [0.0] * PRIORITIES
        weights: list[float | None] = [None] * PRIORITIES
        change = Change.NONE
        for space in boxes:
            at = min(space.priority, PRIORITIES - 1)
            weight = self.weights.weigh(space.accessed, space.priority, groups.get(space.priority, 0), boosts)
            known = weights[at]
            weights[at] = weight if known is None else min(known, weight)
            accessed[at] = max(accessed[at], space.accessed)
            change = max(change, space.change)
        nbytes = tuple(groups.get(priority, 0) for priority in range(PRIORITIES))
        return UserInfo(user, nbytes, tuple(accessed), tuple(weights), change, len(boxes))


def _by_user(candidates: list[Candidate]) -> list[list[Candidate]]:
    out: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        out.setdefault(candidate.user, []).append(candidate)
    return list(out.values())


def _mask(mask: str) -> Callable[[str], bool]:
    """`*` matches any characters, `?` a single character; nothing else is special."""
    parts = [".*" if c == "*" else "." if c == "?" else re.escape(c) for c in mask]
    pattern = re.compile("".join(parts), re.S)
    return lambda name: pattern.fullmatch(name) is not None
