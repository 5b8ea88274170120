"""The mails that both servers get: 8 kB each, made from a seed, so that two runs
measure the same.

Half of them are plain text, the others have alternatives and attachments, with the
headers that a mail gets on its way.
"""

from __future__ import annotations

import base64
import random
from itertools import accumulate
from typing import Final

SIZE: Final = 8 * 1024
BODIES: Final = 256
"""The number of different bodies; headers differ for each mail."""
NEEDLE: Final = "quarterly"
"""This word is in the subject of one mail in a hundred, and in one body in sixteen."""

_LETTERS: Final = "bacodifeguhajokaleminuorparisateunvowixeyazoanerinst"
_SYLLABLES: Final = [_LETTERS[at : at + 2] for at in range(0, len(_LETTERS), 2)]
VOCABULARY: Final = 4000
"""The number of words. Frequent words are short. The frequency of each follows from its
rank (Zipf), so the text compresses like prose."""


class _Words:
    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._words = [
            "".join(rng.choices(_SYLLABLES, k=min(6, 1 + rank.bit_length() // 3))) for rank in range(VOCABULARY)
        ]
        self._sums = list(accumulate(1 / (rank + 2.7) for rank in range(VOCABULARY)))

    def take(self, count: int) -> list[str]:
        return self._rng.choices(self._words, cum_weights=self._sums, k=count)


def _text(words: _Words, size: int) -> str:
    """Return lines of words, of about `size` octets."""
    lines: list[str] = []
    length = 0
    while length < size:
        line = " ".join(words.take(13))[:76]
        lines.append(line)
        length += len(line) + 2
    return "\r\n".join(lines) + "\r\n"


def _body(rng: random.Random, words: _Words, number: int, size: int) -> str:
    """Return the Content-Type and the body behind it."""
    needle = f"{NEEDLE}\r\n" if number % 16 == 0 else ""
    if number % 4 < 2:
        return f"Content-Type: text/plain; charset=utf-8\r\n\r\n{needle}{_text(words, size)}"
    line = f"=_{number:032x}"
    first = f"--{line}\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n{needle}{_text(words, size // 3)}\r\n"
    if number % 4 == 2:
        page = f"<html><body><p>{_text(words, size // 2)}</p></body></html>"
        second = f"Content-Type: text/html; charset=utf-8\r\n\r\n{page}"
        kind = "alternative"
    else:
        data = base64.encodebytes(rng.randbytes(size * 2 // 5)).decode().replace("\n", "\r\n")
        second = (
            "Content-Type: application/pdf; name=report.pdf\r\nContent-Transfer-Encoding: base64\r\n"
            f"Content-Disposition: attachment; filename=report.pdf\r\n\r\n{data}"
        )
        kind = "mixed"
    return f'Content-Type: multipart/{kind}; boundary="{line}"\r\n\r\n{first}--{line}\r\n{second}\r\n--{line}--\r\n'


def make(count: int, seed: int = 1) -> list[bytes]:
    """Return `count` mails, CRLF, without a line that begins with a dot."""
    rng = random.Random(seed)
    words = _Words(rng)
    bodies = [_body(rng, words, number, SIZE - 900) for number in range(BODIES)]
    names = [" ".join(word.title() for word in words.take(2)) for _ in range(500)]
    out = []
    for number in range(count):
        sender, to = rng.choice(names), rng.choice(names)
        subject = " ".join(words.take(6)) + (f" {NEEDLE}" if number % 100 == 0 else "")
        day, second = 1 + number % 28, number % 86_400
        when = f"{day} Mar 2026 {second // 3600:02d}:{second // 60 % 60:02d}:{second % 60:02d} +0000"
        hops = "".join(
            f"Received: from mx{hop}.example.net (mx{hop}.example.net [192.0.2.{hop}])\r\n"
            f"\tby relay{hop}.example.org (Postfix) with ESMTPS id {rng.getrandbits(40):010X}\r\n"
            f"\tfor <x@example.org>; {when}\r\n"
            for hop in (1, 2)
        )
        head = (
            f"{hops}From: {sender} <{sender.split()[0].lower()}@example.net>\r\n"
            f"To: {to} <{to.split()[0].lower()}@example.org>\r\n"
            f"Subject: {subject}\r\nDate: {when}\r\n"
            f"Message-ID: <{rng.getrandbits(64):016x}.{number}@mail.example.net>\r\n"
            f"References: <{rng.getrandbits(64):016x}@mail.example.net>\r\nMIME-Version: 1.0\r\n"
        )
        out.append((head + bodies[rng.randrange(BODIES)]).encode())
    return out
