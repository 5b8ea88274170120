"""One worker as its supervisor sees it: a process that is started again when it ends.

    idle --start--> starting --READY=1--> ready --the process ends--> starting, at once
    three ends within a minute --> resting --REST_S--> starting

While it rests, and for a minute after that, other workers may take its groups.

Invariant: a worker is started only after its earlier process has gone and the lock of
its directory is free. Other workers may take its groups only while it has no process.
Diagnostics: each unexpected end of a process is an error in the log, with the exit
code.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from obox.errors import ConfigError, Unavailable
from obox.statelock import is_locked
from obox.unixsocket import short_name

from . import orders
from .orders import Start

log = structlog.get_logger()

PROGRAM: Final = (sys.executable, "-m", "obox.main", "worker")
"""The command of a worker. The worker's name comes after it."""
CRASHES_MAX: Final = 3
"""After three ends of a worker's process within `CRASHES_S`, other workers get its
groups."""
CRASHES_S: Final = 60.0
REST_S: Final = 10.0
"""Such a worker is started again after this time."""
LOCK_POLL_S: Final = 0.1
EX_CONFIG: Final = 78
_MESSAGE_BYTES_MAX: Final = 65536
_OF_MANAGER: Final = ("LISTEN_", "NOTIFY_SOCKET", "WATCHDOG_")
"""Variables of the service manager. Only the supervisor needs them."""


class Worker:
    """See the module's text. changed: called when it becomes ready, or is no longer.

    watchdog_s: the time within which its loop must report, None if it need not.
    """

    def __init__(self, start: Start, changed: Callable[[Worker], None], watchdog_s: float | None) -> None:
        self.start = start
        self.name = start.name
        self.home: Path = start.config.state_dir
        self.ready = asyncio.Event()
        self.resting = False
        """Whether other workers may take its groups."""
        self.gone = False
        """Whether no process of it runs, and none is about to start."""
        self.served = False
        """Whether it was ever ready."""
        self.process: asyncio.subprocess.Process | None = None
        self._changed = changed
        self._watchdog_s = watchdog_s
        self._ends: deque[float] = deque(maxlen=CRASHES_MAX)
        self._beat_at = 0.0
        self._refused_at = -CRASHES_S
        self._stopping = asyncio.Event()
        self._answer: asyncio.Future[str] | None = None
        self._inbox: socket.socket | None = None

    # -- asking ----------------------------------------------------------------------------------------------------

    @property
    def silent_s(self) -> float:
        """Return the seconds since its loop has reported, 0 unless it is ready."""
        return time.monotonic() - self._beat_at if self.ready.is_set() else 0.0

    # -- telling ---------------------------------------------------------------------------------------------------

    def order(self, *words: str) -> None:
        """Send an order. A process that has ended does not get it."""
        if self.process is None or self.process.returncode is not None or self.process.stdin is None:
            return
        # uvloop raises RuntimeError if the pipe was closed before the end was noticed.
        with suppress(RuntimeError, OSError):
            self.process.stdin.write((" ".join(words) + "\n").encode())

    def signal(self, number: int) -> None:
        if self.process is not None and self.process.returncode is None:
            with suppress(ProcessLookupError):
                self.process.send_signal(number)

    async def prepare_reload(self) -> None:
        """Return once it has checked the configuration. `use` or `drop` follows.

        Raises ConfigError, Unavailable.
        """
        if not self.ready.is_set():
            raise Unavailable(f"worker {self.name} is starting; try again")
        self._answer = asyncio.get_running_loop().create_future()
        self.order(orders.RELOAD)
        try:
            async with asyncio.timeout(orders.ANSWER_S):
                answer = await self._answer
        except TimeoutError:
            raise Unavailable(f"worker {self.name} does not answer") from None
        finally:
            self._answer = None
        if answer != orders.PREPARED:
            raise ConfigError(answer.removeprefix(orders.REFUSED).strip())

    # -- life ------------------------------------------------------------------------------------------------------

    async def run(self, released: Callable[[Worker], None]) -> None:
        """Run the process, and start it again, until `stop`.

        released: called when other workers may take its groups. Raises ConfigError: its
        first start refuses the configuration, or two starts within CRASHES_S do.
        """
        self.home.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._listen()
        try:
            while not self._stopping.is_set():
                if not await self._free():
                    return
                code = await self._process()
                if self._stopping.is_set():
                    return
                if code == EX_CONFIG and (not self.served or self._refused()):
                    raise ConfigError(f"worker {self.name} cannot start; the line before this line has the reason")
                self._ends.append(time.monotonic())
                log.error("worker has ended and is started again", worker=self.name, exit_code=code)
                if len(self._ends) == CRASHES_MAX and self._ends[-1] - self._ends[0] < CRASHES_S:
                    log.error("worker ends repeatedly, other workers serve its users", worker=self.name)
                    self.resting = self.gone = True
                    released(self)
                    await self._rest(REST_S)
                    self.gone = False  # then nobody fences its next boot
                    self._changed(self)
        finally:
            if self._inbox is not None:
                asyncio.get_running_loop().remove_reader(self._inbox)
                self._inbox.close()

    def _refused(self) -> bool:
        """Note that the process has refused its configuration or its bucket after it
        was ready. Return whether that is the second time within CRASHES_S."""
        before, self._refused_at = self._refused_at, time.monotonic()
        return self._refused_at - before < CRASHES_S

    async def _rest(self, seconds: float) -> bool:
        """Wait. Return False if a stop has begun meanwhile."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return True
        return False

    async def _free(self) -> bool:
        """Wait until the process of an earlier supervisor has ended. Return False if a
        stop has begun meanwhile."""
        logged = False
        while is_locked(self.home):
            if not logged:
                log.warning("worker of an earlier supervisor still runs", worker=self.name)
            logged = True
            if not await self._rest(LOCK_POLL_S):
                return False
        return True

    async def _process(self) -> int:
        """Run one process to its end. Return the exit code."""
        environ = {key: value for key, value in os.environ.items() if not key.startswith(_OF_MANAGER)}
        environ["NOTIFY_SOCKET"] = str(self._path)
        if self._watchdog_s is not None:
            environ["WATCHDOG_USEC"] = str(int(self._watchdog_s * 1e6))
        self.process = await asyncio.create_subprocess_exec(
            *PROGRAM,
            self.name,
            stdin=asyncio.subprocess.PIPE,
            env=environ,
            start_new_session=True,  # Ctrl-C ends the supervisor alone
        )
        try:
            assert self.process.stdin is not None
            self.process.stdin.write(self.start.encode())
            if self._stopping.is_set():  # the signal came before the process began
                self.process.terminate()
            return await self.process.wait()
        finally:
            if self.process.returncode is None:
                self.process.kill()
            self._not_ready()

    def _not_ready(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(Unavailable(f"worker {self.name} has ended"))
        if self.ready.is_set():
            self.ready.clear()
            self._changed(self)

    # -- what it says ----------------------------------------------------------------------------------------------

    @property
    def _path(self) -> Path:
        return self.home / "notify.sock"

    def _listen(self) -> None:
        """Bind the socket for its datagrams. Raises ConfigError."""
        self._path.unlink(missing_ok=True)
        inbox = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        with short_name(self._path) as name:
            inbox.bind(name)
        self._path.chmod(0o600)
        self._inbox = inbox
        asyncio.get_running_loop().add_reader(inbox, self._read)

    def _read(self) -> None:
        assert self._inbox is not None
        with suppress(BlockingIOError):
            while message := self._inbox.recv(_MESSAGE_BYTES_MAX):
                for line in message.decode(errors="replace").splitlines():
                    self._hear(*line.partition("=")[::2])

    def _hear(self, name: str, value: str) -> None:
        self._beat_at = time.monotonic()
        if name == "READY" and not self.ready.is_set():
            self.served = True
            self.ready.set()
            self._changed(self)
        elif name == orders.ANSWER and self._answer is not None and not self._answer.done():
            self._answer.set_result(value)

    # -- its end ---------------------------------------------------------------------------------------------------

    def let_end(self) -> None:
        """Expect the end of its process from now on."""
        self._stopping.set()

    def stop(self, *, to_return: bool) -> None:
        """Stop in order. to_return: for a restart on the same disk."""
        self.let_end()
        self.order(orders.DROP)
        self.signal(signal.SIGUSR1 if to_return else signal.SIGTERM)
