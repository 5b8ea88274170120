"""The table of verbs that an administrator can run on a backend. Each verb is an async
function with typed parameters.

Each row defines everything about a verb: its HTTP API and OpenAPI document, the options
of its command, and what the manual must have. A verb yields rows (named columns),
progress and failures of single users. An exception ends it.

Invariant: names of verbs, parameters and columns are API. They change only with a line
in the CHANGELOG. This module and the verbs' modules import no large modules at import
time, so that the command line starts quickly. This module does not know how a request
arrived or how rows are shown.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from .params import Params, Selection

if TYPE_CHECKING:
    from ..accounts import Account
    from .parts import Admin


class Progress(NamedTuple):
    """How much of a long verb is done. total is 0 if it is unknown."""

    what: str
    done: int
    total: int = 0


class Failure(NamedTuple):
    """A user for whom the verb failed. The verb continues with the other users."""

    user: str
    code: int
    message: str


Row: TypeAlias = dict[str, Any]
Event: TypeAlias = "Row | Progress | Failure"


class Needs(enum.IntEnum):
    """What a verb needs, which decides whether `oboxadm` can run it without a
    backend."""

    CONFIG = 0
    """The configuration and the files that it names."""
    STATE = 1
    """Bucket and local state: a backend, or the state directory while no backend
    runs."""
    BACKEND = 2
    """A running backend."""
    BUCKET = 3
    """As STATE, but without waiting for the bucket: for verbs that examine a failing
    bucket."""
    DIRECTORY = 4
    """The directory of the cluster: through a running backend, or opened as the
    configuration says. A state directory that is in use does not matter."""


P = TypeVar("P", bound=Params)
S = TypeVar("S", bound=Selection)


@dataclass(frozen=True, slots=True)
class Verb:
    """A row of the table. words: the command as typed, such as `metacache flush`. asks:
    the question before it runs on a terminal, "" for harmless verbs.

    A verb with a question has a parameter `dry_run`. With it the verb changes nothing,
    and its rows say what it would do.
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
    """Called once before the first user, for a verb that runs for each user."""

    @property
    def name(self) -> str:
        """Return the name in the API: `metacacheFlush`."""
        return camel(self.words)

    @property
    def summary(self) -> str:
        return self.doc.partition("\n")[0]

    @property
    def explained(self) -> dict[str, str]:
        """Return the meaning of each column that a row may have."""
        from . import rows  # texts, which a start of a backend does not need

        return rows.COLUMNS.get(self.name, {})

    @property
    def none(self) -> str:
        """Return the message if the verb has found nothing; "" if no message is
        needed."""
        from . import rows  # `explained` says why

        return rows.NONE.get(self.name, "")

    @property
    def per_user(self) -> bool:
        return self.run_for is not None


TABLE: dict[str, Verb] = {}
"""All verbs, by API name."""


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
    """Put an async generator into the table. columns: the columns of its rows, if they
    are always the same.
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
    """Put an async generator into the table that runs for each selected user."""

    def add(
        run: Callable[[Admin, Account, S], AsyncIterator[Event]],
    ) -> Callable[[Admin, Account, S], AsyncIterator[Event]]:
        _add(Verb(words, params, None, run, needs, columns, asks, _doc(run), begin))
        return run

    return add
