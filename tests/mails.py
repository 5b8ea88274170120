"""Mails of each kind, made by code. A mail that is stored must come back byte for byte.

The name of a mail says what is unusual about it. All mails except those in
`NOT_OVER_LMTP` can be sent unchanged with DATA: they are whole lines that end in CRLF
(RFC 5321 §2.3.8). The others are stored with APPEND, whose literal may be any bytes.
"""

from __future__ import annotations

import random
from email.message import EmailMessage
from functools import cache

LARGE = 5 << 20


def crlf(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return data.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")


def simple(number: int, *, size: int = 0, subject: str = "") -> bytes:
    """Return a small text mail. Mails of different numbers differ. It is filled up to
    about `size` octets."""
    head = (
        f"From: Anna <anna@example.org>\nTo: Ben <ben@example.org>\nSubject: {subject or f'mail {number}'}\n"
        f"Date: Mon, 01 Jun 2026 {number // 3600 % 24:02}:{number // 60 % 60:02}:{number % 60:02} +0200\n"
        f"Message-ID: <{number}@example.org>\n\nBody of mail {number}.\n"
    )
    filler = "x" * 70 + "\n"
    return crlf(head + filler * max(0, (size - len(head)) // 72))


def _alternative() -> EmailMessage:
    mail = EmailMessage()
    mail["From"] = "Jürgen Groß <juergen@example.org>"
    mail["To"] = "ben@example.org"
    mail["Subject"] = "Grüße, 2 Fassungen"
    mail["Message-ID"] = "<alternative@example.org>"
    mail.set_content("Schöne Grüße\n")
    mail.add_alternative("<p>Schöne <b>Grüße</b></p>\n", subtype="html")
    return mail


def _attachments() -> EmailMessage:
    mail = _alternative()
    rng = random.Random(1)
    mail.add_attachment(rng.randbytes(70_000), maintype="image", subtype="png", filename="bild ä.png")
    mail.add_attachment("eins\nzwei\n", subtype="csv", filename="liste.csv")
    inner = EmailMessage()
    inner["Subject"] = "inside"
    inner.set_content("a mail in a mail\n")
    mail.add_attachment(inner)
    return mail


@cache
def every_kind() -> dict[str, bytes]:
    """Return all mails by name."""
    rng = random.Random(2)
    text = simple(1)
    return {
        "text": text,
        "alternative": crlf(_alternative().as_bytes()),
        "attachments": crlf(_attachments().as_bytes()),
        "8-bit": crlf("Subject: Grüße\n\nblå 😀\n".encode()) + b"latin: \xe4\xf6\xfc\xff\r\n",
        "broken MIME": crlf(
            'Content-Type: multipart/mixed; boundary="a\nSubject =?utf-8?q?no_colon?=\nDate: yesterday\n\n'
            "--a\nContent-Type: text/\n\n--b\n--a-\nend without end\n"
        ),
        "boundary never used": crlf("Content-Type: multipart/mixed; boundary=zzz\n\nno parts\n"),
        "NUL bytes": crlf(b"Subject: nul\0l\n\n\0\0body\0\n"),
        "bare LF": b"Subject: bare\nFrom: a@example.org\n\none\ntwo\n",
        "bare CR": b"Subject: cr\r\n\r\none\rtwo\r\r\n",
        "mixed line ends": b"Subject: mixed\r\nFrom: a@example.org\n\r\none\ntwo\r\n",
        "dots": crlf("Subject: dots\n\n.\n..\n.x\n\n.\n"),
        "looks like IMAP": crlf("Subject: )\n\n{10}\n* OK\na1 OK\n)\n"),
        "no end of line": b"Subject: cut\r\n\r\nno end of line",
        "empty": b"",
        "one byte": b"x",
        "line end alone": b"\r\n",
        "header only": b"Subject: no body\r\nFrom: a@example.org\r\n",
        "header only, no end": b"Subject: no body",
        "body only": b"\r\njust a body\r\n",
        "large header": b"Subject: large\r\n"
        + b"".join(b"X-%05d: %b\r\n" % (i, b"h" * 80) for i in range(3300))
        + b"\r\nbody\r\n",
        "long line": b"Subject: long\r\n\r\n" + b"y" * 200_000 + b"\r\n",
        "deep": crlf(
            "".join(f"Content-Type: multipart/mixed; boundary=b{i}\n\n--b{i}\n" for i in range(120)) + "\nx\n"
        ),
        "frame": _sized(256 << 10),
        "frame and a byte": _sized((256 << 10) + 1),
        "random bytes": b"Subject: random\r\n\r\n" + rng.randbytes(600_000),
        "large": _sized(LARGE),
    }


def _sized(size: int) -> bytes:
    """Return exactly `size` octets of lines that do not compress well."""
    rng = random.Random(size)
    head = b"Subject: %d octets\r\nFrom: a@example.org\r\n\r\n" % size
    line = [rng.randbytes(38).hex().encode() + b"\r\n" for _ in range(1000)]
    data = head + b"".join(line[i % 1000] for i in range((size - len(head)) // 78 + 1))
    return data[: size - 2] + b"\r\n"


NOT_OVER_LMTP = frozenset(
    {
        "bare LF",
        "bare CR",
        "mixed line ends",
        "no end of line",
        "empty",
        "one byte",
        "header only, no end",
        "random bytes",
    }
)
"""A server may change or refuse these mails with DATA, because they are not lines that
end in CRLF."""
