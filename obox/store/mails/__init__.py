"""Mails: only `write` writes them, only `purge` deletes them.

Beside them: `meta` is what goes with a mail, `read` finds and decodes mails, `lost`
looks again for mails that a GET did not find, `quota` reserves the space of mails that
are being written. UIDs are handed out by `box.slots`.
"""
