"""Failures of the disk: all are counted, a few are logged.

Invariant: there is at most a single log line in LOG_INTERVAL_S.
This module does not know what failed.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

log = structlog.get_logger()

LOG_INTERVAL_S = 60.0


class Failures:
    """Call it with the text of a failure. path: where the files are, for the log."""

    def __init__(self, path: str, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._logged_at = -LOG_INTERVAL_S
        self.count = 0

    def __call__(self, error: str) -> None:
        self.count += 1
        if (now := self._clock()) - self._logged_at >= LOG_INTERVAL_S:
            self._logged_at = now
            log.warning("fscache has errors, objects are fetched from the bucket", path=self._path, error=error)
