"""Verbs for the passwd-file: user list|add|password|disable|enable|remove. They need no
backend.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

from msgspec import Meta

from ..errors import NotFound
from .exits import NoUser
from .masks import entries_that_match
from .params import DryRun, Params
from .parts import Admin
from .table import Event, Needs, Row, verb

if TYPE_CHECKING:
    from ..auth import UserEntry

DEFAULT_SCHEME: Final = "ARGON2ID"
COLUMNS: Final = ("user", "login", "delivery", "quota_bytes", "quota_messages")


class UserListParams(Params, kw_only=True):
    mask: Annotated[str, Meta(description="Users that match this mask of * and ?")] = "*"


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
    """List users; the exit code is 67 if no user matches."""
    from ..auth import claimed, list_users

    everyone = list_users(admin.users.path, admin.users.default_domain)
    refused = claimed({entry.user: entry for entry in everyone})
    found = await entries_that_match(everyone, params.mask.lower(), lambda entry: entry.user)
    for entry in found:
        yield _row(entry) | ({"login": False, "delivery": False} if entry.user in refused else {})
    if not found and params.mask != "*":
        raise NoUser(f"no user matches {params.mask}")


class UserAddParams(Params, kw_only=True):
    user: Annotated[str, Meta(description="Name of the user")]
    password: Annotated[str, Meta(description="Password in plain text; its hash is stored")]
    scheme: Annotated[str, Meta(description="Scheme of the hash")] = DEFAULT_SCHEME
    extra: Annotated[str, Meta(description="Extra fields, such as quota_rule=*:storage=1G")] = ""


@verb("user add", UserAddParams, needs=Needs.CONFIG, columns=COLUMNS)
async def user_add(admin: Admin, params: UserAddParams) -> AsyncIterator[Event]:
    """Add a user to the passwd-file.

    The exit code is 73 if there is such a user, or if mail under that name belongs to
    another user.
    """
    import asyncio

    from ..auth import add_user, hash_password

    secret = await asyncio.to_thread(hash_password, params.scheme, params.password)
    path: Path = admin.users.path
    entry = add_user(path, params.user, secret, default_domain=admin.users.default_domain, extra=params.extra)
    yield _row(entry)


class UserPasswordParams(Params, kw_only=True):
    user: Annotated[str, Meta(description="Name of the user")]
    password: Annotated[str, Meta(description="Password in plain text; its hash is stored")]
    scheme: Annotated[str, Meta(description="Scheme of the hash")] = DEFAULT_SCHEME


@verb("user password", UserPasswordParams, needs=Needs.CONFIG, columns=COLUMNS)
async def user_password(admin: Admin, params: UserPasswordParams) -> AsyncIterator[Event]:
    """Set a user's password; the exit code is 67 if there is no such user."""
    import asyncio

    from ..auth import hash_password

    secret = await asyncio.to_thread(hash_password, params.scheme, params.password)
    yield _edited(admin, params.user, lambda fields: [fields[0], secret, *fields[2:]])


class UserDisableParams(Params, kw_only=True):
    user: Annotated[str, Meta(description="Name of the user")]
    deliver: Annotated[bool, Meta(description="Refuse only logins, and still accept mail")] = False
    reason: Annotated[str, Meta(pattern=r"^[^\s:]*$", description="Text that is shown to the client")] = ""


@verb("user disable", UserDisableParams, needs=Needs.CONFIG, columns=COLUMNS)
async def user_disable(admin: Admin, params: UserDisableParams) -> AsyncIterator[Event]:
    """Refuse a user's logins and deliveries from now on.

    Sessions that are open continue until they are kicked.
    """
    words = ["nologin" if params.deliver else "disabled"] + [f"reason={params.reason}"] * bool(params.reason)
    yield _edited(admin, params.user, lambda fields: [*fields[:7], " ".join([*_others(fields[7]), *words])])


class UserEnableParams(Params, kw_only=True):
    user: Annotated[str, Meta(description="Name of the user")]


@verb("user enable", UserEnableParams, needs=Needs.CONFIG, columns=COLUMNS)
async def user_enable(admin: Admin, params: UserEnableParams) -> AsyncIterator[Event]:
    """Accept a user's logins and deliveries again."""
    yield _edited(admin, params.user, lambda fields: [*fields[:7], " ".join(_others(fields[7]))])


class UserRemoveParams(Params, kw_only=True):
    user: Annotated[str, Meta(description="Name of the user")]
    dry_run: DryRun = False


@verb("user remove", UserRemoveParams, needs=Needs.CONFIG, asks="Remove this user from the passwd-file?")
async def user_remove(admin: Admin, params: UserRemoveParams) -> AsyncIterator[Event]:
    """Remove a user from the passwd-file.

    The mail stays in the bucket. To delete it, run oboxadm obox user delete first.
    """
    if params.dry_run:
        from ..auth import list_users

        name = admin.users.normalise(params.user)
        everyone = list_users(admin.users.path, admin.users.default_domain)
        entry = next((entry for entry in everyone if entry.user == name), None)
        if entry is None:
            raise NoUser(f"no user {params.user}")
        yield _row(entry)
        return
    _edit(admin, params.user, lambda fields: None)


def _others(extra: str) -> list[str]:
    """Return the extra fields except those that disable a user."""
    names = ("disabled", "nologin", "reason")
    return [word for word in extra.split() if word.partition("=")[0].removeprefix("userdb_") not in names]


def _edited(admin: Admin, user: str, change: Callable[[list[str]], list[str] | None]) -> Row:
    entry = _edit(admin, user, change)
    assert entry is not None
    return _row(entry)


def _edit(admin: Admin, user: str, change: Callable[[list[str]], list[str] | None]) -> UserEntry | None:
    from ..auth import edit_user

    try:
        return edit_user(admin.users.path, user, change, default_domain=admin.users.default_domain)
    except NotFound as error:
        raise NoUser(str(error)) from error
