"""LMTP on a socket: lines, bodies, chunks, pipelining, cuts, clients that leave;
deliveries that fail in every way."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import replace
from pathlib import Path

from fuzzing import REST_S, Wire, drive, seeded, strange_text

from obox import errors
from obox.lmtp import Envelope, LmtpServer, Recipient, Settings

REPLY = re.compile(rb"[2-5][0-9]{2}(?:-[ -~]*| (?:[245]\.[0-9]{1,3}\.[0-9]{1,3} )?[^\x00-\x1f\x7f]*)\r\n")
"""RFC 5321 §4.2, RFC 2034 §4. A text may be UTF-8 after SMTPUTF8."""
LIMITS = Settings(
    hostname="mx",
    trusted_networks=("192.0.2.0/24",),
    mail_bytes_max=40_000,
    recipients_max=20,
    line_bytes_max=600,
    spool_memory_bytes=4_000,
    connections_max=6,
    delivery_bytes_max=90_000,
)


class Deliverer:
    """A deliverer that keeps nothing, and fails when its random generator says so."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.delivered = 0

    def _fail(self) -> None:
        if self._rng.random() < 0.3:
            raise self._rng.choice((*errors.KINDS, TimeoutError))(
                "said \u202e\r\n250 OK" if self._rng.random() < 0.5 else ""
            )

    async def recipient(self, address: str, user: str, detail: str, size: int | None) -> Recipient:
        assert not any(char in address for char in "\r\n\0")
        await asyncio.sleep(0)
        self._fail()
        return Recipient(address, user, detail)

    async def deliver(self, recipient: Recipient, envelope: Envelope, source: bytes) -> None:
        await asyncio.sleep(self._rng.choice((0, 0, 0.001)))
        assert source.startswith(b"Return-Path: <")
        head = source[: len(source) - envelope.size]
        assert head.count(b"\n") == head.count(b"\r\n") == 6
        self._fail()
        self.delivered += 1


def body(rng: random.Random) -> bytes:
    size = rng.choice((0, 1, 100, 5_000, 39_000, 60_000))
    lines = [b".", b"..", b"", b"a" * 70, b"\xff\0", b"Delivered-To: u@d", b"Received: x", b"bare\nlf", b"cr\rcr"]
    made = b""
    while len(made) < size:
        made += rng.choice(lines) + rng.choice((b"\r\n", b"\r\n", b"\n", b"\r"))
    return made


def session(rng: random.Random) -> bytes:
    """Send commands that are mostly in order, so that mails get through, with anything
    between them."""
    out = [b"LHLO client\r\n"] if rng.random() < 0.9 else []
    for _ in range(rng.randint(1, 6)):
        if rng.random() < 0.2:
            out.append(rng.randbytes(rng.choice((1, 20, 700, 5_000))))
        if rng.random() < 0.3:
            word = rng.choice(("NOOP", "RSET", "VRFY x", "HELP", "STARTTLS", "HELO x", "DATA x", "BDAT", "BDAT x LAST"))
            out.append(word.encode() + b"\r\n")
        sender = strange_text(rng) if rng.random() < 0.3 else "a@b"
        utf8 = " SMTPUTF8" if rng.random() < 0.5 else ""
        size = f" SIZE={rng.choice((0, 5, 10**6, 10**19, 10**30, -1))}" if rng.random() < 0.3 else ""
        out.append(f"MAIL FROM:<{sender}>{size}{utf8}\r\n".encode("utf-8", "surrogatepass"))
        for _ in range(rng.randint(0, 4)):
            user = strange_text(rng) if rng.random() < 0.4 else rng.choice(("u@d", '"q q"@d', "u+x@d", "no"))
            out.append(f"RCPT TO:<{user}>\r\n".encode("utf-8", "surrogatepass"))
        if rng.random() < 0.5:
            made = body(rng)
            out += [b"DATA\r\n", made, b"" if made.endswith(b"\r\n") else b"\r\n", b".\r\n"]
        else:
            for last in [""] * rng.randint(0, 3) + [" LAST"]:
                made = body(rng)
                lie = rng.choice((0, 0, 0, 0, 1, -1, 10**17))
                out.append(f"BDAT {max(0, len(made) + lie)}{last}\r\n".encode() + made)
    out += [b"QUIT\r\n"] if rng.random() < 0.5 else []
    data = b"".join(out)
    return data[: rng.randint(0, len(data))] if rng.random() < 0.2 else data


async def test_lmtp(tmp_path: Path, fuzz_seconds: float) -> None:
    with seeded() as rng:
        deliverer = Deliverer(rng)
        server = LmtpServer(deliverer, replace(LIMITS, spool_dir=tmp_path))
        loop, path = asyncio.get_running_loop(), tmp_path / "s"
        listening = await loop.create_unix_server(lambda: server.connection_factory(remote="192.0.2.1"), path)

        async def one() -> None:
            wire = Wire(rng, *await asyncio.open_unix_connection(path))
            # The collection must not run in a turn that is measured.
            await wire.send(await asyncio.to_thread(session, rng))
            answers = await wire.end()
            whole = answers[: answers.rfind(b"\n") + 1]
            for line in whole.split(b"\r\n")[:-1]:
                assert len(line) <= 510, line
                assert REPLY.fullmatch(line + b"\r\n"), line

        async def rest() -> None:
            """Wait until the server has noticed that its clients have left."""
            async with asyncio.timeout(REST_S):
                while server.connections:  # noqa: ASYNC110 - nothing says so
                    await asyncio.sleep(0.01)

        try:
            count = await drive(fuzz_seconds, one, rest=rest)
            assert deliverer.delivered, "some mail came through"
        finally:
            listening.close()
            await server.stop(grace_s=5)
        assert not server.connections
        assert not server.addresses
        print(f"{count} sessions, {deliverer.delivered} deliveries")
        assert server.budget.used_bytes == 0
