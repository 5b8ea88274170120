"""The passwd-file: its lines, quotas, reloads and edits."""

import os
import threading
from pathlib import Path

import pytest

from obox.accounts import Quota
from obox.auth import PasswdFile, Problem, add_user, list_users, rename_user
from obox.auth.passwdfile import parse
from obox.auth.users import parse_quota_rule
from obox.errors import Exists, Invalid, NotFound, Temporary, Unavailable

FILE = """\
# a comment
alice:{PLAIN}a:1000:1000::/home/alice:/bin/sh:userdb_quota_rule=*:storage=1G:messages=100000

Bob@Example.org:{PLAIN}b
carol:{PLAIN}c:::::: nologin reason=moved storage_id=Old-Carol proxy=y host=10.0.0.1
dave:{PLAIN}d::::::disabled
erin:::::::nopassword
"""


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_lines() -> None:
    users, problems = parse(FILE.encode(), "example.org")
    assert problems == ()
    assert list(users) == [f"{name}@example.org" for name in ("alice", "bob", "carol", "dave", "erin")]
    alice, bob, carol, dave, erin = users.values()
    assert alice.quota == Quota(1 << 30, 100_000)
    assert alice.storage_id is None
    assert alice.extra == {}
    assert bob.quota == Quota(None, None)
    assert (carol.nologin, carol.disabled, carol.reason, carol.storage_id) == (True, False, "moved", "old-carol")
    assert carol.extra == {"proxy": "y", "host": "10.0.0.1"}
    assert (dave.nologin, dave.disabled) == (False, True)
    assert erin.nopassword
    assert "{PLAIN}" not in repr(alice)


def test_bad_lines_cost_themselves_alone() -> None:
    data = b"ok:{PLAIN}x\nnocolon\n:{PLAIN}x\na/b:{PLAIN}x\nb\xff:x\nOK:{PLAIN}y\nodd:{ROT13}x\r\n"
    data += b"full:{PLAIN}x::::::quota_rule=*:storage=lots\nid:{PLAIN}x::::::storage_id=../x\nlast:{PLAIN}z"
    users, problems = parse(data)
    assert list(users) == ["ok", "odd", "full", "last"]
    assert users["ok"].password == "{PLAIN}x"
    assert [(problem.line, problem.skipped) for problem in problems] == [
        (2, True),
        (3, True),
        (4, True),
        (5, True),
        (6, True),
        (7, False),
        (8, False),
        (9, True),
    ]
    assert problems[4] == Problem(6, "user ok exists more than once")
    assert problems[5] == Problem(7, "unknown password scheme {ROT13}", skipped=False)


@pytest.mark.parametrize(
    ("rule", "quota"),
    [
        ("*:storage=1G", Quota(1 << 30, None)),
        ("*:storage=100", Quota(100 << 10, None)),
        ("*:storage=10MB:messages=5", Quota(10 << 20, 5)),
        ("*:bytes=5", Quota(5, None)),
        ("*:bytes=1k", Quota(1024, None)),
        ("*:storage=0", Quota(0, None)),
        ("*:messages=7", Quota(None, 7)),
    ],
)
def test_quota_rules(rule: str, quota: Quota) -> None:
    assert parse_quota_rule(rule) == quota


@pytest.mark.parametrize(
    "rule", ["*", "*:", "*:storage=", "*:storage=-1", "*:messages=1k", "*:x=1", "Trash:storage=1M", ""]
)
def test_bad_quota_rules(rule: str) -> None:
    with pytest.raises(Invalid):
        parse_quota_rule(rule)


def test_several_quota_rules() -> None:
    line = "a:::::::quota_rule=*:storage=1G quota_rule2=Trash:storage=+10%% userdb_quota_rule3=*:messages=9"
    users, problems = parse(line.encode())
    assert problems == ()
    assert users["a"].quota == Quota(1 << 30, 9)
    assert users["a"].extra == {"quota_rule2": "Trash:storage=+10%%"}
    users, _ = parse(b"a:::::::quota_rule=*:storage=1G quota_rule2=*:storage=0")
    assert users["a"].quota == Quota(None, None)  # 0 lifts the limit


def test_lookup_and_reload(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "users"
    path.write_text("bob:{PLAIN}x\n")
    users = PasswdFile(path, "x.org", clock=clock)
    assert users.lookup("BOB") is not None
    assert users.lookup("BOB") is users.lookup("bob@X.org")
    assert users.lookup("eve") is None
    assert users.lookup("a/b") is None
    path.write_text("bob:{PLAIN}x\neve:{PLAIN}y\n")
    # The file is looked at once a second at most.
    assert users.lookup("eve") is None
    clock.now += 1.0
    assert users.lookup("eve") is not None
    assert [entry.user for entry in users.users()] == ["bob@x.org", "eve@x.org"]


def test_another_file_takes_its_place_only_once_it_is_read(tmp_path: Path) -> None:
    clock = Clock()
    path, other = tmp_path / "users", tmp_path / "others"
    path.write_text("bob:{PLAIN}x\n")
    users = PasswdFile(path, "x.org", clock=clock)
    assert users.lookup("bob") is not None
    with pytest.raises(Unavailable, match="cannot be read"):
        users.moved(other, "x.org")
    other.touch()
    with pytest.raises(Unavailable, match="is empty"):
        users.moved(other, "x.org")
    other.write_text("eve:{PLAIN}y\n")
    new = users.moved(other, "y.org")
    assert [entry.user for entry in new.users()] == ["eve@y.org"]
    assert [entry.user for entry in users.users()] == ["bob@x.org"]
    # The same file is read again.
    again = users.moved(path, "y.org")
    assert [entry.user for entry in again.users()] == ["bob@y.org"]


def test_same_size_and_time_is_seen(tmp_path: Path) -> None:
    clock = Clock()
    path = tmp_path / "users"
    path.write_text("bob:{PLAIN}x\n")
    users = PasswdFile(path, clock=clock)
    users.lookup("bob")
    other = tmp_path / "new"
    other.write_text("bob:{PLAIN}y\n")
    stat = path.stat()
    os.utime(other, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    other.replace(path)
    clock.now += 1.0
    found = users.lookup("bob")
    assert found is not None
    assert found.password == "{PLAIN}y"


@pytest.mark.parametrize("how", ["gone", "empty", "directory"])
def test_an_unreadable_file_keeps_the_old_users(tmp_path: Path, how: str) -> None:
    clock = Clock()
    path = tmp_path / "users"
    path.write_text("bob:{PLAIN}x\n")
    users = PasswdFile(path, clock=clock)
    users.lookup("bob")
    if how == "empty":
        path.write_text("")
    else:
        path.unlink()
        if how == "directory":
            path.mkdir()
    clock.now += 1.0
    assert users.lookup("bob") is not None
    if how != "directory":
        path.write_text("eve:{PLAIN}x\n")
        clock.now += 1.0
        assert users.lookup("bob") is None
        assert users.lookup("eve") is not None


async def test_never_readable_is_unavailable(tmp_path: Path) -> None:
    clock = Clock()
    users = PasswdFile(tmp_path / "users", clock=clock)
    with pytest.raises(Unavailable):
        users.lookup("bob")
    with pytest.raises(Unavailable):
        await users.lookup_async("bob")
    (tmp_path / "users").write_text("bob:{PLAIN}x\n")
    clock.now += 1.0
    assert await users.lookup_async("bob") is not None


def test_add_user(tmp_path: Path) -> None:
    path = tmp_path / "users"
    add_user(path, "Bob@x.org", "{PLAIN}x")
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == "bob@x.org:{PLAIN}x:::::\n"
    path.write_text("# kept\nbob@x.org:{PLAIN}x\nbad line")
    path.chmod(0o640)
    entry = add_user(path, "eve", "{PLAIN}y", default_domain="x.org", extra="quota_rule=*:storage=1M")
    assert entry.user == "eve@x.org"
    assert path.read_text().startswith("# kept\nbob@x.org:{PLAIN}x\nbad line\neve:{PLAIN}y::::::quota_rule")
    assert path.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["users"]
    assert [entry.quota.storage_bytes for entry in list_users(path, "x.org")] == [None, 1 << 20]
    for twice in ("bob@x.org", "BOB", "eve@x.org"):
        with pytest.raises(Exists):
            add_user(path, twice, "{PLAIN}z", default_domain="x.org")


@pytest.mark.parametrize(
    ("user", "secret", "extra"),
    [
        ("a:b", "{PLAIN}x", ""),
        ("#a", "{PLAIN}x", ""),
        ("a", "{PLAIN}x:y", ""),
        ("a", "{PLAIN}x\nroot:{PLAIN}x", ""),
        ("a", "{PLAIN}x", "x\ny"),
        ("a", "{ROT13}x", ""),
        ("a", "secret", ""),
        ("a/b", "{PLAIN}x", ""),
        ("a", "{PLAIN}x", "quota_rule=*:storage=lots"),
    ],
)
def test_add_user_refuses(tmp_path: Path, user: str, secret: str, extra: str) -> None:
    with pytest.raises(Invalid):
        add_user(tmp_path / "users", user, secret, extra=extra)
    assert os.listdir(tmp_path) == []


def test_add_user_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").write_text("a:{PLAIN}x\n")
    (tmp_path / "users").symlink_to("real")
    add_user(tmp_path / "users", "b", "{PLAIN}y")
    assert (tmp_path / "users").is_symlink()
    assert len(list_users(tmp_path / "real")) == 2


def test_adding_at_once_loses_nobody(tmp_path: Path) -> None:
    path = tmp_path / "users"
    threads = [threading.Thread(target=add_user, args=(path, f"u{n}", "{PLAIN}x")) for n in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {entry.user for entry in list_users(path)} == {f"u{n}" for n in range(12)}


def test_list_users_of_nothing(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        list_users(tmp_path / "users")
    with pytest.raises(Temporary):
        list_users(tmp_path)
    with pytest.raises(Temporary):
        add_user(tmp_path / "no" / "users", "a", "{PLAIN}x")


def test_a_rename_keeps_the_mail_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("# who\nAnna:{PLAIN}a::::::nologin quota_rule=*:storage=1M\nben:{PLAIN}b\n")
    assert rename_user(path, "ANNA", "Smith").storage_id == "anna"
    assert path.read_text() == (
        "# who\nsmith:{PLAIN}a::::::nologin quota_rule=*:storage=1M storage_id=anna\nben:{PLAIN}b\n"
    )
    assert rename_user(path, "smith", "jones").storage_id == "anna", "not smith"
    assert rename_user(path, "jones", "anna").storage_id == "anna", "and back"
    rename_user(path, "ben", "ben2")
    assert path.read_text().endswith("\nben2:{PLAIN}b::::::storage_id=ben\n")
    before = path.read_text()
    with pytest.raises(Exists):
        rename_user(path, "anna", "Ben2")
    with pytest.raises(NotFound):
        rename_user(path, "zoe", "eve")
    for bad in ("a/b", "a:b", "", "#x"):
        with pytest.raises(Invalid):
            rename_user(path, "anna", bad)
    assert path.read_text() == before


def test_a_name_that_no_extra_field_can_hold_is_not_renamed(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("anna smith:{PLAIN}a\n")
    with pytest.raises(Invalid):
        rename_user(path, "anna smith", "anna")
    assert path.read_text() == "anna smith:{PLAIN}a\n"


def test_nobody_opens_mail_that_another_line_claims(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("old:{PLAIN}x\nnew:{PLAIN}y::::::storage_id=old\nben:{PLAIN}b\n")
    users = PasswdFile(path)
    with pytest.raises(Unavailable, match="new"):
        users.lookup("Old")
    assert users.lookup("new") is not None
    assert [entry.user for entry in users.users()] == ["ben", "new"]
    assert [(problem.line, problem.skipped) for problem in users.problems] == [(1, True)]
    path.write_text("old:{PLAIN}x::::::storage_id=old\nnew:{PLAIN}y::::::storage_id=old\n")
    users.expect_change()
    assert [entry.user for entry in users.users()] == ["new", "old"], "who shares on purpose says so"


def test_a_name_of_claimed_mail_is_not_given_again(tmp_path: Path) -> None:
    path = tmp_path / "users"
    path.write_text("old:{PLAIN}x\nben:{PLAIN}b\n")
    rename_user(path, "old", "new")
    with pytest.raises(Exists, match="new's"):
        add_user(path, "Old", "{PLAIN}z")
    assert add_user(path, "old", "{PLAIN}z", extra="storage_id=old-2").storage_id == "old-2"
    with pytest.raises(Exists, match="ben's"):
        add_user(path, "eve", "{PLAIN}z", extra="storage_id=ben")
    assert [entry.user for entry in list_users(path)] == ["ben", "new", "old"]
