"""The field's nouns as distinct types, so that nobody passes a UID as a sequence
number.

A leaf: imports nothing of obox.
"""

from typing import NewType

Uid = NewType("Uid", int)
"""Unique identifier of a mail in its mailbox, 1 to 2**32 - 1. RFC 9051 §2.3.1.1."""

Seq = NewType("Seq", int)
"""Message sequence number as a client sees it, from 1. RFC 9051 §2.3.1.2."""

ModSeq = NewType("ModSeq", int)
"""Modification sequence, 1 to 2**53 - 1. RFC 7162 §3.1."""

Guid = NewType("Guid", str)
"""GUID of a mailbox: 32 lower-case hex digits."""

Oid = NewType("Oid", bytes)
"""Object id of a stored object: 16 random bytes, unique for ever. It is also the salt
of the object's encryption key.
"""

StorageId = NewType("StorageId", str)
"""A user in the bucket: normalised, escaped, safe as a path element
(obox.auth.normalise, docs/format.md).
"""

Owner = NewType("Owner", bytes)
"""What a stored object belongs to: its envelope is bound to it
(obox.objectstore.keys.owner_of).
"""
