"""Mails and search keys that an attacker might make, from a source of randomness."""

from __future__ import annotations

import base64
import random
from collections.abc import Callable

Rng = random.Random

MARKS = ("\u0301\u0316" * 20, "\u0301" * 3_000 + "\u0316" * 3_000, "\U0001d16d" * 500, "\uff9e" * 400, "\u0f73" * 400)
TEXTS = (
    *(
        "",
        " ",
        "a",
        "A b",
        "needle",
        "x" * 3_000,
        "caf\u00e9",
        "\u00df",
        "\ufdfa" * 300,
        "\u00b4" * 300,
        "\u0345a" * 90,
    ),
    *(
        "Gr\u00fc\u00dfe",
        "\U0001f600" * 200,
        "\u1e9e",
        "\ufffd",
        "\u3042" * 500,
        "i\u0307",
        "\u01c4",
        "\uac00\u11a8" * 90,
    ),
    *MARKS,
)
CHARSETS = (
    b"utf-8 us-ascii iso-8859-1 iso-8859-6 utf-7 utf-16 utf-32 hz iso-2022-jp iso-2022-kr gb18030 big5hkscs euc-jp "
    b"cp1252 koi8-r punycode idna unicode_escape base64 rot13 x-unknown cp65001 utf-8-sig mbcs zlib undefined"
).split()
WORDS = [
    *b"a, b; : < > @ ( ) [ ] \" \\ . .. * % ' = ? =? ?= \x00 \xff \xc3 a@b.c <a@b> x: y:; (c) --b".split(b" "),
    *(b"\t", b"\r\n ", b"\r", b'"q"', b"=?utf-8?q?=41?=", b"=?x-u?b?QUJD?=", b"=?utf-7?q?+AGE-?="),
    b"=?utf-8?b?" + b"zIE" * 200 + b"?=",
]
NAMES = (
    b"From To Cc Bcc Sender Reply-To Subject Date Message-ID In-Reply-To References Received List-Id Content-Type "
    b"Content-Transfer-Encoding Content-Disposition Content-ID Content-Description Content-Language Content-Location "
    b"Content-MD5 MIME-Version :sent Content- X"
).split()
DATES = [
    *b"Fri, 31 Dec 9999 23:59:60 +0000|1 Jan 0001 00:00 +2359|31 Dec 2016 23:59:60 -0500|".split(b"|"),
    *b"31 Dec 10000 00:00 +0000|1 Jan 0000 00:00|(c) 1 Jan 24 24:00 EDT|99 Foo 99|29 Feb 2023 1:2:3 Z".split(b"|"),
    b"1 Jan 2024 99:99:99 +9999",
]
BOUNDARIES = (b"b", b"bb", b"b-", b"", b" ", b"x" * 300, b"b--", b"\xff", b'q"')


def long(rng: Rng, most: int) -> int:
    """Return a number up to `most`. Small numbers are as likely as large numbers."""
    return int(most ** rng.random())


def junk(rng: Rng, most: int) -> bytes:
    words = rng.choices(WORDS, k=min(6, 1 + long(rng, 6)))
    return b"".join(words) * max(1, long(rng, max(1, most // (len(b"".join(words)) or 1))))


def parameters(rng: Rng) -> bytes:
    boundary = rng.choice(BOUNDARIES)
    charset = rng.choice(CHARSETS)
    some: list[Callable[[], bytes]] = [
        lambda: b"; boundary=" + boundary,
        lambda: b'; boundary="' + boundary + b'"',
        lambda: b'; boundary*0="' + boundary[:1] + b'"; boundary*1="' + boundary[1:] + b'"',
        lambda: b"; boundary*=us-ascii''" + boundary,
        lambda: b"; charset=" + charset,
        lambda: b"; charset*0=" + charset[:3] + b"; charset*1=" + charset[3:],
        lambda: b"".join(b"; name*%d*=%%C3%%BC" % n for n in range(long(rng, 300))),
        lambda: b"; filename*=utf-8''%e2%82%ac" * long(rng, 50),
        lambda: junk(rng, 2_000),
    ]
    return b"".join(one() for one in rng.sample(some, rng.randint(0, 4)))


def field(rng: Rng) -> bytes:
    name = rng.choice(NAMES)
    low = name.lower()
    if low == b"date":
        value = rng.choice(DATES)
    elif low == b"content-transfer-encoding":
        value = rng.choice((b"base64", b"quoted-printable", b"8bit", b"x-uuencode", b"(c) base64", b"\xff"))
    elif low in {b"content-type", b"content-disposition"}:
        value = rng.choice((b"attachment", b"inline", b"text/plain", b"/", b"text", b"\xff/\x00")) + parameters(rng)
    elif rng.random() < 0.3:
        value = rng.choice(TEXTS).encode() * long(rng, 20)
    else:
        value = junk(rng, rng.choice((50, 50, 50, 3_000, 60_000)))
    return name + rng.choice((b": ", b":", b" : ", b"")) + value + rng.choice((b"\r\n", b"\r\n", b"\n"))


def body(rng: Rng) -> bytes:
    text = "".join(rng.choices(TEXTS, k=rng.randint(0, 4))).encode() * long(rng, 40)
    match rng.randrange(5):
        case 0:
            return base64.encodebytes(text)
        case 1:
            return rng.randbytes(long(rng, 20_000))
        case 2:
            return junk(rng, 20_000)
        case 3:
            return rng.choice((b"\n", b"\r\n", b"=\r\n", b"=41", b"--b\r\n", b"\xff", b"+A", b"\x1b$B", b"~{")) * long(
                rng, 30_000
            )
        case _:
            return text


def mail(rng: Rng, depth: int = 0) -> bytes:
    """Return a mail, or a part with its header."""
    head = b"".join(field(rng) for _ in range(rng.randint(0, 8)))
    kind = rng.random()
    if depth < 6 and kind < 0.35:
        boundary = rng.choice(BOUNDARIES[:4])
        head += b'Content-Type: multipart/mixed; boundary="' + boundary + b'"' + parameters(rng) + b"\r\n"
        parts = [mail(rng, depth + 1) for _ in range(rng.randint(0, 4))] + [b"\r\nx"] * long(rng, 300)
        inside = b"".join(b"\r\n--" + boundary + b"\r\n" + part for part in parts)
        return head + b"\r\n" + inside + (b"\r\n--" + boundary + b"--\r\n" if rng.random() < 0.7 else b"")
    if depth < 6 and kind < 0.5:
        message = b"Content-Type: message/" + rng.choice((b"rfc822", b"rfc822", b"global", b"partial")) + b"\r\n\r\n"
        return (head + message) * long(rng, 60) + mail(rng, depth + 1)
    return head + rng.choice((b"\r\n", b"\r\n", b"\n", b"")) + body(rng)


# -- search keys -------------------------------------------------------------------------------------------------------


def quoted(text: bytes) -> bytes:
    """Return the text as a quoted string, or as a literal, which takes any bytes but
    NUL."""
    text = text.replace(b"\0", b"")[:20_000]
    return b"{%d+}\r\n%b" % (len(text), text)


def day(rng: Rng) -> bytes:
    return rng.choice((b"1-Jan-0001", b"31-Dec-9999", b"31-Dec-2016", b"1-Jan-2017", b"1-Jan-2024"))


def key(rng: Rng, depth: int = 0) -> bytes:
    """Return a search key of any kind."""

    def text() -> bytes:
        return quoted((rng.choice(TEXTS) * long(rng, 3)).encode())

    kinds: list[Callable[[], bytes]] = [
        *(lambda word=word: word + b" " + text() for word in b"TEXT BODY SUBJECT FROM TO CC BCC".split()),
        lambda: b"HEADER " + quoted(rng.choice((*NAMES, b"x" * 9_000, b"a b", b"\r\n"))) + b" " + text(),
        *(lambda word=word: word + b" " + day(rng) for word in b"BEFORE ON SINCE SENTBEFORE SENTON SENTSINCE".split()),
        *(lambda word=word: word + b" " + day(rng) for word in b"SAVEDBEFORE SAVEDON SAVEDSINCE".split()),
        lambda: rng.choice(
            b"ALL SEEN UNSEEN NEW OLD RECENT DELETED UNANSWERED FLAGGED DRAFT SAVEDATESUPPORTED".split()
        ),
        lambda: b"LARGER %d" % long(rng, 2**62),
        lambda: b"SMALLER %d" % long(rng, 2**62),
        lambda: rng.choice((b"OLDER", b"YOUNGER")) + b" %d" % (100_000 + long(rng, 2**31)),
        lambda: b"UID %d:%d" % (long(rng, 20), long(rng, 20)),
        lambda: b"MODSEQ %d" % long(rng, 2**62),
        lambda: rng.choice((b"EMAILID M", b"THREADID T", b"EMAILID ", b"EMAILID x")) + b"%032x" % rng.getrandbits(128),
        lambda: rng.choice((b"KEYWORD", b"UNKEYWORD")) + b" $Label%d" % rng.randrange(3),
        lambda: rng.choice((b"1:*", b"*", b"$", b"2,1,3:4")),
    ]
    if depth < 5 and rng.random() < 0.4:
        match rng.randrange(3):
            case 0:
                return b"NOT " + key(rng, depth + 1)
            case 1:
                return b"OR " + key(rng, depth + 1) + b" " + key(rng, depth + 1)
            case _:
                return b"(" + b" ".join(key(rng, depth + 1) for _ in range(rng.randint(1, 5))) + b")"
    return rng.choice(kinds)()
