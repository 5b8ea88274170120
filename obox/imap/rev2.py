"""What a FETCH of IMAP4rev2 describes otherwise than the ready fields: message/global
is a message, as message/rfc822 is. RFC 9051 §7.5.2, §9 (media-message)."""

from __future__ import annotations

import asyncio
from typing import Final

from obox.errors import Corrupt, Expunged, NotFound
from obox.store.api import Fields, Mailbox
from obox.store.content import forms_rev2, parse

_GLOBAL: Final = b'"message" "global"'


async def for_rev2(mailbox: Mailbox, found: dict[int, Fields]) -> dict[int, Fields]:
    """Return the ready fields of mails. For mails that have a message/global, whose
    bytes are read, the structures are made again."""
    made: dict[int, Fields] = {}
    for uid, fields in found.items():
        if _GLOBAL not in fields.bodystructure:
            continue
        try:
            mail = await mailbox.mail(uid)
        except (Expunged, NotFound, Corrupt):
            continue
        body, structure = await asyncio.to_thread(_forms, mail)
        made[uid] = Fields.of(fields.envelope, body, structure, fields.header)
    return {**found, **made}


def _forms(mail: bytes) -> tuple[bytes, bytes]:
    return forms_rev2(mail, parse(mail))
