"""`obox` with a connection to the cluster's directory that a test can cut:

python cut_backend.py FILE serve -c obox.toml

While FILE exists, each operation of this process on the directory fails without an
answer, as if a switch between the process and the directory had failed. Everything else
is unchanged.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from obox import membership
from obox.cluster import Directory, Kind, Row, open_directory
from obox.errors import Unavailable
from obox.main import cli


class Cut:
    """A `Directory` behind a link that can fail."""

    def __init__(self, inner: Directory, file: Path) -> None:
        self._inner, self._file = inner, file

    def _pass(self) -> None:
        if self._file.exists():
            raise Unavailable("the directory does not answer")

    async def get(self, kind: Kind, key: str) -> Row | None:
        self._pass()
        return await self._inner.get(kind, key)

    async def all(self, kind: Kind) -> dict[str, Row]:
        self._pass()
        return await self._inner.all(kind)

    async def put(self, kind: Kind, key: str, value: bytes, timestamp: int) -> None:
        self._pass()
        await self._inner.put(kind, key, value, timestamp)

    async def close(self) -> None:
        await self._inner.close()


def main() -> None:
    file = Path(sys.argv.pop(1))
    opened = open_directory

    async def open_cut(*arguments: Any, **named: Any) -> Directory:
        return Cut(await opened(*arguments, **named), file)

    membership.open_directory = open_cut  # type: ignore[attr-defined]  # this process has a directory that can be cut off
    cli()


if __name__ == "__main__":
    main()
