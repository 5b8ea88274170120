"""The layout of the bucket: every key that obox writes is made and parsed here.

```
<hh>/<sid>/m/<guid>/<uid:08x>                         mail, claim or burnt claim
<hh>/<sid>/x/<guid|root>/<version:016x>.<writer>.<form>
                                                      index bundle: base, diff, cache
<hh>/<sid>/x/<guid>/<serial:016x>.<writer>.pack       many mails of a mailbox
_journal/<backend>/<boot>/<seq:016x>                  journal object
_events/<group>/cursor/<backend>/<boot>/<seq:016x>.<writer>
                                                      how far a group of events is
_events/<group>/dead/<sid>/<at:016x>.<id>             event that was not handled
_format                                               version of the whole
```

hh: the first two hex digits of the SHA-256 of sid, which spread users over the store's
partitions. guid: of a mailbox. Numbers have fixed width, so that key order is number
order. Elements (sid, backend, boot, writer) are names that went through
`obox.escaping.escape`: a safe path element of lower-case ASCII. Functions here refuse
other elements; they never
escape by themselves, so that nothing is escaped twice.

The owner of an object, to which its envelope is bound (codec.py), is ASCII text similar
to its key:

```
<sid>/m/<guid>/<uid:08x>              mail, claim: storage id, home mailbox, UID
<sid>/x/<guid|root>                   base, diff, cache, the head of a pack
_journal/<backend>/<boot>/<seq:016x>  journal object
_events/…                             cursor, dead letter: the whole key
_format                               version of the whole
<sid>/pull                            every object of a pull, which has no key
```

No element has a `/`, so that no two owners have the same text. If a mail lay in another
object than its key names, it would still have this owner.

Invariant: parse_x(x_key(...)) gives the arguments back; a parse function raises
ValueError on every other string.

This module does not know the content of the object under a key.

Diagnostics: ValueError only. The caller logs a foreign key in the bucket and leaves it
alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from typing import Final, Literal, NamedTuple, cast

from obox.escaping import element
from obox.types import Guid, Owner, StorageId, Uid

FORMAT_KEY = "_format"
ROOT = "root"
FIRST_WRITER = "first"

Form = Literal["base", "diff", "cache"]
FORMS: tuple[Form, ...] = ("base", "diff", "cache")

UID_MAX = 2**32 - 1
"""RFC 9051 §2.3.1.1."""

KEY_BYTES_MAX: Final = 1024
"""The longest key that S3 accepts."""

_U64_MAX = 2**64 - 1
_GUID = re.compile(r"[0-9a-f]{32}", re.ASCII)
_MAIL = re.compile(r"([0-9a-f]{2})/([^/]+)/m/([0-9a-f]{32})/([0-9a-f]{8})", re.ASCII)
_BUNDLE = re.compile(
    r"([0-9a-f]{2})/([^/]+)/x/([0-9a-f]{32}|root)/([0-9a-f]{16})\.([^/]+)\.(base|diff|cache)", re.ASCII
)
_PACK = re.compile(r"([0-9a-f]{2})/([^/]+)/x/([0-9a-f]{32})/([0-9a-f]{16})\.([^/]+)\.pack", re.ASCII)
_JOURNAL = re.compile(r"_journal/([^/]+)/([^/]+)/([0-9a-f]{16})", re.ASCII)


class MailKey(NamedTuple):
    """The content of a mail's key."""

    sid: StorageId
    guid: Guid
    uid: Uid


class BundleKey(NamedTuple):
    """The content of a bundle's key. box: a mailbox GUID or ROOT."""

    sid: StorageId
    box: str
    version: int
    writer: str
    form: Form


class PackKey(NamedTuple):
    """The content of a pack's key."""

    sid: StorageId
    guid: Guid
    serial: int
    writer: str


class JournalKey(NamedTuple):
    """The content of a journal object's key."""

    backend: str
    boot: str
    seq: int


def _box(box: str) -> str:
    if box != ROOT and _GUID.fullmatch(box) is None:
        raise ValueError(f"not a mailbox guid: {box[:80]!r}; allowed: 32 lower-case hex digits")
    return box


@lru_cache(maxsize=4096)
def _home(sid: str) -> str:
    return f"{hh(sid)}/{element(sid)}"


def hh(sid: str) -> str:
    """Return the two hex digits that spread storage ids."""
    return sha256(sid.encode("ascii")).hexdigest()[:2]


def mail_key(sid: StorageId, guid: Guid, uid: Uid) -> str:
    """Return the key of a mail; the key is its UID."""
    if not 1 <= uid <= UID_MAX:
        raise ValueError(f"not a UID: {uid}; allowed: 1 to {UID_MAX}")
    return f"{mail_prefix(sid, guid)}{uid:08x}"


def mail_prefix(sid: StorageId, guid: Guid) -> str:
    """Return the prefix of all mails whose home is this mailbox."""
    if _GUID.fullmatch(guid) is None:
        raise ValueError(f"not a mailbox guid: {guid[:80]!r}; allowed: 32 lower-case hex digits")
    return f"{_home(sid)}/m/{guid}/"


def mails_prefix(sid: StorageId) -> str:
    """Return the prefix of all mails of a user."""
    return f"{_home(sid)}/m/"


def user_prefix(sid: StorageId) -> str:
    """Return the prefix of everything of a user except the journal."""
    return f"{_home(sid)}/"


def fts_prefix(sid: StorageId) -> str:
    """Return the prefix of a user's full-text index."""
    return f"{_home(sid)}/t/"


def parse_mail_key(key: str) -> MailKey:
    """Return the arguments of mail_key. Raises: ValueError on any other key."""
    m = _MAIL.fullmatch(key)
    if m is None or hh(element(m[2])) != m[1] or (uid := int(m[4], 16)) == 0:
        raise ValueError(f"not the key of a mail: {key[:200]!r}")
    return MailKey(StorageId(m[2]), Guid(m[3]), Uid(uid))


def bundle_key(sid: StorageId, box: str, version: int, writer: str, form: Form) -> str:
    """Return the key of an index bundle. box: a mailbox GUID or ROOT."""
    if not 0 <= version <= _U64_MAX or form not in FORMS:
        raise ValueError(f"not a bundle: version {version}, form {form!r}")
    return f"{_home(sid)}/x/{_box(box)}/{version:016x}.{element(writer)}.{form}"


def bundles_prefix(sid: StorageId, box: str | None = None) -> str:
    """Return the prefix of all bundles of a user, or of one mailbox (or ROOT)."""
    return f"{_home(sid)}/x/" if box is None else f"{_home(sid)}/x/{_box(box)}/"


def first_root_key(sid: StorageId) -> str:
    """Return the fixed name of a user's first root bundle.

    The writer whose PUT succeeds decides what INBOX is.
    """
    return bundle_key(sid, ROOT, 0, FIRST_WRITER, "base")


def parse_bundle_key(key: str) -> BundleKey:
    """Return the arguments of bundle_key. Raises: ValueError on any other key."""
    m = _BUNDLE.fullmatch(key)
    if m is None or hh(element(m[2])) != m[1]:
        raise ValueError(f"not the key of a bundle: {key[:200]!r}")
    return BundleKey(StorageId(m[2]), m[3], int(m[4], 16), element(m[5]), cast(Form, m[6]))


def pack_key(sid: StorageId, guid: Guid, serial: int, writer: str) -> str:
    """Return the key of a pack."""
    if not 0 <= serial <= _U64_MAX or _GUID.fullmatch(guid) is None:
        raise ValueError(f"not a pack: serial {serial}, mailbox {guid[:80]!r}")
    return f"{_home(sid)}/x/{guid}/{serial:016x}.{element(writer)}.pack"


def parse_pack_key(key: str) -> PackKey:
    """Return the arguments of pack_key. Raises: ValueError on any other key."""
    m = _PACK.fullmatch(key)
    if m is None or hh(element(m[2])) != m[1]:
        raise ValueError(f"not the key of a pack: {key[:200]!r}")
    return PackKey(StorageId(m[2]), Guid(m[3]), int(m[4], 16), element(m[5]))


def is_pack(key: str) -> bool:
    """Return whether a key is that of a pack."""
    return key.endswith(".pack") and _PACK.fullmatch(key) is not None


def journal_key(backend: str, boot: str, seq: int) -> str:
    """Return the key of a journal object."""
    if not 0 <= seq <= _U64_MAX:
        raise ValueError(f"not a journal seq: {seq}")
    return f"{journal_prefix(backend, boot)}{seq:016x}"


def journal_prefix(backend: str | None = None, boot: str | None = None) -> str:
    """Return the prefix of all journals, of the journals of a backend, or of the
    journal of a boot.
    """
    if backend is None:
        return "_journal/"
    if boot is None:
        return f"_journal/{element(backend)}/"
    return f"_journal/{element(backend)}/{element(boot)}/"


def parse_journal_key(key: str) -> JournalKey:
    """Return the arguments of journal_key. Raises: ValueError on any other key."""
    m = _JOURNAL.fullmatch(key)
    if m is None:
        raise ValueError(f"not the key of a journal object: {key[:200]!r}")
    return JournalKey(element(m[1]), element(m[2]), int(m[3], 16))


def owner_of(key: str) -> Owner:
    """Return the owner of the object under a key that was made here.

    Raises: ValueError on any other key.
    """
    if key.startswith("_"):
        return Owner(key.encode("ascii"))
    _, sid, part, rest = key.split("/", 3)
    if part == "x":
        rest = rest[: rest.index("/")]
    return Owner(f"{sid}/{part}/{rest}".encode("ascii"))


def possible(key: str) -> bool:
    """Say whether obox could have written an object under this key.

    Every store accepts such a key. Some refuse others: a directory, for example,
    refuses elements that begin with a dot.
    """
    elements = key.split("/")
    return len(key) <= KEY_BYTES_MAX and all(
        part and part[0] != "." and part.isascii() and part.isprintable() for part in elements
    )


def owner_in(path: str) -> Owner | None:
    """Return the owner of an object whose key ends this path, as in a copy of the
    bucket.

    None if the path ends with no key.
    """
    # Few buckets have such objects.
    from obox.objectstore.eventkeys import parse_cursor_key, parse_dead_key

    parts = path.split("/")
    parsers: tuple[tuple[Callable[[str], object], int], ...] = (
        (parse_mail_key, 5),
        (parse_bundle_key, 5),
        (parse_pack_key, 5),
        (parse_journal_key, 4),
        (parse_cursor_key, 6),
        (parse_dead_key, 5),
    )
    for parse, count in parsers:
        key = "/".join(parts[-count:])
        try:
            parse(key)
        except ValueError:
            continue
        return owner_of(key)
    return owner_of(FORMAT_KEY) if parts[-1] == FORMAT_KEY else None


def pull_owner(sid: StorageId) -> Owner:
    """Return the owner of the objects of a pull."""
    return Owner(f"{element(sid)}/pull".encode("ascii"))
