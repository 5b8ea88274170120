"""Mails and the UIDs that they lie under: one door in (`write`), one door out
(`purge`).

Beside them: `slots` hands UIDs out in order, `meta` and `fields` are the bytes that go
with a mail, `read` finds and decodes mails, `lost` looks again for mails that a GET did
not find, `recent` keeps decoded mails in memory.
"""
