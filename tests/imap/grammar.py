"""A strict parser of the responses that a server may send: RFC 3501 §9 and RFC 9051 §9,
with the extensions that obox has.

`parse` takes a single response, with its literals and without its last CRLF. It returns
the response as values, or raises Ungrammatical with the place of the error. It accepts
less than a client should: each response code, capability, item and attribute is listed
here with the arguments that its RFC gives it. docs/caveats.md names a single exception,
which is allowed: NUL inside the literal of a body, for a mail that was delivered with
it. `utf8`: quoted strings and texts may be UTF-8 (RFC 6855, RFC 9051 §9). `rev2`: the
client has enabled IMAP4rev2, so that nothing may come that RFC 9051 has removed.

RFC 2971 (ID), 3516 (BINARY), 4315 (UIDPLUS), 4469 (CATENATE), 4731 (ESEARCH), 5161
(ENABLE), 5256 (SORT), 5258 (LIST), 5530 (codes), 6154 (special use), 7162 (CONDSTORE,
QRESYNC), 7889 (APPENDLIMIT), 8438 (STATUS=SIZE), 8474 (OBJECTID), 8514 (SAVEDATE), 8970
(PREVIEW), 9208 (QUOTA), 9394 (PARTIAL), 9585 (INPROGRESS),
9586 (UIDONLY), 7377 (MULTISEARCH), 10022
(UIDBATCHES), 5267 (CONTEXT), 5465 (NOTIFY),
5464 (METADATA), 4314 (ACL).
"""

from __future__ import annotations

import re
from binascii import a2b_base64
from itertools import pairwise
from typing import Any, NamedTuple

from obox.errors import Invalid
from tests.imap.structures import Structures
from tests.imap.terminals import NUMBER64_MAX, TAG, TEXT, TEXT_UTF8, WORD, Ungrammatical

__all__ = ["Response", "Status", "Ungrammatical", "parse"]

SECTION = re.compile(
    rb"(?:(?:[1-9][0-9]*)(?:\.[1-9][0-9]*)*(?:\.(?:HEADER\.FIELDS\.NOT|HEADER\.FIELDS|HEADER|TEXT|MIME))?"
    rb"|HEADER\.FIELDS\.NOT|HEADER\.FIELDS|HEADER|TEXT)?"
)

SECTION_BINARY = re.compile(rb"\[(?:[1-9][0-9]*(?:\.[1-9][0-9]*)*)?\]")

PARTIAL_RANGE = re.compile(rb"[1-9][0-9]*:[1-9][0-9]*|-[1-9][0-9]*:-[1-9][0-9]*")

CAPABILITIES = re.compile(
    rb"IMAP4rev[12]|AUTH=[A-Z0-9-]+|STARTTLS|LOGINDISABLED|SASL-IR|LITERAL\+|LITERAL-|ENABLE|IDLE|NAMESPACE|UNSELECT"
    rb"|UIDPLUS|MOVE|ID|CHILDREN|LIST-EXTENDED|LIST-STATUS|SPECIAL-USE|CREATE-SPECIAL-USE|ESEARCH|SEARCHRES|WITHIN"
    rb"|CONDSTORE|QRESYNC|MULTIAPPEND|BINARY|CATENATE|PARTIAL|INPROGRESS|UIDONLY|MULTISEARCH|CONTEXT=(?:SEARCH|SORT)|UIDBATCHES|XLIST|SAVEDATE|STATUS=SIZE|APPENDLIMIT=[0-9]+|UTF8=ACCEPT|SORT|ESORT|THREAD=(?:ORDEREDSUBJECT|REFERENCES|REFS)"
    rb"|QUOTA|QUOTA=RES-(?:STORAGE|MESSAGE)|ACL|RIGHTS=[a-z]+|METADATA|LIST-METADATA|NOTIFY|OBJECTID|PREVIEW|REPLACE|LIST-MYRIGHTS|SORT=DISPLAY|I18NLEVEL=1|UNAUTHENTICATE|COMPRESS=DEFLATE"
)
PLAIN_CODES = re.compile(
    r"ALERT|PARSE|READ-ONLY|READ-WRITE|TRYCREATE|CLOSED|UIDNOTSTICKY|NOMODSEQ|UNAVAILABLE|"
    r"AUTHENTICATIONFAILED|AUTHORIZATIONFAILED|EXPIRED|PRIVACYREQUIRED|CONTACTADMIN|NOPERM|INUSE|"
    r"EXPUNGEISSUED|CORRUPTION|SERVERBUG|CLIENTBUG|CANNOT|LIMIT|OVERQUOTA|ALREADYEXISTS|NONEXISTENT|"
    r"USEATTR|TOOFEW|TOOMANY|TOOBIG|HASCHILDREN|NOTSAVED|UNKNOWN-CTE|UIDREQUIRED|NOTIFICATIONOVERFLOW"
)
LIST_FLAGS = frozenset(
    rb"\Noselect \NonExistent \Noinferiors \Marked \Unmarked \HasChildren \HasNoChildren \Subscribed \Remote "
    rb"\All \Archive \Drafts \Flagged \Junk \Sent \Trash \Important".split()
)
XLIST_FLAGS = frozenset(rb"\Inbox \Spam \Starred".split())
EXCLUSIVE = (
    {b"\\Noselect", b"\\NonExistent"},
    {b"\\HasChildren", b"\\HasNoChildren"},
    {b"\\Marked", b"\\Unmarked", b"\\Noselect"},
)
"""At most one of each: sflags, and RFC 5258 §3.4 (\\NonExistent implies \\Noselect)."""


class Response(NamedTuple):
    """A response.

    tag: None if it is untagged, b"+" for a continuation. name: `OK`, `FETCH`, … value:
    the content.
    """

    tag: bytes | None
    name: str
    value: Any


class Status(NamedTuple):
    """resp-text: a response code with its argument, and the words behind it."""

    code: str
    argument: Any
    text: bytes


class _Reader(Structures):
    # -- status --------------------------------------------------------------------------------------------------------

    def resp_text(self) -> Status:
        code, argument = "", None
        if self.take(b"["):
            code, argument = self.code()
            self.need(b"] ")
        return Status(code, argument, self.match(TEXT_UTF8 if self.utf8 else TEXT, "text")[0])

    def code(self) -> tuple[str, Any]:
        name = self.atom().decode()
        if PLAIN_CODES.fullmatch(name):
            return name, None
        if name == "BADCHARSET":
            return name, self.items(self.astring, empty=False) if self.take(b" ") else None
        if name == "BADURL":
            self.need(b" ")
            return name, self.match(re.compile(rb"[\x21-\x5c\x5e-\x7e]+"), "a URL")[0]
        if name == "CAPABILITY":
            return name, self.capabilities()
        self.need(b" ")
        if name == "PERMANENTFLAGS":
            return name, self.flags(b"\\*")
        if name in ("UIDNEXT", "UIDVALIDITY") or (name == "UNSEEN" and not self.rev2):
            return name, self.nz()
        if name == "MAILBOXID":
            return name, self.object_id()
        if name == "HIGHESTMODSEQ":
            return name, self.modseq()
        if name == "INPROGRESS":
            return name, self.match(re.compile(rb'\("[^"\\]+" (?:[0-9]+|NIL) (?:[1-9][0-9]*|NIL)\)'), "progress")[0]
        if name == "BADEVENT":
            return name, self.items(self.atom, empty=False)
        if name == "METADATA":
            kind = self.atom()
            if kind in (b"TOOMANY", b"NOPRIVATE"):
                return name, kind
            if kind not in (b"LONGENTRIES", b"MAXSIZE"):
                self.fail("LONGENTRIES, MAXSIZE, TOOMANY or NOPRIVATE")
            self.need(b" ")
            return name, (kind, self.number())
        if name == "NOUPDATE":
            return name, self.match(self.quoted, "a tag in quotes")[1]
        if name == "MODIFIED":
            return name, self.sequence()
        if name == "APPENDUID":
            uidvalidity = self.nz()
            self.need(b" ")
            return name, (uidvalidity, self.sequence())
        if name == "COPYUID":
            uidvalidity = self.nz()
            self.need(b" ")
            source = self.sequence()
            self.need(b" ")
            target = self.sequence()
            if sum(b - a + 1 for a, b in source) != sum(b - a + 1 for a, b in target):
                self.fail("as many UIDs on both sides")
            return name, (uidvalidity, source, target)
        self.fail(f"a known response code, not {name}")

    def capabilities(self) -> list[bytes]:
        found = []
        while self.take(b" "):
            word = self.match(re.compile(rb"[^\x00-\x20\x7f-\xff(){%*\"\\\]]+"), "a capability")[0]
            if not CAPABILITIES.fullmatch(word):
                self.fail(f"a known capability, not {word!r}")
            found.append(word)
        if not {b"IMAP4rev1", b"IMAP4rev2"} & set(found) or len(set(found)) != len(found):
            self.fail("IMAP4rev1 or IMAP4rev2 among capabilities, each once")
        return found

    # -- mailboxes -----------------------------------------------------------------------------------------------------

    def list_response(self, *, xlist: bool = False) -> Any:
        """mailbox-list = "(" [mbx-list-flags] ")" SP (DQUOTE QUOTED-CHAR DQUOTE / nil)
        SP mailbox [SP extended]"""

        def attribute() -> bytes:
            found = self.match(re.compile(rb"\\[A-Za-z]+"), "an attribute")[0]
            if found not in LIST_FLAGS | (XLIST_FLAGS if xlist else frozenset()):
                self.fail("a known attribute")
            return found

        attributes = self.items(attribute)
        if len(set(attributes)) != len(attributes) or any(len(set(attributes) & some) > 1 for some in EXCLUSIVE):
            self.fail("attributes that go together")
        self.need(b" ")
        separator = None if self.nil() else self.match(self.quoted, "a separator")[1]
        if separator is not None and len(separator) != 1:
            self.fail("one character as separator")
        self.need(b" ")
        # The answer to an empty pattern has an empty name.
        name = "" if separator is not None and self.take(b'""') else self.mailbox()
        extended: list[Any] = []
        if self.take(b" "):
            extended = self.items(self.list_extended, empty=False)
        return attributes, separator, name, extended

    def list_extended(self) -> Any:
        word = self.astring()
        self.need(b" ")
        if word == b"CHILDINFO":
            return word, self.items(self.string, empty=False)
        if word == b"OLDNAME":
            return word, self.items(self.mailbox, empty=False)
        self.fail("a known extended item")

    def status_response(self) -> Any:
        name = self.mailbox()
        self.need(b" ")
        values: dict[bytes, int | bytes | None] = {}

        def one() -> None:
            word = self.atom()
            self.need(b" ")
            if word in values:
                self.fail("each item once")
            if word in (b"MESSAGES", b"RECENT", b"UNSEEN", b"DELETED"):
                values[word] = self.number()
            elif word in (b"UIDNEXT", b"UIDVALIDITY"):
                values[word] = self.nz()
            elif word in (b"SIZE", b"HIGHESTMODSEQ", b"DELETED-STORAGE"):
                values[word] = self.number(0, NUMBER64_MAX)
            elif word == b"MAILBOXID":
                values[word] = self.object_id()
            elif word == b"APPENDLIMIT":
                values[word] = None if self.nil() else self.number()
            else:
                self.fail("a known STATUS item")

        self.items(one)
        return name, values

    def quota(self) -> Any:
        """Read quota-root-name SP "(" quota-resource *(SP quota-resource) ")". RFC 9208
        §7."""
        root = self.astring()
        self.need(b" ")

        def one() -> tuple[bytes, int, int]:
            name = self.atom()
            self.need(b" ")
            usage = self.number(0, NUMBER64_MAX)
            self.need(b" ")
            return name, usage, self.number(0, NUMBER64_MAX)

        return root, self.items(one, empty=False)

    def quotaroot(self) -> Any:
        name = self.mailbox()
        roots = []
        while self.take(b" "):
            roots.append(self.astring())
        return name, roots

    def rights(self, word: str) -> Any:
        """Return the mailbox, and identifiers and rights as the word has them. RFC 4314
        §3.6 to §3.8."""
        name, texts = self.mailbox(), []
        while self.take(b" "):
            texts.append(self.astring())
        rights = texts[1::2] if word == "ACL" else texts[1:] if word == "LISTRIGHTS" else texts
        known = all(set(one) <= set(b"lrswipkxteacd") and len(set(one)) == len(one) for one in rights)
        counted = {"ACL": len(texts) % 2 == 0, "LISTRIGHTS": len(texts) >= 2, "MYRIGHTS": len(texts) == 1}[word]
        if not (known and counted):
            self.fail(f"identifiers and rights of {word}")
        return name, texts

    def namespace(self) -> Any:
        def one() -> tuple[bytes, bytes | None]:
            self.need(b"(")
            prefix = self.string()
            self.need(b" ")
            separator = None if self.nil() else self.string()
            self.need(b")")
            return prefix, separator

        found = []
        for i in range(3):
            if i:
                self.need(b" ")
            found.append(None if self.nil() else self.items(one, empty=False, sep=b""))
        return found

    def object_id(self) -> bytes:
        """ "(" objectid ")". RFC 8474 §7."""
        self.need(b"(")
        found = self.match(re.compile(rb"[A-Za-z0-9_-]{1,255}"), "an object ID")[0]
        self.need(b")")
        return found

    # -- search --------------------------------------------------------------------------------------------------------

    def search_response(self) -> Any:
        found = []
        modseq = None
        while self.take(b" "):
            if self.take(b"(MODSEQ "):
                modseq = self.modseq()
                self.need(b")")
                break
            found.append(self.nz())
        if len(set(found)) != len(found) or (modseq is not None and not found):
            self.fail("numbers without repetition")
        return found, modseq

    def threads(self) -> list[Any]:
        """*thread-list, read without recursion. RFC 5256 §5."""
        found: list[Any] = []
        seen: set[int] = set()
        above = [found]
        while self.at < len(self.data):
            if self.take(b"("):
                above[-1].append([])
                above.append(above[-1][-1])
            elif self.take(b")"):
                lists = [one for one in above[-1] if isinstance(one, list)]
                if not above[-1] or len(lists) == 1 or len(above) == 1:
                    self.fail("members, or at least two lists")
                above.pop()
            else:
                number = self.nz()
                if len(above) == 1 or number in seen or any(isinstance(one, list) for one in above[-1]):
                    self.fail("numbers once, before lists")
                seen.add(number)
                above[-1].append(number)
                if self.take(b" ") and self.data[self.at : self.at + 1] == b")":
                    self.fail("a number or a list")
        if len(above) > 1:
            self.fail("closed lists")
        return found

    def esearch(self) -> Any:
        """ "ESEARCH" [search-correlator] [SP "UID"] *(SP search-return-data). RFC 4466
        §6, RFC 4731 §4."""
        tag: Any = None
        where: Any = None
        if self.take(b" (TAG "):
            tag = self.string()
            if self.take(b" MAILBOX "):
                where = self.mailbox()
                self.need(b" UIDVALIDITY ")
                where = where, self.nz()
            self.need(b")")
        uid = self.take(b" UID")
        if where is not None and not uid:
            self.fail("UIDs of another mailbox")
        values: dict[bytes, Any] = {}
        while self.take(b" "):
            word = self.match(WORD, "a result")[0]
            self.need(b" ")
            if word in values:
                self.fail("each result once")
            if word in (b"MIN", b"MAX"):
                values[word] = self.nz()
            elif word == b"COUNT":
                values[word] = self.number()
            elif word == b"ALL":
                values[word] = self.sequence()
            elif word == b"MODSEQ":
                values[word] = self.modseq()
            elif word in (b"ADDTO", b"REMOVEFROM"):
                values[word] = self.items(self.position, empty=False)
            elif word == b"PARTIAL":
                self.need(b"(")
                asked = self.match(PARTIAL_RANGE, "a range")[0]
                self.need(b" ")
                values[word] = asked, None if self.nil() else self.sequence()
                self.need(b")")
            else:
                self.fail("a known result")
        return (tag if where is None else (tag, *where)), uid, values

    def metadata(self) -> Any:
        """Read mailbox SP (entry-values / entry-list). RFC 5464 §5."""
        name = "" if self.take(b'""') else self.mailbox()
        self.need(b" ")
        if not self.data.startswith(b"(", self.at):
            found = [self.entry()]
            while self.take(b" "):
                found.append(self.entry())
            return name, found

        def one() -> tuple[bytes, bytes | None]:
            entry = self.entry()
            self.need(b" ")
            return entry, self.nstring8()

        return name, self.items(one, empty=False)

    def entry(self) -> bytes:
        found = self.astring()
        if not re.fullmatch(rb"(?:/[^\x00-\x1f\x7f-\xff*%/]+){2,}", found):
            self.fail("an entry")
        return found

    def position(self) -> tuple[int, list[tuple[int, int]]]:
        """Read context-position SP sequence-set. RFC 5267 §5."""
        at = self.number()
        self.need(b" ")
        return at, self.sequence()

    def batches(self) -> Any:
        """Read uidbatches-response: the ranges are descending and have no gaps. RFC
        10022."""
        self.need(b"(TAG ")
        tag = self.string()
        self.need(b")")
        found = self.sequence() if self.take(b" ") else []
        if any(high < low for high, low in found) or any(a[1] - 1 != b[0] for a, b in pairwise(found)):
            self.fail("descending ranges without gaps")
        return tag, found

    # -- FETCH ---------------------------------------------------------------------------------------------------------

    def fetch(self) -> dict[bytes, Any]:
        found: dict[bytes, Any] = {}

        def one() -> None:
            name, value = self.fetch_item()
            if name in found and not name.endswith(b">"):
                self.fail("each item once")
            found[name] = value

        self.items(one, empty=False)
        return found

    def fetch_item(self) -> tuple[bytes, Any]:
        start = self.at
        word = self.match(WORD, "an item")[0]
        if word == b"BODY" and self.data.startswith(b"[", self.at):
            self.section()
            name = self.data[start : self.at]
            self.need(b" ")
            return name, self.nstring(nul=True)
        if word in (b"BINARY", b"BINARY.SIZE"):
            self.match(SECTION_BINARY, "a part in brackets")
            if word == b"BINARY" and self.take(b"<"):
                self.number(0, NUMBER64_MAX)
                self.need(b">")
            name = self.data[start : self.at]
            self.need(b" ")
            return name, self.number() if word == b"BINARY.SIZE" else self.nstring8()
        self.need(b" ")
        if word == b"FLAGS":
            return word, self.flags() if self.rev2 else self.flags(b"\\Recent")
        if word == b"UID":
            return word, self.nz()
        if word == b"INTERNALDATE":
            return word, self.date_time()
        if word == b"EMAILID":
            return word, self.object_id()
        if word == b"THREADID":
            return word, None if self.nil() else self.object_id()
        if word == b"PREVIEW":
            preview = self.nstring()
            if preview is not None and len(preview.decode()) > 256:
                self.fail("at most 256 characters")
            return word, preview
        if word == b"SAVEDATE":
            return word, None if self.nil() else self.date_time()
        if word == b"RFC822.SIZE":
            return word, self.number(0, NUMBER64_MAX)
        if word in (b"RFC822", b"RFC822.HEADER", b"RFC822.TEXT"):
            return word, self.nstring(nul=True)
        if word == b"MODSEQ":
            self.need(b"(")
            value = self.modseq()
            self.need(b")")
            return word, value
        if word == b"ENVELOPE":
            return word, self.envelope()
        if word == b"BODY":
            return word, self.body(extended=False)
        if word == b"BODYSTRUCTURE":
            return word, self.body(extended=True)
        self.fail("a known item")

    def section(self) -> None:
        """section = "[" [section-spec] "]", then ["<" number ">"]"""
        self.need(b"[")
        spec = self.match(SECTION, "a section")[0]
        if spec.endswith((b"HEADER.FIELDS", b"HEADER.FIELDS.NOT")):
            self.need(b" ")
            self.items(self.astring, empty=False)
        self.need(b"]")
        if self.take(b"<"):
            self.number(0, NUMBER64_MAX)
            self.need(b">")

    # -- responses -----------------------------------------------------------------------------------------------------

    def untagged(self) -> Response:
        if self.data[self.at : self.at + 1].isdigit():
            number = self.number()
            self.need(b" ")
            word = self.match(WORD, "a response")[0].decode()
            if word in ("EXPUNGE", "FETCH", "UIDFETCH") and number == 0:
                self.fail("a number that is not zero")
            if word in ("EXISTS", "EXPUNGE") or (word == "RECENT" and not self.rev2):
                return Response(None, word, number)
            if word in ("FETCH", "UIDFETCH"):
                self.need(b" ")
                found = self.fetch()
                if word == "UIDFETCH" and found.get(b"UID", number) != number:
                    self.fail("the UID of the line")
                return Response(None, word, (number, found))
            self.fail("EXISTS, RECENT, EXPUNGE or FETCH")
        word = self.match(WORD, "a response")[0].decode()
        if word in ("OK", "NO", "BAD", "BYE", "PREAUTH"):
            self.need(b" ")
            return Response(None, word, self.resp_text())
        if word == "CAPABILITY":
            return Response(None, word, self.capabilities())
        if word == "ENABLED":
            names = []
            while self.take(b" "):
                names.append(self.atom())
            return Response(None, word, names)
        if word == "SORT" or (word == "SEARCH" and not self.rev2):
            return Response(None, word, self.search_response())
        if word == "ESEARCH":
            return Response(None, word, self.esearch())
        if word == "THREAD":
            return Response(None, word, self.threads() if self.take(b" ") else [])
        self.need(b" ")
        if word == "FLAGS":
            return Response(None, word, self.flags())
        if word in ("LIST", "LSUB", "XLIST"):
            return Response(None, word, self.list_response(xlist=word == "XLIST"))
        if word == "STATUS":
            return Response(None, word, self.status_response())
        if word == "METADATA":
            return Response(None, word, self.metadata())
        if word == "UIDBATCHES":
            return Response(None, word, self.batches())
        if word == "QUOTA":
            return Response(None, word, self.quota())
        if word == "QUOTAROOT":
            return Response(None, word, self.quotaroot())
        if word in ("ACL", "LISTRIGHTS", "MYRIGHTS"):
            return Response(None, word, self.rights(word))
        if word == "NAMESPACE":
            return Response(None, word, self.namespace())
        if word == "ID":
            return Response(None, word, self.parameters_or_nil())
        if word == "VANISHED":
            earlier = self.take(b"(EARLIER) ")
            return Response(None, word, (earlier, self.sequence()))
        self.fail("a known response")

    def parameters_or_nil(self) -> Any:
        if self.nil():
            return None

        def one() -> tuple[bytes, bytes | None]:
            name = self.string()
            self.need(b" ")
            return name, self.nstring()

        return self.items(one)


def parse(line: bytes, *, utf8: bool = False, rev2: bool = False) -> Response:
    """Return a response. line: the response with its literals, without its last CRLF.
    Raises: Ungrammatical."""
    reader = _Reader(line, utf8 or rev2)
    reader.rev2 = rev2
    try:
        return _response(reader, line)
    # A name that does not decode, or a date that does not exist, is ungrammatical too.
    except (Invalid, ValueError) as error:
        raise Ungrammatical(f"{error}, before {reader.at}: {line[:200]!r}") from None


def _response(reader: _Reader, line: bytes) -> Response:
    if reader.take(b"* "):
        found = reader.untagged()
    elif reader.take(b"+ "):
        text = line[2:]
        if re.fullmatch(rb"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?", text):
            return Response(b"+", "+", a2b_base64(text))
        found = Response(b"+", "+", reader.resp_text())
    else:
        tag = reader.match(TAG, "a tag")[0]
        reader.need(b" ")
        word = reader.match(WORD, "OK, NO or BAD")[0].decode()
        if word not in ("OK", "NO", "BAD"):
            reader.fail("OK, NO or BAD")
        reader.need(b" ")
        found = Response(tag, word, reader.resp_text())
    reader.end()
    return found
