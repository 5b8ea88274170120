"""What the index keeps of a mail.

It is made once, when the mail is delivered: a pass over the header, a pass over the
body.
"""

from __future__ import annotations

from dataclasses import dataclass

from ._budget import Budget
from ._date import parse_date
from ._fields import header_end, unfold
from ._scan import parse_with_fields
from ._wire import body_forms, envelope_fields, envelope_of


@dataclass(frozen=True, slots=True)
class Summary:
    """Ready answers.

    All bytes are in wire form, except `header` (the block with its blank line) and
    `message_id` (unfolded, b"" if there is none). sent_date: unix seconds.
    sent_zone_min: minutes east of UTC, 0 if unknown. exceeded: the limits of `Budget`
    that the mail exceeds; what is beyond them is NIL or opaque.
    """

    envelope: bytes
    bodystructure: bytes
    body: bytes
    header: bytes
    sent_date: int | None
    sent_zone_min: int
    message_id: bytes
    exceeded: tuple[str, ...] = ()


def summary(mail: bytes, budget: Budget | None = None) -> Summary:
    """Return what FETCH and SEARCH ask for most. The mail is any bytes; nothing raises.

    budget: what the summary may cost, used up here; None: the whole budget of a mail.
    """
    budget = Budget() if budget is None else budget
    end = header_end(mail)
    header = mail[:end]
    fields = envelope_fields(header, content=True)
    content = {name[8:]: values for name, values in fields.items() if name.startswith(b"content-")}
    if b"type" not in content and b"mime-version" not in fields:
        content = {}
    # this comes first: the body must not use up its share
    envelope = envelope_of(fields, budget)
    short, long = body_forms(mail, parse_with_fields(mail, end, content, budget), budget)
    dates = fields.get(b"date")
    date = parse_date(dates[-1]) if dates else None
    ids = fields.get(b"message-id")
    return Summary(
        envelope=envelope,
        bodystructure=long,
        body=short,
        header=header,
        sent_date=None if date is None else date.seconds,
        sent_zone_min=0 if date is None else date.zone_min,
        message_id=unfold(ids[-1]) if ids else b"",
        exceeded=tuple(budget.exceeded),
    )
