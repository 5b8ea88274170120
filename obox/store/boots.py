"""The boots of this backend and what each made of the local copies: for the operator (`oboxadm metacache boots`).

Kept in the local state, the last BOOTS_MAX; lost with it, which the next boot then says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

if TYPE_CHECKING:
    from ._env import Env

BOOTS_MAX: Final = 200
"""Of some 100 bytes each: one state record has room for 600."""

_KEY: Final = "boots"


class BootRecord(msgspec.Struct):
    """boot: its name in the journal; began, ended: unix seconds, ended 0 while it runs or where it did not end in
    order; copies: what it made of the local copies ("kept", "asked again", "dropped", "none"); before: how the boot
    before it ended ("clean", "unclean", "unknown"); users: of whom a dead boot's journal spoke."""

    boot: str
    began: float
    copies: str
    before: str
    users: int
    ended: float = 0.0


def listing(env: Env) -> list[BootRecord]:
    """The boots that are remembered, the oldest first."""
    raw = env.metacache.get_state(_KEY)
    try:
        return msgspec.msgpack.decode(raw, type=list[BootRecord]) if raw else []
    except msgspec.MsgspecError:
        return []


def began(env: Env, boot: str, *, trust: str, before: str, users: int) -> None:
    """Note a boot. trust: as of the takeover."""
    had = any(True for _ in env.metacache.users())
    copies = {"all": "kept", "check": "asked again", "none": "dropped"}[trust] if had else "none"
    record = BootRecord(boot, env.now(), copies, before, users)
    _keep(env, [*listing(env), record])


def ended(env: Env, boot: str) -> None:
    """Note that a boot has ended in order: all is in bundles."""
    records = listing(env)
    for record in records:
        if record.boot == boot:
            record.ended = env.now()
    _keep(env, records)


def _keep(env: Env, records: list[BootRecord]) -> None:
    env.metacache.put_state(_KEY, msgspec.msgpack.encode(records[-BOOTS_MAX:]))
