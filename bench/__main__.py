"""`python -m bench`: a run of about four minutes.

The table goes to stdout, and to a file if one is named.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from . import measure
from .events import events
from .mails import make
from .pop3 import pop3
from .proxy import proxy
from .servers import Bucket, dovecot_version, run_dovecot, run_obox, run_seaweedfs, scratch
from .table import Report, machine


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure obox, beside Dovecot where it is.")
    parser.add_argument("--quick", action="store_true", help="a sixth of the mails, two rounds")
    parser.add_argument(
        "--only",
        metavar="NAME",
        default="",
        help="lmtp, imap, zstd, requests, memory, cold, put, proxy, pop3, events, or part of a command's row",
    )
    parser.add_argument("--markdown", metavar="FILE", type=Path, help="write the table there too")
    parser.add_argument(
        "--minutes", type=float, default=1, help="how long mails are delivered at a fixed rate before POP3 (default: 1)"
    )
    parser.add_argument("--without-dovecot", action="store_true")
    return parser.parse_args()


def main() -> None:
    arguments = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGHUP, lambda *_: sys.exit(129))
    began = time.monotonic()
    size = measure.QUICK if arguments.quick else measure.FULL
    version = "" if arguments.without_dovecot else dovecot_version()
    report = Report(f"Dovecot {version}" if version else "")
    head = machine()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", file=sys.stderr, flush=True)

    only: str = arguments.only.lower()

    def wanted(section: str) -> bool:
        return not only or only == section

    with ExitStack() as stack:
        home = stack.enter_context(scratch())
        say("mails")
        mails = make(size.mails)
        say("servers" + ("" if version else "; no Dovecot here: obox alone"))
        directory = Bucket((home / "bucket").as_uri())
        bucket = stack.enter_context(run_seaweedfs()) or directory
        obox = stack.enter_context(run_obox(home / "obox", bucket, measure.ALL_USERS))
        plain = None
        if bucket is not directory and wanted("lmtp"):
            plain = stack.enter_context(run_obox(home / "plain", directory, measure.ALL_USERS, "plain"))
        dovecot = stack.enter_context(run_dovecot(home / "dovecot", measure.ALL_USERS)) if version else None
        bench = measure.Bench(size, mails, report, home, bucket, obox, plain, dovecot)
        sections = ("", "lmtp", "imap", "zstd", "requests", "memory", "cold", "put", "proxy", "pop3", "events")
        row = "" if only in sections else only
        steps: list[tuple[str, Callable[[], object]]] = [
            ("lmtp", lambda: measure.lmtp(bench)),
            ("imap", lambda: measure.imap(bench, lambda name: row in name.lower())),
            ("zstd", lambda: measure.compressed(bench)),
            ("memory", lambda: measure.memory(bench)),
            ("requests", lambda: measure.requests(bench)),
            ("put", lambda: measure.raw_puts(bench)),
            ("proxy", lambda: proxy(report, home / "proxy", measure.USERS, mails, size.appends * 4, size.rounds)),
            ("pop3", lambda: pop3(report, bench.pair(), measure.USERS, mails, arguments.minutes)),
            ("events", lambda: events(report, home / "events", mails[: size.appends * 4], size.rounds)),
            ("cold", lambda: measure.cold(bench)),
        ]
        if not wanted("lmtp") and only not in ("put", "memory", "proxy", "pop3", "events"):
            say("filling the mailbox")
            measure.fill(bench)
        for name, step in steps:
            if wanted(name) or (row and name == "imap"):
                say(name)
                step()
        say("done")
    if not version:
        report.notes.append("Measured without Dovecot: obox alone.")
    print(f"\n{head}\n\n{report.text()}")
    if arguments.markdown:
        arguments.markdown.write_text(f"{head}\n\n{report.markdown()}")


if __name__ == "__main__":
    main()
