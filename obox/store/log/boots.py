"""The boots of this backend and how each treated the local copies (`oboxadm metacache
boots`).

The local state has the last BOOTS_MAX boots. If it is lost, the next boot records that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from .takeover import LocalCopies

if TYPE_CHECKING:
    from ..env import Env

BOOTS_MAX: Final = 200
"""Each has some 100 bytes, and a state record has room for 600."""

_KEY: Final = "boots"
_COPIES: Final = {LocalCopies.KEEP: "kept", LocalCopies.COMPARE: "asked again", LocalCopies.DROP: "dropped"}


class BootRecord(msgspec.Struct):
    """boot: its name in the journal. began, ended: unix seconds; ended is 0 while it
    runs, or if it did not end in order. copies: how it treated the local copies
    ("kept", "asked again", "dropped", "none"). before: how the boot before it ended
    ("clean", "unclean", "unknown"). users: how many users journals of boots that ended
    uncleanly had changes of."""

    boot: str
    began: float
    copies: str
    before: str
    users: int
    ended: float = 0.0


def listing(env: Env) -> list[BootRecord]:
    """Return the remembered boots, the oldest first."""
    raw = env.metacache.get_state(_KEY)
    try:
        return msgspec.msgpack.decode(raw, type=list[BootRecord]) if raw else []
    except msgspec.MsgspecError:
        return []


def began(env: Env, boot: str, *, trust: LocalCopies, before: str, users: int) -> None:
    """Record a boot. trust: the result of the takeover."""
    had = any(True for _ in env.metacache.users())
    copies = _COPIES[trust] if had else "none"
    record = BootRecord(boot, env.now(), copies, before, users)
    _keep(env, [*listing(env), record])


def ended(env: Env, boot: str) -> None:
    """Record that a boot has ended in order, with everything in bundles."""
    records = listing(env)
    for record in records:
        if record.boot == boot:
            record.ended = env.now()
    _keep(env, records)


def _keep(env: Env, records: list[BootRecord]) -> None:
    env.metacache.put_state(_KEY, msgspec.msgpack.encode(records[-BOOTS_MAX:]))
