"""ACL and shared mailboxes over a socket: RFC 4314, RFC 8440, docs/sharing.md."""

import random
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from harness import STORES, Client, Passwords, Running, serving_real

from obox.accounts import Quota, storage_id
from obox.sharing import across
from obox.store import rights as limits
from obox.store.operate.users import delete

MAIL = b"From: a@example.org\r\nSubject: one\r\n\r\nbody\r\n"
GONE = b"NO [NONEXISTENT] No mailbox '%b'"


@pytest.fixture(params=STORES)
async def running(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Running]:
    async with STORES[request.param](tmp_path) as running:
        yield running


async def pair(running: Running, rights: str = "", mailbox: str = "Work") -> tuple[Client, Client]:
    """Return anna, who has a mailbox with a mail, and ben, to whom it is shared."""
    anna, ben = await running.client(login="anna"), await running.client(login="ben")
    await anna.ok(f"CREATE {mailbox}")
    await anna.append(mailbox, MAIL)
    if rights:
        await anna.ok(f"SETACL {mailbox} ben {rights}")
    return anna, ben


async def said(client: Client, command: str) -> bytes:
    return (await client.cmd(command))[-1]


async def listed(client: Client, pattern: str) -> list[bytes]:
    return [line.rpartition(b'"/" ')[2] for line in (await client.ok(f'LIST "" "{pattern}"'))[:-1]]


async def test_acl_of_own_mailboxes(running: Running) -> None:
    anna = await running.client(login="anna")
    capability = (await anna.ok("CAPABILITY"))[0].split()
    assert {b"ACL", b"RIGHTS=texk", b"LIST-MYRIGHTS"} <= set(capability)
    assert (await anna.ok("MYRIGHTS INBOX"))[0] == b"* MYRIGHTS INBOX lrswipkxteacd"
    assert (await anna.ok("GETACL INBOX"))[0] == b"* ACL INBOX anna lrswipkxteacd"
    await anna.ok("SETACL INBOX ben lr")
    await anna.ok("SETACL INBOX anyone l")
    await anna.ok("SETACL INBOX ben +sc")
    await anna.ok("SETACL INBOX -ben w")
    await anna.ok("SETACL INBOX BEN -k")
    want = b"* ACL INBOX anna lrswipkxteacd -ben w anyone l ben lrsxc"
    assert (await anna.ok("GETACL INBOX"))[0] == want
    await anna.ok("DELETEACL INBOX anyone")
    await anna.ok("SETACL INBOX -ben -w")
    await anna.ok("SETACL INBOX never.seen dp")
    assert (await anna.ok("GETACL INBOX"))[0] == b"* ACL INBOX anna lrswipkxteacd ben lrsxc never.seen pted"
    assert (await anna.ok("LISTRIGHTS INBOX ben"))[0] == b'* LISTRIGHTS INBOX ben "" l r s w i p k x t e a c d'
    assert (await anna.ok("LISTRIGHTS INBOX owner"))[0] == b"* LISTRIGHTS INBOX owner lrswipkxteacd"
    for command in ("GETACL", "MYRIGHTS"):
        assert await said(anna, f"{command} nowhere") == GONE % b"nowhere"
    assert (await said(anna, "SETACL nowhere ben l")) == GONE % b"nowhere"
    assert (await said(anna, "SETACL INBOX ben lq")).startswith(b"BAD No such right: q")
    assert (await said(anna, 'SETACL INBOX "a/b" l')).startswith(b"NO [CANNOT]")
    assert (await said(anna, 'SETACL INBOX "" l')).startswith(b"NO [LIMIT]")
    assert (await said(anna, f"SETACL INBOX {'b' * 256} l")).startswith(b"NO [LIMIT]")


@pytest.mark.parametrize("who", ["owner", "anna", "-anna", "-owner"])
async def test_the_owner_keeps_all_rights(running: Running, who: str) -> None:
    anna = await running.client(login="anna")
    assert (await said(anna, f"SETACL INBOX {who} lr")).startswith(b"NO [CANNOT]")
    assert (await said(anna, f"DELETEACL INBOX {who}")).startswith(b"NO [CANNOT]")
    await anna.ok("SETACL INBOX anna lrswipkxteacd")
    assert (await anna.ok("GETACL INBOX"))[0] == b"* ACL INBOX anna lrswipkxteacd"


async def test_a_shared_mailbox_is_listed_and_read(running: Running) -> None:
    anna, ben = await pair(running, "lr")
    assert (await ben.ok("NAMESPACE"))[0] == b'* NAMESPACE (("" "/")) (("shared/" "/")) NIL'
    assert b"shared/anna/Work" in await listed(ben, "*")
    assert await listed(ben, "shared/%") == [b"shared/anna"]
    assert await listed(ben, "shared/anna/%") == [b"shared/anna/Work"]
    rights = await ben.ok('LIST "" (shared/anna/* INBOX) RETURN (MYRIGHTS STATUS (MESSAGES))')
    assert b"* MYRIGHTS shared/anna/Work lr" in rights
    assert b"* MYRIGHTS INBOX lrswipkxteacd" in rights
    assert b"* STATUS shared/anna/Work (MESSAGES 1)" in rights
    assert (await ben.ok("SELECT shared/anna/Work"))[-1] == b"OK [READ-ONLY] Select completed"
    got = await ben.ok("FETCH 1 (BODY[] FLAGS)")
    assert MAIL in got[0]
    assert b"\\Seen" not in got[0]
    assert await said(ben, "STORE 1 +FLAGS (\\Seen)") == b"NO [READ-ONLY] Mailbox was opened for reading only"
    await ben.ok("SUBSCRIBE shared/anna/Work")
    assert b'* LSUB () "/" shared/anna/Work' in await ben.ok('LSUB "" "shared/*"')
    assert await listed(anna, "shared/*") == []


async def test_each_flag_needs_its_right(running: Running) -> None:
    anna, ben = await pair(running, "lrs")
    await anna.ok("SELECT Work")
    await anna.ok("STORE 1 +FLAGS ($Label \\Flagged)")
    lines = await ben.ok("SELECT shared/anna/Work")
    assert lines[-1].startswith(b"OK [READ-WRITE]")
    assert [line for line in lines if b"PERMANENTFLAGS" in line] == [b"* OK [PERMANENTFLAGS (\\Seen)] Flags permitted"]
    assert (await said(ben, "STORE 1 +FLAGS (\\Deleted)")).startswith(b"NO [NOPERM]")
    assert (await ben.ok("STORE 1 +FLAGS (\\Deleted \\Seen)"))[0] == b"* 1 FETCH (FLAGS (\\Flagged \\Seen $Label))"
    assert (await ben.ok("STORE 1 FLAGS (\\Answered)"))[0] == b"* 1 FETCH (FLAGS (\\Flagged $Label))"
    await ben.ok("FETCH 1 BODY[]")
    assert b"FLAGS (\\Flagged \\Seen $Label)" in (await ben.ok("FETCH 1 FLAGS"))[0], "the right s sets it"
    await anna.ok("SETACL Work ben lrwt")
    lines = await ben.ok("STORE 1 FLAGS (\\Deleted other)")
    assert lines[0] == b"* FLAGS (\\Answered \\Flagged \\Deleted \\Seen \\Draft $Label other)"
    got = (await ben.ok("FETCH 1 FLAGS"))[0]
    assert set(got.partition(b"(FLAGS (")[2].rstrip(b")").split()) == {b"\\Seen", b"\\Deleted", b"other"}
    assert (await said(ben, "STORE 1 -FLAGS (\\Seen)")).startswith(b"NO [NOPERM]")
    assert (await said(ben, "EXPUNGE")).startswith(b"NO [NOPERM]")
    await ben.ok("CLOSE")
    assert (await anna.ok("FETCH 1 UID"))[0].startswith(b"* 1 FETCH"), "CLOSE expunges nothing without e"
    await anna.ok("SETACL Work ben lrte")
    await ben.ok("SELECT shared/anna/Work")
    assert (await ben.ok("EXPUNGE"))[0] == b"* 1 EXPUNGE"


async def test_append_copy_and_move_across_owners(running: Running) -> None:
    anna, ben = await pair(running, "lri")
    await ben.ok("CREATE Mine")
    await ben.append("Mine", MAIL.replace(b"one", b"ben1"), "(\\Seen \\Flagged) ")
    await ben.append("Mine", MAIL.replace(b"one", b"ben2"), '() "01-Jan-2020 10:00:00 +0200" ')
    await ben.append("shared/anna/Work", MAIL.replace(b"one", b"two"), "(\\Seen) ")
    await ben.ok("SELECT Mine")
    assert b"COPYUID" in (await ben.ok("COPY 1:2 shared/anna/Work"))[-1]
    await anna.ok("SELECT Work")
    for line in (await anna.ok("FETCH 2:4 FLAGS"))[:-1]:
        flags = line.partition(b"(FLAGS (")[2].rstrip(b")").split()
        assert set(flags) <= {b"\\Recent"}, "a flag needs its right here, too"
    got = await anna.ok("FETCH 3:4 (INTERNALDATE BODY.PEEK[HEADER.FIELDS (Subject)])")
    assert b"ben1" in got[0]
    assert b"ben2" in got[1]
    assert b" 1-Jan-2020 10:00:00 +0200" in got[1]
    assert any(b"COPYUID" in line for line in await ben.ok("MOVE 2 shared/anna/Work"))
    assert len((await ben.ok("SEARCH ALL"))[0].split()) == 3
    # Now ben copies from anna's mailbox into his own, and within her mail.
    await ben.ok("SELECT shared/anna/Work")
    assert (await ben.ok("COPY 1 Mine"))[-1].startswith(b"OK [COPYUID")
    assert (await said(ben, "MOVE 1 Mine")).startswith(b"NO [NOPERM]")
    assert await said(ben, "COPY 1 shared/anna/Trash") == b"NO [TRYCREATE] No mailbox 'shared/anna/Trash'"
    assert await said(ben, "COPY 1 nowhere") == b"NO [TRYCREATE] No mailbox 'nowhere'"
    await anna.ok("SETACL Trash ben li")
    assert (await ben.ok("COPY 1:2 shared/anna/Trash"))[-1].startswith(b"OK [COPYUID")
    await anna.ok("SETACL Trash ben lrswti")
    assert (await ben.ok("COPY 1:2 shared/anna/Trash"))[-1].startswith(b"OK [COPYUID")
    assert (await anna.ok("STATUS Trash (MESSAGES)"))[0] == b"* STATUS Trash (MESSAGES 4)"
    await anna.ok("SETACL Work ben +te")
    await ben.ok("MOVE 1 Mine")
    assert (await ben.ok("STATUS Mine (MESSAGES)"))[0] == b"* STATUS Mine (MESSAGES 3)"


async def test_a_copy_to_another_user_is_bounded(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    _, ben = await pair(running, "lri")
    await ben.append("INBOX", MAIL)
    await ben.append("INBOX", MAIL)
    await ben.ok("SELECT INBOX")
    monkeypatch.setattr(across, "MAILS_MAX", 1)
    assert (await said(ben, "COPY 1:2 shared/anna/Work")).startswith(b"NO [LIMIT]")
    await ben.ok("COPY 1 shared/anna/Work")


async def test_the_owners_quota_counts(running: Running) -> None:
    anna, ben = await pair(running, "lrite")
    users = running.imap.context.authenticator
    assert isinstance(users, Passwords)
    users.quota = Quota(storage_bytes=3 * len(MAIL))
    await ben.append("shared/anna/Work", MAIL)
    await ben.append("INBOX", MAIL)
    await ben.append("INBOX", MAIL)
    big = MAIL + b"x" * 100
    lines = await ben.cmd(b"APPEND shared/anna/Work {%d+}\r\n%b" % (len(big), big))
    assert lines[-1].startswith(b"NO [OVERQUOTA]")
    # A mail that is freed in ben's own quota makes no room in anna's.
    await ben.ok("SELECT INBOX")
    lines = await ben.cmd(b"REPLACE 1 shared/anna/Work {%d+}\r\n%b" % (len(big), big))
    assert lines[-1].startswith(b"NO [OVERQUOTA]")
    await ben.ok("COPY 1 shared/anna/Work")
    assert (await said(ben, "COPY 1 shared/anna/Work")).startswith(b"NO [OVERQUOTA]")
    await anna.ok("NOOP")


async def test_create_delete_and_rename(running: Running) -> None:
    anna, ben = await pair(running, "lr")
    assert (await said(ben, "CREATE shared/anna/Work/sub")).startswith(b"NO [NOPERM]")
    assert await said(ben, "CREATE shared/anna/Other") == GONE % b"shared/anna/Other"
    await anna.ok("SETACL Work ben lrk")
    await ben.ok("CREATE shared/anna/Work/sub")
    assert (await anna.ok("GETACL Work/sub"))[0] == b"* ACL Work/sub anna lrswipkxteacd ben lrkc"
    await anna.ok("CREATE Work/private")
    assert (await anna.ok("GETACL Work/private"))[0] == b"* ACL Work/private anna lrswipkxteacd"
    assert await listed(ben, "shared/anna/*") == [b"shared/anna/Work", b"shared/anna/Work/sub"]
    assert (await said(ben, "DELETE shared/anna/Work/sub")).startswith(b"NO [NOPERM]")
    assert await said(ben, "DELETE shared/anna/Work/private") == GONE % b"shared/anna/Work/private"
    await anna.ok("SETACL Work/sub ben lrkx")
    await ben.ok("RENAME shared/anna/Work/sub shared/anna/Work/new")
    assert (await said(ben, "RENAME shared/anna/Work/new mine")).startswith(b"NO [CANNOT]")
    await ben.ok("CREATE mine")
    assert (await said(ben, "RENAME mine shared/anna/Work/mine")).startswith(b"NO [CANNOT]")
    await ben.ok("DELETE shared/anna/Work/new")
    assert await listed(ben, "shared/anna/*") == [b"shared/anna/Work"]
    for name in ("shared", "shared/anna", "shared/ben/x", "shared/nobody/x", "shared/gone/x"):
        assert (await said(ben, f"CREATE {name}")) == GONE % name.encode()


async def test_a_parent_with_hidden_children_is_not_renamed(running: Running) -> None:
    anna, ben = await pair(running, "lrkx")
    await anna.ok("CREATE Work/private")
    await anna.ok("CREATE Top")
    await anna.ok("SETACL Top ben lk")
    assert (await said(ben, "RENAME shared/anna/Work shared/anna/Top/Work")).startswith(b"NO [NOPERM]")
    await anna.ok("DELETE Work/private")
    await ben.ok("RENAME shared/anna/Work shared/anna/Top/Work")


async def test_negative_rights_and_everybody(running: Running) -> None:
    anna, ben = await pair(running)
    await anna.ok("SETACL Work anyone lr")
    await ben.ok("SELECT shared/anna/Work")
    assert await listed(ben, "shared/anna/*") == [b"shared/anna/Work"], "opened once, it is listed"
    await anna.ok("SETACL Work -ben r")
    assert (await said(ben, "STATUS shared/anna/Work (MESSAGES)")).startswith(b"NO [NOPERM]")
    assert (await ben.ok("MYRIGHTS shared/anna/Work"))[0] == b"* MYRIGHTS shared/anna/Work l"
    await anna.ok("SETACL Work -anyone l")
    assert await said(ben, "MYRIGHTS shared/anna/Work") == GONE % b"shared/anna/Work"
    assert await listed(ben, "shared/*") == []


async def test_who_administers_a_shared_mailbox(running: Running) -> None:
    anna, ben = await pair(running, "lr")
    for command in ("GETACL {}", "SETACL {} ben +a", "DELETEACL {} ben", "LISTRIGHTS {} ben"):
        assert (await said(ben, command.format("shared/anna/Work"))).startswith(b"NO [NOPERM]")
    await anna.ok("SETACL Work ben +a")
    assert (await ben.ok("GETACL shared/anna/Work"))[0] == b"* ACL shared/anna/Work anna lrswipkxteacd ben lra"
    assert (await said(ben, "SETACL shared/anna/Work anna l")).startswith(b"NO [CANNOT]")
    await ben.ok("SETACL shared/anna/Work ben +w")
    await ben.ok("DELETEACL shared/anna/Work ben")
    assert await said(ben, "GETACL shared/anna/Work") == GONE % b"shared/anna/Work"


COMMANDS = (
    "SELECT {}", "EXAMINE {}", "STATUS {} (MESSAGES)", "DELETE {}", "RENAME {} shared/anna/other", "SUBSCRIBE {}",
    "GETACL {}", "SETACL {} ben lr", "DELETEACL {} ben", "LISTRIGHTS {} ben", "MYRIGHTS {}", "CREATE {}",
    "CREATE {}/below", "GETMETADATA {} /private/x", 'SETMETADATA {} (/private/x "y")', "GETQUOTAROOT {}",
    "APPEND {} {{1+}}\r\nx", "COPY 1 {}", "MOVE 1 {}", "REPLACE 1 {} {{1+}}\r\nx",
    "APPEND INBOX CATENATE (URL \"/{};UID=1\")",
)  # fmt: skip


@pytest.mark.parametrize("command", COMMANDS)
async def test_what_is_hidden_is_answered_as_what_is_not_there(running: Running, command: str) -> None:
    """RFC 4314 §6: without `l` and the right that a command needs, nobody learns that a
    mailbox exists, nor that a user does who shares nothing."""
    anna, ben = await pair(running)
    await anna.ok("SETACL INBOX ben lr")
    await ben.append("INBOX", MAIL)
    answers = set()
    for name in ("shared/anna/Work", "shared/anna/None", "shared/nobody/Work", "shared/ben/INBOX"):
        await ben.ok("SELECT INBOX")
        lines = await ben.cmd(command.format(name))
        answers.add(b"|".join(lines).replace(name.encode(), b"X"))
    assert len(answers) == 1, answers
    assert b"OK" not in answers.pop().rpartition(b"|")[2][:2]
    assert (await anna.ok("STATUS Work (MESSAGES)"))[0] == b"* STATUS Work (MESSAGES 1)"


async def test_list_shows_nothing_that_is_hidden(running: Running) -> None:
    anna, ben = await pair(running, "r")
    assert [name for name in await listed(ben, "*") if b"shared" in name] == []
    # The right r is enough for a user who knows the name.
    await ben.ok("SELECT shared/anna/Work")
    assert [name for name in await listed(ben, "*") if b"shared" in name] == []
    assert await said(ben, "SUBSCRIBE shared/anna/Work") == GONE % b"shared/anna/Work"
    assert (await said(ben, "DELETE shared/anna/Work")) == GONE % b"shared/anna/Work"
    await anna.ok("NOOP")


async def test_a_session_whose_right_is_revoked_is_closed(running: Running) -> None:
    anna, ben = await pair(running, "lrswte")
    await ben.ok("SELECT shared/anna/Work")
    await anna.ok("DELETEACL Work ben")
    lines = await ben.cmd("FETCH 1 (FLAGS BODY[])")
    assert lines == [b"* OK [CLOSED] Mailbox was deleted", b"NO [NONEXISTENT] Mailbox was deleted"]
    assert (await said(ben, "FETCH 1 FLAGS")).startswith(b"BAD ")
    # A session in IDLE leaves the mailbox at once.
    await anna.ok("SETACL Work ben lr")
    await ben.ok("SELECT shared/anna/Work")
    ben.send("i IDLE\r\n")
    await ben.until(b"+ ")
    await anna.ok("SETACL Work -ben r")
    assert (await ben.until(b"* OK [CLOSED]"))[-1].startswith(b"* OK [CLOSED]")
    await anna.append("Work", MAIL)
    ben.send("DONE\r\n")
    assert await ben.until(b"i ") == [b"i OK Idle completed"]
    # A right to change flags that goes away holds at once.
    await anna.ok("DELETEACL Work -ben")
    await anna.ok("SETACL Work ben lrw")
    await ben.ok("SELECT shared/anna/Work")
    await ben.ok("STORE 1 +FLAGS (\\Flagged)")
    await anna.ok("SETACL Work ben lr")
    assert (await said(ben, "STORE 1 -FLAGS (\\Flagged)")).startswith(b"NO [NOPERM]")


async def test_changes_of_the_owner_are_seen(running: Running) -> None:
    anna, ben = await pair(running, "lr")
    await ben.ok("SELECT shared/anna/Work")
    await anna.append("Work", MAIL)
    assert b"* 2 EXISTS" in await ben.ok("NOOP")
    recent = await anna.ok("SELECT Work")
    assert b"* 2 RECENT" in recent, "a visitor does not take \\Recent from the owner"
    assert (await ben.ok("UID SEARCH ALL"))[0] == b"* SEARCH 1 2"
    assert (await ben.ok("UID SORT (SUBJECT) UTF-8 ALL"))[0] == b"* SORT 1 2"
    await anna.ok("RENAME Work Renamed")
    assert (await ben.ok("UID SEARCH ALL"))[0] == b"* SEARCH 1 2", "the mailbox is the same"
    await anna.ok("DELETE Renamed")
    assert (await ben.cmd("NOOP"))[0].startswith(b"* OK [CLOSED]")


async def test_own_mailboxes_that_had_such_names_before(running: Running) -> None:
    _, ben = await pair(running, "lr")
    user = await running.store.open_user("ben", storage_id("ben"))
    await user.create("shared/anna/Work")
    await user.create("shared/old")
    assert await said(ben, "STATUS shared/anna/Work (MESSAGES)") == b"OK Status completed"
    assert (await ben.ok("STATUS shared/anna/Work (MESSAGES)"))[0].endswith(b"(MESSAGES 0)")
    await ben.ok("RENAME shared/old old")
    await ben.ok("DELETE shared/anna/Work")
    assert (await ben.ok("STATUS shared/anna/Work (MESSAGES)"))[0].endswith(b"(MESSAGES 1)")


async def test_limits(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    anna, ben = await pair(running)
    monkeypatch.setattr(limits, "ENTRIES_MAX", 2)
    await anna.ok("SETACL Work ben lr")
    await anna.ok("SETACL Work a lr")
    assert (await said(anna, "SETACL Work b lr")).startswith(b"NO [LIMIT]")
    await anna.ok("SETACL Work a l")
    monkeypatch.setattr(limits, "ALL_ENTRIES_MAX", 2)
    await anna.ok("DELETEACL Work a")
    assert (await said(anna, "SETACL Work c l")).startswith(b"NO [LIMIT]"), "removed entries count"
    await anna.ok("SETACL Work a l")
    monkeypatch.setattr(limits, "OWNERS_MAX", 0)
    gone = await running.client(login="ben")
    await gone.ok("SELECT shared/anna/Work")
    assert await listed(ben, "shared/%") == [b"shared/anna"], "noted before"


async def test_a_user_without_mail_is_not_made(running: Running) -> None:
    anna = await running.client(login="anna")
    await anna.ok("SETACL INBOX ben lr")
    assert (await said(anna, "STATUS shared/ben/INBOX (MESSAGES)")) == GONE % b"shared/ben/INBOX"
    assert storage_id("ben") not in running.store.users
    ben = await running.client(login="ben")
    assert await listed(ben, "shared/%") == []
    await ben.ok("EXAMINE shared/anna/INBOX")
    assert await listed(ben, "shared/%") == [b"shared/anna"]


async def test_a_visitor_of_a_user_who_is_deleted_is_closed(tmp_path: Path) -> None:
    async with serving_real(tmp_path) as running:
        anna, ben = await pair(running, "lr")
        await ben.ok("SELECT shared/anna/Work")
        await anna.ok("UNAUTHENTICATE")
        async for _ in delete(running.store, storage_id("anna")):
            pass
        assert (await ben.cmd("FETCH 1 BODY[]"))[0] == b"* OK [CLOSED] Mailbox was deleted"
        assert await said(ben, "SELECT shared/anna/Work") == GONE % b"shared/anna/Work"
        assert await listed(ben, "shared/*") == []


async def test_acls_survive_a_restart(tmp_path: Path) -> None:
    bucket = f"file://{tmp_path / 'bucket'}"
    async with serving_real(tmp_path / "one", bucket=bucket) as running:
        await pair(running, "lr")
    async with serving_real(tmp_path / "two", bucket=bucket) as running:
        ben = await running.client(login="ben")
        assert await listed(ben, "shared/%") == [b"shared/anna"]
        await ben.ok("SELECT shared/anna/Work")
        assert MAIL in (await ben.ok("FETCH 1 BODY[]"))[0]


async def test_a_bucket_without_the_form_takes_no_acl(tmp_path: Path) -> None:
    async with serving_real(tmp_path) as running:
        anna = await running.client(login="anna")
        running.store.env.forms.raised = {}
        assert (await said(anna, "SETACL INBOX ben lr")).startswith(b"NO [UNAVAILABLE] This bucket may not have ACLs")
        assert (await anna.ok("GETACL INBOX"))[0] == b"* ACL INBOX anna lrswipkxteacd"


async def test_where_several_backends_serve_users_nothing_is_shared(running: Running) -> None:
    running.imap.context.sharing = None
    anna = await running.client(login="anna")
    assert b"ACL" not in (await anna.ok("CAPABILITY"))[0].split()
    assert (await said(anna, "SETACL INBOX ben lr")).startswith(b"NO [UNAVAILABLE] Mailboxes are not shared here")
    assert (await said(anna, "MYRIGHTS INBOX")).startswith(b"NO [UNAVAILABLE]")
    assert (await anna.ok("NAMESPACE"))[0] == b'* NAMESPACE (("" "/")) NIL NIL'


# -- an attack: whatever ben sends, anna's mail stays as her ACL says -------------------------------------------------

SECRET = b"xyzzy-%d"
NAMES = (
    "shared/anna/Hidden",
    "shared/anna/Hidden/sub",
    "shared/anna/Seen",
    "shared/anna/INBOX",
    "shared/anna",
    "shared",
)
ATTACKS = (
    *COMMANDS, "FETCH 1:* (FLAGS BODY.PEEK[] ENVELOPE PREVIEW)", "UID FETCH 1:* BODY[]", "SEARCH TEXT xyzzy",
    "UID SEARCH RETURN (ALL) BODY xyzzy", "SORT (SUBJECT) UTF-8 ALL", "THREAD REFERENCES UTF-8 ALL", "EXPUNGE", "CLOSE",
    "STORE 1:* +FLAGS (\\Deleted)", "STORE 1:* FLAGS ($x)", "COPY 1:* INBOX", "MOVE 1:* INBOX", "UNSELECT", "NOOP",
    'LIST "" "*"', 'LIST "" "shared/%" RETURN (MYRIGHTS STATUS (MESSAGES UNSEEN))', 'LSUB "" "*"', 'XLIST "" "*"',
    "ESEARCH IN (mailboxes {}) TEXT xyzzy", "ESEARCH IN (subtree shared) TEXT xyzzy", "UNSUBSCRIBE {}",
    "NOTIFY SET STATUS (mailboxes {} (MessageNew MessageExpunge))", "RENAME INBOX {}", "RENAME {} mine",
    "SETACL {} anyone lrswipkxtea", "APPEND INBOX CATENATE (URL \"/{};UID=1;SECTION=TEXT\")", "LIST {} *",
)  # fmt: skip


def attacks(rng: random.Random) -> Iterator[str]:
    for _ in range(150):
        yield rng.choice(ATTACKS).format(rng.choice(NAMES))


@pytest.mark.parametrize("seed", range(3))
async def test_no_command_reaches_what_the_rights_do_not_allow(running: Running, seed: int) -> None:
    """`Seen` is shared with `l` alone, INBOX with `lr`, `Hidden` not at all. Secrets
    are in the mails of the first two and in their subjects."""
    rng = random.Random(seed)
    anna, ben = await running.client(login="anna"), await running.client(login="ben")
    for number, name in enumerate(("Hidden", "Hidden/sub", "Seen")):
        await anna.ok(f"CREATE {name}")
        await anna.append(name, MAIL.replace(b"one", SECRET % number) + SECRET % number)
    await anna.append("INBOX", MAIL)
    await anna.ok("SETACL Seen ben l")
    await anna.ok("SETACL INBOX ben lr")
    await anna.ok("SETACL Hidden -ben lrswipkxtea")
    before = {name: await state_of(anna, name) for name in ("Hidden", "Hidden/sub", "Seen", "INBOX")}
    for command in attacks(rng):
        for line in await ben.cmd(command):
            assert b"xyzzy" not in line.replace(b"TEXT xyzzy", b""), (command, line)
            if not line.startswith(b"NO [NONEXISTENT]") and not line.startswith((b"NO [TRYCREATE]", b"NO [BADURL")):
                assert b"Hidden" not in line, (command, line)
    after = {name: await state_of(anna, name) for name in before}
    assert after == before
    assert set(await listed(anna, "*")) >= {b"Hidden", b"Hidden/sub", b"Seen", b"INBOX"}
    assert (await anna.ok("GETACL INBOX"))[:-1] == [b"* ACL INBOX anna lrswipkxteacd ben lr"]


async def state_of(client: Client, name: str) -> list[bytes]:
    await client.ok(f"EXAMINE {name}")
    lines = await client.cmd("FETCH 1:* (UID FLAGS MODSEQ RFC822.SIZE)")
    return [line for line in lines if not line.startswith(b"* OK")]
