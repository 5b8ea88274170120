"""Base classes of the parameters that verbs take.

Invariant: names of parameters are API. In requests they are in camelCase. This module
does not know what a verb does with them.
"""

from __future__ import annotations

from typing import Annotated, TypeAlias

import msgspec
from msgspec import Meta


class Params(msgspec.Struct, kw_only=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True):
    """Base of all parameters. In requests they are in camelCase."""


class Nothing(Params):
    """No parameters."""


class Selection(Params):
    """Base of the parameters of verbs that select users."""

    user: Annotated[str | None, Meta(description="A user, or a mask with * and ?")] = None
    users: Annotated[list[str], Meta(description="Several users by name")] = []
    all_users: Annotated[bool, Meta(description="All users of the user database")] = False
    no_userdb_lookup: Annotated[
        bool, Meta(description="Use the names as they are, also names that are not in the user database")
    ] = False


DryRun: TypeAlias = Annotated[bool, Meta(description="Only show what the command would do, and change nothing")]
"""The parameter of verbs that destroy something. A terminal shows these rows before the
question."""
