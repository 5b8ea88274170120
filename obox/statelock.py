"""The lock of a state directory, which one process at a time uses, and the socket of
this process. A leaf.

`obox.parts` takes the lock with `flock` on the file LOCK for as long as the process
runs; others ask here whether a process holds it.
"""

from __future__ import annotations

import fcntl
from pathlib import Path
from typing import Final

LOCK: Final = "lock"
"""The file in a state directory."""
ADMIN: Final = "admin.sock"
"""The socket in a state directory. It serves the admin API to root and the service
user."""


def is_locked(state_dir: Path) -> bool:
    """Return whether a process holds a state directory."""
    try:
        with (state_dir / LOCK).open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
