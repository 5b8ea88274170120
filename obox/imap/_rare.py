"""The arguments of commands that few clients send: SORT, THREAD, quotas. It is imported
when a client sends such a command for the first time."""

from __future__ import annotations

from obox.imap import ast
from obox.imap._scan import NUMBER64_MAX, Malformed, Scan
from obox.imap._search import program, result_options, take_charset
from obox.imap.ast import Command, Sort, SortField, Thread


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
    returns, partial = result_options(scan)

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
    return Sort(tag, uid, criteria, program(scan), returns, partial)


def thread(scan: Scan, tag: bytes, uid: bool) -> Thread:
    scan.sp("a threading algorithm")
    algorithm = scan.word("a threading algorithm")
    scan.sp("a charset")
    take_charset(scan)
    scan.sp("search keys")
    return Thread(tag, uid, algorithm, program(scan))
