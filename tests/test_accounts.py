"""The account of a user, from a line of the passwd-file."""

from __future__ import annotations

from pathlib import Path

import pytest

from obox.accounts import UNLIMITED, Account, Quota, storage_id
from obox.auth import PasswdFile

LINES = (
    "Anna@example.org:{PLAIN}x::::::quota_rule=*:storage=1M\n"
    "smith:{PLAIN}x::::::storage_id=Anna_Old\n"
    "b_c:{PLAIN}x::::::disabled\n"
)


@pytest.fixture
def users(tmp_path: Path) -> PasswdFile:
    (tmp_path / "users").write_text(LINES)
    return PasswdFile(tmp_path / "users")


async def test_an_account_is_made_of_a_line(users: PasswdFile) -> None:
    anna = await users.account("ANNA@example.org")
    assert anna == Account("anna@example.org", storage_id("anna@example.org"), Quota(1 << 20))
    smith = await users.account("smith")
    assert smith == Account("smith", storage_id("anna_old"))
    assert smith.quota == UNLIMITED
    disabled = await users.account("b_c")
    assert disabled is not None
    assert disabled.disabled
    assert await users.account("nobody") is None


@pytest.mark.parametrize(("name", "sid"), [("anna@example.org", "anna@example.org"), ("_ä", "%5f%c3%a4")])
def test_a_storage_id_is_one_element_of_a_key(name: str, sid: str) -> None:
    assert storage_id(name) == sid


async def test_all_that_say_where_mail_lies_agree(users: PasswdFile) -> None:
    for entry in users.users():
        account = await users.account(entry.user)
        assert account is not None
        assert account.storage_id == entry.sid == entry.account.storage_id
