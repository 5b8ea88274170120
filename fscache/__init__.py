"""A size-bounded cache of immutable objects in files.

Invariant: the files, those being read and the one being written included, never take more than `max_size`. What it
returns has passed its checksum or comes from `fetch`.
Refuses to know: mail, the bucket, what a key means.
Diagnostics: see `fscache._cache`.
"""

from fscache._cache import Fscache, FscacheError
from fscache._types import Stats
from fscache._watch import Rescanned

__all__ = ["Fscache", "FscacheError", "Rescanned", "Stats"]
