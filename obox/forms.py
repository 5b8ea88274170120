"""The forms with their versions, and the gate that allows the newer versions.

A form is a kind of bytes that one process writes and another reads: an object of the
bucket, or data on a connection between members. `FORMS` is the only list of them. A
backend registers in the directory which versions it reads. `_format` in the bucket says
which versions may be written. `oboxadm cluster upgrade` raises them when every member
can read them (docs/cluster.md, "Mixed versions").

Before a newer version is written, the writer asks the gate:

    if env.forms.writes("bundle") >= 2: ...

This module does not know what the bytes mean, or who reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final, NamedTuple


class Form(NamedTuple):
    """first: the version that may always be written; 0 if the form is new and may not.
    reads: the highest version that this code can read and write. offers: the highest
    version that a new bucket and `cluster upgrade` allow; None means `reads`. It is
    lower while a version is not ready for other people's mail."""

    first: int
    reads: int
    offers: int | None = None


FORMS: Final[dict[str, Form]] = {
    "envelope": Form(2, 2),
    "bundle": Form(1, 1),
    "journal": Form(1, 1),
    "wire": Form(1, 1),
    "mails": Form(1, 2, offers=1),
    "sharing": Form(0, 1),
}
"""envelope: header, frames and seal of every object (objectstore/codec.py). bundle:
meta and payload of base, diff and cache. journal: the payload of a journal object.
wire: what members send to each other: the trusted link, calls, and pulls. mails: how
mails lie under m/; 2: several in one object, a batch, and indexes that say where. Why
version 2 is not offered yet: docs/packs.md, "What is missing".
sharing: ACLs in a user's list of mailboxes."""

OF_PROXIES: Final = frozenset({"wire"})
"""A proxy reads no objects."""


def reads(names: Collection[str] | None = None) -> dict[str, int]:
    """Return what this code can read, for the directory. names: the forms; None means
    all."""
    return {name: form.reads for name, form in FORMS.items() if names is None or name in names}


def offered(versions: Mapping[str, int] | None = None) -> dict[str, int]:
    """Return what a new bucket and `cluster upgrade` allow. versions: no more than
    these; None means what this code can read."""
    known = reads() if versions is None else versions
    limits = {name: form.offers for name, form in FORMS.items() if form.offers is not None}
    return {name: min(version, limits.get(name, version)) for name, version in known.items()}


def first(name: str) -> int:
    """Return the version that a reader can read if it does not mention the form."""
    return FORMS[name].first if name in FORMS else 0


def beyond(wanted: Mapping[str, int], said: Mapping[str, int]) -> dict[str, int]:
    """Return the wanted versions that a reader cannot read. said: what the reader has
    registered. An older obox does not mention newer forms."""
    return {name: version for name, version in wanted.items() if said.get(name, first(name)) < version}


def above(versions: Mapping[str, int], others: Mapping[str, int]) -> dict[str, int]:
    """Return the versions that are higher than in `others`, and higher than what every
    obox reads."""
    return {name: version for name, version in versions.items() if version > max(first(name), others.get(name, 0))}


def highest(*many: Mapping[str, int]) -> dict[str, int]:
    """Return the highest version of each form, in the order of their names."""
    return {name: max(one.get(name, 0) for one in many) for name in sorted({name for one in many for name in one})}


def spelled(versions: Mapping[str, int]) -> str:
    """Return versions as a text for people."""
    return ", ".join(f"{name} {version}" for name, version in sorted(versions.items()))


class Gate:
    """Which versions this process may write. Versions only rise."""

    def __init__(self) -> None:
        self.raised: Mapping[str, int] = {}
        """The versions in `_format`. A member without a bucket has the directory's."""

    def rise(self, versions: Mapping[str, int]) -> None:
        """Allow these versions, because all readers can read them."""
        self.raised = highest(self.raised, versions)

    def writes(self, name: str) -> int:
        """Return the version of a form that may be written."""
        form = FORMS[name]
        return max(form.first, min(form.reads, self.raised.get(name, 0)))
