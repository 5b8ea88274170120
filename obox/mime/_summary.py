"""What the index keeps of a mail, made once when it is delivered: one pass over the header, one over the body."""

from __future__ import annotations

from dataclasses import dataclass

from ._budget import Budget
from ._date import parse_date
from ._fields import header_end, unfold
from ._scan import parse_with_fields
from ._wire import body_forms, envelope_fields, envelope_of


@dataclass(frozen=True, slots=True)
class Summary:
    """Ready answers. All bytes are wire form but `header` (the block with its blank line) and `message_id` (unfolded,
    b"" where there is none). sent_date: unix seconds; sent_zone_min: minutes east of UTC, 0 where unknown.
    exceeded: which limits of `Budget` the mail goes beyond: what lies beyond is NIL or opaque."""

    envelope: bytes
    bodystructure: bytes
    body: bytes
    header: bytes
    sent_date: int | None
    sent_zone_min: int
    message_id: bytes
    exceeded: tuple[str, ...] = ()


def summary(mail: bytes, budget: Budget | None = None) -> Summary:
    """Everything that FETCH and SEARCH ask for most, of one mail. The mail is any bytes; nothing raises.

    budget: what it may cost, used up here; None: a mail's whole budget.
    """
    budget = Budget() if budget is None else budget
    end = header_end(mail)
    header = mail[:end]
    fields = envelope_fields(header, content=True)
    content = {name[8:]: values for name, values in fields.items() if name.startswith(b"content-")}
    if b"type" not in content and b"mime-version" not in fields:
        content = {}
    envelope = envelope_of(fields, budget)  # first: what the body holds must not use its share up
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
