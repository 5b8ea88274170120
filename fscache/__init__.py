"""A size-bounded cache of immutable objects in files.

Invariant: the files, the one being written included, never take more than `max_size`. What it returns has passed its
checksum or comes from `fetch`.
Refuses to know: mail, the bucket, what a key means.
Diagnostics: see `fscache._cache`.
"""

from fscache._cache import Fscache, FscacheError, Stats

__all__ = ["Fscache", "FscacheError", "Stats"]
