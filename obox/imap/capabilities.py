"""What is advertised, before and after login. RFC 9051 §7.2.2; each word with its RFC.

A word is here only if the whole of its RFC is served (docs/rfc.md).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Final

ALWAYS: Final = (
    "IMAP4rev1",  # RFC 3501
    "IMAP4rev2",  # RFC 9051
    "SASL-IR",  # RFC 4959
    "ID",  # RFC 2971
    "ENABLE",  # RFC 5161
    "IDLE",  # RFC 2177
    "LITERAL+",  # RFC 7888
)
AFTER_LOGIN: Final = (
    "NAMESPACE",  # RFC 2342
    "CHILDREN",  # RFC 3348
    "UNSELECT",  # RFC 3691
    "UIDPLUS",  # RFC 4315
    "MOVE",  # RFC 6851
    "MULTIAPPEND",  # RFC 3502
    "SPECIAL-USE",  # RFC 6154
    "CREATE-SPECIAL-USE",  # RFC 6154
    "LIST-EXTENDED",  # RFC 5258
    "LIST-STATUS",  # RFC 5819
    "STATUS=SIZE",  # RFC 8438
    "CONDSTORE",  # RFC 7162
    "QRESYNC",  # RFC 7162
    "ESEARCH",  # RFC 4731
    "SEARCHRES",  # RFC 5182
    "WITHIN",  # RFC 5032
    "SAVEDATE",  # RFC 8514
    "OBJECTID",  # RFC 8474
    "SORT",  # RFC 5256
    "THREAD=ORDEREDSUBJECT",  # RFC 5256
    "THREAD=REFERENCES",  # RFC 5256
    "THREAD=REFS",  # as in Dovecot; it has no RFC
    "ESORT",  # RFC 5267
    "CONTEXT=SEARCH",  # RFC 5267
    "CONTEXT=SORT",  # RFC 5267
    "SORT=DISPLAY",  # RFC 5957
    "I18NLEVEL=1",  # RFC 5255
    "PREVIEW",  # RFC 8970
    "BINARY",  # RFC 3516
    "REPLACE",  # RFC 8508
    "CATENATE",  # RFC 4469
    "PARTIAL",  # RFC 9394
    "UTF8=ACCEPT",  # RFC 6855
    "INPROGRESS",  # RFC 9585
    "UIDONLY",  # RFC 9586
    "MULTISEARCH",  # RFC 7377
    "UIDBATCHES",  # RFC 10022
    "NOTIFY",  # RFC 5465
    "METADATA",  # RFC 5464
    "LIST-METADATA",  # RFC 9590
    "XLIST",  # for old clients; it has no RFC
    "QUOTA",  # RFC 9208
    "QUOTA=RES-STORAGE",  # RFC 9208
    "QUOTA=RES-MESSAGE",  # RFC 9208
)
SHARED: Final = (
    "ACL",  # RFC 4314
    "RIGHTS=texk",  # RFC 4314
    "LIST-MYRIGHTS",  # RFC 8440
)
"""Where users may share mailboxes (docs/sharing.md)."""


@lru_cache(maxsize=32)
def capabilities(
    *,
    logged_in: bool,
    secure: bool,
    starttls: bool,
    append_limit: int,
    forwarded: bool = False,
    compressed: bool = False,
    shared: bool = False,
) -> bytes:
    """Return the list without the word CAPABILITY. secure: whether passwords are
    accepted on this connection. starttls: whether TLS can begin. forwarded: whether
    another server has checked the user's password. compressed: whether the connection
    is compressed, which it stays. shared: whether users share mailboxes here.
    """
    words = list(ALWAYS)
    if logged_in:
        words += AFTER_LOGIN
        if shared:
            words += SHARED
        if not compressed:
            words.append("COMPRESS=DEFLATE")  # RFC 4978
        if not (forwarded or compressed):
            words.append("UNAUTHENTICATE")  # RFC 8437
        words.append(f"APPENDLIMIT={append_limit}")  # RFC 7889
    else:
        if starttls:
            words.append("STARTTLS")
        words += ["AUTH=PLAIN", "AUTH=LOGIN"] if secure else ["LOGINDISABLED"]
    return " ".join(words).encode()
