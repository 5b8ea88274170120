"""What a proxy costs: connections and deliveries to a backend of a cluster, at its own
address and through `obox proxy`, in turn.

A single backend owns all users, so it forwards nothing. The CPU time is that of both
processes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final

import psutil

from .imap import Imap, Refused
from .lmtp import DeliveryFailed, deliver
from .members import Machine, Setting
from .servers import PASSWORD, Bucket
from .table import Report, Row

START_S: Final = 60.0
"""The longest wait until the backend owns the users and the proxy knows that."""
DIRECT: Final = "to the backend"
THROUGH: Final = "through obox proxy"


def proxy(report: Report, home: Path, users: Sequence[str], mails: Sequence[bytes], count: int, rounds: int) -> None:
    """Add a row for each figure and way. count: the connections, and the mails, of a
    round."""
    with _members(home, users) as (backend, front):
        places = {DIRECT: backend.front, THROUGH: front.front}
        for place in places.values():
            _until_served(place.imap, place.lmtp, users, mails[0])
        figures: dict[tuple[str, str, str], float] = {}

        def delivery(some: Sequence[bytes], way: str) -> float:
            return deliver(places[way].lmtp, users, some, 1)

        def measure(name: str, work: Callable[[str], float]) -> None:
            for way in places:
                begin = _cpu_s((backend, front))
                seconds = work(way)
                cpu_s = _cpu_s((backend, front)) - begin
                for unit, value in (("ms", seconds / count * 1e3), ("CPU µs", cpu_s / count * 1e6)):
                    key = (name, way, unit)
                    figures[key] = min(value, figures.get(key, value))

        for turn in range(rounds):
            some = [mails[(turn * 997 + at) % len(mails)] for at in range(count)]
            measure("login, SELECT and LOGOUT", lambda way: _sessions(places[way].imap, users, count))
            measure("delivery of a mail", partial(delivery, some))
        for (name, way, unit), value in sorted(figures.items(), key=_place):
            report.rows.append(Row(f"{name}, {way}", unit, value))


@contextmanager
def _members(home: Path, users: Sequence[str]) -> Iterator[tuple[Machine, Machine]]:
    """Run a backend and a proxy with an empty bucket."""
    home.mkdir()
    setting = Setting(home, Bucket((home / "bucket").as_uri()), f"lmdb://{home}/cluster", tuple(users))
    setting.write()
    made = (Machine("backend", "serve", setting), Machine("proxy", "proxy", setting))
    try:
        for one in made:
            one.start()
            asyncio.run(one.listening())
        yield made
    finally:
        for one in reversed(made):
            if one.alive:
                asyncio.run(one.stop())


def _until_served(imap: int, lmtp: int, users: Sequence[str], mail: bytes) -> None:
    """Log in and deliver until each user is served, with a mail in INBOX."""
    late = time.monotonic() + START_S
    while True:
        try:
            deliver(lmtp, users, [mail] * len(users))
            for user in users:
                _session(imap, user)
            return
        except (OSError, Refused, DeliveryFailed):
            if time.monotonic() > late:
                raise
            time.sleep(0.2)


def _session(port: int, user: str) -> None:
    client = Imap(port, user, PASSWORD)
    try:
        client.command("SELECT INBOX")
        client.command("LOGOUT")
    finally:
        client.close()


def _sessions(port: int, users: Sequence[str], count: int) -> float:
    """Run `count` sessions, one after the other. Returns seconds."""
    begin = time.perf_counter()
    for number in range(count):
        _session(port, users[number % len(users)])
    return time.perf_counter() - begin


def _place(one: tuple[tuple[str, str, str], float]) -> tuple[str, str, bool]:
    """Return the place of a row, so that the two ways are below each other."""
    (name, way, unit), _ = one
    return name, unit, way != DIRECT


def _cpu_s(machines: Sequence[Machine]) -> float:
    """Return the user and system seconds, with those of threads."""
    spent = [psutil.Process(one.process.pid).cpu_times() for one in machines if one.process is not None]
    return sum(one.user + one.system for one in spent)
