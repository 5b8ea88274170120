"""The arguments of commands that few clients send. It is imported when a client sends
such a command for the first time."""

from __future__ import annotations

import re
from typing import Final

from obox.errors import Invalid
from obox.imap import ast
from obox.imap._fetch import fetch_items
from obox.imap._scan import NUMBER64_MAX, Malformed, Scan
from obox.imap._search import program, result_options, search, take_charset
from obox.imap.ast import Command, Filter, Sort, SortField, Thread
from obox.mailbox import KEYWORD_BYTES_MAX
from obox.mailbox.rights import parse as parse_rights


def _quota_root(scan: Scan) -> str:
    scan.sp("a quota root")
    return scan.astring("a quota root").decode(errors="replace")


def getquota(scan: Scan, tag: bytes) -> Command:
    root = _quota_root(scan)
    scan.end()
    return ast.GetQuota(tag, root)


def setquota(scan: Scan, tag: bytes) -> Command:
    """setquota = "SETQUOTA" SP quota-root-name SP setquota-list. RFC 9208 §7."""
    root = _quota_root(scan)
    scan.sp("limits")

    def limit() -> tuple[str, int]:
        resource = scan.word("a resource")
        scan.sp("the limit of the resource")
        return resource, scan.number("limit", most=NUMBER64_MAX)

    limits = tuple(scan.items("limits", limit, empty=True))
    scan.end()
    return ast.SetQuota(tag, root, limits)


def sort(scan: Scan, tag: bytes, uid: bool) -> Sort:
    """sort = ["UID" SP] "SORT" SP sort-criteria SP search-criteria. RFC 5256 §5; RFC
    5267 §3 (RETURN)."""
    scan.sp("sort criteria")
    results = result_options(scan)

    def criterion() -> tuple[SortField, bool]:
        word = scan.word("a sort criterion")
        reverse = word == "REVERSE"
        if reverse:
            scan.sp("the criterion of REVERSE")
            word = scan.word("a sort criterion")
        try:
            return SortField(word), reverse
        except ValueError:
            allowed = " ".join(f.value for f in SortField)
            raise Malformed(f'Unknown sort criterion "{word}": allowed are REVERSE {allowed}') from None

    criteria = tuple(scan.items("sort criteria", criterion))
    scan.sp("a charset")
    take_charset(scan)
    scan.sp("search keys")
    return Sort(tag, uid, criteria, program(scan), *results)


def thread(scan: Scan, tag: bytes, uid: bool) -> Thread:
    scan.sp("a threading algorithm")
    algorithm = scan.word("a threading algorithm")
    scan.sp("a charset")
    take_charset(scan)
    scan.sp("search keys")
    return Thread(tag, uid, algorithm, program(scan))


def uidbatches(scan: Scan, tag: bytes) -> Command:
    """uidbatches = "UIDBATCHES" SP nz-number [SP nz-number ":" nz-number]. RFC
    10022."""
    scan.sp("the size of a batch")
    size = scan.number("size of a batch", least=1)
    batches = None
    if scan.more():
        scan.spaces()
        first = scan.number("first batch", least=1)
        scan.need(b":", "between the first and the last batch")
        batches = first, scan.number("last batch", least=1)
    scan.end()
    if batches is not None and batches[0] > batches[1]:
        raise Malformed("The first batch comes before the last batch", code="CLIENTBUG")
    return ast.UidBatches(tag, size, batches)


IDENTIFIER_BYTES_MAX: Final = 255
"""An identifier of an ACL, as it is sent. A login name has at most 200 bytes."""


def _identifier(scan: Scan) -> str:
    name = scan.astring("an identifier")
    if not name or len(name) > IDENTIFIER_BYTES_MAX:
        scan.beyond(f"Identifier of {len(name)} bytes; allowed: 1 to {IDENTIFIER_BYTES_MAX}")
    try:
        return name.decode()
    except UnicodeDecodeError:
        scan.fail("An identifier is UTF-8")


def setacl(scan: Scan, tag: bytes) -> Command:
    """setacl = "SETACL" SP mailbox SP identifier SP mod-rights; mod-rights = ["+" /
    "-"] rights. RFC 4314 §7."""
    scan.sp("a mailbox name")
    mailbox = scan.mailbox()
    scan.sp("an identifier")
    identifier = _identifier(scan)
    scan.sp("rights")
    text = scan.astring("rights").decode("ascii", "replace")
    scan.end()
    how = text[:1] if text[:1] in ("+", "-") else ""
    try:
        rights = parse_rights(text.removeprefix(how))
    except Invalid as error:
        said = str(error)
        scan.fail(said[:1].upper() + said[1:])
    return ast.SetAcl(tag, mailbox, identifier, how, rights)


def deleteacl(scan: Scan, tag: bytes) -> Command:
    return ast.DeleteAcl(tag, *_mailbox_and_identifier(scan))


def listrights(scan: Scan, tag: bytes) -> Command:
    return ast.ListRights(tag, *_mailbox_and_identifier(scan))


def _mailbox_and_identifier(scan: Scan) -> tuple[str, str]:
    scan.sp("a mailbox name")
    mailbox = scan.mailbox()
    scan.sp("an identifier")
    identifier = _identifier(scan)
    scan.end()
    return mailbox, identifier


def xlist(scan: Scan, tag: bytes) -> Command:
    scan.sp("a reference name")
    reference = scan.reference()
    scan.sp("a mailbox pattern")
    pattern = scan.pattern()
    scan.end()
    return ast.Xlist(tag, reference, pattern)


def cancelupdate(scan: Scan, tag: bytes) -> Command:
    """command-select =/ "CANCELUPDATE" 1*(SP quoted). RFC 5267 §5."""
    tags: list[bytes] = []
    while not tags or scan.more():
        scan.sp("the tag of a search in quotes")
        tags.append(scan.string("the tag of a search in quotes"))
        if len(tags) > scan.limits.arguments_max:
            scan.beyond(f"Too many tags: at most {scan.limits.arguments_max}")
    scan.end()
    return ast.CancelUpdate(tag, tuple(tags))


NAMED: Final = ("MAILBOXES", "SUBTREE", "SUBTREE-ONE")
_PLAIN: Final = ("SELECTED", "INBOXES", "PERSONAL", "SUBSCRIBED")


def mailbox_filter(scan: Scan, *more: str) -> Filter:
    """filter-mailboxes = "selected" / "inboxes" / "personal" / "subscribed" /
    ("subtree" SP one-or-more-mailbox) / ("mailboxes" SP one-or-more-mailbox). RFC 5465
    §8; RFC 7377 §2.2 (subtree-one). more: words that are allowed too."""
    kind = scan.word("a filter of mailboxes")
    if kind in _PLAIN or kind in more:
        return Filter(kind)
    if kind not in NAMED:
        allowed = " ".join((*_PLAIN, *more, *NAMED))
        scan.fail(f'Unknown filter of mailboxes "{kind}": allowed are {allowed}')
    scan.sp("mailbox names")
    if scan.peek() == b"(":
        return Filter(kind, tuple(dict.fromkeys(scan.items("mailbox names", scan.mailbox))))
    return Filter(kind, (scan.mailbox(),))


def esearch(scan: Scan, tag: bytes) -> Command:
    """esearch = "ESEARCH" [SP esearch-source-opts] [SP search-return-opts] SP
    search-program; esearch-source-opts = "IN" SP "(" source-mbox [SP "(" scope-options
    ")"] ")". RFC 7377 §5."""
    scan.sp("search keys")
    sources: tuple[Filter, ...] = ()
    if scan.peek_word() == "IN":
        scan.at += 2
        scan.sp("sources in brackets")

        def source() -> Filter:
            if scan.peek() == b"(":
                scan.fail("Unknown scope option: none is allowed")
            return mailbox_filter(scan)

        sources = tuple(dict.fromkeys(scan.items("sources", source)))
    else:
        scan.at -= 1
    return ast.MultiSearch(tag, search(scan, tag, True), sources)


GROUPS_MAX: Final = 32
"""Event groups of one NOTIFY. Each is compared with each mailbox."""


def notify(scan: Scan, tag: bytes) -> Command:
    """notify = "NOTIFY" SP ("SET" [SP "STATUS"] SP event-groups / "NONE"). RFC 5465
    §8."""
    scan.sp("SET or NONE")
    word = scan.word("SET or NONE")
    if word == "NONE":
        scan.end()
        return ast.Notify(tag, None)
    if word != "SET":
        scan.fail(f'Unknown word "{word}": allowed are SET NONE')
    scan.sp("event groups")
    status = scan.peek_word() == "STATUS"
    if status:
        scan.at += len("STATUS")
        scan.sp("event groups")
    groups = [_event_group(scan)]
    while scan.more():
        scan.spaces()
        groups.append(_event_group(scan))
        if len(groups) > GROUPS_MAX:
            scan.beyond(f"Too many event groups: at most {GROUPS_MAX}")
    scan.end()
    return ast.Notify(tag, tuple(groups), status)


def _event_group(scan: Scan) -> ast.EventGroup:
    """event-group = "(" filter-mailboxes SP events ")"; events = "(" event *(SP event)
    ")" / "NONE"."""
    scan.need(b"(", "before an event group")
    scan.spaces()
    filter = mailbox_filter(scan, "SELECTED-DELAYED")
    scan.sp("events")
    items: tuple[ast.FetchItem, ...] = ()

    def event() -> str:
        nonlocal items
        word = scan.word("an event")
        behind = scan.at
        scan.spaces()
        if scan.peek() == b"(":
            if word != "MESSAGENEW":
                scan.fail(f"{word} takes no FETCH items: MessageNew does")
            items = fetch_items(scan)
        else:
            scan.at = behind
        return word

    if scan.peek() == b"(":
        events = frozenset(scan.items("events", event))
    elif scan.word("events or NONE") == "NONE":
        events = frozenset()
    else:
        scan.fail("Expected events in brackets, or NONE")
    scan.spaces()
    scan.need(b")", "at the end of an event group")
    return ast.EventGroup(filter, events, items)


_ENTRY: Final = re.compile(rb"/(?:private|shared)(?:/[^\x00-\x1f\x7f-\xff*%/]++)++", re.IGNORECASE)
"""RFC 5464 §3: no wildcards, no empty component, no separator at the end."""
ENTRIES_MAX: Final = 64
"""Entries of one GETMETADATA, SETMETADATA or LIST. Each is answered for each mailbox of
a LIST."""


def _entry(scan: Scan) -> str:
    name = scan.astring("an entry")
    if len(name) > KEYWORD_BYTES_MAX:
        scan.beyond(f"Entry of {len(name)} bytes; allowed: {KEYWORD_BYTES_MAX}")
    if not _ENTRY.fullmatch(name):
        scan.fail("Bad entry: it begins with /private/ or /shared/, and has no * and % and no empty component")
    return name.decode().lower()


def metadata_entries(scan: Scan) -> tuple[str, ...]:
    """entries = entry / "(" entry *(SP entry) ")". RFC 5464 §5."""
    if scan.peek() == b"(":
        return tuple(dict.fromkeys(scan.items("entries", lambda: _entry(scan), most=ENTRIES_MAX)))
    return (_entry(scan),)


def _mailbox_or_server(scan: Scan) -> str:
    if scan.line[scan.at : scan.at + 2] == b'""':
        scan.at += 2
        return ""
    return scan.mailbox('a mailbox name, or "" for the server')


def getmetadata(scan: Scan, tag: bytes) -> Command:
    """getmetadata = "GETMETADATA" [SP getmetadata-options] SP mailbox SP entries. RFC
    5464 §5. The options are also read behind the mailbox, where the RFC's examples have
    them."""
    size_max: int | None = None
    depth: int | None = 0

    def option() -> None:
        nonlocal size_max, depth
        word = scan.word("an option of GETMETADATA")
        scan.sp(f"the value of {word}")
        if word == "MAXSIZE":
            size_max = scan.number("size")
        elif word != "DEPTH":
            scan.fail(f'Unknown option "{word}" of GETMETADATA: allowed are DEPTH MAXSIZE')
        elif (value := scan.word("0, 1 or infinity")) in ("0", "1", "INFINITY"):
            depth = None if value == "INFINITY" else int(value)
        else:
            scan.fail("Bad DEPTH: allowed are 0, 1 and infinity")

    scan.sp("a mailbox name")
    if scan.peek() == b"(":
        scan.items("options", option)
        scan.sp("a mailbox name")
    mailbox = _mailbox_or_server(scan)
    scan.sp("entries")
    if _OPTION.match(scan.line, scan.at):
        scan.items("options", option)
        scan.sp("entries")
    entries = metadata_entries(scan)
    scan.end()
    return ast.GetMetadata(tag, mailbox, entries, size_max, depth)


_OPTION: Final = re.compile(rb"\( *+(?:MAXSIZE|DEPTH) ", re.IGNORECASE)


def setmetadata(scan: Scan, tag: bytes) -> Command:
    """setmetadata = "SETMETADATA" SP mailbox SP entry-values; entry-values = "("
    entry-value *(SP entry-value) ")". RFC 5464 §5."""
    scan.sp("a mailbox name")
    mailbox = _mailbox_or_server(scan)
    scan.sp("entries and values")

    def value() -> tuple[str, bytes | None]:
        entry = _entry(scan)
        scan.sp("a value, or NIL")
        if scan.peek() != b"~":
            return entry, scan.nstring("a value, or NIL")
        data, _ = scan.mail()
        if not isinstance(data, bytes):
            scan.fail("Expected a value")
        return entry, data

    values = tuple(scan.items("entries and values", value, most=ENTRIES_MAX))
    scan.end()
    return ast.SetMetadata(tag, mailbox, values)
