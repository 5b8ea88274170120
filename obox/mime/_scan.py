"""The scanner: a raw mail to a tree of parts with byte offsets.

Theory of operation. A mail is read once from front to back. Inside a multipart its
boundary is on a stack, and every boundary on the stack may end the current part. The
next delimiter line is found by searching for LF `--` boundary for each boundary on the
stack. The outermost is searched first, and an inner boundary only up to the place that
was found for the outer. Results are kept until the scan has passed them. Each byte is
therefore searched at most once per level, by the C search of bytes, and the levels are
bounded.

Invariant: no input raises; offsets are ordered and inside the mail; children lie inside
their parents; time is linear.

RFC 2046 §5.1.1 (delimiters: a line that *starts* with a boundary counts; the line end
before it belongs to it), RFC 2046 §5.1.5 (digest), RFC 2045 §5.2 (text/plain if there
is no readable type).

The scanner follows the Dovecot server in these cases. If several boundaries match, the
longest wins, except that an inner boundary wins that is the whole line; of equal
boundaries the innermost wins. A delimiter of an open multipart inside a part's header
ends that part, and a multipart whose header is cut off in this way has no parts.
Content-* fields of a message with neither MIME-Version nor Content-Type do not count.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from ._budget import Budget
from ._fields import FIELD_VALUE, HEADER_BYTES_MAX, blank_line, collect, find, lines_in, strip_comments, unfold
from ._params import Parameters, parameters, value_of

# levels of multipart and message; mailers make less than ten, and deeper levels are
# opaque
DEPTH_MAX = 50
# bytes of a boundary that are compared; RFC 2046 §5.1.1 allows 70. The search prepares
# its needle each time
_BOUNDARY_MAX = 256

_CONTENT = re.compile(rb"\n[Cc][Oo][Nn][Tt][Ee][Nn][Tt]-([A-Za-z0-9-]++)[ \t]*+:" + FIELD_VALUE)
_WHOLE_LINE = re.compile(rb"(?:--)?[ \t]*+(?:\r?\n|\Z)")
_MIME_VERSION = re.compile(rb"\n[Mm][Ii][Mm][Ee]-[Vv][Ee][Rr][Ss][Ii][Oo][Nn][ \t]*+:")
_TYPE = re.compile(rb"""\s*+"?([^\s/;="(]++)\s*+/\s*+([^\s/;="(]++)"?""")
_TOKEN = re.compile(rb"""[\s"]*+([^\s;,"]++)""")
_MECHANISM = re.compile(rb"[A-Za-z0-9_.+-]++")
_LANGUAGES = re.compile(rb"""[^\s;,"]++""")

Fields = dict[bytes, list[bytes]]


@dataclass(slots=True, eq=False)
class Part:
    """A part: a whole mail, a body part of a multipart, or the message inside a
    message/rfc822 part.

    Offsets count from the start of the raw mail: header `[header_start, header_end)`
    with its blank line, body `[body_start, body_end)` without the line end that belongs
    to the next delimiter. type, subtype, encoding and parameter names are lower case;
    text is unfolded, not decoded. None: the field does not exist.
    """

    header_start: int
    header_end: int
    body_start: int
    body_end: int
    type: bytes = b"text"
    subtype: bytes = b"plain"
    params: Parameters = ()
    id: bytes | None = None
    description: bytes | None = None
    encoding: bytes = b"7bit"
    disposition: tuple[bytes, Parameters] | None = None
    language: tuple[bytes, ...] = ()
    location: bytes | None = None
    md5: bytes | None = None
    lines: int = 0
    """LFs in the body; counted only for text and message parts."""
    children: list[Part] = field(default_factory=list)
    """The parts of a multipart, at least one. A multipart without any delimiter gets an
    empty text/plain, because the grammar of IMAP needs a part.
    """
    message: Part | None = None
    """The message inside message/rfc822 and message/global. IMAP4rev1 does not know
    message/global (RFC 3501 §9, media-message), so it is described like any other body
    (`body_forms`). For IMAP4rev2 it is described like message/rfc822 (`forms_rev2`).
    """

    def param(self, name: bytes) -> bytes | None:
        """Return the first parameter of that (lower-case) name, or the decoded value of
        its extended form.

        RFC 2231 §4.
        """
        return value_of(self.params, name)


def parse(mail: bytes, budget: Budget | None = None) -> Part:
    """Return the tree of a mail.

    Any bytes are a mail; linear time, at most DEPTH_MAX levels and PARTS_MAX parts.
    budget: what the tree may cost, used up here; None: the whole budget of a mail.
    """
    return _Scanner(mail, Budget() if budget is None else budget).part(0, 0, False, True)


def parse_with_fields(mail: bytes, header_end: int, fields: Fields, budget: Budget) -> Part:
    """`parse` for a caller that already has the root's header end and its fields.

    fields: with `content-` in their names. budget: the caller may have made ENVELOPEs
    with it, which leaves the tree as it is.
    """
    return _Scanner(mail, budget).part(0, 0, False, True, (header_end, fields))


class _Scanner:
    """The state of a scan that does not depend on the position: the stack of
    boundaries, and the next place of each.
    """

    __slots__ = ("budget", "cut", "found", "length", "mail", "needles", "next_match", "stop")

    def __init__(self, mail: bytes, budget: Budget) -> None:
        self.mail = mail
        self.budget = budget
        self.length = len(mail)
        self.needles: list[bytes] = []
        # per needle: there is no match before this offset
        self.next_match: list[int] = []
        # per needle: whether there is a match at this offset
        self.found: list[bool] = []
        self.cut = False  # whether a delimiter ended the last header
        # the end of the last part: the LF before a delimiter, or the end of the mail
        self.stop = 0

    def delimiter(self, at: int) -> tuple[int | None, int]:
        """Return level and offset (of the LF before it) of the first delimiter line at
        or after `at`.

        (None, length) if there is none.
        """
        level: int | None = None
        best, longest = self.length, 0
        if self.budget.parts <= 0:
            self.budget.exceeded["parts"] = None
            return level, best
        for i, needle in enumerate(self.needles):
            found_at = self.next_match[i]
            if found_at < at:
                match = find(self.mail, needle, at, best + len(needle))
                self.found[i] = match is not None
                found_at = self.next_match[i] = best if match is None else match
            if self.found[i] and (
                found_at < best
                or len(needle) >= longest
                or _WHOLE_LINE.match(self.mail, found_at + len(needle)) is not None
            ):
                best, level, longest = found_at, i, len(needle)
        return level, best

    def part(self, start: int, depth: int, digest: bool, top: bool, known: tuple[int, Fields] | None = None) -> Part:
        """Return the part whose header starts at `start`, up to the next delimiter of
        any open multipart.

        digest: message/rfc822 is the default type. top: this is the header of a
        message, not of a body part. known: the end of the header and its fields.
        """
        mail = self.mail
        budget = self.budget
        budget.parts -= 1
        limit = self.delimiter(start - 1 if start else 0)[1] if self.needles else self.length
        if known is None:
            header_end = self.blank_line(start, limit)
            fields = content_fields(mail, start, header_end, top)
        else:
            header_end, fields = known
            self.cut = False
        end = self.content_end(header_end, limit)
        part = Part(start, header_end, header_end, end)
        if fields and not budget.content(sum([len(values[0]) for values in fields.values()])):
            _make_opaque(part)
        elif fields or digest:
            _describe(part, fields, digest)
        self.stop = limit
        media = part.type
        if media == b"multipart":
            if self.may_nest(depth):
                self.multipart(part, depth)
            else:
                _make_opaque(part)
        elif media == b"message" and part.subtype in {b"rfc822", b"global"}:
            if not self.may_nest(depth):
                _make_opaque(part)
            else:
                part.message = self.part(header_end, depth + 1, False, True)
                part.body_end = part.message.body_end
                part.lines = lines_in(mail, part.body_start, part.body_end)
        elif media == b"text":
            part.lines = lines_in(mail, header_end, end)
        return part

    def may_nest(self, depth: int) -> bool:
        """Return whether a container at that depth may have parts."""
        if depth >= DEPTH_MAX or self.budget.parts <= 0:
            self.budget.exceeded["depth" if depth >= DEPTH_MAX else "parts"] = None
            return False
        return True

    def blank_line(self, start: int, limit: int) -> int:
        """Return the end of the header that starts at `start`: behind its blank line,
        or where a delimiter cuts it off."""
        mail = self.mail
        if start == 0:
            if mail.startswith(b"\r\n"):
                return 2
            if mail.startswith(b"\n"):
                return 1
        end = blank_line(mail, start - 1 if start else 0, min(limit + 1, self.length))
        self.cut = end is None
        return self.content_end(start, limit) if end is None else end

    def content_end(self, start: int, stop: int) -> int:
        """Return end of content that starts at `start` and is followed by the delimiter
        at `stop`.

        The CR of the delimiter is not content.
        """
        if stop <= start:
            return start
        return stop - 1 if stop < self.length and self.mail[stop - 1] == 13 else stop

    def multipart(self, part: Part, depth: int) -> None:
        """Read the body parts of a multipart and set its end."""
        boundary = part.param(b"boundary")
        if boundary is not None and not self.cut:
            mail = self.mail
            level = len(self.needles)
            needle = b"\n--" + boundary[:_BOUNDARY_MAX]
            self.needles.append(needle)
            # the LF of the blank line may be the LF before the first delimiter
            at = max(part.body_start - 1, 0)
            self.next_match.append(at - 1)  # nothing was searched from `at` on
            self.found.append(False)
            digest = part.subtype == b"digest"
            hit, stop = self.delimiter(at)
            while hit == level and not mail.startswith(b"--", stop + 3 + len(boundary)):
                line_end = mail.find(b"\n", stop + 1)
                part.children.append(
                    self.part(line_end + 1 if line_end >= 0 else self.length, depth + 1, digest, False)
                )
                hit, stop = self.delimiter(self.stop)
            del self.needles[level:], self.next_match[level:], self.found[level:]
            # the close delimiter: the epilogue lasts until an outer delimiter
            if hit == level:
                stop = self.delimiter(stop + 1)[1]
            self.stop = stop
            part.body_end = self.content_end(part.body_start, stop)
        if part.children:
            part.body_end = max(part.body_end, part.children[-1].body_end)
        else:
            end = part.body_end
            part.children.append(Part(end, end, end, end))


def content_fields(mail: bytes, start: int, end: int, top: bool) -> Fields:
    """The Content-* fields of a header, names in lower case without `content-`."""
    if end - start < 8:
        return {}
    end = min(end, start + HEADER_BYTES_MAX)
    if start:
        fields = collect(_CONTENT.findall(mail, start - 1, end))
        if top and fields and b"type" not in fields and not _MIME_VERSION.search(mail, start - 1, end):
            return {}
    else:
        header = b"\n" + mail[:end]
        fields = collect(_CONTENT.findall(header))
        if top and fields and b"type" not in fields and not _MIME_VERSION.search(header):
            return {}
    return fields


def _make_opaque(part: Part) -> None:
    """Make a container beyond the limits opaque bytes.

    RFC 2045 §5.2 would have it shown as text.
    """
    part.type, part.subtype, part.params = b"application", b"octet-stream", ()


def _describe(part: Part, fields: Fields, digest: bool) -> None:
    """Fill in what the Content-* fields say; of several fields of a name the first
    counts.
    """
    for name, values in fields.items():
        value = values[0]
        if name == b"type":
            found = _TYPE.match(value) or (_TYPE.match(strip_comments(value)) if b"(" in value else None)
            if found is None:
                continue
            digest = False
            part.type, part.subtype = found[1].lower(), found[2].lower()
            rest = value[found.end() :] if found.string is value else strip_comments(value)[found.end() :]
            if b";" in rest:
                part.params = _params(rest)
        elif name == b"transfer-encoding":
            token = strip_comments(value).strip(b' \t\r\n;"')
            # An unknown encoding counts as 7bit. RFC 2045 §6.1.
            if _MECHANISM.fullmatch(token):
                part.encoding = token.lower()
        elif name == b"disposition":
            part.disposition = _disposition(value)
        elif name == b"id":
            part.id = unfold(value)
        elif name == b"description":
            part.description = unfold(value)
        elif name == b"language":
            part.language = tuple(_LANGUAGES.findall(strip_comments(value).partition(b";")[0]))
        elif name == b"location":
            part.location = unfold(value)
        elif name == b"md5":
            part.md5 = unfold(value)
    if digest:
        part.type, part.subtype = b"message", b"rfc822"


def _params(rest: bytes) -> Parameters:
    """The parameters behind a type, from the first `;`, without folds and comments."""
    if b"\n" in rest:
        rest = rest.replace(b"\r\n", b"").replace(b"\n", b"")
    return parameters(strip_comments(rest).partition(b";")[2].rstrip())


def _disposition(value: bytes) -> tuple[bytes, Parameters] | None:
    """Return disposition type and its parameters. RFC 2183 §2."""
    kind, semicolon, _ = value.partition(b";")
    token = _TOKEN.match(strip_comments(kind))
    params = _params(value) if semicolon else ()
    if token is None and not params:
        return None
    return token[1].lower() if token else b"", params
