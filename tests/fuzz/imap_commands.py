"""Random IMAP commands. The grammar makes a command, and then it may be broken. Each
command comes from a single `random.Random`."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Final

MARKS: Final = ("\u0301" * 300 + "\u0316" * 300).encode()
NAMES: Final = (
    *b"INBOX inbox Sent Trash a a/b a/b/c Inbox/Sub &AOk- &bad &- x%y".split(),
    *(b'"a b"', b'""', b'"*"', b"/", b"a//b", b"\xc3\xa9", b"n" * 300, b"a/" * 60, b"INBOX/Lists"),
)
PATTERNS: Final = (*b"* % a* %/% *b* INBOX inb* *%*%*a caf\xc3\xa9*".split(b" "), b'""', b"a/" * 40 + b"*", b"*a" * 400)
FLAGS: Final = (
    *b"\\Seen \\Deleted \\Flagged \\Draft \\Answered $Label k1 k2 NonJunk \\Recent".split(),
    b"k" * 255,
    b"k" * 256,
)
SETS: Final = (
    *b"1 * 1:* *:1 1:3,5 2:4 999 $ 0 4294967295 4294967296 1:4294967295 , 1,,2".split(),
    b"1,3," * 400 + b"5",
)
TEXTS: Final = (*b"a hello Subject NIL caf\xc3\xa9 =?utf-8?q?x?=".split(), b'"a b"', b'""', b'"\\""', b"x" * 2_000)
DATES: Final = (*b"1-Jan-1970 29-Feb-2023 31-Dec-9999 01-Feb-2000 1-Jan-0001".split(), b'"1-Feb-1994"')
FIELDS: Final = (*b"Subject From To Cc Message-ID X-None Received a:b".split(), b'"Date"', b"f" * 255, b"f" * 256)
SECTIONS: Final = (
    *b"HEADER TEXT 1 1.MIME 2 2.1 2.HEADER 2.TEXT 3.1.2 0 MIME 1.1.1.1.1.HEADER 9.9.MIME".split(),
    b"",
    b"1." * 130 + b"1",
)
ITEMS: Final = (
    *b"FLAGS UID ENVELOPE BODY BODYSTRUCTURE INTERNALDATE RFC822.SIZE RFC822 RFC822.HEADER RFC822.TEXT MODSEQ".split(),
    *(b"SAVEDATE", b"EMAILID", b"THREADID", b"PREVIEW", b"PREVIEW (LAZY)"),
)
STATUS: Final = tuple(
    b"MESSAGES UIDNEXT UIDVALIDITY UNSEEN RECENT HIGHESTMODSEQ SIZE DELETED DELETED-STORAGE APPENDLIMIT MAILBOXID "
    b"NONE".split()
)
TOKENS: Final = (
    *(b"(", b")", b"[", b"]", b"{", b"}", b'"', b"\\", b"*", b"%", b"&", b" ", b"\r\n", b"\n", b"\r", b"\0", b"\xff"),
    *(b"{5}", b"{5+}", b"{0+}\r\n", b"~{3+}\r\nabc", b"{99999999999+}", b"NIL", b"1,", b"OR ", b"NOT ", b"\xcc\x81"),
)
PLAIN: Final = (
    *b"NOOP CHECK CAPABILITY NAMESPACE CLOSE UNSELECT EXPUNGE LOGOUT STARTTLS NONSENSE IDLE".split(),
    b"UNAUTHENTICATE\r\nl LOGIN anna secret\r\ns SELECT INBOX",
)
CRITERIA: Final = tuple(b"ARRIVAL CC DATE FROM SIZE SUBJECT TO DISPLAYFROM DISPLAYTO NONE".split())
KEYS: Final = tuple(
    b"ALL SEEN UNSEEN NEW OLD RECENT DELETED UNDELETED FLAGGED DRAFT ANSWERED SAVEDATESUPPORTED NONSENSE".split()
)


class Commands:
    """`make` returns a command with its tag and its CRLF."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self._tag = 0
        self._kinds: tuple[Callable[[], bytes], ...] = (
            *(self.fetch, self.fetch, self.fetch, self.search, self.search, self.search, self.store, self.store),
            *(self.append, self.listing, self.listing, self.select, self.select, self.mailbox, self.copy, self.plain),
            *(self.status, self.misc, self.expunge, self.sort, self.replace, self._notify, self._metadata),
        )

    def pick(self, values: tuple[bytes, ...]) -> bytes:
        return self.chance.choice(values)

    def some(self, one: Callable[[], bytes], most: int = 4) -> bytes:
        return b" ".join(one() for _ in range(self.chance.randint(1, most)))

    def make(self) -> bytes:
        self._tag += 1
        command = b"t%d %b" % (self._tag, self.chance.choice(self._kinds)())
        if self.chance.random() < 0.25:
            command = self.broken(command)
        return command + b"\r\n"

    def broken(self, command: bytes) -> bytes:
        """Return the command with a few bytes removed, inserted, doubled or repeated
        very often."""
        chance = self.chance
        for _ in range(chance.randint(1, 3)):
            low, high = sorted((chance.randint(0, len(command)), chance.randint(0, len(command))))
            high = min(high, low + 40)
            kind = chance.randrange(5)
            if kind == 0:
                command = command[:low] + command[high:]
            elif kind == 1:
                command = command[:low] + self.pick(TOKENS) + command[low:]
            elif kind == 2:
                command = command[:low] + command[low:high] * chance.randint(2, 4) + command[high:]
            elif kind == 3:
                command = command[:low] + bytes([chance.randrange(256)]) + command[low + 1 :]
            else:
                token = self.pick(TOKENS)
                command = command[:low] + token * (chance.randint(1, 66_000) // len(token)) + command[low:]
        return command

    # -- pieces --------------------------------------------------------------------------------------------------------

    def name(self) -> bytes:
        kind = self.chance.random()
        if kind < 0.05:
            return b"{%d+}\r\n%b" % (len(MARKS), MARKS)
        if kind < 0.15:
            plain = self.pick(NAMES).strip(b'"')
            return b"{%d+}\r\n%b" % (len(plain), plain)
        return self.pick(NAMES)

    def sequence(self) -> bytes:
        return self.pick(SETS)

    def flags(self) -> bytes:
        return self.some(lambda: self.pick(FLAGS), self.chance.choice((1, 3, 70)))

    def maybe_uid(self) -> bytes:
        return self.pick((b"", b"UID "))

    def item(self) -> bytes:
        kind = self.chance.random()
        if kind < 0.5:
            return self.pick(ITEMS)
        section = self.pick(SECTIONS)
        partial = self.pick((b"", b"", b"<0.10>", b"<5.99999999>", b"<9223372036854775807.1>", b"<0.0>"))
        if kind < 0.6:
            part = self.pick((b"", b"1", b"2", b"2.1", b"3", section))
            return self.pick((b"BINARY[", b"BINARY.PEEK[", b"BINARY.SIZE[")) + part + b"]" + partial
        if kind < 0.75:
            section = self.pick((b"", b"1.", b"2.")) + self.pick((b"HEADER.FIELDS", b"HEADER.FIELDS.NOT"))
            section += b" (%b)" % self.some(lambda: self.pick(FIELDS), self.chance.choice((2, 5, 260)))
        return self.pick((b"BODY[", b"BODY.PEEK[")) + section + b"]" + partial

    def key(self, depth: int = 0) -> bytes:
        kind = self.chance.randrange(12 if depth < 5 else 9)
        if kind < 2:
            return self.pick(KEYS)
        if kind == 2:
            return self.pick((b"SUBJECT ", b"FROM ", b"TO ", b"BODY ", b"TEXT ", b"CC ", b"BCC ")) + self.pick(TEXTS)
        if kind == 3:
            return b"HEADER %b %b" % (self.pick(FIELDS), self.pick(TEXTS))
        if kind == 4:
            test = self.pick((b"BEFORE", b"ON", b"SINCE"))
            return self.pick((b"", b"SENT", b"SAVED")) + test + b" " + self.pick(DATES)
        if kind == 5:
            return self.pick((b"LARGER 5", b"SMALLER 99", b"OLDER 3", b"YOUNGER 9", b"MODSEQ 1", b"MODSEQ 0"))
        if kind == 6:
            return self.pick((b"KEYWORD ", b"UNKEYWORD ")) + self.pick(FLAGS)
        if kind < 9:
            return self.pick((b"", b"UID ")) + self.sequence()
        if kind == 9:
            return self.pick((b"NOT ", b"NOT ", b"FUZZY ")) + self.key(depth + 1)
        if kind == 10:
            return b"OR %b %b" % (self.key(depth + 1), self.key(depth + 1))
        return b"(%b)" % self.some(lambda: self.key(depth + 1))

    # -- commands ------------------------------------------------------------------------------------------------------

    def fetch(self) -> bytes:
        items = b"(%b)" % self.some(self.item, self.chance.choice((1, 4, 12)))
        if self.chance.random() < 0.2:
            items = self.pick((b"ALL", b"FAST", b"FULL", *ITEMS))
        more = self.pick(
            (b"", b"", b"", b" (CHANGEDSINCE 1)", b" (CHANGEDSINCE 1 VANISHED)", b" (%b)" % self._partial())
        )
        return b"%bFETCH %b %b%b" % (self.maybe_uid(), self.sequence(), items, more)

    def search(self) -> bytes:
        options = (b"MIN", b"MAX", b"ALL", b"COUNT", b"SAVE", b"UPDATE", b"CONTEXT", b"NONE", self._partial())
        returns = b"RETURN (%b) " % self.some(lambda: self.pick(options)) if self.chance.random() < 0.4 else b""
        charset = self.pick((b"", b"", b"CHARSET UTF-8 ", b"CHARSET KOI8-R ", b"CHARSET x "))
        if self.chance.random() < 0.2:
            sources = self.pick((b"", b"IN (%b) " % self.some(self._filter, 3)))
            return b"ESEARCH %b%b%b%b" % (sources, returns, charset, self.some(self.key, 3))
        return b"%bSEARCH %b%b%b" % (self.maybe_uid(), returns, charset, self.some(self.key, 5))

    def _filter(self) -> bytes:
        plain = (b"selected", b"inboxes", b"personal", b"subscribed", b"none", b"selected-delayed")
        if self.chance.random() < 0.5:
            return self.pick(plain)
        names = self.pick((self.name(), b"(%b)" % self.some(self.name)))
        return self.pick((b"mailboxes ", b"subtree ", b"subtree-one ")) + names

    def _notify(self) -> bytes:
        events = (
            b"(MessageNew MessageExpunge)",
            b"(MessageNew (FLAGS BODY[]) MessageExpunge FlagChange)",
            b"(MailboxName SubscriptionChange)",
            b"(MessageNew MessageExpunge MailboxName)",
            b"(MailboxMetadataChange ServerMetadataChange)",
            b"(FlagChange)",
            b"(AnnotationChange)",
            b"NONE",
        )
        groups = self.some(lambda: b"(%b %b)" % (self._filter(), self.pick(events)), 3)
        return self.pick((b"NOTIFY NONE", b"NOTIFY SET " + groups, b"NOTIFY SET STATUS " + groups))

    def _entry(self) -> bytes:
        return self.pick(
            (b"/private/comment", b"/shared/comment", b"/PRIVATE/a/b", b"/private/a", b"/x", b"/private/a*", b"//")
        )

    def _metadata(self) -> bytes:
        name = self.pick((b'""', self.name()))
        if self.chance.random() < 0.5:
            options = self.pick((b"", b"", b"(DEPTH 1) ", b"(DEPTH infinity MAXSIZE 3) ", b"(DEPTH 2) "))
            entries = self.pick((self._entry(), b"(%b)" % self.some(self._entry)))
            return b"GETMETADATA " + self.pick((options + name, name + b" " + options.rstrip())) + b" " + entries
        values = (b"NIL", b'"x"', b"{3+}\r\nabc", b"~{3+}\r\na\0c", b"{20000+}\r\n" + b"v" * 20_000)
        return b"SETMETADATA %b (%b)" % (name, self.some(lambda: self._entry() + b" " + self.pick(values)))

    def _partial(self) -> bytes:
        return b"PARTIAL " + self.pick((b"1:2", b"-1:-5", b"9:3", b"2:-1", b"0:1", b"-4294967295:-1", b"1:4294967296"))

    def sort(self) -> bytes:
        returns = self.pick(
            (
                b"RETURN (SAVE MIN %b) " % self._partial(),
                b"",
                b"",
                b"RETURN () ",
                b"RETURN (MIN MAX COUNT SAVE) ",
                b"RETURN (UPDATE) ",
                b"RETURN (UPDATE (FLAGS BODY[]) COUNT) ",
                b"RETURN (SAVE) ",
            )
        )
        criteria = self.some(lambda: self.pick((b"", b"", b"REVERSE ")) + self.pick(CRITERIA), 5)
        charset = self.pick((b"UTF-8", b"US-ASCII", b"x"))
        return b"%bSORT %b(%b) %b %b" % (self.maybe_uid(), returns, criteria, charset, self.some(self.key, 3))

    def store(self) -> bytes:
        mode = self.pick((b"FLAGS", b"+FLAGS", b"-FLAGS", b"+FLAGS.SILENT", b"FLAGS.SILENT"))
        since = self.pick((b"", b"", b"(UNCHANGEDSINCE 0) ", b"(UNCHANGEDSINCE 99999999999999) "))
        return b"%bSTORE %b %b%b (%b)" % (self.maybe_uid(), self.sequence(), since, mode, self.flags())

    def append(self) -> bytes:
        return b"APPEND %b%b" % (self.name(), self._mails(self.chance.choice((1, 1, 1, 2, 5))))

    def replace(self) -> bytes:
        number = self.pick((b"1", b"2", b"*", b"9", b"0", b"1:2", b"$"))
        return b"%bREPLACE %b %b%b" % (
            self.maybe_uid(),
            number,
            self.name(),
            self._mails(self.chance.choice((1, 1, 2))),
        )

    def _mails(self, count: int) -> bytes:
        out = b""
        for _ in range(count):
            flags = b" (%b)" % self.flags() if self.chance.random() < 0.5 else b""
            date = self.pick((b"", b"", b' "17-Jul-1996 02:44:25 -0700"', b' "99-Jul-1996 02:44:25 -0700"'))
            mail = b"Subject: %d\r\n\r\n" % self._tag + b"x" * self.chance.choice((0, 10, 3_000, 3_000, 1_200_000))
            sign = b""
            if self.chance.random() < 0.3:
                sign, encoding = b"~", self.pick((b"binary", b"8bit", b"x-none"))
                mail = b"MIME-Version: 1.0\r\nContent-Transfer-Encoding: %b\r\n%b\0x" % (encoding, mail)
            data = b"%b{%d+}\r\n%b" % (sign, len(mail), mail)
            if self.chance.random() < 0.2:
                data = b"CATENATE (%b TEXT %b)" % (self.some(self._url), data)
            out += b"%b%b %b" % (flags, date, data)
        return out

    def _url(self) -> bytes:
        name = self.pick((b"", b"/INBOX", b"/Sent", b"/a%2Fb", b"/%FF", b"/INBOX;UIDVALIDITY=1", b"imap://a/b"))
        section = self.pick(
            (b"", b"", b"/;SECTION=" + self.pick(SECTIONS), b"/;PARTIAL=0.5", b"/;SECTION=1/;PARTIAL=2")
        )
        return b'URL "%b/;UID=%d%b"' % (name, self.chance.randint(0, 9), section)

    def listing(self) -> bytes:
        word = self.pick((b"LIST", b"LIST", b"LSUB"))
        select = self.pick((b"", b"", b"(SUBSCRIBED) ", b"(SUBSCRIBED RECURSIVEMATCH) ", b"(SPECIAL-USE) ", b"() "))
        patterns = self.pick(PATTERNS)
        if self.chance.random() < 0.3:
            patterns = b"(%b)" % self.some(lambda: self.pick(PATTERNS), 70)
        returns = self.pick((b"", b"", b" RETURN (SUBSCRIBED CHILDREN)", b" RETURN (STATUS (MESSAGES UNSEEN))"))
        if self.chance.random() < 0.2:
            returns = b" RETURN (METADATA %b)" % self.pick((self._entry(), b"(%b)" % self.some(self._entry)))
        return b"%b %b%b %b%b" % (word, select, self.name(), patterns, returns)

    def select(self) -> bytes:
        more = self.pick((b"", b"", b" (CONDSTORE)", b" (QRESYNC (1 1))", b" (QRESYNC (1 1 1:5 (1 1)))"))
        name = b"INBOX" if self.chance.random() < 0.7 else self.name()
        return self.pick((b"SELECT ", b"SELECT ", b"EXAMINE ")) + name + more

    def mailbox(self) -> bytes:
        word = self.pick((b"CREATE", b"DELETE", b"SUBSCRIBE", b"UNSUBSCRIBE", b"RENAME a"))
        return word + b" " + self.name() + self.pick((b"", b"", b" (USE (\\Trash))"))

    def copy(self) -> bytes:
        return b"%b%b %b %b" % (self.maybe_uid(), self.pick((b"COPY", b"MOVE")), self.sequence(), self.name())

    def status(self) -> bytes:
        return b"STATUS %b (%b)" % (self.name(), self.some(lambda: self.pick(STATUS), 9))

    def expunge(self) -> bytes:
        return self.pick((b"EXPUNGE", b"UID EXPUNGE " + self.sequence()))

    def plain(self) -> bytes:
        word = self.pick(PLAIN)
        return word + b"\r\nDONE" if word == b"IDLE" else word

    def misc(self) -> bytes:
        return self.pick(
            (
                b"GETQUOTA " + self.pick((b"user", b'""', b"x" * 300)),
                b"GETQUOTAROOT " + self.name(),
                b"SETQUOTA user (STORAGE %d)" % self.chance.getrandbits(65),
                b"ENABLE QRESYNC",
                b"ENABLE UIDONLY",
                b"ENABLE UTF8=ACCEPT",
                b"ENABLE IMAP4rev2",
                b"ENABLE CONDSTORE X",
                b'ID ("name" "x" "y" NIL)',
                b"ID NIL",
                b"LOGIN anna secret",
                b"AUTHENTICATE PLAIN AGFubmEAc2VjcmV0",
                b"AUTHENTICATE PLAIN\r\n*",
                b"UID THREAD REFERENCES UTF-8 " + self.some(self.key, 2),
                b"THREAD ORDEREDSUBJECT UTF-8 ALL",
                b"THREAD NONE UTF-8 ALL",
                b'CANCELUPDATE "t%d"' % self.chance.randint(0, 9),
                b'CANCELUPDATE "x" x',
                b"UIDBATCHES %d" % self.chance.choice((0, 1, 500, 4_294_967_296)),
                b"UIDBATCHES 500 " + self.pick((b"1:1", b"2:1", b"1:200", b"1:201", b"9:9", b"1")),
                b"XLIST %b %b" % (self.name(), self.pick(PATTERNS)),
            )
        )
