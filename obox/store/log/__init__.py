"""The log: `stage` makes every change, `journal` writes it to the bucket.

Beside them: `fence` ends a boot that is over and reads its journal, `takeover` does so
at a start, and `boots` remembers the starts of this backend.
"""
