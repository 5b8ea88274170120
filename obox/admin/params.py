"""Base classes of the parameters that verbs take.

Invariant: names of parameters are API; on the wire they are in camelCase. Refuses to
know: what a verb does with them.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta


class Params(msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Base of all parameters; on the wire in camelCase."""


class Nothing(Params):
    """No parameters."""


class Selection(Params):
    """Base of the parameters of verbs that are about users: which ones."""

    user: Annotated[str | None, Meta(description="A user, or a mask with * and ?")] = None
    users: Annotated[list[str], Meta(description="Several users by name")] = []
    all_users: Annotated[bool, Meta(description="All users of the user database")] = False
    no_userdb_lookup: Annotated[
        bool, Meta(description="Take the names as they are, also of users whom the user database does not know")
    ] = False


DryRun: TypeAlias = Annotated[bool, Meta(description="Only say what it would do, and do nothing")]
"""The parameter of verbs that destroy: what a terminal is shown before the question."""
