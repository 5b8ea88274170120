"""Rounds of a fuzzer, each from a seed of its own, until the time is over."""

from __future__ import annotations

import gc
import os
import random
import time
from collections.abc import Iterator


def rounds(seconds: float) -> Iterator[random.Random]:
    """A source of randomness for each round; at least one round.

    Each seed is printed before its round, so that the last one in a failure's output is
    the one to repeat: OBOX_FUZZ_SEED=… runs that round alone.
    """
    given = os.environ.get("OBOX_FUZZ_SEED")
    seed = int(given) if given else int.from_bytes(os.urandom(4), "big")
    end = time.monotonic() + seconds
    gc.collect()
    gc.freeze()  # what other tests left is not looked through in a turn of ours
    try:
        while True:
            print(f"OBOX_FUZZ_SEED={seed}")
            yield random.Random(seed)
            if given or time.monotonic() > end:
                return
            seed += 1
    finally:
        gc.unfreeze()
