"""Verbs that convert objects of an older format to the present format: storage upgrade,
storage finish-upgrade.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import asdict
from typing import Annotated

from msgspec import Meta

from ..accounts import Account
from ..errors import Invalid, NotFound
from ..types import StorageId
from .exits import Incomplete
from .params import Nothing, Selection
from .parts import Admin
from .table import Event, Progress, user_verb, verb


class StorageUpgradeParams(Selection, kw_only=True):
    dry_run: Annotated[bool, Meta(description="Only count what is outdated")] = False
    rate: Annotated[int, Meta(ge=0, description="Largest number of objects a second; 0: no limit")] = 0
    copied_from: Annotated[
        str,
        Meta(description="The storage id that the objects were copied from; they become those of this new user"),
    ] = ""


@user_verb("storage upgrade", StorageUpgradeParams, columns=("objects", "outdated", "upgraded", "damaged", "foreign"))
async def storage_upgrade(admin: Admin, account: Account, params: StorageUpgradeParams) -> AsyncIterator[Event]:
    """Rewrite users' objects of an older format, or not sealed under the first key.

    Clients see no change. It runs beside sessions and deliveries, on the backend that
    serves the user. If it is cut short, run it again; it continues with what is left.
    Damaged objects are left as they are: they do not decode, or they belong to another
    user, mailbox or UID. All backends must have this version before.
    """
    from ..store.operate import upgrade

    done = upgrade.Upgraded()
    store, sid = admin.store, account.storage_id
    if params.copied_from:
        source = _storage_id(params.copied_from)
        steps = upgrade.take_over_copy(store, sid, source, dry_run=params.dry_run, rate=params.rate)
    else:
        steps = upgrade.upgrade(store, sid, account.name, dry_run=params.dry_run, rate=params.rate)
    try:
        async for done in steps:
            yield Progress(f"upgrading {account.name}", done.objects)
    except NotFound:  # a user who has never had mail
        pass
    yield asdict(done)


def _storage_id(text: str) -> StorageId:
    """Raises Invalid."""
    from ..objectstore.keys import user_prefix

    try:
        user_prefix(StorageId(text))
    except ValueError:
        raise Invalid(f"not a storage id: {text[:80]!r}; allowed: the name of a directory in the bucket") from None
    return StorageId(text)


@verb("storage finish-upgrade", Nothing, columns=("what", "outdated", "result"))
async def storage_finish_upgrade(admin: Admin, params: Nothing) -> AsyncIterator[Event]:
    """Mark the bucket as having the present format, if no object is outdated.

    It checks every object of the bucket. Afterwards an older obox refuses to start on
    the bucket, and this version refuses older objects. The exit code is 65 while there
    are outdated objects. There is a row for each user who has some. Outdated journal
    objects are deleted when bundles have covered them for delete_delay.
    """
    from ..store.operate import upgrade

    left = upgrade.Left(0, {}, 0, 0)
    async for left in upgrade.finish(admin.store):
        yield Progress("objects looked at", left.objects)
    for sid, count in sorted(left.users.items()):
        yield {"what": admin.name_of(sid), "outdated": count, "result": "run storage upgrade for this user"}
    if left.journal:
        text = "they are deleted when bundles have covered them for delete_delay; restart backends of the older version"
        yield {"what": "journal objects", "outdated": left.journal, "result": text}
    if left.damaged:
        yield {"what": "damaged", "outdated": left.damaged, "result": "left as they are; the log names them"}
    if not left.finished:
        raise Incomplete("some objects are outdated")
    yield {"what": "bucket", "outdated": 0, "result": f"finished: {left.objects} objects have the present format"}
