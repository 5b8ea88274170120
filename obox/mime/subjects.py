"""The base subject of a mail: its subject without what replies and forwards add. RFC
5256 §2.1.

    subj-leader  = (*subj-blob subj-refwd) / WSP
    subj-refwd   = ("re" / ("fw" ["d"])) *WSP [subj-blob] ":"
    subj-blob    = "[" *BLOBCHAR "]" *WSP
    subj-trailer = "(fwd)" / WSP
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ._text import decode_header

SUBJECT_BYTES_MAX: Final = 2_000
"""At most 2,000 bytes of a subject are read. A line of a header has 998 at most."""

_WHITE = re.compile(r"[ \t\r\n]+")
_BLOB = r"\[[^\[\]]*+\] *+"
_LEADER = re.compile(rf"(?:{_BLOB})*+(?:re|fwd?) *+(?:{_BLOB})?+:", re.IGNORECASE | re.ASCII)
_BLOBS = re.compile(rf"(?:{_BLOB})++")
_LAST_BLOB = re.compile(r"\[[^\[\]]*+\]\Z")


class Subject(NamedTuple):
    """base: the base subject. reply: whether it was the subject of a reply or of a
    forwarded mail."""

    base: str
    reply: bool


def base_subject(value: bytes) -> Subject:
    """Return the base subject of a Subject field's value."""
    return base_of(decode_header(value[:SUBJECT_BYTES_MAX]))


def base_of(text: str) -> Subject:
    """Return the base subject of a decoded subject."""
    text = _WHITE.sub(" ", text)
    reply = False
    while True:
        text = text.rstrip(" ")
        while text[-5:].lower() == "(fwd)":
            text, reply = text[:-5].rstrip(" "), True
        text, led = _without_leaders(text)
        reply |= led
        if text[:5].lower() != "[fwd:" or not text.endswith("]"):
            return Subject(text, reply)
        text, reply = text[5:-1], True


def _without_leaders(text: str) -> tuple[str, bool]:
    """Return a text without leaders and blobs at its beginning, and whether there was a
    leader. Blobs stay if nothing else would be left."""
    reply = False
    while True:
        text = text.lstrip(" ")
        found = _LEADER.match(text)
        if found is not None:
            text, reply = text[found.end() :], True
            continue
        found = _BLOBS.match(text)
        if found is None:
            return text, reply
        if found.end() == len(text):  # the last blob is the base
            last = _LAST_BLOB.search(text.rstrip(" "), text.rindex("["))
            return (text if last is None else last[0]), reply
        text = text[found.end() :]
