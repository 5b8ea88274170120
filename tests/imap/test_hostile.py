"""Input of a stranger or a user must not hold the loop or use much memory. Each test is
such a client.

Time is the CPU time of each turn of the loop (tests/turns.py). Everything else is
counted.
"""

import asyncio
import gc
import sys
import threading
import unicodedata
from base64 import b64encode
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from obox.auth import normalise
from obox.errors import Invalid, Limit
from obox.imap import _scan, parser
from obox.imap._scan import NAME_WIRE_BYTES_MAX, Limits
from obox.imap.ast import Command, Search
from obox.imap.events import BadCommand, Event, NeedContinuation, NeedData, NeedParse, NeedTurn
from obox.imap.meaning import to_query
from obox.imap.parser import Parser
from obox.imap.states import BEFORE_LOGIN
from obox.mailbox import MailboxEntry, RootDelta, names
from obox.mailbox.search import UidSet
from obox.store.api import NewMail
from obox.types import StorageId
from tests.imap.harness import DEADLINE_S, Client, Running, serving_real
from tests.turns import turns

MARKS = "\u0301" * 16_384 + "\u0316" * 16_384
"""Combining marks that NFC would sort for more than a second; 64 KiB in UTF-8."""
LIMITS = Limits()


@pytest.fixture(autouse=True)
def collector() -> Iterator[None]:
    """Exclude the objects that existed before the test from garbage collection, as a
    backend does (obox.main). A full collection of a large test process would take a
    second for each test."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
async def running(tmp_path: Path) -> AsyncIterator[Running]:
    async with serving_real(tmp_path) as running:
        yield running


@pytest.fixture
def normalised(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Record the length of each text that is passed to `unicodedata.normalize`."""
    lengths: list[int] = []
    plain = unicodedata.normalize

    def normalize(form: str, text: str) -> str:
        lengths.append(len(text))
        return str(plain(form, text))

    monkeypatch.setattr("unicodedata.normalize", normalize)
    return lengths


async def answer(client: Client, tag: bytes) -> bytes:
    """Return the tagged line of an answer. The answer is read in pieces, so that the
    client does not hold the loop."""
    tail, size = b"", 0
    while b"\r\n" + tag + b" " not in tail or not tail.endswith(b"\r\n"):
        async with asyncio.timeout(DEADLINE_S):
            piece = await client.reader.read(65_536)
        assert piece, tail
        size += len(piece)
        tail = (tail + piece)[-4_096:] if size > len(piece) else b"\r\n" + piece
        await asyncio.sleep(0)
    return tail[tail.rindex(b"\r\n" + tag + b" ") + 2 :]


async def served_beside(client: Client, other: Client, tag: bytes) -> tuple[bytes, int]:
    """Return the tagged line, and how often another client was answered meanwhile."""
    done = asyncio.ensure_future(answer(client, tag))
    served = 0
    while not done.done():
        await other.ok("NOOP")
        served += 1
    return await done, served


def events(data: bytes, allowed: frozenset[str] | None = None) -> list[Event]:
    made = Parser()
    made.allowed = allowed
    made.feed(data)
    found: list[Event] = []
    while not isinstance(event := made.next(), NeedData):
        if not isinstance(event, NeedTurn | NeedParse):
            found.append(event)
    return found


# -- before login ------------------------------------------------------------------------------------------------------


async def test_before_login_no_argument_is_looked_at(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    plain = parser.parse_command

    def parse(parts: list[bytes], word: str, *rest: Any, **more: Any) -> Command:
        parsed.append(word)
        return plain(parts, word, *rest, **more)

    monkeypatch.setattr(parser, "parse_command", parse)
    marks = MARKS.encode()
    attack = await running.client()
    other = await running.client()
    with turns(mine=False) as found:
        for command in (b"SELECT", b'LIST ""', b"STATUS", b"UID SEARCH TEXT", b"CREATE"):
            attack.send(b"a %b {%d+}\r\n%b\r\n" % (command, len(marks), marks))
            await other.ok("NOOP")
            assert b"needs a login first" in await attack.line()
        found.check()
    assert parsed == ["NOOP"] * 5


def test_a_literal_of_a_refused_command_is_refused_or_thrown_away() -> None:
    assert events(b"a SELECT {5}\r\nb NOOP\r\n", BEFORE_LOGIN)[0] == BadCommand(b"a", "SELECT needs a login first")
    for data in (b"a APPEND x {5+}\r\nb NO\r\r\nb NOOP\r\n", b"a SELECT {3+}\r\nabc (x {2+}\r\nyy)\r\nb NOOP\r\n"):
        first, second = events(data, BEFORE_LOGIN)
        assert isinstance(first, BadCommand)
        assert isinstance(second, Command)
    allowed = events(b"a LOGIN {4}\r\nanna {6}\r\nsecret\r\n", BEFORE_LOGIN)
    assert [type(event) for event in allowed[:2]] == [NeedContinuation, NeedContinuation]


async def test_after_login_all_is_allowed(running: Running) -> None:
    """LOGIN and the commands behind it may arrive in the same packet."""
    client = await running.client()
    client.send("a LOGIN anna secret\r\nb SELECT INBOX\r\n")
    assert (await client.until(b"b "))[-1].startswith(b"b OK")


@pytest.mark.parametrize("command", ["LOGIN", "AUTHENTICATE"])
async def test_user_names_are_measured(running: Running, command: str, normalised: list[int]) -> None:
    class Users:
        async def verify(self, user: str, password: str, *, remote: str) -> Any:
            normalise(user, "example.org")

    running.imap.context.authenticator = Users()
    client = await running.client()
    with turns(mine=False) as found:
        if command == "LOGIN":
            name = MARKS.encode()[:65_536]
            client.send(b"a LOGIN {%d+}\r\n%b x\r\n" % (len(name), name))
        else:
            plain = b64encode(b"\0" + MARKS.encode()[:4_000] + b"\0x")
            client.send(b"a AUTHENTICATE PLAIN " + plain + b"\r\n")
        assert (await client.line()).startswith(b"a NO")
        found.check()
    assert normalised == []


# -- names and patterns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [b"SELECT", b"CREATE", b"DELETE", b'LIST ""', b'LSUB ""', b"RENAME x", b"SUBSCRIBE", b"COPY 1"]
)
async def test_names_are_measured_before_they_are_normalised(
    running: Running, command: bytes, normalised: list[int]
) -> None:
    client = await running.client(login="anna")
    await client.ok("SELECT INBOX")
    marks = MARKS.encode()
    short = ("e" + "\u0301" * 31).encode()
    with turns(mine=False) as found:
        client.send(b"a %b {%d+}\r\n%b\r\n" % (command, len(marks), marks))
        assert (await client.until(b"a "))[-1].startswith(b"a NO")
        client.send(b"b %b {%d+}\r\n%b\r\n" % (command, len(short), short))
        assert (await client.until(b"b "))[-1].startswith((b"b NO", b"b OK List", b"b OK Lsub"))
        found.check()
    assert max(normalised, default=0) <= 1_000


def test_a_name_that_is_decomposed_may_be_longer() -> None:
    # NFC makes 80 syllables of it, 240 bytes.
    hangul = "\u1112\u1161\u11ab" * 80
    assert names.check_name(hangul) == "\ud55c" * 80
    select = events(b"a SELECT {%d+}\r\n%b\r\n" % (len(hangul.encode()), hangul.encode()))[0]
    assert select.mailbox == "\ud55c" * 80
    for make in (names.canonical, names.check_name, names.Pattern):
        with pytest.raises(Invalid, match="3000 bytes"):
            make("\u1112" * 1_001)
        with pytest.raises(Invalid, match="30 combining"):
            make("e" + "\u0301" * 31)


def many(count: int) -> list[str]:
    return [f"Projects/{i % 100:03d}/mailbox {i:05d}" for i in range(count)]


async def fill(running: Running, wanted: list[str]) -> None:
    user = await running.store.open_user("anna", StorageId("anna"))
    entries = [MailboxEntry(f"{i + 1:032x}", name, 1, 1, i + 1, "") for i, name in enumerate(wanted)]
    user.root.join(RootDelta(entries, dict.fromkeys(wanted, 3), {}, 10, len(wanted) + 1))
    await user.release()


async def test_filters_and_annotations_of_many_mailboxes_let_others_run(running: Running) -> None:
    client = await running.client(login="anna")
    other = await running.client(login="ben")
    wanted = many(10_000)
    await fill(running, wanted)
    values = b" ".join(b'/private/%d "x"' % i for i in range(60))
    for name in ("INBOX", wanted[0], wanted[99]):
        await client.ok(b'SETMETADATA "%b" (%b)' % (name.encode(), values))
    trees = b" ".join(b'(subtree ("%b" a/b/c) (MailboxName))' % name.encode() for name in wanted[:31])
    with turns(mine=False) as found:
        for command, answer in (
            (b"NOTIFY SET %b (personal (MailboxName))" % trees, b"a NO [NOTIFICATIONOVERFLOW]"),
            (b"NOTIFY SET (subtree Projects/001 (MailboxName MailboxMetadataChange))", b"a OK"),
            (b"ESEARCH IN (subtree Projects subscribed) ALL", b"a NO [LIMIT]"),
            (b'LIST "" * RETURN (METADATA (/private/1 /private/none))', b"a OK"),
            (b"SUBSCRIBE Projects/001", b"a OK"),
            (b"CREATE Projects/001/new", b"a "),
            (b"NOOP", b"a OK"),
        ):
            client.send(b"a " + command + b"\r\n")
            line, served = await served_beside(client, other, b"a")
            assert line.startswith(answer), line
            assert served
        found.check()


async def test_list_of_many_mailboxes_and_patterns_lets_others_run(running: Running) -> None:
    client = await running.client(login="anna")
    other = await running.client(login="ben")
    await fill(running, many(10_000))
    patterns = b" ".join(b"*%d*a*b*%%*y" % i for i in range(LIMITS.list_patterns_max))
    with turns(mine=False) as found:
        for command in (
            b'LIST "" (%b)' % patterns,
            b'LIST (SUBSCRIBED RECURSIVEMATCH) "" ("*zz" "Projects" "Projects/%")',
            b'LSUB "" "*s*t*%"',
            b'LIST "" "*"',
            b'LSUB "" "*"',
        ):
            client.send(b"a " + command + b"\r\n")
            line, served = await served_beside(client, other, b"a")
            assert line.startswith(b"a OK")
            assert served
        found.check()


async def test_children_that_are_not_shown_are_found_in_one_pass(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = await running.client(login="anna")
    wanted = many(2_000)
    await fill(running, wanted)
    calls = 0
    plain = names.Pattern.matches

    def matches(self: names.Pattern, name: str) -> bool:
        nonlocal calls
        calls += 1
        return plain(self, name)

    monkeypatch.setattr(names.Pattern, "matches", matches)
    lines = await client.ok('LIST (SUBSCRIBED RECURSIVEMATCH) "" ("Projects" "Projects/%")')
    assert len(lines) == 1 + 1 + 100
    assert lines[0].endswith(b'"/" Projects ("CHILDINFO" ("SUBSCRIBED"))')
    assert calls <= 2 * (len(wanted) + 110)


@pytest.mark.parametrize(
    "command",
    [
        b'LIST "%b" "*"' % (b"r" * 60_000),
        b'LIST "" "%b"' % (b"*p" * 5_000),
        b'LIST "" (%b)' % b" ".join(b"p%d" % i for i in range(65)),
        b'LSUB "%b" "*"' % (b"r" * 60_000),
        b'LIST "" (%b)' % (b"%" * 9_000),
    ],
)
async def test_list_is_bounded_in_words(running: Running, command: bytes) -> None:
    client = await running.client(login="anna")
    answer = (await client.cmd(command))[-1]
    assert answer.startswith(b"NO [LIMIT] ")
    assert str(NAME_WIRE_BYTES_MAX if b"(" not in command or b"%%" in command else 64).encode() in answer


def test_a_pattern_is_matched_in_bounded_time() -> None:
    """The matcher keeps the states of a pattern as the bits of a number. The size of
    this number is the cost of a step."""
    pattern = names.Pattern("a%*" * 999 + "b")
    assert pattern.final.bit_length() <= 1_001
    assert not pattern.matches("a" * 1_000)
    with pytest.raises(Invalid):
        names.Pattern("ab*" * 1_001)
    assert names.Pattern("*" * 8_000).matches("x")


# -- the grammar -------------------------------------------------------------------------------------------------------

BEYOND = [
    (b"a FETCH 1 (%b)" % b" ".join(b"BODY.PEEK[%d]" % i for i in range(1, 131)), "FETCH items: at most 128"),
    (b"a FETCH 1 BODY[HEADER.FIELDS (%b)]" % b" ".join(b"X-%d" % i for i in range(257)), "names: at most 256"),
    (b"a FETCH 1 BODY[HEADER.FIELDS (%b)]" % (b"x" * 256), "of 256 bytes; allowed: 255"),
    (b"a FETCH 1 BODY[%b1]" % (b"1." * 128), "at most 128 numbers"),
    (b"a SEARCH HEADER %b x" % (b"x" * 256), "of 256 bytes; allowed: 255"),
    (b"a SEARCH %b" % b" ".join([b"ALL"] * 4_097), "search keys: at most 4096"),
    (b"a SEARCH (%b)" % b" ".join([b"ALL"] * 4_097), "search keys: at most 4096"),
    (b"a SEARCH %bALL" % (b"NOT " * 4_097), "search keys: at most 4096"),
    (b"a SEARCH %b" % (b"(" * 33), "Nested too deeply: at most 32"),
    (b"a STORE 1 FLAGS (%b)" % b" ".join(b"k%d" % i for i in range(129)), "flags: at most 128"),
    (b"a STORE 1 FLAGS %b" % b" ".join(b"k%d" % i for i in range(129)), "flags: at most 128"),
    (b"a STORE 1 FLAGS %b" % (b"k" * 256), "Keyword of 256 bytes; allowed: 255"),
    (b"a APPEND x (%b) {1+}\r\nx" % (b"k" * 256), "Keyword of 256 bytes; allowed: 255"),
    (b"a SEARCH KEYWORD %b" % (b"k" * 256), "Keyword of 256 bytes; allowed: 255"),
    (b"a ID (%b)" % b" ".join([b'"a" "b"'] * 65), "ID parameters: at most 64"),
    (b"a ENABLE %b" % b" ".join([b"X"] * 1_001), "capabilities: at most 1000"),
    (b"a APPEND x%b" % (b" {1+}\r\nx" * 1_001), "mails in one APPEND: at most 1000"),
]


@pytest.mark.parametrize(("data", "reason"), BEYOND, ids=[reason for _, reason in BEYOND])
def test_what_no_client_sends_is_refused_in_words(data: bytes, reason: str) -> None:
    found = events(data + b"\r\n")[-1]
    assert isinstance(found, BadCommand)
    assert (found.status, found.code) == ("NO", "LIMIT")
    assert reason in found.reason


def test_what_clients_do_send_is_taken() -> None:
    ids = b" ".join(b"OR HEADER Message-ID <%030d@example.org>" % i for i in range(1_000))
    fields = b" ".join(b"X-Header-%d" % i for i in range(200))
    parts = b" ".join(b"BODY.PEEK[%d.MIME]" % i for i in range(1, 101))
    for data in (
        b"a SEARCH %b ALL" % ids,
        b"a FETCH 1:* (UID FLAGS BODY.PEEK[HEADER.FIELDS (%b)])" % fields,
        b"a FETCH 1 (%b)" % parts,
        b"a STORE 1 +FLAGS (%b)" % b" ".join(b"k%d" % i for i in range(59)),
        b"a UID STORE %b FLAGS ()" % b",".join(b"%d" % i for i in range(1, 12_000)),
    ):
        limits = Limits(line_bytes_max=128 << 10)
        made = Parser(limits)
        made.feed(data + b"\r\n")
        while isinstance(event := made.next(), NeedParse):
            pass
        assert isinstance(event, Command)


async def test_a_keyword_that_is_too_long_is_refused_by_the_store_too(running: Running) -> None:
    user = await running.store.open_user("anna", StorageId("anna"))
    await user.append("INBOX", [NewMail(b"a: b\r\n\r\nc", ("k" * 255,))])
    with pytest.raises(Limit, match="255"):
        await user.append("INBOX", [NewMail(b"a: b\r\n\r\nc", ("k" * 256,))])
    mailbox = await user.select("INBOX")
    with pytest.raises(Limit, match="255"):
        await mailbox.store_flags(mailbox.state.uids, "add", ["k" * 256])
    await mailbox.release()
    await user.release()


# -- turns -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [b"SEARCH 1:* UNSEEN", b"NOOP", b"FETCH 1:* FLAGS", b"nonsense", b'LIST "" *'])
async def test_pipelined_commands_let_others_run(running: Running, command: bytes) -> None:
    """A client sends very many commands at once. Other clients are served after YIELD_S
    of work."""
    client, other = await running.client(login="anna"), await running.client(login="ben")
    for i in range(20):
        await client.append("INBOX", b"Subject: %d\r\n\r\nhello" % i)
    await client.ok("SELECT INBOX")
    count = 2_000
    for member in running.imap.context.registry:
        member.settings = replace(running.imap.context.settings, bad_commands_max=count + 1)
    with turns(mine=False) as found:
        client.send(b"".join(b"t%d %b\r\n" % (i, command) for i in range(count)))
        _, served = await served_beside(client, other, b"t%d" % (count - 1))
        found.check()
    assert served


def test_nothing_in_the_parser_is_quadratic() -> None:
    """The largest pieces of work of the parser are measured as calls of Python
    functions. Their number must not grow faster than the input."""

    def calls(data: bytes) -> int:
        count = 0

        def trace(*_: Any) -> None:
            nonlocal count
            count += 1

        sys.setprofile(trace)
        try:
            events(data)
        finally:
            sys.setprofile(None)
        return count

    def commands(n: int) -> Iterator[bytes]:
        yield b"a FETCH %b FLAGS\r\n" % b",".join(b"%d" % (i * 2 + 1) for i in range(n))
        yield b'a SELECT "%b"\r\n' % (b'\\"' * n)
        yield b"a SELECT %b\r\n" % (b"&AOk-a" * n)
        yield b"a SELECT %b\r\n" % (b"&" * n)
        yield b"a AUTHENTICATE PLAIN %b\r\n" % (b"QUJD" * n)
        yield b"a SEARCH %bALL\r\n" % (b"OR ALL " * (n // 4))
        yield b"a SEARCH %bALL\r\n" % (b"NOT " * (n // 4))
        yield b"a NOOP\r\n" * n
        yield b"a LOGIN %b\r\n" % (b" {0+}\r\n" * n)

    for small, large in zip(commands(500), commands(4_000), strict=True):
        assert calls(large) <= 10 * calls(small) + 500, large[:40]
    assert _scan.Limits is Limits


@pytest.mark.parametrize(
    "data",
    [
        b" {0+}\r\n" * 10_000,
        b"a LOGIN" + b" {0+}\r\n" * 9_000,
        b"a LOGIN {70000+}\r\n" + b"x" * 70_000 + b" {0+}\r\n" * 9_000,
    ],
)
def test_literals_of_no_bytes_let_others_run(data: bytes) -> None:
    """Before login, as many literals arrive as a command may have, or as follow a
    refused command. The line and the literal are two steps of the parser."""
    made = Parser()
    made.allowed = BEFORE_LOGIN
    made.feed(data)
    seen = 0
    while not isinstance(event := made.next(), NeedData):
        seen += isinstance(event, NeedTurn)
    assert seen >= data.count(b"{0+}") // 500


async def test_a_large_command_is_parsed_in_a_thread(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    aside: list[bool] = []
    plain = parser.parse_command

    def parse(*given: Any, **more: Any) -> Command:
        aside.append(threading.current_thread() is not threading.main_thread())
        return plain(*given, **more)

    client = await running.client(login="anna")
    await client.append("INBOX", b"a: b\r\n\r\nc")
    await client.ok("SELECT INBOX")
    monkeypatch.setattr(parser, "parse_command", parse)
    for command in (
        b"SEARCH" + b" 1:*" * 4_000,
        b"SEARCH" + b" SUBJECT {1+}\r\na" * 600,
        b"FETCH " + b"1," * 9_000 + b"1 UID",
    ):
        assert len(await client.ok(command)) == 2
    await client.ok("NOOP")
    assert aside == [True, True, True, False]
    # The next command waits for the large command.
    client.send(b"x SEARCH" + b" 1:*" * 5_000 + b"\r\ny NOOP\r\n")
    assert [line[:5] for line in await client.until(b"y ")] == [b"x NO ", b"y OK "]


async def test_sets_of_a_search_are_not_expanded(running: Running) -> None:
    """The mailbox has gaps. If the sets were expanded, each of thousands of sets would
    be as long as the mailbox."""
    client = await running.client(login="anna")
    await client.ok(b"APPEND INBOX" + b" {5+}\r\na: b\n" * 200)
    await client.ok("SELECT INBOX")
    await client.ok(b"UID STORE %b +FLAGS (\\Deleted)" % b",".join(b"%d" % uid for uid in range(2, 200, 2)))
    await client.ok("EXPUNGE")
    (session,) = [member.session for member in running.imap.context.registry]
    for key, uids in ((b"1:*", range(1, 200, 2)), (b"UID 1:*", range(1, 200, 2)), (b"2:3,7", (3, 5, 13))):
        (made,) = events(b"a SEARCH " + key + b"\r\n")
        assert isinstance(made, Search)
        wanted = to_query(session, made.key)
        assert isinstance(wanted, UidSet)
        assert len(wanted.ranges) <= key.count(b",") + 1
        found = (await client.ok(b"UID SEARCH " + key))[0]
        assert found.split()[2:] == [b"%d" % uid for uid in (*uids, *([200] if key.endswith(b"*") else []))]


async def test_many_new_mails_become_visible_in_several_turns(running: Running) -> None:
    """A MULTIAPPEND stores 350 mails in a bucket without batches. They become visible
    in order, at most 100 in a turn of the loop."""
    running.store.env.forms.raised = {}
    user = await running.store.open_user("anna", StorageId("anna"))
    mailbox = await user.select("INBOX")
    turn = 0
    shown: list[tuple[int, int]] = []

    async def count() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    counting = asyncio.ensure_future(count())
    unwatch = mailbox.watch(lambda: shown.append((turn, len(mailbox.state))))
    done = await user.append("INBOX", [NewMail(b"a: b\r\n\r\nc")] * 350)
    counting.cancel()
    unwatch()
    assert [number for _, number in shown] == list(range(1, 351))
    assert max(Counter(turn for turn, _ in shown).values()) <= 100
    assert list(done.uids) == mailbox.state.uids.tolist()
    await mailbox.release()
    await user.release()
