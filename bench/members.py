"""Backends and proxies of a cluster as processes that can be started, stopped, killed
and suspended."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from .patient import Front
from .servers import PASSWORD, Bucket, free_ports

START_S: Final = 60.0
STOP_S: Final = 60.0
PROXY_S: Final = 20.0
BACKEND_S: Final = 5.0
"""Clients wait 5 s for an answer of a backend, and PROXY_S for an answer of a proxy."""
LAG_S: Final = 0.1
"""Times without service are judged if the delays of the loops are below this at p99.
The value is a boundary of the metric's buckets."""
_LAG: Final = re.compile(r'obox_loop_lag_seconds_(?:bucket\{le="(?:0\.1|\+Inf)"\}) ([0-9.e+]+)')


@dataclass(frozen=True)
class Setting:
    """What all members have in common. password_file: has the password of the role in
    the directory; "" if it has none."""

    home: Path
    bucket: Bucket
    directory: str
    users: tuple[str, ...]
    password_file: str = ""
    dead_after: str = "10s"

    def write(self) -> None:
        """Write the users and the secret below `home`."""
        (self.home / "users").write_text("".join(f"{user}:{{PLAIN}}{PASSWORD}:::::\n" for user in self.users))
        (self.home / "secret").write_text(os.urandom(32).hex() + "\n")
        for name in ("users", "secret"):
            (self.home / name).chmod(0o600)


class Lag(NamedTuple):
    """Delays of an event loop's timers. timers: all of them; short: those that were
    less than LAG_S late."""

    timers: int
    short: int


@dataclass
class Machine:
    """A member. role: serve or proxy. bucket, directory: how this member reaches them;
    None if it reaches them as the setting says."""

    name: str
    role: str
    setting: Setting
    bucket: Bucket | None = None
    directory: str | None = None
    process: subprocess.Popen[bytes] | None = None
    suspended_at: float | None = None
    lags: dict[int, Lag] = field(default_factory=dict)
    """The delays of the event loop of each process, by process id."""
    _front: Front = field(init=False)

    def __post_init__(self) -> None:
        self.home = self.setting.home / self.name
        self.home.mkdir()
        imap, lmtp, self._http = free_ports(3)
        self._front = Front(self.name, imap, lmtp, PROXY_S if self.role == "proxy" else BACKEND_S)
        self.log = self.home / "log"
        self.state = self.home / "state"
        common = self.setting
        storage = {key: value for key, value in vars(self.bucket or common.bucket).items() if value}
        cluster = {
            "backend": self.name,
            "directory": self.directory or common.directory,
            "secret_file": str(common.home / "secret"),
            "dead_after": common.dead_after,
        }
        if common.password_file:
            cluster["password_file"] = common.password_file
        sections: dict[str, dict[str, Any]] = {
            "storage": storage,
            "auth": {"passwd_file": str(common.home / "users")},
            "imap": {"listen": [f"127.0.0.1:{imap}"], "max_user_sessions": 0},
            "lmtp": {"listen": [f"127.0.0.1:{lmtp}"]},
            "http": {"listen": [f"127.0.0.1:{self._http}"]},
            "cluster": cluster,
            "log": {"format": "json"},
        }
        text = f"state_dir = {json.dumps(str(self.state))}\n"
        for section, settings in sections.items():
            text += f"\n[{section}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        (self.home / "obox.toml").write_text(text)

    @property
    def front(self) -> Front:
        return self._front

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "obox.main", self.role, "-c", str(self.home / "obox.toml")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def listening(self) -> None:
        """Return when the member greets. Raises RuntimeError if it ended, or takes too
        long."""
        deadline = time.monotonic() + START_S
        while True:
            try:
                async with asyncio.timeout(2):
                    reader, writer = await asyncio.open_connection("127.0.0.1", self.front.imap)
                    greeting = await reader.readline()
                    writer.transport.abort()
                if greeting.startswith(b"* OK"):
                    return
            except (OSError, TimeoutError):
                pass
            if not self.alive or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} does not start: {self.log.read_text(errors='replace')[-2000:]}")
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(STOP_S)
        self.suspended_at = None

    async def stop(self) -> int:
        """Send SIGTERM, and return the exit code. Raises TimeoutError if the member
        does not end; it is killed then."""
        assert self.process is not None
        self.process.terminate()
        deadline = time.monotonic() + STOP_S
        while (code := self.process.poll()) is None:
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(f"{self.name} does not stop")
            await asyncio.sleep(0.05)
        return code

    def suspend(self, now: float) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        self.suspended_at = now

    def resume(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)
        self.suspended_at = None

    async def note_lag(self) -> None:
        """Read how late the event loop of this process has been so far."""
        if not self.alive or self.suspended_at is not None:
            return
        assert self.process is not None
        try:
            async with asyncio.timeout(2):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._http)
                writer.write(b"GET /metrics HTTP/1.0\r\n\r\n")
                text = (await reader.read()).decode()
                writer.transport.abort()
        except (OSError, TimeoutError):
            return
        found = [int(float(count)) for count in _LAG.findall(text)]
        if len(found) == 2:
            self.lags[self.process.pid] = Lag(timers=found[1], short=found[0])

    def lose_disk(self) -> None:
        shutil.rmtree(self.state, ignore_errors=True)

    def errors(self) -> list[str]:
        """Return the lines of the log that show a bug."""
        if not self.log.exists():
            return []
        lines = self.log.read_text(errors="replace").splitlines()
        return [f"{self.name}: {line[:400]}" for line in lines if '"level":"error"' in line or "Traceback" in line]
