"""The findings of `cluster check`: what is wrong or unfinished in a directory.

This module changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from obox.errors import ConfigError

from .assign import digest
from .directory import Directory, Kind, Row
from .initial import settings_in
from .records import SETTINGS_KEY, Assigned, Orders, State, group_key, group_number
from .tables import Tables, read_tables

OTHER_UNITS: Final = "other-units"
PASSING: Final = frozenset({OTHER_UNITS, "double-owner", "other-owner"})
"""A move that is under way shows as these findings for a second or two."""

EXAMPLES_MAX: Final = 8
"""A finding names at most eight units."""

Claims = Mapping[str, Mapping[str, Assigned]]
"""For each backend the keys that it serves, and under which assignment."""


class Finding(NamedTuple):
    """error: whether an operator has to do something; what: a word for programs; where:
    kind and key of a row; text: a sentence for people.
    """

    error: bool
    what: str
    where: str
    text: str


async def check(directory: Directory, *, now: float, claims: Claims | None = None) -> list[Finding]:
    """Return all findings. now: unix seconds; claims: the answers of running backends,
    None if they were not asked. Raises Unavailable.
    """
    tables = await read_tables(directory)
    return [
        *_bad(tables),
        *_settings(tables),
        *_assignments(tables),
        *_double_owners(tables, claims or {}),
        *_beats(tables, claims or {}),
        *_boots(tables),
        *_moves(tables, now),
    ]


def _bad(tables: Tables) -> Iterator[Finding]:
    for (kind, key), why in tables.bad.items():
        yield Finding(True, "unreadable", f"{kind.value} {key}", f"the row cannot be read: {why}")


def _settings(tables: Tables) -> Iterator[Finding]:
    where = f"{Kind.SETTINGS.value} {SETTINGS_KEY}"
    if tables.settings is None:
        yield Finding(True, "no-settings", where, "the directory has no settings; cluster init makes them")
        return
    try:
        settings_in(Row(msgspec.msgpack.encode(tables.settings), 1))
    except ConfigError as error:
        yield Finding(True, "newer", where, str(error))
    missing = [key for key in map(group_key, range(tables.settings.groups)) if key not in tables.groups]
    if missing:
        yield Finding(
            False, "unassigned", f"{Kind.GROUPS.value} {missing[0]}", f"groups that nobody has acquired: {len(missing)}"
        )
    for key in tables.groups:
        if (group_number(key) or 0) >= tables.settings.groups:
            text = f"the directory has {tables.settings.groups} groups, from 0; this one is not used"
            yield Finding(True, "no-such-group", f"{Kind.GROUPS.value} {key}", text)


def _unfit(tables: Tables, backend: str) -> str:
    """Return why a backend must not own a unit, "" if it may."""
    state = tables.orders.get(backend, Orders()).state
    if state in (State.REMOVED, State.OFFLINE):
        return f"backend {backend} is {state.value}"
    if backend not in tables.members:
        return f"backend {backend} is not known"
    if tables.members[backend].role != "backend":
        return f"{backend} is a {tables.members[backend].role}, not a backend"
    return ""


def _assignments(tables: Tables) -> Iterator[Finding]:
    for kind, of in ((Kind.GROUPS, tables.groups), (Kind.PINS, tables.pins)):
        for key, assigned in of.items():
            if reason := _unfit(tables, assigned.backend):
                yield Finding(True, "bad-owner", f"{kind.value} {key}", f"{reason}, and owns it")


def _double_owners(tables: Tables, claims: Claims) -> Iterator[Finding]:
    serving: dict[str, dict[str, Assigned]] = {}
    for backend, of in claims.items():
        for key, assigned in of.items():
            serving.setdefault(key, {})[backend] = assigned
    for key, of in sorted(serving.items()):
        row = tables.row(key)
        if len(of) > 1:
            text = "served by " + " and ".join(f"{name} (number {one.number})" for name, one in sorted(of.items()))
            yield Finding(True, "double-owner", key, text)
        elif row is not None and row.backend not in of:
            text = f"served by {next(iter(of))}, and the directory names {row.backend} (number {row.number})"
            yield Finding(True, "other-owner", key, text)
    places: dict[tuple[str, int], str] = {}
    for name, member in sorted(tables.members.items()):
        if tables.orders.get(name, Orders()).state is State.REMOVED:
            continue
        for port in member.ports.values():
            other = places.setdefault((member.address, port), name)
            if other != name:
                text = f"{name} and {other} are both at {member.address} port {port}"
                yield Finding(True, "same-address", f"{Kind.MEMBERS.value} {name}", text)
                break


def _beats(tables: Tables, claims: Claims) -> Iterator[Finding]:
    """Find backends whose beat has the digest of other units than the rows name them
    for. The finding names the units if the backend was asked."""
    for name in tables.backends():
        beat = tables.beats.get(name)
        if beat is None or beat.units is None:
            continue
        rows = {unit: tables.row(unit) for unit in tables.units_of(name)}
        named = {unit: (row.number, row.token) for unit, row in rows.items() if row is not None}
        if beat.digest != digest(named):
            differ = "which are not those" if beat.units == len(named) else f"and not the {len(named)}"
            text = f"{name} serves {beat.units} units, {differ} that the directory names it for"
            if name in claims:
                served = {unit: (one.number, one.token) for unit, one in claims[name].items()}
                text += _named("without a row", sorted(served.keys() - named.keys()))
                text += _named("not served", sorted(named.keys() - served.keys()))
                both = sorted(served.keys() & named.keys())
                text += _named("by another assignment", [unit for unit in both if served[unit] != named[unit]])
            yield Finding(True, OTHER_UNITS, f"{Kind.BEATS.value} {name}", text)


def _named(what: str, units: Sequence[str]) -> str:
    more = f" and {len(units) - EXAMPLES_MAX} more" if len(units) > EXAMPLES_MAX else ""
    return f"; {what}: {', '.join(units[:EXAMPLES_MAX])}{more}" if units else ""


def _boots(tables: Tables) -> Iterator[Finding]:
    for key, row in sorted(tables.boots.items()):
        backend, _, boot = key.rpartition("/")
        beat = tables.beats.get(backend)
        if row.clean or (beat is not None and beat.boot == boot):
            continue
        text = "ended, and its users are not all adopted" if row.ended else "did not end in order, or still runs"
        yield Finding(False, "unclosed-boot", f"{Kind.BOOTS.value} {key}", text)


def _moves(tables: Tables, now: float) -> Iterator[Finding]:
    for key, move in sorted(tables.moves.items()):
        if move.done:
            continue
        where, by = f"{Kind.MOVES.value} {key}", f", asked by {move.by}" if move.by else ""
        if reason := _unfit(tables, move.to):
            yield Finding(True, "bad-move", where, f"{reason}, and is the destination{by}")
        else:
            text = f"to {move.to}, pending for {max(0, round(now - move.since))} s{by}"
            yield Finding(False, "pending-move", where, text)
