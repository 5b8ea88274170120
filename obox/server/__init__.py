"""The process around the protocols: signals, log, metrics, watched files, HTTP.

HTTP is in `obox.server.http`, which loads large libraries. A process loads it when the
first client of HTTP connects (`obox.server.later`).

This room knows no protocol of mail, and no mail. It is given callables, and
`obox.backend` connects them.
"""

from obox.server.later import LaterHttp
from obox.server.lifecycle import Lifecycle, LoopLag, Reloaded, raise_open_files_limit
from obox.server.log import once_a_minute, set_level, set_up_logging
from obox.server.memory import MemoryReturn
from obox.server.metrics import Metrics
from obox.server.notify import Notifier
from obox.server.watch import FileWatch

__all__ = [
    "FileWatch",
    "LaterHttp",
    "Lifecycle",
    "LoopLag",
    "MemoryReturn",
    "Metrics",
    "Notifier",
    "Reloaded",
    "once_a_minute",
    "raise_open_files_limit",
    "set_level",
    "set_up_logging",
]
