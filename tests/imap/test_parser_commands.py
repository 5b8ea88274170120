"""A table for each command: the examples of the RFCs, and the text of each error."""

from __future__ import annotations

import datetime as dt

import pytest

from obox.imap import ast
from obox.imap.ast import FetchAttr, InternalDate, ListReturn, ListSelect, SectionText, StatusItem, StoreMode
from obox.imap.events import NEED_DATA, BadCommand, NeedContinuation, NeedParse, NeedTurn
from obox.imap.parser import Parser
from obox.imap.sets import STAR, SequenceSet, parse_set
from tests.imap.spaces import spaced


def parse(data: bytes) -> object:
    """Return the single event of a single command, without continuations."""
    parser = Parser()
    parser.feed(data + b"\r\n")
    event = parser.next()
    while isinstance(event, NeedContinuation | NeedParse | NeedTurn):
        event = parser.next()
    assert parser.next() == NEED_DATA
    return event


def pairs(*ranges: tuple[int, int]) -> SequenceSet:
    return SequenceSet(ranges)


def section(label: bytes, **given: object) -> ast.BodySection:
    return ast.BodySection(label, **given)


FAST = (FetchAttr.FLAGS, FetchAttr.INTERNALDATE, FetchAttr.RFC822_SIZE)
GOOD: list[tuple[bytes, object]] = [
    (b"a1 CAPABILITY", ast.Capability(b"a1")),
    (b"a1 capability  ", ast.Capability(b"a1")),
    (b"] NOOP", ast.Noop(b"]")),
    (b"a LOGOUT", ast.Logout(b"a")),
    (b"a STARTTLS", ast.StartTls(b"a")),
    (b"a NAMESPACE", ast.Namespace(b"a")),
    (b"a IDLE", ast.Idle(b"a")),
    (b"a CHECK", ast.Check(b"a")),
    (b"a CLOSE", ast.Close(b"a")),
    (b"a UNSELECT", ast.Unselect(b"a")),
    (b"a EXPUNGE", ast.Expunge(b"a")),
    (b"a UID EXPUNGE 3000:3002", ast.Expunge(b"a", pairs((3000, 3002)))),
    # ID, RFC 2971
    (b"a ID NIL", ast.Id(b"a", None)),
    (b"a ID ()", ast.Id(b"a", ())),
    (b'a ID ( "name"  "x" )', ast.Id(b"a", (("name", "x"),))),
    (b"a ID ( )", ast.Id(b"a", ())),
    (b'a ID ("name" "sodr" "version" NIL)', ast.Id(b"a", (("name", "sodr"), ("version", None)))),
    # AUTHENTICATE, RFC 4959
    (b"a AUTHENTICATE plain", ast.Authenticate(b"a", "PLAIN")),
    (b"a AUTHENTICATE PLAIN dGVzdAB0ZXN0AHRlc3Q=", ast.Authenticate(b"a", "PLAIN", b"test\0test\0test")),
    (b'a AUTHENTICATE "plain"', ast.Authenticate(b"a", "PLAIN")),
    (b'a  AUTHENTICATE  "PLAIN"  dGVzdAB0ZXN0AHRlc3Q=', ast.Authenticate(b"a", "PLAIN", b"test\0test\0test")),
    (b"a AUTHENTICATE EXTERNAL =", ast.Authenticate(b"a", "EXTERNAL", b"")),
    (b"a AUTHENTICATE SCRAM-SHA-256", ast.Authenticate(b"a", "SCRAM-SHA-256")),
    # LOGIN
    (b"a LOGIN SMITH SESAME", ast.Login(b"a", "SMITH", b"SESAME")),
    (b'a LOGIN "a b" "x\\"y\\\\z"', ast.Login(b"a", "a b", b'x"y\\z')),
    (b"a LOGIN {4}\r\nfred {4+}\r\n\xff(){", ast.Login(b"a", "fred", b"\xff(){")),
    (b'a LOGIN smith ""', ast.Login(b"a", "smith", b"")),
    (b"a LOGIN j\xc3\xb6rg x]", ast.Login(b"a", "jörg", b"x]")),
    # ENABLE, RFC 5161
    (b"a ENABLE CONDSTORE X-GOOD-IDEA", ast.Enable(b"a", ("CONDSTORE", "X-GOOD-IDEA"))),
    (b"a ENABLE utf8=accept", ast.Enable(b"a", ("UTF8=ACCEPT",))),
    # SELECT, EXAMINE; RFC 7162
    (b"a SELECT inbox", ast.Select(b"a", "INBOX", given="inbox")),
    (b"a EXAMINE blurdybloop", ast.Select(b"a", "blurdybloop", True)),
    (b'a SELECT "Archive 2020" (CONDSTORE)', ast.Select(b"a", "Archive 2020", False, True)),
    (
        b"a SELECT INBOX (QRESYNC (67890007 90060115194045000 41,43:211,214:541))",
        ast.Select(
            b"a",
            "INBOX",
            qresync=ast.QResync(67890007, 90060115194045000, pairs((41, 41), (43, 211), (214, 541))),
        ),
    ),
    (
        b"a EXAMINE INBOX (QRESYNC (1 2 1:29997 (5000,7500,9000 15000,22500,27000)) CONDSTORE)",
        ast.Select(
            b"a",
            "INBOX",
            True,
            True,
            ast.QResync(
                1,
                2,
                pairs((1, 29997)),
                (parse_set(b"5000,7500,9000"), parse_set(b"15000,22500,27000")),
            ),
        ),
    ),
    (
        b"a SELECT INBOX (QRESYNC (1 2 (1 4)))",
        ast.Select(b"a", "INBOX", qresync=ast.QResync(1, 2, None, (pairs((1, 1)), pairs((4, 4))))),
    ),
    # mailboxes
    (b"a CREATE owatagusiam/", ast.Create(b"a", "owatagusiam")),
    (b"a CREATE MySpecial (USE (\\Drafts \\Sent))", ast.Create(b"a", "MySpecial", ("\\Drafts", "\\Sent"))),
    (b"a DELETE foo/bar", ast.Delete(b"a", "foo/bar")),
    (b"a DELETE Entw&APw-rfe", ast.Delete(b"a", "Entwürfe")),
    (b"a DELETE Entw\xc3\xbcrfe", ast.Delete(b"a", "Entwürfe")),
    (b"a DELETE {10}\r\nEntwu\xcc\x88rfe", ast.Delete(b"a", "Entwürfe", "Entwu\u0308rfe")),
    (b"a DELETE &Jjo-!", ast.Delete(b"a", "\u263a!")),
    (b"a DELETE A&-B", ast.Delete(b"a", "A&B")),
    (b"a RENAME InBox old-mail", ast.Rename(b"a", "INBOX", "old-mail")),
    (b"a SUBSCRIBE #news.comp.mail.mime", ast.Subscribe(b"a", "#news.comp.mail.mime")),
    (b"a UNSUBSCRIBE #news.comp.mail.mime", ast.Unsubscribe(b"a", "#news.comp.mail.mime")),
    # LIST, LSUB; RFC 5258, RFC 5819, RFC 6154
    (b'a LIST "" ""', ast.List(b"a", "", ("",))),
    (b"a LIST ~/Mail/ %", ast.List(b"a", "~/Mail/", ("%",))),
    (b'a LIST "" *', ast.List(b"a", "", ("*",))),
    (b'a LIST "" "&APw-*"', ast.List(b"a", "", ("ü*",))),
    (b'a LIST () "" *', ast.List(b"a", "", ("*",), extended=True)),
    (
        b'a LIST (SUBSCRIBED) "" "*" RETURN (CHILDREN)',
        ast.List(b"a", "", ("*",), frozenset({ListSelect.SUBSCRIBED}), frozenset({ListReturn.CHILDREN}), extended=True),
    ),
    (
        b'a list (recursivematch subscribed) "" (INBOX "Drafts" Sent/%)',
        ast.List(
            b"a",
            "",
            ("INBOX", "Drafts", "Sent/%"),
            frozenset({ListSelect.RECURSIVEMATCH, ListSelect.SUBSCRIBED}),
            extended=True,
        ),
    ),
    (
        b'a LIST "" % RETURN (STATUS (MESSAGES UNSEEN) SPECIAL-USE)',
        ast.List(
            b"a",
            "",
            ("%",),
            returns=frozenset({ListReturn.SPECIAL_USE}),
            status=(StatusItem.MESSAGES, StatusItem.UNSEEN),
            extended=True,
        ),
    ),
    (b'a LSUB "#news." "comp.mail.*"', ast.Lsub(b"a", "#news.", "comp.mail.*")),
    (
        b"a STATUS blurdybloop (UIDNEXT MESSAGES)",
        ast.Status(b"a", "blurdybloop", (StatusItem.UIDNEXT, StatusItem.MESSAGES)),
    ),
    (
        b"a STATUS b (messages uidnext uidvalidity unseen recent highestmodseq size deleted deleted-storage "
        b"appendlimit mailboxid)",
        ast.Status(b"a", "b", tuple(StatusItem)),
    ),
    # QUOTA, RFC 9208
    (b'a GETQUOTA ""', ast.GetQuota(b"a", "")),
    (b"a GETQUOTAROOT inbox", ast.GetQuotaRoot(b"a", "INBOX")),
    (b'a SETQUOTA "#user/alice" (storage 510)', ast.SetQuota(b"a", "#user/alice", (("STORAGE", 510),))),
    # APPEND, MULTIAPPEND
    (
        b"a APPEND saved-messages (\\Seen) {4}\r\nmail",
        ast.Append(b"a", "saved-messages", (ast.AppendMessage(b"mail", ("\\Seen",)),)),
    ),
    (
        b'a APPEND {5}\r\ninbox (\\seen $Work $Work) "17-Jul-1996 02:44:25 -0700" ~{3+}\r\n\0\r\n',
        ast.Append(
            b"a",
            "INBOX",
            (ast.AppendMessage(b"\0\r\n", ("\\Seen", "$Work"), InternalDate(837596665, -420), True),),
        ),
    ),
    (
        b"a APPEND x {1+}\r\na  {1+}\r\nb",
        ast.Append(b"a", "x", (ast.AppendMessage(b"a"), ast.AppendMessage(b"b"))),
    ),
    (
        b'a APPEND x {1}\r\na () {1}\r\nb " 1-Jan-1970 00:00:00 +0000" {1}\r\nc',
        ast.Append(
            b"a",
            "x",
            (
                ast.AppendMessage(b"a"),
                ast.AppendMessage(b"b"),
                ast.AppendMessage(b"c", date=InternalDate(0, 0)),
            ),
        ),
    ),
    # FETCH
    (b"a FETCH 1 ALL", ast.Fetch(b"a", False, pairs((1, 1)), (*FAST, FetchAttr.ENVELOPE))),
    (b"a FETCH 1 fast", ast.Fetch(b"a", False, pairs((1, 1)), FAST)),
    (b"a FETCH 1 Full", ast.Fetch(b"a", False, pairs((1, 1)), (*FAST, FetchAttr.ENVELOPE, FetchAttr.BODY))),
    (b"a UID FETCH 4:*,2 FLAGS", ast.Fetch(b"a", True, pairs((4, STAR), (2, 2)), (FetchAttr.FLAGS,))),
    (b"a FETCH 1 (FLAGS flags)", ast.Fetch(b"a", False, pairs((1, 1)), (FetchAttr.FLAGS,))),
    (
        b"a FETCH * (%s)" % b" ".join(x.value.encode() for x in FetchAttr),
        ast.Fetch(b"a", False, pairs((STAR, STAR)), tuple(FetchAttr)),
    ),
    (
        b"a UID FETCH 1:* (FLAGS) (CHANGEDSINCE 12345 VANISHED)",
        ast.Fetch(b"a", True, pairs((1, STAR)), (FetchAttr.FLAGS,), 12345, True),
    ),
    (b"a FETCH 1 ALL (CHANGEDSINCE 0)", ast.Fetch(b"a", False, pairs((1, 1)), (*FAST, FetchAttr.ENVELOPE), 0)),
    (b"a FETCH $ UID", ast.Fetch(b"a", False, SequenceSet((), True), (FetchAttr.UID,))),
    # STORE
    (
        b"a STORE 2:4 +FLAGS (\\Deleted)",
        ast.Store(b"a", False, pairs((2, 4)), StoreMode.ADD, ("\\Deleted",)),
    ),
    (b"a UID STORE 1 flags.silent ()", ast.Store(b"a", True, pairs((1, 1)), StoreMode.REPLACE, (), True)),
    (
        b"a STORE 7 (UNCHANGEDSINCE 0) -FLAGS.SILENT \\answered $Junk",
        ast.Store(b"a", False, pairs((7, 7)), StoreMode.REMOVE, ("\\Answered", "$Junk"), True, 0),
    ),
    # COPY, MOVE
    (b"a COPY 2:4 MEETING", ast.Copy(b"a", False, pairs((2, 4)), "MEETING")),
    (b"a UID COPY 2 inbox", ast.Copy(b"a", True, pairs((2, 2)), "INBOX")),
    (b"a MOVE 9:2 foo", ast.Move(b"a", False, pairs((2, 9)), "foo")),
    (b"a UID MOVE 42:69 foo", ast.Move(b"a", True, pairs((42, 69)), "foo")),
]


@pytest.mark.parametrize(("data", "event"), GOOD, ids=[repr(data)[2:50] for data, _ in GOOD])
def test_command(data: bytes, event: object) -> None:
    assert parse(data) == event


@pytest.mark.parametrize(("data", "event"), GOOD, ids=[repr(data)[2:50] for data, _ in GOOD])
def test_command_with_more_spaces(data: bytes, event: object) -> None:
    """Between arguments and inside lists, as some clients send them."""
    assert parse(spaced(data)) == event


SECTIONS: list[tuple[bytes, ast.BodySection]] = [
    (b"BODY[]", section(b"BODY[]")),
    (b"body.peek[]", section(b"BODY[]", peek=True)),
    (b"BODY[HEADER]", section(b"BODY[HEADER]", text=SectionText.HEADER)),
    (b"BODY[text]", section(b"BODY[TEXT]", text=SectionText.TEXT)),
    (b"BODY[1]", section(b"BODY[1]", part=(1,))),
    (b"BODY[4.2.2.1]", section(b"BODY[4.2.2.1]", part=(4, 2, 2, 1))),
    (b"BODY[4.1.MIME]", section(b"BODY[4.1.MIME]", part=(4, 1), text=SectionText.MIME)),
    (b"BODY[4.2.HEADER]", section(b"BODY[4.2.HEADER]", part=(4, 2), text=SectionText.HEADER)),
    (
        b"BODY.PEEK[HEADER.FIELDS (Date From)]",
        section(
            b"BODY[HEADER.FIELDS (Date From)]", text=SectionText.HEADER_FIELDS, fields=(b"Date", b"From"), peek=True
        ),
    ),
    (
        b'BODY[3.header.fields.not ("X-A" {3+}\r\nB]D)]',
        section(
            b'BODY[3.HEADER.FIELDS.NOT (X-A "B]D")]',
            part=(3,),
            text=SectionText.HEADER_FIELDS_NOT,
            fields=(b"X-A", b"B]D"),
        ),
    ),
    (b"BODY[]<0.2048>", section(b"BODY[]<0>", start=0, count=2048)),
    (
        b"BODY.PEEK[1.TEXT]<10.1>",
        section(b"BODY[1.TEXT]<10>", part=(1,), text=SectionText.TEXT, peek=True, start=10, count=1),
    ),
]


@pytest.mark.parametrize(("item", "expected"), SECTIONS, ids=[repr(i)[2:40] for i, _ in SECTIONS])
def test_fetch_section(item: bytes, expected: ast.BodySection) -> None:
    alone = parse(b"a FETCH 1 " + item)
    listed = parse(b"a UID FETCH 1 (UID " + item + b")")
    assert isinstance(alone, ast.Fetch)
    assert isinstance(listed, ast.Fetch)
    assert alone.items == (expected,)
    assert listed.items == (FetchAttr.UID, expected)


BAD: list[tuple[bytes, str]] = [
    (b"a NOOP x", 'Unexpected argument at the end: "x"'),
    (b"a", "Missing command after the tag"),
    (b"a ", "Missing command after the tag"),
    (b"a FROB x", 'Unknown command "FROB"'),
    (b'a "x"', "Unknown command"),
    (b"a UID NOOP", 'Unknown command "UID NOOP": allowed are FETCH SEARCH SORT THREAD STORE COPY MOVE REPLACE EXPUNGE'),
    (b"a GETACLS x", 'Unknown command "GETACLS"'),
    (b"a SETACL x y lz", "No such right: z; allowed: lrswipkxteacd"),
    (b"a SETACL x y", "Missing argument: rights"),
    (b"a DELETEACL x", "Missing argument: an identifier"),
    (b"a LOGIN", "Missing argument: a user name"),
    (b"a LOGIN x", "Missing argument: a password"),
    (b"a LOGIN  ", "Missing argument: a user name"),
    (b'a LOGIN x "y', "Bad password argument: quote it"),
    (b'a LOGIN x "\\y"', "Bad password argument: quote it"),
    (b"a LOGIN x (y", "Bad password argument: quote it"),
    (b'a LOGIN "y', "Bad quoted string for a user name"),
    (b'a LOGIN "\\y"', "Bad quoted string for a user name"),
    (b"a LOGIN x y z", "Bad password argument: quote it"),
    (b"a LOGIN x{1}\r\ny z", "Expected a space before a password"),
    (b"a LOGIN {1}\r\n\0 z", "NUL in a literal for a user name"),
    (b"a LOGIN \xff z", "User name is not in UTF-8"),
    (b"a AUTHENTICATE", "Missing argument: a mechanism"),
    (b"a AUTHENTICATE PLAIN a", "Bad base64"),
    (b"a AUTHENTICATE PLAIN {1}\r\nx", "Bad base64"),
    (b"a ENABLE", "Missing argument: a capability"),
    (b"a ID x", "Expected a parameter list or NIL"),
    (b'a ID ("x")', "Expected a space before a parameter value"),
    (b"a SELECT", "Missing argument: a mailbox name"),
    (b"a SELECT x ()", "Empty list of SELECT parameters"),
    (b"a SELECT x (FOO)", 'Unknown SELECT parameter "FOO": allowed are CONDSTORE QRESYNC'),
    (b"a SELECT x (QRESYNC (0 1))", "Bad UIDVALIDITY"),
    (b"a SELECT x (QRESYNC (1 1 1:*))", "* is not allowed here"),
    (b"a CREATE x (FOO (\\A))", 'Unknown CREATE parameter "FOO": allowed is USE'),
    (b"a CREATE x (USE (A))", '"\\" before a special-use attribute'),
    (b'a LIST ""', "Missing argument: a mailbox pattern"),
    (b'a LIST (FOO) "" *', 'Unknown selection option "FOO": allowed are SUBSCRIBED REMOTE RECURSIVEMATCH SPECIAL-USE'),
    (b'a LIST (RECURSIVEMATCH) "" *', "RECURSIVEMATCH is allowed only with SUBSCRIBED"),
    (b'a LIST "" ()', "Empty list of mailbox patterns"),
    (b'a LIST "" * RETURN (FOO)', 'Unknown return option "FOO": allowed are SUBSCRIBED CHILDREN SPECIAL-USE'),
    (b'a LIST "" * FOO', "Expected RETURN"),
    (b"a STATUS x", "Missing argument: STATUS items"),
    (b"a STATUS x ()", "Empty list of STATUS items"),
    (b"a STATUS x (FOO)", 'Unknown STATUS item "FOO": allowed are MESSAGES UIDNEXT'),
    (b"a APPEND x", "Missing argument: the mail"),
    (b"a APPEND x y", "Expected a literal with the mail"),
    (b'a APPEND x "y" {1}\r\nx', "Expected a date"),
    (b'a APPEND x "31-Feb-2000 00:00:00 +0000" {1}\r\nx', "no such day"),
    (b'a APPEND x "01-Foo-2000 00:00:00 +0000" {1}\r\nx', 'Bad month "Foo"'),
    (b'a APPEND x "01-Jan-2000 00:00:00 +0099" {1}\r\nx', "Bad zone +0099"),
    (b"a APPEND x (\\Foo) {1}\r\nx", 'Unknown system flag "\\Foo": allowed are \\Answered'),
    (b"a APPEND x (\\Recent) {1}\r\nx", "Unknown system flag"),
    (b"a APPEND x {1}\r\nx y", "Expected a literal with the mail"),
    (b"a APPEND x {1}\r\nxy", "Unexpected argument at the end"),
    (b"a FETCH", "Missing argument: a set"),
    (b"a FETCH 1", "Missing argument: FETCH items"),
    (b"a FETCH x FLAGS", "Expected a set"),
    (b"a FETCH 0 FLAGS", "Bad number 0 in a set"),
    (b"a FETCH 1,, FLAGS", 'Bad set "1,,"'),
    (b"a FETCH 1:4294967296 FLAGS", "Bad number 4294967296 in a set"),
    (b"a FETCH 1 FOO", 'Unknown FETCH item "FOO": allowed are ENVELOPE FLAGS'),
    (b"a FETCH 1 (FLAGS FOO)", 'Unknown FETCH item "FOO"'),
    (b"a FETCH 1 (ALL)", 'The macro "ALL" stands alone'),
    (b"a FETCH 1 FASTER", 'Unknown FETCH item "FASTER"'),
    (b"a FETCH 1 ()", "Empty list of FETCH items"),
    (b"a FETCH 1 (FLAGS", 'Expected a space or ")" in the list of FETCH items, found the end of the line'),
    (b"a FETCH 1 BODY.PEEK", "BODY.PEEK needs a section"),
    (b"a FETCH 1 FLAGS[]", 'FETCH item "FLAGS" takes no section'),
    (b"a FETCH 1 BODY[MIME]", "Section MIME needs a part"),
    (b"a FETCH 1 BODY[FOO]", 'Unknown section "FOO]": allowed are HEADER'),
    (b"a FETCH 1 BODY[1.]", "Unknown section"),
    (b"a FETCH 1 BODY[0]", "part numbers start at 1"),
    (b"a FETCH 1 BODY[", "Unknown section"),
    (b"a FETCH 1 BODY[HEADER.FIELDS]", "a space before header field names"),
    (b"a FETCH 1 BODY[HEADER.FIELDS ()]", "Empty list of header field names"),
    (b"a FETCH 1 BODY[HEADER.FIELDS (a:b)]", "Bad header field name"),
    (b"a FETCH 1 BODY[]<0>", "partial such as"),
    (b"a FETCH 1 BODY[]<0.0>", "Bad length of a partial"),
    (b"a FETCH 1 FLAGS (FOO)", 'Unknown FETCH modifier "FOO": allowed are CHANGEDSINCE VANISHED'),
    (b"a FETCH 1 FLAGS (CHANGEDSINCE x)", "Expected mod-sequence"),
    (b"a FETCH 1 FLAGS (CHANGEDSINCE 1 VANISHED)", "VANISHED is allowed in UID FETCH only"),
    (b"a UID FETCH 1 FLAGS (VANISHED)", "VANISHED is allowed only with CHANGEDSINCE"),
    (b"a STORE 1", "Missing argument: FLAGS"),
    (b"a STORE 1 FOO (x)", 'Unknown STORE item "FOO": allowed are FLAGS +FLAGS -FLAGS'),
    (b"a STORE 1 FLAGS", "Missing argument: flags"),
    (b"a STORE 1 FLAGS (\\*)", "Expected a flag"),
    (b"a STORE 1 (FOO 1) FLAGS x", 'Unknown STORE modifier "FOO": allowed is UNCHANGEDSINCE'),
    (b"a COPY 1", "Missing argument: a mailbox name"),
    (b"a COPY 1 x y", 'Unexpected argument at the end: "y"'),
    (b"a UID", "Missing argument: the command of UID"),
]


@pytest.mark.parametrize(("data", "reason"), BAD, ids=[repr(data)[2:50] for data, _ in BAD])
def test_error(data: bytes, reason: str) -> None:
    event = parse(data)
    assert isinstance(event, BadCommand)
    assert event.tag == b"a"
    assert event.status == "BAD"
    assert reason in event.reason


@pytest.mark.parametrize("data", [b"", b" ", b"* NOOP", b"+ NOOP", b"\xff NOOP", b"(a NOOP", b"x" * 300 + b" NOOP"])
def test_without_a_tag(data: bytes) -> None:
    event = parse(data)
    assert isinstance(event, BadCommand)
    assert event.tag is None


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b'a SELECT ""', "CANNOT"),
        (b"a SELECT &bad", "CANNOT"),
        (b"a SELECT &AGE-", "CANNOT"),
        (b"a SELECT {3+}\r\na\nb", "CANNOT"),
        (b"a CREATE a&AAo-b", "CANNOT"),
        (b"a DELETE &AH8-", "CANNOT"),
        (b"a APPEND x {0}\r\n", None),
        (b"a SEARCH CHARSET KLINGON ALL", "BADCHARSET (US-ASCII UTF-8)"),
    ],
)
def test_understood_but_not_served(data: bytes, code: str | None) -> None:
    event = parse(data)
    assert isinstance(event, BadCommand)
    assert (event.status, event.code) == ("NO", code)


def test_utf8_names_once_enabled() -> None:
    parser = Parser()
    parser.utf8 = True
    parser.feed('a DELETE "A&-ü"\r\n'.encode())
    assert parser.next() == ast.Delete(b"a", "A&-ü")
    parser.feed(b'a DELETE "\xff"\r\n')
    event = parser.next()
    assert isinstance(event, BadCommand)
    assert "UTF-8" in event.reason


def test_secrets_stay_out_of_repr() -> None:
    for data in (b"a LOGIN me sesame", b"a AUTHENTICATE PLAIN c2VzYW1l"):
        assert "sesame" not in repr(parse(data))


def test_dates_with_zone() -> None:
    event = parse(b'a APPEND x "29-Feb-2024 23:59:60 +1345" {1+}\r\nx')
    assert isinstance(event, ast.Append)
    date = event.messages[0].date
    assert date is not None
    zone = dt.timezone(dt.timedelta(minutes=date.zone_minutes))
    assert dt.datetime.fromtimestamp(date.seconds, zone).isoformat() == "2024-02-29T23:59:59+13:45"


def test_a_pattern_that_no_name_fits_is_no_error() -> None:
    command = parse(b'a LIST "" !#$$&\'x%')
    assert isinstance(command, ast.List)
    assert command.patterns == ("!#$$&'x%",)
