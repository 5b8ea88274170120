"""`obox` as an older or a newer version of it would be:

    python mixed_backend.py older serve -c obox.toml
    python mixed_backend.py newer serve -c obox.toml

older: the code before bundles had a version of their own. newer: bundles have a second
version, which older code cannot read: 4 bytes stand before the payload. All else is the
product as it is.
"""

from __future__ import annotations

import sys
from typing import Any, Final

from obox.forms import FORMS, Form
from obox.main import cli
from obox.objectstore import ObjectKind
from obox.store.box.bundles import Bundles
from obox.store.env import Env

MARK: Final = b"\x00new"
"""No payload of the first version begins so."""


def older() -> None:
    del FORMS["bundle"]


def newer() -> None:
    FORMS["bundle"] = Form(first=1, reads=2)
    put_new, decode = Env.put_new, Bundles.decode

    async def put_newer(env: Env, key: str, kind: ObjectKind, meta: bytes, payload: bytes) -> bool:
        second = kind in (ObjectKind.BASE, ObjectKind.DIFF) and env.forms.writes("bundle") >= 2
        return await put_new(env, key, kind, meta, MARK + payload if second else payload)

    async def decode_newer(bundles: Bundles, key: str, body: bytes) -> Any:
        meta, payload = await decode(bundles, key, body)
        return meta, payload.removeprefix(MARK)

    Env.put_new = put_newer  # type: ignore[assignment, method-assign]  # this process plays a later version
    Bundles.decode = decode_newer  # type: ignore[assignment, method-assign]  # this process plays a later version


def main() -> None:
    {"older": older, "newer": newer}[sys.argv.pop(1)]()
    cli()


if __name__ == "__main__":
    main()
