"""A size-bounded cache of immutable objects in files.

Invariant: the files, those being read and the file being written included, never take
more than `max_size`. What the cache returns has passed its checksum or comes from
`fetch`.
This module does not know mail, the bucket, or what a key means.
Diagnostics: see `fscache._cache`.

`fscache.disk` is where the objects lie, `fscache.order` what is evicted first.
"""

from fscache._cache import Fscache
from fscache._ranges import PIECE_BYTES
from fscache._types import FscacheError, Rescanned, Stats

__all__ = ["PIECE_BYTES", "Fscache", "FscacheError", "Rescanned", "Stats"]
