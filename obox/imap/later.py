"""Handlers of commands that few clients send. Each is imported in a thread when its
command comes for the first time, so that a start does not read its module."""

from __future__ import annotations

import asyncio
from typing import Any

from obox.imap import ast
from obox.imap.machine import Handler
from obox.imap.replies import Reply


class Later:
    """The handler of one command."""

    def __init__(self, command: type[ast.Command]) -> None:
        self._command = command
        self._handler: Handler | None = None

    async def __call__(self, session: Any, command: Any) -> Reply | None:
        if self._handler is None:
            self._handler = (await asyncio.to_thread(_handlers))[self._command]
        return await self._handler(session, command)


def _handlers() -> dict[type[ast.Command], Handler]:
    from obox.imap import contexts
    from obox.imap.commands import (
        compress,
        multisearch,
        quota,
        replace,
        sort,
        thread,
        uidbatches,
        unauthenticate,
        xlist,
    )

    return {
        ast.Compress: compress.compress,
        ast.Unauthenticate: unauthenticate.unauthenticate,
        ast.GetQuota: quota.getquota,
        ast.GetQuotaRoot: quota.getquotaroot,
        ast.SetQuota: quota.setquota,
        ast.Replace: replace.replace,
        ast.Sort: sort.sort,
        ast.Thread: thread.thread,
        ast.MultiSearch: multisearch.esearch,
        ast.UidBatches: uidbatches.uidbatches,
        ast.Xlist: xlist.xlist,
        ast.CancelUpdate: contexts.cancelupdate,
    }
