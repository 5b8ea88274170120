"""Random lives, each from its own seed: python -m tests.sim --seeds N --start S. The
program prints the seeds that failed."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

import structlog

from . import batches, cluster, sites, story


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many lives")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument("--cluster", action="store_true", help="of a cluster of three backends")
    parser.add_argument("--sites", action="store_true", help="a cluster of two sites whose link is late, or cut")
    parser.add_argument("--no-batches", action="store_true", help="each mail is an object of its own")
    parser.add_argument("--steps", type=int, default=30, help="things that happen in a life")
    parser.add_argument("--keep-going", action="store_true", help="not only until the first failure")
    parser.add_argument("-v", action="store_true", help="show what the store logs")
    args = parser.parse_args()
    batches.ON = not args.no_batches
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(20 if args.v else 50))
    began, failed = time.process_time(), []
    for seed in range(args.start, args.start + args.seeds):
        try:
            play = sites.play_sites if args.sites else cluster.play if args.cluster else story.play
            play(seed, steps=args.steps)
        except BaseException as exc:
            failed.append(seed)
            if isinstance(exc, KeyboardInterrupt):
                raise
            print(f"seed {seed}: {type(exc).__name__}: {str(exc)[:300]}", flush=True)
            if not args.keep_going:
                traceback.print_exc()
                break
    seconds = time.process_time() - began
    print(f"{args.seeds} seeds from {args.start}, {len(failed)} failed {failed[:50]}, {seconds:.1f} s of CPU")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
