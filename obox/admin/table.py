"""The table of verbs: what an administrator can ask of a backend, each one async
function with typed parameters.

One row drives everything: the HTTP API and its OpenAPI document, the options of the
command line, the check that the manual names each command. A verb yields rows (named
columns), progress and failures of single users; what it raises ends it.

Invariant: names of verbs, parameters and columns are API: they change only with the
CHANGELOG. Nothing heavy is imported here or by the verbs' modules at import time, so
that the command line starts quickly.
Refuses to know: how a request came, how rows are shown.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from . import rows
from .params import Params, Selection

if TYPE_CHECKING:
    from ..accounts import Account
    from .parts import Admin


class Progress(NamedTuple):
    """How far a long verb is. total 0: nobody knows."""

    what: str
    done: int
    total: int = 0


class Failure(NamedTuple):
    """One user of several for whom the verb failed; the others go on."""

    user: str
    code: int
    message: str


Row: TypeAlias = dict[str, Any]
Event: TypeAlias = "Row | Progress | Failure"


class Needs(enum.IntEnum):
    """What a verb runs on, and so where `oboxadm` may run it by itself."""

    CONFIG = 0
    """The configuration and the files that it names."""
    STATE = 1
    """Bucket and local state: a backend, or its state directory while no backend
    runs."""
    BACKEND = 2
    """A backend that runs."""
    BUCKET = 3
    """As STATE, whatever the bucket says: for who wants to know what is wrong with
    it."""


P = TypeVar("P", bound=Params)
S = TypeVar("S", bound=Selection)


@dataclass(frozen=True, slots=True)
class Verb:
    """One row. words: as typed, `metacache flush`; asks: what a terminal is asked
    before, "" for harmless verbs.

    A verb that asks has a parameter `dry_run`: with it the verb only looks, and its
    rows say what it would do.
    """

    words: str
    params: type[Params]
    run: Callable[[Admin, Any], AsyncIterator[Event]] | None
    run_for: Callable[[Admin, Account, Any], AsyncIterator[Event]] | None
    needs: Needs
    columns: tuple[str, ...]
    asks: str
    doc: str
    begin: Callable[[Admin, Any], Awaitable[None]] | None = None
    """Of a verb per user: what is asked once, before the first of them."""

    @property
    def name(self) -> str:
        """The name in the API: `metacacheFlush`."""
        return camel(self.words)

    @property
    def summary(self) -> str:
        return self.doc.partition("\n")[0]

    @property
    def explained(self) -> dict[str, str]:
        """What each column means that a row may have."""
        return rows.COLUMNS.get(self.name, {})

    @property
    def none(self) -> str:
        """What is to be said where the verb has found nothing; "" where that says
        nothing.
        """
        return rows.NONE.get(self.name, "")

    @property
    def per_user(self) -> bool:
        return self.run_for is not None


TABLE: dict[str, Verb] = {}
"""By API name."""


def camel(words: str) -> str:
    first, *rest = words.replace("-", " ").split()
    return first + "".join(word.capitalize() for word in rest)


def _add(verb: Verb) -> None:
    assert verb.name not in TABLE, verb.name
    assert verb.doc, f"{verb.words}: no docstring"
    TABLE[verb.name] = verb


def _doc(run: object) -> str:
    import inspect

    return inspect.getdoc(run) or ""


def verb(
    words: str, params: type[P], *, needs: Needs = Needs.STATE, columns: tuple[str, ...] = (), asks: str = ""
) -> Callable[[Callable[[Admin, P], AsyncIterator[Event]]], Callable[[Admin, P], AsyncIterator[Event]]]:
    """Put an async generator into the table. columns: of its rows, where they are
    always the same.
    """

    def add(run: Callable[[Admin, P], AsyncIterator[Event]]) -> Callable[[Admin, P], AsyncIterator[Event]]:
        _add(Verb(words, params, run, None, needs, columns, asks, _doc(run)))
        return run

    return add


def user_verb(
    words: str,
    params: type[S],
    *,
    needs: Needs = Needs.STATE,
    columns: tuple[str, ...] = (),
    asks: str = "",
    begin: Callable[[Admin, S], Awaitable[None]] | None = None,
) -> Callable[
    [Callable[[Admin, Account, S], AsyncIterator[Event]]], Callable[[Admin, Account, S], AsyncIterator[Event]]
]:
    """Put an async generator that is run once for each selected user into the table."""

    def add(
        run: Callable[[Admin, Account, S], AsyncIterator[Event]],
    ) -> Callable[[Admin, Account, S], AsyncIterator[Event]]:
        _add(Verb(words, params, None, run, needs, columns, asks, _doc(run), begin))
        return run

    return add
