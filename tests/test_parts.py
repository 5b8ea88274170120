"""Rooms are opened in order, closed in reverse, and closed again where one of them
cannot be opened."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from adminservice import write_config

from obox import parts
from obox.backend import Backend
from obox.config import load
from obox.errors import ConfigError
from obox.net import ListenError


def config(home: Path, **environ: str) -> Any:
    return load(str(write_config(home, "memory://")), environ)


async def test_one_process_has_the_rooms_until_it_closes_them(tmp_path: Path) -> None:
    opened = await parts.open(config(tmp_path))
    with pytest.raises(ConfigError, match="another backend uses it"):
        await parts.open(config(tmp_path))
    await opened.close()
    again = await parts.open(config(tmp_path))
    await again.close()
    await again.close()


async def test_they_are_closed_in_reverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    for name in ("Metacache", "Fscache", "Authenticator"):
        room = getattr(parts, name)

        def close(self: Any, name: str = name, real: Any = room.close) -> Any:
            closed.append(name)
            return real(self)

        monkeypatch.setattr(room, "close", close)
    await (await parts.open(config(tmp_path))).close()
    assert closed == ["Authenticator", "Fscache", "Metacache"]


async def test_a_close_that_fails_leaves_none_of_the_others_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:

        async def fails(self: object) -> None:
            raise OSError("no disk")

        patched.setattr(parts.Fscache, "close", fails)
        opened = await parts.open(config(tmp_path))
        with pytest.raises(OSError, match="no disk"):
            await opened.close()
    await (await parts.open(config(tmp_path))).close()


async def test_what_was_open_is_closed_where_the_next_room_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise ConfigError("no such users")

    with monkeypatch.context() as patched:
        patched.setattr(parts, "PasswdFile", fails)
        with pytest.raises(ConfigError, match="no such users"):
            await parts.open(config(tmp_path))
    await (await parts.open(config(tmp_path))).close()


async def test_an_address_that_cannot_be_had_closes_them(tmp_path: Path) -> None:
    taken = config(tmp_path, OBOX_IMAP__LISTEN="192.0.2.1:1143")
    with pytest.raises(ListenError):
        await Backend(taken, environ={}).run(signals=False)
    await (await parts.open(taken)).close()
