"""Parameters of Content-Type and Content-Disposition: parsed, joined, decoded.

RFC 2045 §5.1, RFC 2183 §2, RFC 2231. RFC 2231 allows a mailer to split a value into
sections (`name*0=…; name*1=…`, §3) and to give its charset
(`name*=utf-8'de'Gr%C3%BC%C3%9Fe`, §4). `parameters` joins the sections. BODYSTRUCTURE
then shows a single parameter: `name`, or `name*` with its charset if a section has the
extended syntax (§6; Dovecot does the same). `value_of` undoes the extended syntax as
well, for code that uses a value.

Invariant: as in `_fields`, every pattern is linear and possessive. Sections that cannot
be joined stay as they are. The plain name of a parameter is searched first, and its
extended form second.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from urllib.parse import unquote_to_bytes

from ._fields import unquote

SECTIONS_MAX: Final = 100
"""Sections of a value that are joined. Mailers begin a new section after 60 to 70
characters.
"""

Parameters = tuple[tuple[bytes, bytes], ...]
"""Names in lower case, values unquoted and joined, in the order of the mail. If a name
ends in `*`, its value has the extended syntax.
"""

# RFC 2045 §5.1: parameter := attribute "=" value; value := token / quoted-string.
# Deviations of real mails are accepted: tspecials in an unquoted value, an unclosed
# quoted string, blanks around "=".
_PARAMETER = re.compile(
    rb"""[;\s]*+([^\s;="]++)\s*+(?:=\s*+(?:"([^"\\]*+(?:\\.[^"\\]*+)*+)(?:"|\\?\Z)|([^\s;"]*+)))?[^;"]*+""", re.DOTALL
)
_JUNK = re.compile(rb'[;\s="]++')
# RFC 2231 §7: section := initial-section / other-sections; the number has no leading
# zero.
_SECTION = re.compile(rb"([^*]++)\*(0|[1-9][0-9]?)(\*?)")
_NOT_ATTRIBUTE_CHAR = re.compile(rb"""[^!#$&+.0-9A-Z^_`a-z{|}~-]""")


def parameters(text: bytes) -> Parameters:
    """Return the parameters behind a media or disposition type, from its first `;` on;
    sections joined."""
    found = tuple(_parameters(text))
    return _joined(found) if b"*" in text else found


def value_of(params: Parameters, name: bytes) -> bytes | None:
    """Return the octets of the first value of that (lower-case) name; without `name`,
    those of `name*`, decoded."""
    for key, value in params:
        if key == name:
            return value
    extended = _extended(params, name)
    return None if extended is None else extended[1]


def charset_and_value(params: Parameters, name: bytes) -> tuple[bytes | None, bytes] | None:
    """Return the same as `value_of`, but prefer the extended form, and add the charset
    that it names. None: there is no such parameter."""
    extended = _extended(params, name)
    if extended is not None:
        return extended
    value = value_of(params, name)
    return None if value is None else (None, value)


def _extended(params: Parameters, name: bytes) -> tuple[bytes | None, bytes] | None:
    """Return charset and octets of `name*`.

    RFC 2231 §4: charset'language'value. Without the two quotes, everything is value.
    """
    wanted = name + b"*"
    for key, value in params:
        if key == wanted:
            charset, quote, rest = value.partition(b"'")
            _, second, text = rest.partition(b"'")
            if not (quote and second):
                charset, text = b"", value
            return charset or None, unquote_to_bytes(text)
    return None


def _parameters(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    at, end = 0, len(text)
    while at < end:
        found = _PARAMETER.match(text, at)
        if found is None:
            junk = _JUNK.match(text, at)
            at = junk.end() if junk else end
            continue
        at = found.end()
        name, quoted, token = found.groups()
        if quoted is not None:
            yield name.lower(), unquote(quoted)
        elif token is not None:
            yield name.lower(), token


def _joined(params: Parameters) -> Parameters:
    """Return the parameters with a single parameter for the sections of each name.

    It stands at the place of the first section. Sections behind a missing section are
    left out.
    """
    sections: dict[bytes, dict[int, tuple[bytes, bytes, bool]]] = {}
    for key, value in params:
        found = _SECTION.fullmatch(key)
        if found is not None:
            name, number, star = found.groups()
            sections.setdefault(name, {}).setdefault(int(number), (key, value, bool(star)))
    # key of the first section -> the parameter in its place
    whole: dict[bytes, tuple[bytes, bytes]] = {}
    gone: set[bytes] = set()
    for name, numbered in sections.items():
        run = [numbered[number] for number in range(len(numbered)) if number in numbered]
        if 0 not in numbered:
            continue
        run = run[: next((at for at in range(len(numbered)) if at not in numbered), len(numbered))]
        whole[run[0][0]] = _join(name, run)
        gone.update(key for key, _, _ in run[1:])
    out: list[tuple[bytes, bytes]] = []
    for key, value in params:
        if key in whole:
            out.append(whole.pop(key))
            gone.add(key)
        elif key not in gone:
            out.append((key, value))
    return tuple(out)


def _join(name: bytes, run: list[tuple[bytes, bytes, bool]]) -> tuple[bytes, bytes]:
    if not any(star for _, _, star in run):
        return name, b"".join([value for _, value, _ in run])
    # A plain section of an extended value is text. It gets the extended syntax so that
    # the sections can be joined.
    pieces = [value if star else _NOT_ATTRIBUTE_CHAR.sub(_percent, value) for _, value, star in run]
    if not run[0][2]:
        # RFC 2231 §4.1: the first section has the charset; here it has none
        pieces.insert(0, b"''")
    return name + b"*", b"".join(pieces)


def _percent(char: re.Match[bytes]) -> bytes:
    return b"%%%02X" % ord(char[0])
