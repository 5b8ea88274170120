"""Free ports for programs whose configuration names the port, and that may be stopped
and started again.

The ports are below the range from which the system takes ports for outgoing connections
and for port 0. So while a program is down no other process gets its port by chance.
The processes of a test run share the ports out, because a port that one of them has
given to a program that does not listen yet looks free to the others.
"""

from __future__ import annotations

import os
import random
import socket
from typing import Final

FIRST: Final = 12_000
LAST: Final = 21_999
"""SeaweedFS takes port + 10,000 too; Linux' own range begins at 32,768."""

WORKERS: Final = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
WORKER: Final = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))

_random = random.Random(os.getpid())
_given: set[int] = set()


def free_port(*, also: int = 0) -> int:
    """Return a port on which nobody listens. A port is never returned twice. also: the
    port + also is free as well."""
    for _ in range(1000):
        port = _random.randrange(FIRST + WORKER, LAST + 1, WORKERS)
        wanted = {port, port + also}
        if not wanted & _given and all(map(_is_free, wanted)):
            _given.update(wanted)
            return port
    raise OSError(f"no free port between {FIRST} and {LAST}")


def _is_free(port: int) -> bool:
    with socket.socket() as sock:
        # Ports of connections that have ended are not in use by a listener.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
