"""Rounds of a fuzzer, each from a seed of its own, until the time is over."""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Iterator


def rounds(seconds: float) -> Iterator[random.Random]:
    """Yield a source of randomness for each round, and at least one.

    Each seed is printed before its round. The last seed in the output of a failure
    belongs to the round that failed: OBOX_FUZZ_SEED=… runs that round alone.
    """
    given = os.environ.get("OBOX_FUZZ_SEED")
    seed = int(given) if given else int.from_bytes(os.urandom(4), "big")
    end = time.monotonic() + seconds
    gc.collect()
    # A turn of this test must not collect the garbage of other tests.
    gc.freeze()
    try:
        while True:
            print(f"OBOX_FUZZ_SEED={seed}")
            yield random.Random(seed)
            if given or time.monotonic() > end:
                return
            seed += 1
    finally:
        gc.unfreeze()
