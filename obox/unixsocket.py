"""Names of unix sockets: the kernel has 108 bytes for a name, and paths may be longer.
unix(7).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

NAME_BYTES_MAX: Final = 107


@contextmanager
def short_name(path: Path) -> Iterator[str]:
    """A name for the socket at `path` that fits, however deep the path is.

    It is valid inside the block. Raises OSError.
    """
    if len(os.fsencode(path)) <= NAME_BYTES_MAX:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
