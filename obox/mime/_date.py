"""The Date: field as a point in time and as a day.

RFC 5322 §3.3 with the obsolete forms of §4.3. A date that cannot be read is None. This
includes years outside of 1 to 9999, for which the standard library has no day (RFC 5322
writes a year with four digits or more).
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final, NamedTuple

from ._fields import header_values, strip_comments

DATE_BYTES_MAX: Final = 2_000
"""At most 2,000 bytes of a Date field are read. A line of a header has 998 at most."""

_EPOCH = date(1970, 1, 1).toordinal()
_MONTHS = {
    name: number
    for number, name in enumerate(
        (b"jan", b"feb", b"mar", b"apr", b"may", b"jun", b"jul", b"aug", b"sep", b"oct", b"nov", b"dec"), 1
    )
}
# RFC 5322 §4.3: these names have a meaning; all other names count as -0000.
_ZONES = {
    b"edt": -240,
    b"est": -300,
    b"cdt": -300,
    b"cst": -360,
    b"mdt": -360,
    b"mst": -420,
    b"pdt": -420,
    b"pst": -480,
}
_DATE = re.compile(
    rb"\s*+(?:[A-Za-z]++\.?\s*+,?\s*+)?"
    rb"(\d{1,2})[\s-]\s*+([A-Za-z]{3})[A-Za-z]*+\.?[\s,-]\s*+(\d{2,4})(?!\d)"
    rb"(?:[\s,]\s*+(\d{1,2})\s*+:\s*+(\d{2})(?:\s*+:\s*+(\d{2}))?\s*+(?:([+-])(\d{2}):?(\d{2})|([A-Za-z]++))?)?"
)


class SentDate(NamedTuple):
    """A date that was read.

    seconds: since 1970 in UTC; a zone at the ends of the years 1 and 9999 may lead out
    of them. zone_min: minutes east of UTC in which the sender wrote the date. day: as
    the sender wrote it, in days since 1970; SENTON and related keys compare it (RFC
    9051 §6.4.4). A leap second counts as the second before it, which keeps it in its
    own day.
    """

    seconds: int
    zone_min: int
    day: int


def parse_date(value: bytes) -> SentDate | None:
    """Read a date-time of RFC 5322. None: it cannot be read."""
    value = value[:DATE_BYTES_MAX]
    found = _DATE.match(value)
    if found is None and b"(" in value:
        found = _DATE.match(strip_comments(value))
    if found is None:
        return None
    day, month, year, hour, minute, second, sign, zone_h, zone_m, zone_name = found.groups()
    number = _MONTHS.get(month.lower())
    if number is None:
        return None
    y = int(year)
    if len(year) < 4:  # RFC 5322 §4.3
        y += 2000 if y < 50 and len(year) == 2 else 1900
    try:
        days = date(y, number, int(day)).toordinal() - _EPOCH
    except ValueError:
        return None
    seconds = days * 86400
    if hour is not None:
        h, m, s = int(hour), int(minute), int(second or 0)
        if h > 24 or m > 59 or s > 60:
            return None
        seconds += h * 3600 + m * 60 + min(s, 59)
    zone = 0
    if sign:
        zone = int(zone_h) * 60 + int(zone_m)
        if sign == b"-":
            zone = -zone
        if not -1440 < zone < 1440:
            zone = 0
    elif zone_name:
        zone = _ZONES.get(zone_name.lower(), 0)
    return SentDate(seconds - zone * 60, zone, days)


def sent_date(header: bytes) -> int | None:
    """Return the Date: field in unix seconds.

    If there are several such fields, the last one counts, as in ENVELOPE.
    """
    values = header_values(header, b"date")
    found = parse_date(values[-1]) if values else None
    return None if found is None else found.seconds
