"""Loads the verbs.

A start of a backend does not need them, and they are a tenth of its imports. So they
are imported when the first request comes, in a thread.
"""

from __future__ import annotations

import asyncio
import threading

from .table import TABLE, Verb

_loaded = threading.Event()


def verbs() -> dict[str, Verb]:
    """Return the table of all verbs, by API name."""
    from . import (  # noqa: F401 - each adds its verbs to the table
        caches,
        cluster,
        clusterbackends,
        clustergroups,
        clustersites,
        events,
        mailboxes,
        mails,
        pull,
        removal,
        repair,
        sessions,
        storage,
        upgrade,
        users,
    )

    return TABLE


async def loaded() -> dict[str, Verb]:
    """Return the table of all verbs. The first call loads them in a thread."""
    if not _loaded.is_set():
        await asyncio.to_thread(verbs)
        _loaded.set()
    return TABLE
