"""Whether the user in the bucket is the user of a local copy, or a later user of the
same storage id.

A user can be deleted by another backend, and created again, while this backend has a
local copy, changes in memory or lines in a journal. The GUID of the INBOX that a user
was made with is the user's identity. The list of mailboxes and each of its deltas have
it, and a list ignores deltas of another identity (`mailbox.Root`). Mailboxes need none,
since no list names the mailboxes of an earlier user.

This module knows no sessions and changes nothing.
"""

from __future__ import annotations

from typing import Final

from ...errors import Corrupt
from ...mailbox import Root, RootDelta
from ...objectstore import ObjectInfo
from ...objectstore.keys import ROOT, bundles_prefix, first_root_key, mails_prefix
from ...types import Guid
from ..box.index import Owner
from ..box.root import RootBox
from ..env import Env
from ..stamp import name_of

CLOCKS_MS: Final = 60_000.0
"""The bucket's clock and this machine's clock may differ by a minute."""


async def is_gone(user: Owner) -> bool:
    """Return whether another backend has deleted the user. Raises Unavailable."""
    infos = await user.env.listing(bundles_prefix(user.storage_id, ROOT), kind="index")
    return await replaced(user.env, user.rootbox, infos)


async def replaced(env: Env, box: RootBox, infos: list[ObjectInfo]) -> bool:
    """Return whether the user of this list, which was loaded from a local copy or is in
    memory, does not exist any more.

    infos: the bundles of the list in the bucket. A bundle that is known says that it is
    the same user, and costs no request. The name of the first bundle is fixed, so its
    time counts as well. If the bucket has mails but no list, the list was lost, and the
    user is still there. Raises Unavailable.
    """
    if not infos:
        return not await env.listing(mails_prefix(box.sid), kind="mail", limit=1)
    known, first = box.stamp.names(), first_root_key(box.sid)
    made = box.state.entries.get(Guid(box.state.identity))
    for info in infos:
        if name_of(info.key) in known and (
            info.key != first or made is None or info.modified * 1000 <= made.created + CLOCKS_MS
        ):
            return False
    newest = max(infos, key=lambda info: info.key)
    data = await env.get(newest.key, kind="index")
    try:
        found = Root()
        _, payload = await box.bundles.decode(newest.key, data or b"")
        found.join(RootDelta.decode(payload))
    except (Corrupt, ValueError):
        return False  # the load of the bundles says so
    return found.identity not in ("", box.state.identity)
