"""FETCH, UID FETCH: items, sections, modifiers. RFC 9051 §6.4.5, RFC 7162 §3.1.4 and
§3.2.6."""

from __future__ import annotations

import re
from typing import Final

from obox.imap._scan import NUMBER64_MAX, Limits, Scan, partial_range
from obox.imap.ast import BinarySection, BodySection, Fetch, FetchAttr, FetchItem, Partial, SectionText
from obox.imap.wire import astring

_ITEM: Final = re.compile(rb"[A-Za-z0-9.]++")
_ATTRS: Final = {attr.value.encode(): attr for attr in FetchAttr}
_FAST: Final = (FetchAttr.FLAGS, FetchAttr.INTERNALDATE, FetchAttr.RFC822_SIZE)
_MACROS: Final[dict[bytes, tuple[FetchItem, ...]]] = {
    b"FAST": _FAST,
    b"ALL": (*_FAST, FetchAttr.ENVELOPE),
    b"FULL": (*_FAST, FetchAttr.ENVELOPE, FetchAttr.BODY),
}
_TEXTS: Final = {text.value: text for text in SectionText}
# RFC 5322 §3.6.8 ftext: printable, no colon.
_FIELD: Final = re.compile(rb"[\x21-\x39\x3b-\x7e]+")
_LAZY: Final = re.compile(rb" ++\( *+LAZY(?: ++LAZY)*+ *+\)", re.IGNORECASE)
_PART: Final = re.compile(rb"([0-9]++(?:\.[0-9]++)*+)(\.?)")


def fetch(scan: Scan, tag: bytes, uid: bool) -> Fetch:
    scan.sp("a set")
    sequence = scan.sequence()
    scan.sp("FETCH items")
    items: tuple[FetchItem, ...]
    if scan.peek() == b"(":
        items = fetch_items(scan)
    else:
        match = _ITEM.match(scan.line, scan.at)
        macro = _MACROS.get(match[0].upper()) if match else None
        if match and macro:
            scan.at = match.end()
            items = macro
        else:
            items = (_item(scan),)
    changed_since, vanished, partial = None, False, None
    behind = scan.at
    scan.spaces()
    bracket = scan.peek() == b"("
    scan.at = behind
    if bracket:
        changed_since, vanished, partial = _modifiers(scan, uid)
    scan.end()
    return Fetch(tag, uid, sequence, items, changed_since, vanished, partial)


def fetch_items(scan: Scan) -> tuple[FetchItem, ...]:
    """Take items in parentheses; repetitions are dropped."""
    return tuple(dict.fromkeys(scan.items("FETCH items", lambda: _item(scan), most=scan.limits.fetch_items_max)))


def _modifiers(scan: Scan, uid: bool) -> tuple[int | None, bool, Partial | None]:
    """fetch-modifiers = SP "(" fetch-modifier *(SP fetch-modifier) ")". RFC 4466
    §2.4."""
    changed_since: int | None = None
    vanished = False
    partial: Partial | None = None

    def modifier() -> None:
        nonlocal changed_since, vanished, partial
        word = scan.word("a FETCH modifier")
        if word == "CHANGEDSINCE":
            scan.sp("the mod-sequence of CHANGEDSINCE")
            changed_since = scan.modseq()
        elif word == "VANISHED":
            vanished = True
        elif word == "PARTIAL":
            partial = partial_range(scan)
        else:
            scan.fail(f'Unknown FETCH modifier "{word}": allowed are CHANGEDSINCE VANISHED PARTIAL')

    scan.sp("FETCH modifiers")
    scan.items("FETCH modifiers", modifier)
    if vanished and not uid:
        scan.fail("VANISHED is allowed in UID FETCH only")
    if vanished and changed_since is None:
        scan.fail("VANISHED is allowed only with CHANGEDSINCE")
    if partial is not None and not uid:
        scan.fail("PARTIAL is allowed in UID FETCH only")
    return changed_since, vanished, partial


def _item(scan: Scan) -> FetchItem:
    match = _ITEM.match(scan.line, scan.at)
    if match is None:
        scan.expected("a FETCH item")
    name = match[0].upper()
    end = match.end()
    if scan.line[end : end + 1] == b"[":
        scan.at = end + 1
        if name.startswith(b"BINARY"):
            return _binary(scan, name)
        if name not in {b"BODY", b"BODY.PEEK"}:
            scan.fail(f'FETCH item "{name.decode()}" takes no section: BODY, BODY.PEEK and BINARY do')
        return _section(scan, name == b"BODY.PEEK")
    attr = _ATTRS.get(name)
    if attr is None:
        if name == b"BODY.PEEK":
            scan.fail("BODY.PEEK needs a section: BODY.PEEK[]")
        if name in _MACROS:
            scan.fail(f'The macro "{name.decode()}" stands alone, not in a list')
        scan.fail(f"Unknown FETCH item {scan.shown()}: allowed are {' '.join(_known())}")
    scan.at = end
    if attr is FetchAttr.PREVIEW and (lazy := _LAZY.match(scan.line, end)):
        scan.at = lazy.end()
        return FetchAttr.PREVIEW_LAZY
    return attr


def _known() -> list[str]:
    return [*(attr.value for attr in FetchAttr), "BODY[]", "BODY.PEEK[]", "BINARY[]", "BINARY.PEEK[]", "BINARY.SIZE[]"]


def parse_section(spec: bytes) -> BodySection:
    """Parse the section of a URL. Raises: Malformed."""
    scan = Scan([spec + b"]"], 0, Limits())
    found = _section(scan, True)
    scan.end()
    return found


def _section(scan: Scan, peek: bool) -> BodySection:
    """section = "[" [section-spec] "]"; section-spec = section-msgtext / (section-part
    ["." section-text])"""
    part, dotted = _part(scan)
    text = SectionText.ALL
    fields: tuple[bytes, ...] = ()
    if dotted and (part or scan.peek() != b"]"):
        text, fields = _section_text(scan, part)
    scan.need(b"]", "at the end of a section")
    start, count = _partial(scan) if scan.peek() == b"<" else (None, None)
    spec = ".".join([*map(str, part), *([text.value] if text.value else [])]).encode()
    if fields:
        spec += b" (" + b" ".join(map(astring, fields)) + b")"
    label = b"BODY[" + spec + b"]" + (b"<%d>" % start if start is not None else b"")
    return BodySection(label, part, text, fields, peek, start, count)


def _part(scan: Scan) -> tuple[tuple[int, ...], bool]:
    """section-part = nz-number *("." nz-number). Returns it, () if there is none, and
    whether a word may follow."""
    match = _PART.match(scan.line, scan.at)
    if match is None:
        return (), True
    numbers = match[1].split(b".")
    if len(numbers) > scan.limits.part_depth_max:
        scan.beyond(f"Section part nested too deeply: at most {scan.limits.part_depth_max} numbers")
    if any(len(digits) > 9 or int(digits) == 0 for digits in numbers):
        scan.fail("Bad section part: part numbers start at 1")
    scan.at = match.end()
    return tuple(map(int, numbers)), bool(match[2])


def _binary(scan: Scan, name: bytes) -> BinarySection:
    """section-binary = "[" [section-part] "]". RFC 3516 §7."""
    size = name == b"BINARY.SIZE"
    if not size and name not in {b"BINARY", b"BINARY.PEEK"}:
        scan.fail(f'Unknown FETCH item "{name.decode()}": allowed are BINARY BINARY.PEEK BINARY.SIZE')
    part, dotted = _part(scan)
    if part and dotted:
        scan.fail("A section of BINARY is a part without a word behind it")
    scan.need(b"]", "at the end of a section of BINARY")
    start, count = _partial(scan) if scan.peek() == b"<" and not size else (None, None)
    label = b"%b[%b]" % (b"BINARY.SIZE" if size else b"BINARY", ".".join(map(str, part)).encode())
    if start is not None:
        label += b"<%d>" % start
    return BinarySection(label, part, name == b"BINARY.PEEK", start, count, size)


def _section_text(scan: Scan, part: tuple[int, ...]) -> tuple[SectionText, tuple[bytes, ...]]:
    """section-msgtext = "HEADER" / "HEADER.FIELDS" [".NOT"] SP header-list / "TEXT";
    section-text adds "MIME"."""
    match = _ITEM.match(scan.line, scan.at)
    word = match[0].upper().decode() if match else ""
    text = _TEXTS.get(word) if word else None
    if text is None:
        scan.fail(f"Unknown section {scan.shown()}: allowed are HEADER HEADER.FIELDS HEADER.FIELDS.NOT TEXT MIME")
    if text is SectionText.MIME and not part:
        scan.fail("Section MIME needs a part: BODY[1.MIME]")
    scan.at += len(word)
    if text not in {SectionText.HEADER_FIELDS, SectionText.HEADER_FIELDS_NOT}:
        return text, ()

    def field() -> bytes:
        name = scan.header_name()
        if not _FIELD.fullmatch(name):
            scan.fail("Bad header field name: printable ASCII without a colon")
        return name

    scan.sp("header field names")
    return text, tuple(scan.items("header field names", field, most=scan.limits.header_names_max))


def _partial(scan: Scan) -> tuple[int, int]:
    """partial = "<" number64 "." nz-number64 ">". RFC 9051 §9."""
    scan.at += 1
    start = scan.number("start of a partial", most=NUMBER64_MAX)
    scan.need(b".", "in a partial such as <0.1024>")
    count = scan.number("length of a partial", least=1, most=NUMBER64_MAX)
    scan.need(b">", "at the end of a partial")
    return start, count
