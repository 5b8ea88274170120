"""The measurements. Each measures the servers in turn, several times, and keeps the
best result of each.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Final

from obox.store import RECENT_BYTES_MAX
from obox.types import Oid

from .append import append
from .imap import Imap
from .lmtp import CONNECTIONS, deliver
from .mails import NEEDLE, SIZE
from .servers import PASSWORD, Bucket, Server, run_dovecot, run_obox
from .table import Report, Row

BOX: Final = "box@example.org"
"""The user with the large mailbox."""
USERS: Final = tuple(f"user{number:02d}@example.org" for number in range(80))
ALL_USERS: Final = (BOX, *USERS)
APPENDING: Final = f"APPEND by {CONNECTIONS} sessions at once"


@dataclass(frozen=True)
class Size:
    """The amount of work that is measured."""

    mails: int
    rounds: int
    deliveries: int
    idle: int
    appends: int


FULL: Final = Size(mails=10_000, rounds=5, deliveries=2_400, idle=800, appends=200)
QUICK: Final = Size(mails=1_500, rounds=2, deliveries=800, idle=200, appends=50)


@dataclass
class Bench:
    """The parts of a run: sizes, mails, servers.

    `obox` keeps its mail in `bucket`, `plain` in a directory.
    """

    size: Size
    mails: list[bytes]
    report: Report
    home: Path
    bucket: Bucket
    obox: Server
    plain: Server | None
    dovecot: Server | None

    def pair(self) -> list[Server]:
        return [self.obox, *([self.dovecot] if self.dovecot else [])]

    def add(self, name: str, unit: str, best: dict[str, float], *, more: bool = False) -> None:
        self.report.rows.append(Row(name, unit, best["obox"], best.get("Dovecot"), more))


class Best(dict[str, float]):
    """The best result of each server."""

    def __init__(self, *, more: bool = False) -> None:
        super().__init__()
        self._more = more

    def note(self, name: str, value: float) -> None:
        if name not in self or (value > self[name]) == self._more:
            self[name] = value


# -- delivery ----------------------------------------------------------------------------------------------------------


def lmtp(bench: Bench) -> None:
    """Measure the mails a second over 80 users and into one mailbox, and the CPU time
    of a mail.

    The later measurements use the mailbox that this fills.
    """
    servers = bench.pair()
    plain = [bench.plain] if bench.plain else []
    many, cpu, directory = Best(more=True), Best(), Best(more=True)
    for server in servers + plain:
        deliver(server.lmtp, USERS, bench.mails[: len(USERS) * 2])
    for turn in range(bench.size.rounds):
        mails = [bench.mails[(turn * 997 + at) % len(bench.mails)] for at in range(bench.size.deliveries)]
        for server in servers + plain:
            begin = server.cpu_s()
            seconds = deliver(server.lmtp, USERS, mails)
            if server is bench.plain:
                directory.note("obox", len(mails) / seconds)
                continue
            many.note(server.name, len(mails) / seconds)
            if server is bench.obox:
                cpu.note(server.name, (server.cpu_s() - begin) / len(mails) * 1e6)
    one = fill(bench)
    bench.add("LMTP over 80 users" + _where(bench), "mails/s", many, more=True)
    bench.add("LMTP into one mailbox" + _where(bench), "mails/s", one, more=True)
    if bench.plain is not None:
        one_plain = len(bench.mails[:2000]) / deliver(bench.plain.lmtp, [BOX], bench.mails[:2000])
        with_dovecot = {name: value for name, value in many.items() if name == "Dovecot"}
        bench.add("LMTP over 80 users, file://", "mails/s", {**with_dovecot, **directory}, more=True)
        with_dovecot = {name: value for name, value in one.items() if name == "Dovecot"}
        bench.add("LMTP into one mailbox, file://", "mails/s", {**with_dovecot, "obox": one_plain}, more=True)
    bench.add("CPU of obox for a mail (80 users)", "µs", cpu)


def _where(bench: Bench) -> str:
    return ", SeaweedFS" if bench.bucket.endpoint_url else ", file://"


def fill(bench: Bench) -> dict[str, float]:
    """Deliver all mails into the large mailbox of both servers, in four parts in turn.

    Returns the best rate of each.
    """
    best = Best(more=True)
    part = -(-len(bench.mails) // 4)
    for begin in range(0, len(bench.mails), part):
        mails = bench.mails[begin : begin + part]
        for server in bench.pair():
            best.note(server.name, len(mails) / deliver(server.lmtp, [BOX], mails))
    return best


def raw_puts(bench: Bench) -> None:
    """Measure how many PUTs a second the bucket's server does on these cores for a
    client that only PUTs.

    The result is the upper limit of deliveries.
    """
    from obox.objectstore import Codec, Settings, open_store, put_once
    from obox.objectstore.codec import ObjectKind
    from obox.types import Owner

    if not bench.bucket.endpoint_url:
        return
    store = open_store(
        Settings(
            url=bench.bucket.url + "/ceiling",
            endpoint_url=bench.bucket.endpoint_url,
            access_key_id=bench.bucket.access_key_id,
            secret_access_key=bench.bucket.secret_access_key,
        )
    )
    codec = Codec({}, None, "zstd:3")
    oid = Oid(bytes(16))
    data = codec.encode(ObjectKind.MAIL, Owner(b"user/m/mailbox/00000001"), oid, b"", bench.mails[0])

    async def run() -> tuple[float, float]:
        serial = count()

        async def one(puts: int) -> None:
            for _ in range(puts):
                await put_once(store, f"{next(serial):08x}", data, oid, kind="mail")

        each = bench.size.deliveries // 8
        begin = time.perf_counter()
        await asyncio.gather(*(one(each) for _ in range(CONNECTIONS)))
        together = time.perf_counter() - begin
        begin = time.perf_counter()
        await one(each)
        return each * CONNECTIONS / together, (time.perf_counter() - begin) / each * 1000

    import uvloop

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        rate, alone = runner.run(run())
    bench.add(f"PUTs of such mails without us, {CONNECTIONS} at once: the ceiling", "1/s", {"obox": rate}, more=True)
    bench.add("one such PUT after the other: the floor of APPEND", "ms", {"obox": alone})


# -- reading -----------------------------------------------------------------------------------------------------------

Measure = Callable[[Imap], float]


def _timed(command: str, before: Sequence[str] = ()) -> Measure:
    def run(imap: Imap) -> float:
        for text in before:
            imap.command(text)
        return imap.command(command)[0]

    return run


def _append(mail: bytes, times: int) -> Measure:
    def run(imap: Imap) -> float:
        imap.command("UNSELECT")
        spent = sum(imap.command("APPEND Drafts", literal=mail)[0] for _ in range(times)) / times
        imap.command("SELECT INBOX")
        return spent

    return run


def _others(few: int, mails: int) -> Measure:
    """Return a measurement that reads bodies not read lately: in each round it takes
    the next `few`."""
    starts: dict[int, int] = {}

    def run(imap: Imap) -> float:
        start = starts.get(id(imap), 0)
        starts[id(imap)] = (start + few) % (mails - few + 1)
        return imap.command(f"FETCH {start + 1}:{start + few} (BODY.PEEK[])")[0]

    return run


def _one_by_one(text: str, count: int, before: Sequence[str] = ()) -> Measure:
    """Return a measurement of `count` commands that are sent at once; {} is the number
    of the mail. The result is the time of one command."""

    def run(imap: Imap) -> float:
        for one in before:
            imap.command(one)
        return imap.pipeline([text.format(number + 1) for number in range(count)])

    return run


def commands(bench: Bench) -> list[tuple[str, Measure]]:
    """Return names and measurements, in the order in which they run. The mailbox is
    selected."""
    few = min(500, bench.size.mails)
    flag, loud = "STORE 1:* {}FLAGS.SILENT (\\Flagged)", "STORE 1:* {}FLAGS (\\Flagged)"
    # Of fewer mails all would soon be in memory.
    enough = bench.size.mails * SIZE > 2 * RECENT_BYTES_MAX
    unread = [(f"{few} bodies not read lately", _others(few, bench.size.mails))] if enough else []
    return [
        ("SELECT", _timed("SELECT INBOX", ["UNSELECT"])),
        ("FETCH FLAGS of all", _timed("FETCH 1:* (FLAGS)")),
        ("ENVELOPE of all", _timed("FETCH 1:* (ENVELOPE)")),
        ("BODYSTRUCTURE of all", _timed("FETCH 1:* (BODYSTRUCTURE)")),
        ("header fields of all", _timed("FETCH 1:* (BODY.PEEK[HEADER.FIELDS (From Subject Date)])")),
        ("UID FETCH RFC822.SIZE of all", _timed("UID FETCH 1:* (RFC822.SIZE)")),
        ("SEARCH UNSEEN", _timed("SEARCH UNSEEN")),
        ("SEARCH SUBJECT", _timed(f"SEARCH SUBJECT {NEEDLE}")),
        ("SEARCH BODY in 300", _timed(f"SEARCH 1:300 BODY {NEEDLE}")),
        ("STORE +FLAGS on all", _timed(loud.format("+"), [flag.format("-")])),
        ("STORE +FLAGS.SILENT on all", _timed(flag.format("+"), [flag.format("-")])),
        ("STORE that changes nothing", _timed(flag.format("+"))),
        (f"{few} bodies, warm", _timed(f"FETCH 1:{few} (BODY.PEEK[])")),
        *unread,
        ("SORT (SUBJECT) of all", _timed("SORT (SUBJECT) UTF-8 ALL")),
        ("SORT (REVERSE DATE) of all", _timed("SORT (REVERSE DATE) UTF-8 ALL")),
        ("THREAD REFERENCES of all", _timed("THREAD REFERENCES UTF-8 ALL")),
        ("UID SEARCH BODY in all", _timed(f"UID SEARCH BODY {NEEDLE}")),
        (f"FETCH of {few} bodies, one a command, pipelined", _one_by_one("FETCH {} (BODY.PEEK[])", few)),
        (
            f"STORE on {few} mails, one a command, pipelined",
            _one_by_one("STORE {} +FLAGS (\\Flagged)", few, [flag.format("-")]),
        ),
        ("APPEND of one mail", _append(bench.mails[0], bench.size.appends // bench.size.rounds)),
    ]


def imap(bench: Bench, wanted: Callable[[str], bool]) -> None:
    """Measure each command on a warm mailbox: a round that does not count, then rounds
    in turn.
    """
    clients = {server.name: Imap(server.imap, BOX, PASSWORD) for server in bench.pair()}
    for server in bench.pair():
        with suppress(Exception):
            clients[server.name].command("CREATE Drafts")
        clients[server.name].command("SELECT INBOX")
    for name, measure in commands(bench):
        if not wanted(name):
            continue
        bench.add(name, "ms", _by_turns(bench.size.rounds * 2, clients, measure))
    for client in clients.values():
        client.close()
    if wanted(APPENDING.lower()):
        appending(bench)


def _by_turns(rounds: int, clients: dict[str, Imap], measure: Measure) -> Best:
    """Run a round that does not count, and then as many rounds as requested."""
    best = Best()
    for turn in range(rounds + 1):
        for name, client in clients.items():
            spent = measure(client)
            if turn:
                best.note(name, spent)
    return best


def appending(bench: Bench) -> None:
    """Measure the mails a second of sessions that APPEND at the same time, each to its
    own INBOX.
    """
    users, best = USERS[:CONNECTIONS], Best(more=True)
    for turn in range(bench.size.rounds + 1):
        mails = [bench.mails[(turn * 997 + at) % len(bench.mails)] for at in range(bench.size.appends * 8)]
        for server in bench.pair():
            seconds = append(server.imap, users, PASSWORD, mails)
            if turn:
                best.note(server.name, len(mails) / seconds)
    bench.add(APPENDING, "mails/s", best, more=True)


def compressed(bench: Bench) -> None:
    """Measure bodies beside a Dovecot that compresses what it stores, as obox does."""
    if bench.dovecot is None:
        return
    with run_dovecot(bench.home / "dovecot-zstd", [BOX], compress=True) as dovecot:
        deliver(dovecot.lmtp, [BOX], bench.mails)
        pair = {server.name: Imap(server.imap, BOX, PASSWORD) for server in (bench.obox, dovecot)}
        for client in pair.values():
            client.command("SELECT INBOX")
        for name, measure in commands(bench):
            if "bodies" not in name:
                continue
            best = _by_turns(bench.size.rounds * 2, pair, measure)
            bench.add(f"{name}, beside Dovecot with zstd", "ms", best)
        for client in pair.values():
            client.close()


def requests(bench: Bench) -> None:
    """Count the requests to the bucket by one delivery, and by all reading commands on
    a warm mailbox together.
    """
    server = bench.obox
    time.sleep(2.0)  # the journal's interval, and work that is due after it
    before = server.requests()
    deliver(server.lmtp, USERS, bench.mails[:800])
    time.sleep(2.0)
    used = _difference(before, server.requests())
    bench.report.notes.append(f"Requests for 800 mails by LMTP to 80 users: {_listed(used)}.")
    client = Imap(server.imap, BOX, PASSWORD)
    client.command("SELECT INBOX")
    time.sleep(2.0)
    before = server.requests()
    names = [name for name, _ in commands(bench) if not name.startswith(("STORE", "APPEND"))]
    for name, measure in commands(bench):
        if name in names:
            measure(client)
    used = _difference(before, server.requests())
    bench.report.notes.append(f"Requests for all the reads above, once, on the warm mailbox: {_listed(used)}.")
    before = server.requests()
    client.command("STORE 1:* -FLAGS.SILENT (\\Flagged)")
    time.sleep(2.0)
    used = _difference(before, server.requests())
    bench.report.notes.append(f"Requests for a STORE on all: {_listed(used)}.")
    client.close()


def _difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {key: after[key] - before.get(key, 0) for key in after if after[key] != before.get(key, 0)}


def _listed(used: dict[str, int]) -> str:
    return ", ".join(f"{count} {key}" for key, count in sorted(used.items())) or "none"


# -- memory ------------------------------------------------------------------------------------------------------------


def memory(bench: Bench) -> None:
    """Measure the memory of a connection in IDLE on a selected mailbox. The connections
    are spread over 80 users.

    obox runs in a fresh process, so that freed memory of earlier measurements does not
    hide it.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    best, tls = Best(), Best()
    bucket = Bucket((bench.home / "idle-bucket").as_uri())
    with run_obox(bench.home / "idle", bucket, ALL_USERS) as fresh:
        best.note("obox", _of_idling(fresh, bench.size.idle))
    with run_obox(bench.home / "idle-tls", bucket, ALL_USERS) as fresh:
        tls.note("obox", _of_idling(fresh, bench.size.idle, tls=True))
    if bench.dovecot is not None:
        best.note("Dovecot", _of_idling(bench.dovecot, min(80, bench.size.idle)))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    bench.add("memory of a connection in IDLE", "KiB", best)
    bench.add("memory of a TLS connection in IDLE", "KiB", tls)


def _of_idling(server: Server, idling: int, *, tls: bool = False) -> float:
    """Return the KiB that each of `idling` connections adds, once users and mailboxes
    are in memory."""
    opened: list[Imap] = []
    try:
        opened += [_idle(server, number, tls) for number in range(len(USERS))]
        time.sleep(1.0)
        before = server.memory_bytes()
        opened += [_idle(server, number, tls) for number in range(idling)]
        time.sleep(1.0)
        return (server.memory_bytes() - before) / idling / 1024
    finally:
        for one in opened:
            one.close()


def _idle(server: Server, number: int, tls: bool) -> Imap:
    client = Imap(server.imaps if tls else server.imap, USERS[number % len(USERS)], PASSWORD, tls=tls)
    client.command("SELECT INBOX")
    client.idle()
    return client


# -- an empty machine --------------------------------------------------------------------------------------------------


def cold(bench: Bench) -> None:
    """Stop the backend cleanly, start another with an empty state directory, open the
    large mailbox.

    Ends `bench.obox`.
    """
    bench.obox.process.terminate()
    bench.obox.process.wait(60)
    best, first = Best(), Best()
    used: dict[str, int] = {}
    for turn in range(min(3, bench.size.rounds)):
        with run_obox(bench.home / f"cold{turn}", bench.bucket, ALL_USERS) as server:
            client = Imap(server.imap, BOX, PASSWORD)
            before = server.requests()
            best.note("obox", client.command("SELECT INBOX")[0])
            used = _difference(before, server.requests())
            first.note("obox", client.command("FETCH 1:* (ENVELOPE)")[0])
            client.close()
    bench.add(f"cold open of {len(bench.mails):,} mails", "ms", best)
    bench.add("the first ENVELOPE of all after it", "ms", first)
    bench.report.notes.append(f"Requests of the cold open, after login: {_listed(used)}.")
