"""Sessions in IDLE that hear of deliveries, and what listeners of events cost.

A listener of this file's own is installed for the run, as a site installs one: as a
package with an entry point.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

from .imap import Imap
from .lmtp import deliver
from .measure import USERS
from .pop3 import percentile
from .servers import PASSWORD, Bucket, Server, run_obox
from .table import Report, Row

SESSIONS: Final = 3_000
LOGINS_AT_ONCE: Final = 50
ROUNDS: Final = 10
"""Mails that all sessions of one mailbox hear of."""
STORES: Final = 5_000
PATIENT_S: Final = 60.0

ONE: Final = "all@example.org"
MANY: Final = tuple(f"idle{number:04d}@example.org" for number in range(SESSIONS))

_LISTENER: Final = """\
import os

class Counts:
    mode = "async"

    def __init__(self, context):
        self._file = os.open(os.environ["OBOX_BENCH_COUNTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    async def handle(self, event):
        if event.kind in ("Added", "FlagsUpdated"):
            os.write(self._file, b"." * sum(last - first + 1 for first, last in event.uids))

def make(context):
    return Counts(context)
"""


class _Idle(asyncio.Protocol):
    """A session in IDLE on its INBOX. It calls `heard` with each EXISTS after that."""

    def __init__(self, user: str, heard: Callable[[str], None]) -> None:
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._user, self._heard = user, heard
        self._buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.write(f"a LOGIN {self._user} {PASSWORD}\r\nb SELECT INBOX\r\nc IDLE\r\n".encode())

    def data_received(self, data: bytes) -> None:
        *lines, self._buffer = (self._buffer + data).split(b"\r\n")
        for line in lines:
            if line.startswith(b"+ "):
                self.ready.set_result(None)
            elif line.endswith(b" EXISTS") and self.ready.done():
                self._heard(self._user)
            elif line[:2] in (b"a ", b"b ") and not line[2:].startswith(b"OK"):
                self.ready.set_exception(ConnectionError(line.decode(errors="replace")))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ready.done():
            self.ready.set_exception(exc or ConnectionError("the server has closed the connection"))


async def _idling(port: int, users: Sequence[str], heard: Callable[[str], None]) -> list[_Idle]:
    gate, loop = asyncio.Semaphore(LOGINS_AT_ONCE), asyncio.get_running_loop()

    async def one(user: str) -> _Idle:
        async with gate:
            async with asyncio.timeout(PATIENT_S):
                _, session = await loop.create_connection(lambda: _Idle(user, heard), "127.0.0.1", port)
                await session.ready
            return session

    return await asyncio.gather(*map(one, users))


def _notified(server: Server, users: Sequence[str], mails: Sequence[bytes], rounds: int) -> list[float]:
    """Deliver a mail to each user, as often as `rounds` says. Return for each session
    and mail the seconds from the mail's first byte to its EXISTS."""
    import uvloop

    spent: list[float] = []
    began: dict[str, float] = {}
    all_heard = asyncio.Event()
    due = len(users)

    def heard(user: str) -> None:
        spent.append(time.perf_counter() - began[user])
        if len(spent) % due == 0:
            all_heard.set()

    async def run() -> None:
        sessions = await _idling(server.imap, users, heard)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.lmtp)

        async def reply(count: int) -> None:
            while count:
                line = await reader.readline()
                if line[:1] not in (b"2", b"3"):
                    raise ConnectionError(line.decode(errors="replace"))
                count -= line[3:4] == b" "

        writer.write(b"LHLO bench.example.net\r\n")
        await reply(2)
        for number in range(rounds):
            all_heard.clear()
            for user in dict.fromkeys(users):
                began[user] = time.perf_counter()
                writer.write(b"MAIL FROM:<sender@example.net>\r\nRCPT TO:<%b>\r\nDATA\r\n" % user.encode())
                await reply(3)
                writer.write(mails[number % len(mails)] + b".\r\n")
                await reply(1)
            async with asyncio.timeout(PATIENT_S):
                await all_heard.wait()
        writer.close()
        for session in sessions:
            session.transport.abort()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return spent


@contextmanager
def _listening(home: Path) -> Iterator[tuple[str, dict[str, str], Callable[[], int]]]:
    """Install the listener. Yields its section of the configuration, variables of the
    environment, and a function that returns of how many mails the listener has heard. A
    mail counts again when its flags are changed."""
    plugin, counts = home / "plugin", home / "counts"
    info = plugin / "obox_bench_listener-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: obox-bench-listener\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[obox.listeners]\ncounts = obox_bench_listener:make\n")
    (plugin / "obox_bench_listener.py").write_text(_LISTENER)
    counts.touch()
    section = '[events]\nlisteners = ["counts"]\n'
    yield section, {"PYTHONPATH": str(plugin), "OBOX_BENCH_COUNTS": str(counts)}, lambda: counts.stat().st_size


def events(report: Report, home: Path, mails: Sequence[bytes], rounds: int) -> None:
    """Add the rows."""
    home.mkdir()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        with run_obox(home / "idle", Bucket((home / "bucket").as_uri()), (ONE, *MANY)) as server:
            for name, users, times in (("one mailbox", (ONE,) * SESSIONS, ROUNDS), (f"{SESSIONS} mailboxes", MANY, 1)):
                spent = _notified(server, users, mails, times)
                for percent in (50, 99):
                    what = f"a delivery seen by {SESSIONS} sessions in IDLE on {name}, p{percent}"
                    report.rows.append(Row(what, "ms", percentile(spent, percent) * 1000))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    _listeners(report, home, mails, rounds)


def _listeners(report: Report, home: Path, mails: Sequence[bytes], rounds: int) -> None:
    """Add rows of a backend that has a listener, and of a backend without listeners."""
    users = (*USERS, ONE)
    with (
        _listening(home) as (section, environment, handled),
        run_obox(home / "plain", Bucket((home / "plain-bucket").as_uri()), users) as plain,
        run_obox(
            home / "heard", Bucket((home / "heard-bucket").as_uri()), users, more=section, environment=environment
        ) as heard,
    ):
        used: dict[str, list[float]] = {"plain": [], "heard": []}
        for server in (plain, heard):
            deliver(server.lmtp, USERS, mails[: 2 * len(USERS)])
        time.sleep(2.0)
        before = heard.requests()
        for _ in range(rounds):
            for name, server in (("plain", plain), ("heard", heard)):
                began = server.cpu_s()
                deliver(server.lmtp, USERS, mails)
                time.sleep(2.0)  # the journal's interval, after which events are made
                used[name].append((server.cpu_s() - began) / len(mails) * 1e6)
        _until(lambda: handled() >= (rounds * len(mails) + 2 * len(USERS)))
        after = heard.requests()
        report.rows.append(Row("CPU of obox for a mail without listeners", "µs", min(used["plain"])))
        report.rows.append(Row("CPU of obox for a mail with a listener", "µs", min(used["heard"])))
        made = {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}
        listed = ", ".join(f"{count} {key}" for key, count in sorted(made.items()))
        report.notes.append(f"Requests for {rounds * len(mails)} mails with a listener of events: {listed}.")
        deliver(heard.lmtp, [ONE], [mails[at % len(mails)] for at in range(STORES)])
        client = Imap(heard.imap, ONE, PASSWORD)
        client.command("SELECT INBOX")
        _until(lambda: handled() >= rounds * len(mails) + 2 * len(USERS) + STORES)
        first = handled()
        began_at = time.perf_counter()
        client.pipeline([f"STORE {number + 1} +FLAGS.SILENT (\\Flagged)" for number in range(STORES)])
        _until(lambda: handled() >= first + STORES)
        spent = time.perf_counter() - began_at
        report.rows.append(Row("STOREs of one session, until a listener has heard of all", "mails/s", STORES / spent))
        client.close()


def _until(done: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENT_S
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("the listener has not heard of all")
        time.sleep(0.02)
