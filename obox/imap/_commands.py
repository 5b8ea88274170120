"""The arguments of each command, and the table of all commands.

A function takes the cursor behind the command's word and returns the command; it takes
everything to the end of the line. FETCH and SEARCH have modules of their own.
"""

from __future__ import annotations

import re
from binascii import Error as Base64Error
from binascii import a2b_base64
from collections.abc import Callable
from enum import Enum
from typing import Any, Final, TypeVar

from obox.imap import ast
from obox.imap._fetch import fetch
from obox.imap._scan import Limits, Malformed, Scan
from obox.imap._search import search
from obox.imap.ast import Command

E = TypeVar("E", bound=Enum)

_BASE64: Final = re.compile(rb"(?:[A-Za-z0-9+/]{4})*+(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?+")


def base64(data: bytes) -> bytes:
    """Return what `data` encodes. base64 = *(4base64-char) [base64-terminal]. Raises:
    Malformed."""
    if not _BASE64.fullmatch(data):
        raise Malformed("Bad base64")
    try:
        return a2b_base64(data)
    except Base64Error:
        raise Malformed("Bad base64") from None


def _bare(command: type[Command]) -> Callable[[Scan, bytes], Command]:
    def parse(scan: Scan, tag: bytes) -> Command:
        scan.end()
        return command(tag)

    return parse


def _rare(name: str) -> Callable[..., Command]:
    """Return a parser that is imported when it is called for the first time."""

    def parse(scan: Scan, tag: bytes, *uid: bool) -> Command:
        from obox.imap import _rare

        command: Command = getattr(_rare, name)(scan, tag, *uid)
        return command

    return parse


def _option(kind: type[E], word: str, what: str) -> E:
    try:
        return kind(word)
    except ValueError:
        allowed = " ".join(str(member.value) for member in kind)
        raise Malformed(f'Unknown {what} "{word}": allowed are {allowed}') from None


# -- any state, not authenticated --------------------------------------------------------------------------------------


def _id(scan: Scan, tag: bytes) -> Command:
    """id = "ID" SP id-params-list; id-params-list = "(" [string SP nstring *(SP string
    SP nstring)] ")" / nil"""
    scan.sp("a parameter list or NIL")
    if scan.peek() != b"(":
        if scan.word("a parameter list or NIL") != "NIL":
            scan.fail("Expected a parameter list or NIL")
        scan.end()
        return ast.Id(tag, None)

    def pair() -> tuple[str, str | None]:
        name = scan.string("a parameter name").decode(errors="replace")
        scan.sp("a parameter value")
        value = scan.nstring("a parameter value")
        return name, None if value is None else value.decode(errors="replace")

    params = tuple(scan.items("ID parameters", pair, empty=True, most=scan.limits.id_fields_max))
    scan.end()
    return ast.Id(tag, params)


def _authenticate(scan: Scan, tag: bytes) -> Command:
    """authenticate = "AUTHENTICATE" SP auth-type [SP (base64 / "=")]. RFC 4959 §7."""
    scan.sp("a mechanism")
    # Some clients, aioimaplib among them, quote it.
    quoted = scan.peek() in (b'"', b"{")
    mechanism = scan.astring("a mechanism").decode("ascii", "replace").upper() if quoted else scan.word("a mechanism")
    initial = None
    if scan.more():
        scan.spaces()
        coded = scan.line[scan.at :]
        initial = b"" if coded == b"=" else base64(coded)
        scan.at = len(scan.line)
    scan.end()
    return ast.Authenticate(tag, mechanism, initial)


def _login(scan: Scan, tag: bytes) -> Command:
    scan.sp("a user name")
    name = scan.astring("a user name")
    scan.sp("a password")
    try:
        password = scan.astring("a password")
        scan.end()
    except Malformed:  # the reason would show a piece of it
        raise Malformed("Bad password argument: quote it, or send it as a literal") from None
    try:
        return ast.Login(tag, name.decode(), password)
    except UnicodeDecodeError:
        raise Malformed("User name is not in UTF-8") from None


# -- mailboxes ---------------------------------------------------------------------------------------------------------


def _compress(scan: Scan, tag: bytes) -> Command:
    scan.sp("a mechanism")
    mechanism = scan.word("a mechanism")
    scan.end()
    return ast.Compress(tag, mechanism)


def _enable(scan: Scan, tag: bytes) -> Command:
    found: list[str] = []
    while not found or scan.more():
        scan.sp("a capability")
        found.append(scan.word("a capability"))
        if len(found) > scan.limits.arguments_max:
            scan.beyond(f"Too many capabilities: at most {scan.limits.arguments_max}")
    scan.end()
    return ast.Enable(tag, tuple(dict.fromkeys(found)))


def _select(read_only: bool) -> Callable[[Scan, bytes], Command]:
    def parse(scan: Scan, tag: bytes) -> Command:
        scan.sp("a mailbox name")
        mailbox = scan.mailbox()
        given, condstore = scan.given, False
        qresync: ast.QResync | None = None

        def parameter() -> None:
            nonlocal condstore, qresync
            word = scan.word("a SELECT parameter")
            if word == "CONDSTORE":
                condstore = True
            elif word == "QRESYNC":
                qresync = _qresync(scan)
            else:
                scan.fail(f'Unknown SELECT parameter "{word}": allowed are CONDSTORE QRESYNC')

        if scan.more():
            scan.spaces()
            scan.items("SELECT parameters", parameter)
        scan.end()
        return ast.Select(tag, mailbox, read_only, condstore, qresync, given)

    return parse


def _qresync(scan: Scan) -> ast.QResync:
    """ "QRESYNC" SP "(" uidvalidity SP mod-sequence-value [SP known-uids] [SP
    seq-match-data] ")". RFC 7162 §7."""
    scan.sp("the arguments of QRESYNC")
    scan.need(b"(", "before the arguments of QRESYNC")
    scan.spaces()
    uidvalidity = scan.number("UIDVALIDITY", least=1)
    scan.sp("a mod-sequence")
    modseq = scan.modseq()
    known, match = None, None
    scan.spaces()
    if scan.peek().isdigit():
        known = scan.sequence(star=False, saved=False)
        scan.spaces()
    if scan.take(b"("):
        scan.spaces()
        seqs = scan.sequence(star=False, saved=False)
        scan.sp("known UIDs")
        match = (seqs, scan.sequence(star=False, saved=False))
        scan.spaces()
        scan.need(b")", "after the known numbers and UIDs")
        scan.spaces()
    scan.need(b")", "at the end of QRESYNC")
    return ast.QResync(uidvalidity, modseq, known, match)


def _create(scan: Scan, tag: bytes) -> Command:
    """create = "CREATE" SP mailbox [SP "(" "USE" SP "(" [use-attr *(SP use-attr)] ")"
    ")"]. RFC 6154 §6."""
    scan.sp("a mailbox name")
    mailbox = scan.mailbox()
    use: tuple[str, ...] = ()
    if scan.more():
        scan.spaces()
        scan.need(b"(", "before CREATE parameters")
        scan.spaces()
        word = scan.word("a CREATE parameter")
        if word != "USE":
            scan.fail(f'Unknown CREATE parameter "{word}": allowed is USE')
        scan.sp("special-use attributes")

        def attribute() -> str:
            scan.need(b"\\", "before a special-use attribute")
            return "\\" + scan.atom("a special-use attribute").decode()

        use = tuple(scan.items("special-use attributes", attribute, empty=True))
        scan.spaces()
        scan.need(b")", "after CREATE parameters")
    scan.end()
    return ast.Create(tag, mailbox, use, scan.given)


def _one_mailbox(make: Callable[[bytes, str], Command]) -> Callable[[Scan, bytes], Command]:
    def parse(scan: Scan, tag: bytes) -> Command:
        scan.sp("a mailbox name")
        mailbox = scan.mailbox()
        scan.end()
        return make(tag, mailbox)

    return parse


def _delete(scan: Scan, tag: bytes) -> Command:
    scan.sp("a mailbox name")
    mailbox = scan.mailbox()
    scan.end()
    return ast.Delete(tag, mailbox, scan.given)


def _rename(scan: Scan, tag: bytes) -> Command:
    scan.sp("the present mailbox name")
    source = scan.mailbox("the present mailbox name")
    scan.sp("the new mailbox name")
    target = scan.mailbox("the new mailbox name")
    scan.end()
    return ast.Rename(tag, source, target, scan.given)


def _list(scan: Scan, tag: bytes) -> Command:
    """list = "LIST" [SP list-select-opts] SP mailbox SP mbox-or-pat [SP
    list-return-opts]. RFC 5258 §6."""
    scan.sp("a reference name")
    select: frozenset[ast.ListSelect] = frozenset()
    extended = False
    if scan.peek() == b"(":
        extended = True
        words = scan.items("selection options", lambda: scan.word("a selection option"), empty=True)
        select = frozenset(_option(ast.ListSelect, word, "selection option") for word in words)
        if ast.ListSelect.RECURSIVEMATCH in select and not select & {
            ast.ListSelect.SUBSCRIBED,
            ast.ListSelect.SPECIAL_USE,
        }:
            scan.fail("RECURSIVEMATCH is allowed only with SUBSCRIBED or SPECIAL-USE")
        scan.sp("a reference name")
    reference = scan.reference()
    scan.sp("a mailbox pattern")
    if scan.peek() == b"(":
        extended = True
        found = scan.items("mailbox patterns", scan.pattern, most=scan.limits.list_patterns_max)
        patterns = tuple(dict.fromkeys(found))
    else:
        patterns = (scan.pattern(),)
    returns: set[ast.ListReturn] = set()
    status: tuple[ast.StatusItem, ...] = ()
    metadata: tuple[str, ...] = ()

    def option() -> None:
        nonlocal status, metadata
        word = scan.word("a return option")
        if word == "STATUS":
            scan.sp("STATUS items")
            status = _status_items(scan)
        elif word == "METADATA":
            from obox.imap._rare import metadata_entries

            scan.sp("entries")
            metadata = metadata_entries(scan)
        else:
            returns.add(_option(ast.ListReturn, word, "return option"))

    if scan.more():
        extended = True
        scan.spaces()
        if scan.word("RETURN") != "RETURN":
            scan.fail("Expected RETURN after the mailbox pattern")
        scan.sp("return options")
        scan.items("return options", option, empty=True)
    scan.end()
    return ast.List(tag, reference, patterns, select, frozenset(returns), status, extended, metadata)


def _lsub(scan: Scan, tag: bytes) -> Command:
    scan.sp("a reference name")
    reference = scan.reference()
    scan.sp("a mailbox pattern")
    pattern = scan.pattern()
    scan.end()
    return ast.Lsub(tag, reference, pattern)


def _status_items(scan: Scan) -> tuple[ast.StatusItem, ...]:
    def item() -> ast.StatusItem:
        return _option(ast.StatusItem, scan.word("a STATUS item"), "STATUS item")

    return tuple(dict.fromkeys(scan.items("STATUS items", item)))


def _status(scan: Scan, tag: bytes) -> Command:
    scan.sp("a mailbox name")
    mailbox = scan.mailbox()
    scan.sp("STATUS items")
    items = _status_items(scan)
    scan.end()
    return ast.Status(tag, mailbox, items)


def _append(scan: Scan, tag: bytes) -> Command:
    """append = "APPEND" SP mailbox 1*append-message append-message = [SP flag-list] [SP
    date-time] SP (literal / literal8). RFC 3502 §6.3.11, RFC 9051 §9."""
    scan.sp("a mailbox name")
    mailbox = scan.mailbox()
    messages: list[ast.AppendMessage] = []
    while not messages or scan.more():
        messages.append(_message(scan))
        if len(messages) > scan.limits.arguments_max:
            scan.beyond(f"Too many mails in one APPEND: at most {scan.limits.arguments_max}")
    scan.end()
    return ast.Append(tag, mailbox, tuple(messages))


def _message(scan: Scan) -> ast.AppendMessage:
    scan.sp("the mail")
    flags: tuple[str, ...] = ()
    date = None
    if scan.peek() == b"(":
        flags = scan.flags()
        scan.sp("the mail")
    if scan.peek() == b'"':
        date = scan.date_time()
        scan.sp("the mail")
    word = scan.peek_word()
    if word == "CATENATE":
        from obox.imap._catenate import catenate

        return catenate(scan, flags, date)
    if word == "UTF8":
        from obox.imap._catenate import utf8_literal

        scan.at += len("UTF8")
        data, binary = utf8_literal(scan)
    else:
        data, binary = scan.mail()
    if not data:
        raise Malformed("An empty mail cannot be stored: APPEND is cancelled", "NO")
    return ast.AppendMessage(data, flags, date, binary)


# -- the selected mailbox ----------------------------------------------------------------------------------------------


def _uid_expunge(scan: Scan, tag: bytes) -> Command:
    scan.sp("a set")
    uids = scan.sequence()
    scan.end()
    return ast.Expunge(tag, uids)


_STORE_MODES: Final = {mode.value: mode for mode in ast.StoreMode}


def _store(scan: Scan, tag: bytes, uid: bool) -> Command:
    """store = "STORE" SP sequence-set [SP store-modifiers] SP store-att-flags. RFC 4466
    §2.5, RFC 7162 §3.1.3."""
    scan.sp("a set")
    sequence = scan.sequence()
    scan.sp("FLAGS, +FLAGS or -FLAGS")
    unchanged_since: int | None = None

    def modifier() -> None:
        nonlocal unchanged_since
        word = scan.word("a STORE modifier")
        if word != "UNCHANGEDSINCE":
            scan.fail(f'Unknown STORE modifier "{word}": allowed is UNCHANGEDSINCE')
        scan.sp("the mod-sequence of UNCHANGEDSINCE")
        unchanged_since = scan.modseq()

    if scan.peek() == b"(":
        scan.items("STORE modifiers", modifier)
        scan.sp("FLAGS, +FLAGS or -FLAGS")
    word = scan.word("FLAGS, +FLAGS or -FLAGS")
    mode = _STORE_MODES.get(word.removesuffix(".SILENT"))
    if mode is None:
        scan.fail(f'Unknown STORE item "{word}": allowed are FLAGS +FLAGS -FLAGS, each with .SILENT')
    scan.sp("flags")
    if scan.peek() == b"(":
        flags = scan.flags()
    else:
        found = [scan.flag()]
        while scan.more():
            scan.spaces()
            found.append(scan.flag())
            if len(found) > scan.limits.flags_max:
                scan.beyond(f"Too many flags: at most {scan.limits.flags_max}")
        flags = tuple(dict.fromkeys(found))
    scan.end()
    return ast.Store(tag, uid, sequence, mode, flags, word.endswith(".SILENT"), unchanged_since)


def _replace(scan: Scan, tag: bytes, uid: bool) -> Command:
    """replace = "REPLACE" SP seq-number SP mailbox append-message. RFC 8508 §5."""
    scan.sp("a number")
    begin = scan.at
    sequence = scan.sequence(saved=False)
    if not scan.line[begin : scan.at].isdigit() and scan.line[begin : scan.at] != b"*":
        scan.fail("REPLACE takes a single number")
    scan.sp("a mailbox name")
    mailbox = scan.mailbox()
    message = _message(scan)
    scan.end()
    return ast.Replace(tag, uid, sequence, ast.Append(tag, mailbox, (message,)))


def _set_to_mailbox(make: type[ast.Copy | ast.Move]) -> Callable[[Scan, bytes, bool], Command]:
    def parse(scan: Scan, tag: bytes, uid: bool) -> Command:
        scan.sp("a set")
        sequence = scan.sequence()
        scan.sp("a mailbox name")
        mailbox = scan.mailbox()
        scan.end()
        return make(tag, uid, sequence, mailbox)

    return parse


# -- the table ---------------------------------------------------------------------------------------------------------

_BOTH: Final[dict[str, Callable[[Scan, bytes, bool], Command]]] = {
    "FETCH": fetch,
    "SEARCH": search,
    "SORT": _rare("sort"),
    "THREAD": _rare("thread"),
    "STORE": _store,
    "COPY": _set_to_mailbox(ast.Copy),
    "MOVE": _set_to_mailbox(ast.Move),
    "REPLACE": _replace,
}
"""Commands that exist with and without UID."""


def _with_numbers(parse: Callable[[Scan, bytes, bool], Command]) -> Callable[[Scan, bytes], Command]:
    return lambda scan, tag: parse(scan, tag, False)


def _uid(scan: Scan, tag: bytes) -> Command:
    scan.sp("the command of UID")
    word = scan.word("the command of UID")
    if word == "EXPUNGE":
        return _uid_expunge(scan, tag)
    parse = _BOTH.get(word)
    if parse is None:
        scan.fail(f'Unknown command "UID {word[:32]}": allowed are {" ".join([*_BOTH, "EXPUNGE"])}')
    return parse(scan, tag, True)


COMMANDS: Final[dict[str, Callable[[Scan, bytes], Command]]] = {
    "CAPABILITY": _bare(ast.Capability),
    "NOOP": _bare(ast.Noop),
    "LOGOUT": _bare(ast.Logout),
    "ID": _id,
    "STARTTLS": _bare(ast.StartTls),
    "AUTHENTICATE": _authenticate,
    "LOGIN": _login,
    "UNAUTHENTICATE": _bare(ast.Unauthenticate),
    "COMPRESS": _compress,
    "ENABLE": _enable,
    "SELECT": _select(False),
    "EXAMINE": _select(True),
    "CREATE": _create,
    "DELETE": _delete,
    "RENAME": _rename,
    "SUBSCRIBE": _one_mailbox(ast.Subscribe),
    "UNSUBSCRIBE": _one_mailbox(ast.Unsubscribe),
    "LIST": _list,
    "LSUB": _lsub,
    "XLIST": _rare("xlist"),
    "NOTIFY": _rare("notify"),
    "GETMETADATA": _rare("getmetadata"),
    "SETMETADATA": _rare("setmetadata"),
    "GETACL": _one_mailbox(ast.GetAcl),
    "MYRIGHTS": _one_mailbox(ast.MyRights),
    "SETACL": _rare("setacl"),
    "DELETEACL": _rare("deleteacl"),
    "LISTRIGHTS": _rare("listrights"),
    "NAMESPACE": _bare(ast.Namespace),
    "STATUS": _status,
    "GETQUOTA": _rare("getquota"),
    "GETQUOTAROOT": _one_mailbox(ast.GetQuotaRoot),
    "SETQUOTA": _rare("setquota"),
    "APPEND": _append,
    "IDLE": _bare(ast.Idle),
    "CHECK": _bare(ast.Check),
    "CLOSE": _bare(ast.Close),
    "UNSELECT": _bare(ast.Unselect),
    "EXPUNGE": _bare(ast.Expunge),
    "ESEARCH": _rare("esearch"),
    "UIDBATCHES": _rare("uidbatches"),
    "CANCELUPDATE": _rare("cancelupdate"),
    "UID": _uid,
    **{word: _with_numbers(parse) for word, parse in _BOTH.items()},
}


def parse_command(parts: list[Any], word: str, at: int, tag: bytes, limits: Limits, *, utf8: bool) -> Command:
    """Return the command whose word, a key of COMMANDS, ends at `at` in the first line.
    Raises: Invalid, Malformed."""
    return COMMANDS[word](Scan(parts, at, limits, utf8=utf8), tag)
