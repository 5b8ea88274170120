"""The messages between a supervisor and a worker.

A worker gets on standard input the length and a pickle of its `Start`, and then lines.
The end of the input means a stop, so that no worker outlives its supervisor. A worker
sends datagrams as for a service manager (sd_notify(3)), with some lines of obox's own.

    to a worker:  gone NAME NAME ...    these processes have ended
                  reload                read and check the configuration
                  use | drop            use the checked configuration, or forget it
    from it:      READY=1, WATCHDOG=1, STOPPING=1
                  X_RELOAD=prepared | refused TEXT
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from struct import Struct
from typing import Final

from obox.admin import OwnHttp
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
"""A worker checks a configuration within this time, and the supervisor decides about it
within the same time."""
OWN_HTTP: Final = OwnHttp()


@dataclass(frozen=True)
class Start:
    """What a worker gets at its start. config: its own configuration; number: 1 or
    more; workers: how many there are; overrides: settings of the supervisor's command
    line; own_http: the [http] of the unit, which `metacache pull` takes as an example.
    """

    config: Config
    number: int
    workers: int
    overrides: tuple[tuple[str, object], ...] = ()
    own_http: OwnHttp = OWN_HTTP

    @property
    def name(self) -> str:
        return self.config.cluster.backend

    def encode(self) -> bytes:
        data = pickle.dumps(self)
        return LENGTH.pack(len(data)) + data
