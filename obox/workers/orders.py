"""What a supervisor and a worker say to each other.

To a worker, over its standard input: the length and a pickle of its `Start`, then
lines. The end of the input is a stop, so that no worker outlives its supervisor. From a
worker: datagrams as for a service manager (sd_notify(3)), with lines of our own.

    to a worker:  gone NAME NAME ...    processes that have ended
                  reload                read and check the configuration
                  use | drop            use what was checked, or not
    from it:      READY=1, WATCHDOG=1, STOPPING=1
                  X_RELOAD=prepared | refused TEXT
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from struct import Struct
from typing import Final

from obox.config import Config

LENGTH: Final = Struct(">I")
GONE: Final = "gone"
RELOAD: Final = "reload"
USE: Final = "use"
DROP: Final = "drop"
ANSWER: Final = "X_RELOAD"
PREPARED: Final = "prepared"
REFUSED: Final = "refused"
ANSWER_S: Final = 30.0
"""For a worker to check a configuration, and for the supervisor to decide about it."""


@dataclass(frozen=True)
class Start:
    """What a worker is started with. config: its own; number: from 1 on; workers: how
    many there are; overrides: settings of the supervisor's command line.
    """

    config: Config
    number: int
    workers: int
    overrides: tuple[tuple[str, object], ...] = ()

    @property
    def name(self) -> str:
        return self.config.cluster.backend

    def encode(self) -> bytes:
        data = pickle.dumps(self)
        return LENGTH.pack(len(data)) + data
