"""Messages to the service manager over $NOTIFY_SOCKET. sd_notify(3), systemd.service(5)
Type=notify-reload.

Without the variable nothing is sent. A message that cannot be sent is not reported,
because serving mail matters more.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path

from obox.unixsocket import short_name


class Notifier:
    """environ: the environment of the process. watchdog_interval_s: how often
    `watchdog` is due; None if there is no watchdog.
    """

    def __init__(self, environ: Mapping[str, str]) -> None:
        path = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + path[1:] if path.startswith("@") else path
        usec = environ.get("WATCHDOG_USEC", "")
        mine = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        # sd_watchdog_enabled(3) recommends half of the limit.
        self.watchdog_interval_s = int(usec) / 2e6 if self._address and mine and usec.isdigit() and int(usec) else None

    def ready(self, status: str = "") -> None:
        self._send("READY=1", f"STATUS={status}" if status else "")

    def reloading(self) -> None:
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000}")

    def stopping(self, status: str = "", *, within_s: float = 0) -> None:
        """within_s: how long the stop may take. The manager waits that long if this is
        more than its TimeoutStopSec.
        """
        more = f"EXTEND_TIMEOUT_USEC={int(within_s * 1e6)}" if within_s else ""
        self._send("STOPPING=1", f"STATUS={status}" if status else "", more)

    def watchdog(self) -> None:
        self._send("WATCHDOG=1")

    def send(self, line: str) -> None:
        """Send another line, `NAME=value`, for a manager that understands it."""
        self._send(line)

    def status(self, text: str) -> None:
        self._send(f"STATUS={text}")

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        message = "\n".join(" ".join(line.split("\n")) for line in lines if line)
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as sock:
                if self._address.startswith("\0"):
                    sock.sendto(message.encode(), self._address)
                else:
                    with short_name(Path(self._address)) as name:
                        sock.sendto(message.encode(), name)
        except OSError:
            pass  # no process listens, or its queue is full
