"""TCP relays that can be cut. They run in a process of their own, which `Relays`
starts.

A relay that is cut passes on nothing in either direction, and does not answer new
connections. So it acts as a network behind a switch that has failed. When the relay is
healed, it passes on everything that was sent meanwhile. These bytes arrive late, even
if their sender has stopped waiting for an answer.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Final

PIECE_BYTES: Final = 65_536
STOP_S: Final = 10.0


class Relays:
    """The process of the relays. targets: "host:port" each. `ports` has the port of
    each relay, in the same order."""

    def __init__(self, targets: Sequence[str]) -> None:
        command = [sys.executable, "-m", "bench.relays", *targets]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.ports: list[int] = json.loads(self._process.stdout.readline())

    def __enter__(self) -> Relays:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, of: TracebackType | None) -> None:
        self._process.kill()
        self._process.wait(STOP_S)

    def cut(self, which: int) -> None:
        self._say(f"cut {which}")

    def heal(self, which: int) -> None:
        self._say(f"heal {which}")

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()


class Relay:
    """A relay, inside the process of the relays."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self.whole = asyncio.Event()
        self.whole.set()
        self._open: set[asyncio.Task[None]] = set()

    def begin(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve a new connection in a task."""
        task = asyncio.ensure_future(self._serve(reader, writer))
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect to the target, and pass bytes both ways until the connection ends."""
        ends = [writer]
        try:
            await self.whole.wait()
            reader_there, writer_there = await asyncio.open_connection(*self._target)
            ends.append(writer_there)
            await asyncio.gather(self._pass(reader, writer_there), self._pass(reader_there, writer))
        except OSError:
            pass
        finally:
            for end in ends:
                end.transport.abort()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            data = await reader.read(PIECE_BYTES)
            await self.whole.wait()
            if not data:
                with suppress(OSError):
                    writer.write_eof()
                return
            writer.write(data)
            await writer.drain()


async def _main(targets: Sequence[str]) -> None:
    relays = [Relay(target) for target in targets]
    servers = [await asyncio.start_server(relay.begin, "127.0.0.1", 0) for relay in relays]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        verb, _, which = line.strip().partition(" ")
        whole = relays[int(which)].whole
        whole.clear() if verb == "cut" else whole.set()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1:]))
