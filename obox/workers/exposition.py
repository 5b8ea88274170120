"""The metrics of all workers as one text: each sample has the label `worker`.

This module adds nothing up, since a query can do that: `sum without (worker) (…)`. A
worker that does not answer within `SCRAPE_S` is left out of the text.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from obox.server.exposition import CONTENT_TYPE

from . import ask
from .ask import Place

SCRAPE_S: Final = 2.0
"""A worker must answer within this time."""
KEPT_S: Final = 1.0
"""Every scrape within this time gets the same text. A new text costs every worker some
5 ms."""
_SAMPLE: Final = re.compile(rb"^([A-Za-z_:][A-Za-z0-9_:]*)(?:\{(.*)\})? (.*)$")


class _Named(Place, Protocol):
    @property
    def name(self) -> str: ...


class Exposition:
    """See the module's text. name: that of this process; own: returns its metrics."""

    def __init__(self, name: str, own: Callable[[], bytes], workers: Callable[[], Sequence[_Named]]) -> None:
        self._name = name
        self._own = own
        self._workers = workers
        self._text, self._at = b"", -KEPT_S
        self._lock = asyncio.Lock()

    def route(self) -> BaseRoute:
        async def show(request: Request) -> Response:
            async with self._lock:
                if time.monotonic() - self._at >= KEPT_S:
                    self._text, self._at = await self._make(), time.monotonic()
                return Response(self._text, media_type=CONTENT_TYPE)

        return Route("/metrics", show)

    async def _make(self) -> bytes:
        workers = self._workers()
        texts = await asyncio.gather(*map(_scrape, workers))
        return merge({self._name: self._own(), **dict(zip([worker.name for worker in workers], texts, strict=True))})


async def _scrape(worker: Place) -> bytes:
    try:
        async with asyncio.timeout(SCRAPE_S):
            return await ask.get(worker.home / "http.sock", "/metrics")
    except (OSError, TimeoutError):
        return b""


def merge(texts: dict[str, bytes]) -> bytes:
    """Join the texts of processes, by name. The samples of a metric stay together."""
    heads: dict[bytes, list[bytes]] = {}
    samples: dict[bytes, list[bytes]] = {}
    for name, text in texts.items():
        label = b'worker="' + name.encode() + b'"'
        family = b""
        for line in text.splitlines():
            if line.startswith(b"# "):
                family = line.split(b" ", 3)[2]
                if line not in heads.setdefault(family, []) and len(heads[family]) < 2:
                    heads[family].append(line)
            elif found := _SAMPLE.match(line):
                labels = label if not found[2] else label + b"," + found[2]
                samples.setdefault(family, []).append(found[1] + b"{" + labels + b"} " + found[3])
    lines = [line for family, head in heads.items() for line in (*head, *samples.get(family, ()))]
    return b"\n".join(lines) + b"\n"
