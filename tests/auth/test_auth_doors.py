"""The length of a user name is checked before the name is normalised, whichever way it
comes in: normalisation takes quadratic time in combining marks."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from obox.auth import Authenticator, AuthFailed, PasswdFile, add_user, edit_user, rename_user
from obox.auth.passwdfile import parse
from obox.errors import Invalid
from obox.lmtp.delivery import StoreDeliverer

MARKS = "\u0301" * 16_384 + "\u0316" * 16_384
NORMALISED_CHARS_MAX = 600


@pytest.fixture(autouse=True)
def measured(monkeypatch: pytest.MonkeyPatch) -> None:
    normalize = unicodedata.normalize

    def counted(form: Any, text: str) -> str:
        assert len(text) <= NORMALISED_CHARS_MAX, f"{len(text)} characters are normalised"
        return normalize(form, text)

    monkeypatch.setattr(unicodedata, "normalize", counted)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "users"
    path.write_text("bob:{PLAIN}x\n")
    return path


@pytest.mark.parametrize("name", [MARKS, "a" + MARKS, "a@" + MARKS, MARKS + "@d", "a" * 100_000, "ﷺ" * 50_000])
async def test_login_and_delivery(path: Path, name: str) -> None:
    users = PasswdFile(path)
    assert users.lookup(name) is None
    assert await users.lookup_async(name) is None
    auth = Authenticator(users)
    with pytest.raises(AuthFailed):
        await auth.verify(name, "x", remote="192.0.2.1")
    auth.close()
    deliverer = StoreDeliverer(None, users, mail_bytes_max=1)
    with pytest.raises(Exception, match="no user"):
        await deliverer.recipient("x", name, "", None)


EDITS: list[Callable[[Path], object]] = [
    lambda path: add_user(path, "a" + MARKS, "{PLAIN}x"),
    lambda path: add_user(path, "a", "{PLAIN}x", extra=f"storage_id=a{MARKS}"),
    lambda path: rename_user(path, "bob", "a" + MARKS),
    lambda path: rename_user(path, "a" + MARKS, "bob"),
    lambda path: edit_user(path, "a" + MARKS, lambda fields: fields),
]


@pytest.mark.parametrize("edit", EDITS)
def test_edits(path: Path, edit: Callable[[Path], object]) -> None:
    with pytest.raises(Invalid):
        edit(path)
    assert path.read_text() == "bob:{PLAIN}x\n"


def test_lines_of_the_file() -> None:
    users, problems = parse(f"a{MARKS}:x\nb:{{PLAIN}}x::::::storage_id=b{MARKS}\nc:{{PLAIN}}x\n".encode())
    assert list(users) == ["c"]
    assert [problem.line for problem in problems] == [1, 2]
    assert all(len(problem.text) < 200 for problem in problems)
