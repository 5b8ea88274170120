"""The strict parser of responses accepts the examples of the RFCs, and refuses
responses that break them."""

import pytest

from tests.imap.grammar import Ungrammatical, parse

ENVELOPE = b'("Wed, 17 Jul 1996" "s" (("T G" NIL "gray" "x.edu")) NIL NIL NIL NIL NIL NIL "<B@x>")'
GOOD = [
    b"* OK [CAPABILITY IMAP4rev1 AUTH=PLAIN LITERAL+] ready",
    b"a OK [READ-WRITE] Select completed",
    b"a OK [COPYUID 1 2,4:5 7:9] done",
    b"a NO [BADCHARSET (US-ASCII UTF-8)] no",
    b"* BYE [LIMIT] too many",
    b"+ OK",
    b"+ ",
    b"+ dGVzdA==",
    b"* FLAGS (\\Seen $Label)",
    b"* OK [PERMANENTFLAGS (\\Seen \\*)] Flags permitted",
    b'* LIST (\\HasChildren) "/" "a b" ("CHILDINFO" ("SUBSCRIBED"))',
    b'* LIST (\\Noselect) "/" ""',
    b'* LSUB () "/" &AOk-',
    b"* STATUS INBOX (MESSAGES 1 UIDNEXT 2 APPENDLIMIT NIL MAILBOXID (F2212ea87-6097-4256-9d51-71338625))",
    b'* QUOTA "" (STORAGE 10 512 MESSAGE 1 2)',
    b"* QUOTAROOT INBOX user",
    b"* QUOTAROOT comp.mail.mime",
    b"* OK [MAILBOXID (F2212ea87-6097-4256-9d51-71338625)] Ok",
    b"* 1 FETCH (EMAILID (M6d99ac3275bb4e) THREADID NIL)",
    b"* 1 FETCH (THREADID (T64b478a75b7ea9))",
    b"* SEARCH",
    b"* SEARCH 2 5 (MODSEQ 9)",
    b"* SORT 5 2 3",
    b"* SORT",
    b"* THREAD",
    b"* THREAD (2)(3 6 (4 23)(44 7 96))",
    b"* THREAD ((3)(5))",
    b'* ESEARCH (TAG "a") UID ALL 5,1:3 COUNT 4',
    b'* ESEARCH (TAG "a") UID MIN 1 ALL 1:3,5 COUNT 4',
    b"* VANISHED (EARLIER) 1:3,5",
    b'* NAMESPACE (("" "/")) NIL NIL',
    b'* ID ("name" "obox" "version" NIL)',
    b"* ENABLED",
    b"* 3 EXISTS",
    b'* 1 FETCH (UID 2 FLAGS (\\Recent k) INTERNALDATE " 7-Jul-1996 02:44:25 -0700" MODSEQ (3) RFC822.SIZE 0)',
    b"* 1 FETCH (BODY[HEADER.FIELDS (To)]<5> {3}\r\na\r\n BODY[1.2.MIME] NIL BODY[] {1}\r\n\0)",
    b"* 1 FETCH (ENVELOPE " + ENVELOPE + b")",
    b'* 1 FETCH (BODY ("TEXT" "PLAIN" ("CHARSET" "us-ascii") NIL NIL "7BIT" 1152 23))',
    b'* 1 FETCH (BODYSTRUCTURE (("a" "b" NIL NIL NIL "7bit" 0 NIL NIL NIL NIL)("message" "rfc822" NIL NIL NIL "7bit" 3 '
    + ENVELOPE
    + b' ("text" "x" NIL NIL NIL "7bit" 1 1) 2) "mixed" ("boundary" "x") ("inline" NIL) ("de" "en") NIL))',
]
BAD = [
    b"",
    b"* ",
    b"a",
    b"a OK",
    b"a OK ",
    b"a MAYBE x",
    b"+",
    b"a OK [NONSENSE] x",
    b"a OK [ALERT]x",
    b"a OK [UIDNEXT 0] x",
    b"a OK [UIDNEXT 01] x",
    b"a OK [COPYUID 1 2:3 7:9] x",
    b"a OK caf\xc3\xa9",
    b"* CAPABILITY IMAP4rev1 NONSENSE",
    b"* CAPABILITY IDLE",
    b"* FLAGS (\\Recent)",
    b"* FLAGS (k K)",
    b'* FLAGS ("k")',
    b"* FLAGS (\\Seen  k)",
    b'* LIST (\\Nonsense) "/" x',
    b'* LIST (\\HasChildren \\HasNoChildren) "/" x',
    b'* LIST () "/" inbox',
    b'* LIST () "/" &AGE-',
    b'* LIST () "/" caf\xc3\xa9',
    b'* LIST () "//" x',
    b"* STATUS INBOX (MESSAGES 1 MESSAGES 1)",
    b"* STATUS INBOX (UIDNEXT 0)",
    b"* SEARCH 0",
    b"* SEARCH 1 1",
    b"* SEARCH 1 ",
    b"* ESEARCH (TAG a) COUNT 1",
    b"* ESEARCH ALL *",
    b"* VANISHED",
    b"* 0 EXPUNGE",
    b"* 4294967296 EXISTS",
    b"* 1 FETCH ()",
    b"* 1 FETCH (UID 1 UID 1)",
    b"* 1 FETCH (UID 0)",
    b"* 1 FETCH (MODSEQ 3)",
    b"* 1 FETCH (EMAILID M6d99ac3275bb4e)",
    b"* 1 FETCH (EMAILID NIL)",
    b"* STATUS INBOX (MAILBOXID ())",
    b"* THREAD 1",
    b"* THREAD ()",
    b"* THREAD (1",
    b"* THREAD (1))",
    b"* THREAD (1)(1)",
    b"* THREAD (1 (2))",
    b"* THREAD (1 )",
    b"* QUOTA user ()",
    b"* QUOTA user (STORAGE 10)",
    b'* 1 FETCH (INTERNALDATE "7-Jul-1996 02:44:25 -0700")',
    b'* 1 FETCH (INTERNALDATE "31-Feb-1996 02:44:25 -0700")',
    b'* 1 FETCH (BODY[TEXT] "a\r\nb")',
    b'* 1 FETCH (BODY[TEXT] "\\a")',
    b'* 1 FETCH (BODY[TEXT] "\xc3\xa9")',
    b"* 1 FETCH (BODY[TEXT] {5}\r\nabc)",
    b"* 1 FETCH (BODY[MIME] NIL)",
    b"* 1 FETCH (BODY[0] NIL)",
    b"* 1 FETCH (BODY[HEADER.FIELDS ()] NIL)",
    b"* 1 FETCH (ENVELOPE (NIL NIL () NIL NIL NIL NIL NIL NIL NIL))",
    b"* 1 FETCH (ENVELOPE (NIL NIL NIL NIL NIL NIL NIL NIL NIL))",
    b'* 1 FETCH (ENVELOPE (NIL NIL ((NIL NIL "a" "b") (NIL NIL "a" "b")) NIL NIL NIL NIL NIL NIL NIL))',
    b"* 1 FETCH (ENVELOPE (NIL {1}\r\n\0 NIL NIL NIL NIL NIL NIL NIL NIL))",
    b'* 1 FETCH (BODY ("TEXT" "PLAIN" NIL NIL NIL "7BIT" 1152))',
    b'* 1 FETCH (BODY ("TEXT" "PLAIN" () NIL NIL "7BIT" 1152 23))',
    b'* 1 FETCH (BODY ("TEXT" "PLAIN" NIL NIL NIL NIL 1152 23))',
    b'* 1 FETCH (BODY ("TEXT" "PLAIN" NIL NIL NIL "7BIT" 1152 23 NIL))',
    b'* 1 FETCH (BODY ("a" "b" NIL NIL NIL "7bit" 0 5))',
    b'* 1 FETCH (BODYSTRUCTURE (("a" "b" NIL NIL NIL "7bit" 0) "mixed" NIL inline))',
    b"* 1 FETCH (FLAGS ()) x",
]


@pytest.mark.parametrize("line", GOOD)
def test_what_the_rfcs_show(line: bytes) -> None:
    assert parse(line)


@pytest.mark.parametrize("line", BAD)
def test_what_breaks_them(line: bytes) -> None:
    with pytest.raises(Ungrammatical):
        parse(line)


def test_values() -> None:
    assert parse(b"* 2 FETCH (UID 7 FLAGS (k))").value == (2, {b"UID": 7, b"FLAGS": [b"k"]})
    found = parse(b"a OK [APPENDUID 1 2:3] done")
    assert (found.tag, found.name, found.value.code, found.value.argument) == (b"a", "OK", "APPENDUID", (1, [(2, 3)]))
    assert parse('* LIST () "/" "caf\u00e9"'.encode(), utf8=True).value[2] == "caf\u00e9"
