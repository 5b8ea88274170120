"""Mails at a fixed rate, and then POP3: the test that James has published.

James delivered 100 mails a second to 80 users for 10 minutes, then asked for STAT, and
then deleted all mails (DELE and QUIT). Its server processed 73 mails a second, and 85
after a change (server-dev@james.apache.org, 3 August 2021).
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from .lmtp import DeliveryFailed, deliver
from .servers import PASSWORD, Server
from .table import Report, Row

RATE: Final = 100
"""Mails a second."""
CONNECTIONS: Final = 32
"""Connections that deliver. If all of them are busy, a mail waits, and the wait
counts."""
READ_BYTES: Final = 1 << 18
MAILDROP: Final = 10_000
"""Mails of the maildrop that is emptied in one session."""


class Refused(Exception):
    """The server answered -ERR."""


class Pop3:
    """A connection that is logged in."""

    def __init__(self, port: int, user: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=120)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""
        self._lines(1)
        self.command(f"USER {user}")
        self.command(f"PASS {PASSWORD}")

    def _lines(self, count: int) -> list[bytes]:
        data = self._rest
        while data.count(b"\r\n") < count:
            got = self._socket.recv(READ_BYTES)
            if not got:
                raise ConnectionError("the server has closed the connection")
            data += got
        *lines, self._rest = data.split(b"\r\n", count)
        return lines

    def command(self, text: str) -> bytes:
        """Send a command with an answer of one line, and return the line."""
        return self.pipeline([text])[0]

    def pipeline(self, commands: Sequence[str]) -> list[bytes]:
        """Send several commands at once, and return their lines. Raises: Refused."""
        self._socket.sendall("".join(f"{text}\r\n" for text in commands).encode())
        lines = self._lines(len(commands))
        for text, line in zip(commands, lines, strict=True):
            if not line.startswith(b"+OK"):
                raise Refused(f"{text[:60]}: {line[:200].decode(errors='replace')}")
        return lines

    def close(self) -> None:
        self._socket.close()


@dataclass
class Paced:
    """What a delivery at a fixed rate was like. Times are in seconds."""

    delivered: int = 0
    rate: float = 0.0
    """Mails a second, from the first due moment to the last reply."""
    drain_s: float = 0.0
    """From the moment at which the last mail was due to the last reply."""
    spent_s: list[float] = field(default_factory=list)
    """For each mail, from the moment at which it was due to its reply."""


def deliver_at(port: int, recipients: Sequence[str], mails: Sequence[bytes], seconds: float) -> Paced:
    """Deliver RATE mails a second for so long, to the recipients in turn.

    A mail is due whether or not earlier mails have been answered. Raises:
    DeliveryFailed, OSError.
    """
    import uvloop

    out, total = Paced(), int(RATE * seconds)
    numbers = iter(range(total))

    async def one(begin: float) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)

        async def send(data: bytes, replies: int) -> None:
            writer.write(data)
            while replies:
                line = await reader.readline()
                if line[:1] not in (b"2", b"3"):
                    raise DeliveryFailed(line.decode(errors="replace"))
                replies -= line[3:4] == b" "

        try:
            await send(b"LHLO bench.example.net\r\n", 2)
            for number in numbers:
                due = begin + number / RATE
                await asyncio.sleep(due - time.perf_counter())
                recipient = recipients[number % len(recipients)].encode()
                await send(b"MAIL FROM:<sender@example.net>\r\nRCPT TO:<%b>\r\nDATA\r\n" % recipient, 3)
                await send(mails[number % len(mails)] + b".\r\n", 1)
                out.spent_s.append(time.perf_counter() - due)
        finally:
            writer.close()

    async def run() -> None:
        begin = time.perf_counter() + 0.5
        await asyncio.gather(*(one(begin) for _ in range(CONNECTIONS)))
        out.delivered = len(out.spent_s)
        end = time.perf_counter()
        out.rate = out.delivered / (end - begin)
        out.drain_s = max(0.0, end - (begin + (total - 1) / RATE))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())
    return out


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value that this percentage of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def pop3(
    report: Report, servers: Sequence[Server], users: Sequence[str], mails: Sequence[bytes], minutes: float
) -> None:
    """Add the rows of the test. The users' mailboxes are emptied before and by it."""
    figures = {server.name: _measure(server, users, mails, minutes) for server in servers if server.pop3}
    for (name, unit, more), value in figures["obox"].items():
        other = figures.get("Dovecot", {}).get((name, unit, more))
        report.rows.append(Row(name, unit, value, other, more))
    if len(figures) < len(servers):
        report.notes.append("Dovecot has no POP3 here: the rows of POP3 are without it.")


def _measure(
    server: Server, users: Sequence[str], mails: Sequence[bytes], minutes: float
) -> dict[tuple[str, str, bool], float]:
    for user in users:
        _emptied(server, user, expected=None)
    paced = deliver_at(server.lmtp, users, mails, minutes * 60)
    what = f"LMTP at {RATE} a second to {len(users)} users for {minutes:g} min"
    out = {(what, "mails/s", True): paced.rate}
    _percentiles(out, f"{what}: a mail", paced.spent_s)
    out[f"{what}: the rest after the last was due", "ms", False] = paced.drain_s * 1000
    stat: list[float] = []
    emptied: list[float] = []
    left = paced.delivered
    for at, user in enumerate(users):
        begin = time.perf_counter()
        client = Pop3(server.pop3, user)
        count = int(client.command("STAT").split()[1])
        stat.append(time.perf_counter() - begin)
        client.command("QUIT")
        client.close()
        share = paced.delivered // len(users) + (at < paced.delivered % len(users))
        if count != share:
            raise Refused(f"{server.name}: STAT of {user} has {count} mails, and {share} were delivered")
        left -= count
    assert left == 0
    for at, user in enumerate(users):
        share = paced.delivered // len(users) + (at < paced.delivered % len(users))
        emptied.append(_emptied(server, user, expected=share))
    _percentiles(out, "POP3 login and STAT of such a maildrop", stat)
    _percentiles(out, "POP3 DELE of all and QUIT of such a maildrop", emptied)
    deliver(server.lmtp, users[:1], [mails[at % len(mails)] for at in range(MAILDROP)])
    out[f"POP3 DELE of {MAILDROP} and QUIT", "ms", False] = _emptied(server, users[0], MAILDROP) * 1000
    return out


def _percentiles(out: dict[tuple[str, str, bool], float], name: str, spent_s: Sequence[float]) -> None:
    for percent in (50, 95, 99):
        out[f"{name}, p{percent}", "ms", False] = percentile(spent_s, percent) * 1000


def _emptied(server: Server, user: str, expected: int | None) -> float:
    """Delete all mails of a maildrop in one session. Return the seconds from the first
    DELE to the reply to QUIT."""
    client = Pop3(server.pop3, user)
    count = int(client.command("STAT").split()[1])
    if expected is not None and count != expected:
        raise Refused(f"{server.name}: {user} has {count} mails instead of {expected}")
    begin = time.perf_counter()
    client.pipeline([*(f"DELE {number + 1}" for number in range(count)), "QUIT"])
    spent = time.perf_counter() - begin
    client.close()
    return spent
