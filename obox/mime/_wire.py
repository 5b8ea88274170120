"""ENVELOPE, BODY and BODYSTRUCTURE in wire form: they are stored once and sent often.

Invariant: the output is a parenthesised list of RFC 9051 §9 (envelope, body). It is
balanced, has no CR, LF, NUL or 8-bit byte outside literals, and no NUL anywhere (NUL
becomes U+FFFD, as in Dovecot). Literals are synchronising `{n}` CRLF. A string that is
not 7-bit becomes a literal: quoted strings of RFC 3501 §4.3 are 7-bit, and the stored
form serves both revisions. Text is unfolded; encoded words stay encoded.
"""

from __future__ import annotations

import re
from typing import Final

from ._address import Address, read_addresses
from ._budget import Budget
from ._fields import FIELD_VALUE, bounded, collect, spelled, unfold
from ._params import Parameters
from ._scan import Fields, Part

# Bytes that may stand in a quoted string as they are. RFC 3501 §9: QUOTED-CHAR, without
# the two that need a backslash.
_PLAIN = bytes(c for c in range(1, 128) if c not in b'\r\n"\\')
# with more backslashes a literal is shorter to read; Dovecot does the same
_ESCAPES_MAX = 4

_ENVELOPE_NAMES = (
    b"date",
    b"subject",
    b"from",
    b"sender",
    b"reply-to",
    b"to",
    b"cc",
    b"bcc",
    b"in-reply-to",
    b"message-id",
)
_NAMES = b"|".join(map(spelled, _ENVELOPE_NAMES))
_ENVELOPE = re.compile(rb"\n(" + _NAMES + rb")[ \t]*+:" + FIELD_VALUE)
_ENVELOPE_AND_CONTENT = re.compile(
    rb"\n("
    + _NAMES
    + b"|"
    + spelled(b"mime-version")
    + b"|"
    + spelled(b"content-")
    + rb"[A-Za-z0-9-]++)[ \t]*+:"
    + FIELD_VALUE
)


def string(value: bytes) -> bytes:
    """Return a value as a quoted string, or as a literal if a quoted string is not
    allowed. RFC 9051 §4.3."""
    odd = value.translate(None, _PLAIN)
    if not odd:
        return b'"' + value + b'"'
    if len(odd) <= _ESCAPES_MAX and not odd.strip(b'"\\'):
        return b'"' + value.replace(b"\\", b"\\\\").replace(b'"', b'\\"') + b'"'
    value = value.replace(b"\0", b"\xef\xbf\xbd")
    return b"{%d}\r\n%b" % (len(value), value)


def nstring(value: bytes | None) -> bytes:
    """Return a value, or NIL."""
    return b"NIL" if value is None else string(value)


def _address(address: Address) -> bytes:
    name, route, mailbox, host = address
    return b"(%b %b %b %b)" % (nstring(name), nstring(route), nstring(mailbox), nstring(host))


def _addresses(fields: Fields, name: bytes, budget: Budget) -> bytes:
    """Return a list of addresses, or NIL; several fields of a name make a single list,
    as in Dovecot.

    A list that exceeds the budget is NIL as a whole: a part of the list would look like
    all of it.
    """
    values = fields.get(name)
    if values is None:
        return b"NIL"
    found: list[Address] = []
    for value in values:
        if not budget.value(len(value)):
            return b"NIL"
        some, elements = read_addresses(value, budget.addresses)
        budget.addresses -= elements
        if budget.addresses < 0:
            budget.addresses = 0
            budget.exceeded["addresses"] = None
            return b"NIL"
        found += some
    return b"(" + b"".join([_address(address) for address in found]) + b")" if found else b"NIL"


def _text(fields: Fields, name: bytes, budget: Budget) -> bytes:
    """Return the value of the last field of that name, or NIL."""
    values = fields.get(name)
    if values is None or not budget.value(len(values[-1])):
        return b"NIL"
    return string(unfold(values[-1]))


def envelope_fields(header: bytes, content: bool = False) -> Fields:
    """Return the fields that ENVELOPE needs.

    With `content` also the fields that describe the body, so that one pass serves both.
    """
    pattern = _ENVELOPE_AND_CONTENT if content else _ENVELOPE
    return collect(pattern.findall(b"\n" + bounded(header)))


def envelope_of(fields: Fields, budget: Budget) -> bytes:
    """Return the ENVELOPE of collected fields; fields that exceed the budget are
    NIL."""
    subject = fields.get(b"subject")
    if subject and not budget.value(len(subject[-1])):
        subject = None
    sender_default = _addresses(fields, b"from", budget)
    sender = _addresses(fields, b"sender", budget)
    reply_to = _addresses(fields, b"reply-to", budget)
    return b"(%b %b %b %b %b %b %b %b %b %b)" % (
        _text(fields, b"date", budget),
        # Blanks collapse only in the subject, which clients show in a list; Dovecot
        # does the same.
        string(b" ".join(subject[-1].split())) if subject else b"NIL",
        sender_default,
        sender_default if sender == b"NIL" else sender,
        sender_default if reply_to == b"NIL" else reply_to,
        _addresses(fields, b"to", budget),
        _addresses(fields, b"cc", budget),
        _addresses(fields, b"bcc", budget),
        _text(fields, b"in-reply-to", budget),
        _text(fields, b"message-id", budget),
    )


def envelope(header: bytes) -> bytes:
    """Return the ENVELOPE of a header block, in wire form. RFC 9051 §7.5.2.

    Sender and Reply-To are those of From if they are absent or empty. Of Date, Subject,
    In-Reply-To and Message-ID the last field counts; address fields of the same name
    are joined. RFC 5322 §3.6 allows one field of each name; Dovecot treats more fields
    in this way.
    """
    return envelope_of(envelope_fields(header), Budget())


MESSAGES_REV1: Final = (b"rfc822",)
MESSAGES_REV2: Final = (b"rfc822", b"global")
"""Media-message of RFC 3501 §9 and of RFC 9051 §9."""


def _parameters(params: Parameters) -> bytes:
    if not params:
        return b"NIL"
    return b"(" + b" ".join([string(name) + b" " + string(value) for name, value in params]) + b")"


def _extension(part: Part) -> bytes:
    """Return body-fld-dsp, body-fld-lang, body-fld-loc: three NILs if all are
    absent."""
    if part.disposition is None and not part.language and part.location is None:
        return b" NIL NIL NIL"
    if part.disposition is None:
        disposition = b"NIL"
    else:
        kind, params = part.disposition
        disposition = b"(" + string(kind) + b" " + _parameters(params) + b")"
    language = b"(" + b" ".join([string(tag) for tag in part.language]) + b")" if part.language else b"NIL"
    return b" " + disposition + b" " + language + b" " + nstring(part.location)


def body_forms(
    mail: bytes, part: Part, budget: Budget, messages: tuple[bytes, ...] = MESSAGES_REV1
) -> tuple[bytes, bytes]:
    """Return BODY and BODYSTRUCTURE of a part, in wire form. RFC 3501 §7.4.2.

    Sizes and lines are those of the raw bytes. budget: what is left of the mail's
    budget, for the ENVELOPEs of embedded messages. messages: the subtypes of `message`
    that are described as messages: MESSAGES_REV1 or MESSAGES_REV2.
    """
    if part.children:
        forms = [body_forms(mail, child, budget, messages) for child in part.children]
        subtype = string(part.subtype)
        return (
            b"(" + b"".join([form[0] for form in forms]) + b" " + subtype + b")",
            b"(%b %b %b%b)"
            % (b"".join([form[1] for form in forms]), subtype, _parameters(part.params), _extension(part)),
        )
    params = part.params
    is_text = part.type == b"text"
    if is_text and part.param(b"charset") is None:
        # RFC 2045 §5.2; explicit, as in Dovecot
        params = (*params, (b"charset", b"us-ascii"))
    start = b"(%b %b %b %b %b %b %d" % (
        string(part.type),
        string(part.subtype),
        _parameters(params),
        nstring(part.id),
        nstring(part.description),
        string(part.encoding),
        part.body_end - part.body_start,
    )
    end = b" " + nstring(part.md5) + _extension(part) + b")"
    if is_text:
        start += b" %d" % part.lines
    elif part.message is not None and part.subtype in messages:
        message = part.message
        fields = envelope_fields(mail[message.header_start : message.header_end])
        start += b" " + envelope_of(fields, budget) + b" "
        short, long = body_forms(mail, message, budget, messages)
        lines = b" %d" % part.lines
        return start + short + lines + b")", start + long + lines + end
    return start + b")", start + end


def bodystructure(mail: bytes, part: Part) -> bytes:
    """Return BODYSTRUCTURE with all extension data, in wire form. RFC 9051 §7.5.2."""
    return body_forms(mail, part, Budget())[1]


def forms_rev2(mail: bytes, part: Part) -> tuple[bytes, bytes]:
    """Return BODY and BODYSTRUCTURE for a client of IMAP4rev2, which knows
    message/global as a message. RFC 9051 §7.5.2."""
    return body_forms(mail, part, Budget(), MESSAGES_REV2)


def body(mail: bytes, part: Part) -> bytes:
    """Return BODY: the structure without extension data, in wire form. RFC 9051
    §7.5.2."""
    return body_forms(mail, part, Budget())[0]
