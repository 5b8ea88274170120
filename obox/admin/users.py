"""Verbs about the passwd-file: user list|add. They need no backend."""

from __future__ import annotations

import fnmatch
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from .exits import NoUser
from .parts import Admin
from .table import Event, Needs, Params, Row, verb

if TYPE_CHECKING:
    from ..auth import UserEntry

DEFAULT_SCHEME: Final = "ARGON2ID"
COLUMNS: Final = ("user", "login", "delivery", "quota_bytes", "quota_messages")


class UserListParams(Params, kw_only=True):
    mask: Annotated[str, Meta(description="Users that fit; * and ?")] = "*"


def _row(entry: UserEntry) -> Row:
    return {
        "user": entry.user,
        "login": not (entry.nologin or entry.disabled),
        "delivery": not entry.disabled,
        "quota_bytes": entry.quota.storage_bytes,
        "quota_messages": entry.quota.messages,
    }


@verb("user list", UserListParams, needs=Needs.CONFIG, columns=COLUMNS)
async def user_list(admin: Admin, params: UserListParams) -> AsyncIterator[Event]:
    """List users; exit 67 if none fits."""
    from ..auth import list_users

    everyone = list_users(admin.users.path, admin.users.default_domain)
    found = [entry for entry in everyone if fnmatch.fnmatchcase(entry.user, params.mask.lower())]
    for entry in found:
        yield _row(entry)
    if not found and params.mask != "*":
        raise NoUser(f"no user fits {params.mask}")


class UserAddParams(Params, kw_only=True):
    user: Annotated[str, Meta(description="The name")]
    password: Annotated[str, Meta(description="In plain text; it is hashed")]
    scheme: Annotated[str, Meta(description="Of the hash")] = DEFAULT_SCHEME
    extra: Annotated[str, Meta(description="Extra fields, such as quota_rule=*:storage=1G")] = ""


@verb("user add", UserAddParams, needs=Needs.CONFIG, columns=COLUMNS)
async def user_add(admin: Admin, params: UserAddParams) -> AsyncIterator[Event]:
    """Add a user to the passwd-file; exit 73 if there is one."""
    import asyncio

    from ..auth import add_user, hash_password

    secret = await asyncio.to_thread(hash_password, params.scheme, params.password)
    path: Path = admin.users.path
    entry = add_user(path, params.user, secret, default_domain=admin.users.default_domain, extra=params.extra)
    yield _row(entry)
