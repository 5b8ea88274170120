"""The grammar of a mail of APPEND that is made of parts, and of a mail with UTF-8 in
its header. It is imported when a client sends such a mail."""

from __future__ import annotations

from obox.imap import ast
from obox.imap._scan import Malformed, Scan
from obox.store.api import Source


def utf8_literal(scan: Scan) -> tuple[bytes | Source, bool]:
    """Take the rest of `"UTF8" SP "(" literal8 ")"`. RFC 6855 §8."""
    if not scan.utf8:
        raise Malformed("UTF8 needs ENABLE UTF8=ACCEPT")
    scan.sp("a literal in brackets")
    (found,) = scan.items("literals of UTF8", scan.mail, most=1)
    return found


def catenate(scan: Scan, flags: tuple[str, ...], date: ast.InternalDate | None) -> ast.AppendMessage:
    """append-data =/ "CATENATE" SP "(" cat-part *(SP cat-part) ")". RFC 4469 §5."""
    scan.at += len("CATENATE")
    scan.sp("parts of the mail")
    binary = False

    def part() -> bytes | Source | ast.Url:
        nonlocal binary
        word = scan.word("TEXT or URL")
        if word == "URL":
            scan.sp("a URL")
            return ast.Url(scan.astring("a URL"))
        if word == "UTF8":
            data, some = utf8_literal(scan)
        elif word == "TEXT":
            scan.sp("a literal")
            data, some = scan.mail()
        else:
            scan.fail(f'Unknown part "{word}" of CATENATE: allowed are TEXT URL UTF8')
        binary |= some
        return data

    pieces = tuple(scan.items("parts of CATENATE", part))
    return ast.AppendMessage(b"", flags, date, binary, pieces)
