#!/usr/bin/env python3
"""The part of systemctl that the manual uses, for the units of `systemd/`: it runs
their commands and sends their signals.

The order in which units start and stop is read from their dependencies. A stop is
passed on to the units with StopPropagatedFrom, and a unit stops before those that it is
After. The behaviour was compared once by hand with systemd 252. A machine is the
directory $OBOX_TEST_ROOT.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(os.environ["OBOX_TEST_ROOT"])
UNITS = Path(os.environ["OBOX_TEST_UNITS"])
RUN = ROOT / "systemd"
START_S = STOP_S = 40.0
CLEAN = (0, 69)


class Unit:
    """An instance of a unit: its directives. A file says whether it is active."""

    def __init__(self, name: str) -> None:
        self.name = name.removesuffix(".service")
        template, self.instance = self.name.split("@")
        text = (UNITS / f"{template}@.service").read_text().replace("%i", self.instance)
        for place in ("/etc/obox", "/var/lib/obox", "/run/"):
            text = text.replace(place, f"{ROOT}{place}")
        lines = [line.partition("=") for line in text.splitlines() if not line.startswith("#")]
        self.all = [(key, value) for key, equals, value in lines if equals]
        self.pid_file, self.active_file = RUN / f"{self.name}.pid", RUN / f"{self.name}.active"

    def get(self, key: str) -> list[str]:
        return [word for name, value in self.all if name == key for word in value.split()]

    def commands(self, key: str) -> list[str]:
        return [value for name, value in self.all if name == key]

    def run(self, key: str) -> int:
        for command in self.commands(key):
            with (ROOT / "log").open("ab") as log:
                code = subprocess.run(["sh", "-c", command], check=False, stdout=log, stderr=log).returncode
            if code not in CLEAN:
                return code
        return 0

    def pid(self) -> int:
        """Return the id of the process that runs; 0 if none does."""
        try:
            pid = int(self.pid_file.read_text())
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (OSError, ValueError):
            return 0
        return 0 if state == "Z" else pid

    def active(self) -> bool:
        return bool(self.pid()) if self.get("Type") == ["notify"] else self.active_file.exists()

    def directories(self) -> list[Path]:
        return [ROOT / "run" / name for name in self.get("RuntimeDirectory")]

    def start(self) -> None:
        if self.active():
            return
        for path in self.directories():
            path.mkdir(parents=True, exist_ok=True)
        if self.get("Type") == ["notify"]:
            self._spawn()
        elif code := self.run("ExecStart"):
            sys.exit(code)
        else:
            self.active_file.touch()
        for name in self.get("Wants"):
            if "@" in name:
                Unit(name).start()

    def _spawn(self) -> None:
        (command,) = self.commands("ExecStart")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, (ROOT / "log").open("ab") as log:
            address = RUN / "notify"
            address.unlink(missing_ok=True)
            manager.bind(str(address))
            manager.settimeout(0.1)
            process = subprocess.Popen(
                ["sh", "-c", f"exec {command}"],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "NOTIFY_SOCKET": str(address)},
                start_new_session=True,
            )
            self.pid_file.write_text(str(process.pid))
            deadline = time.monotonic() + START_S
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    if b"READY=1" in manager.recv(4096).split(b"\n"):
                        return
                except TimeoutError:
                    pass
        sys.exit(f"{self.name} did not start: exit {process.poll()}")

    def end(self) -> None:
        """Run the unit's own part of a stop."""
        if not self.active():
            return
        code = self.run("ExecStop")
        if pid := self.pid():
            os.kill(pid, getattr(signal, (self.get("KillSignal") or ["SIGTERM"])[0]))
            deadline = time.monotonic() + STOP_S
            while self.pid():
                if time.monotonic() > deadline:
                    sys.exit(f"{self.name} does not end")
                time.sleep(0.02)
        self.active_file.unlink(missing_ok=True)
        for path in self.directories():
            if "yes" not in self.get("RuntimeDirectoryPreserve"):
                path.rmdir()
        if code:
            sys.exit(f"{self.name}: ExecStop failed with {code}")

    def stop(self) -> None:
        """Stop the unit and all units to which the stop is passed on. The units that
        started last stop first."""
        units = [self]
        for path in UNITS.glob("*@.service"):
            other = Unit(path.name.replace("@", f"@{self.instance}"))
            if f"{self.name}.service" in other.get("StopPropagatedFrom"):
                units.append(other)
        while units:
            last = next(u for u in units if not any(f"{u.name}.service" in o.get("After") for o in units if o is not u))
            last.end()
            units.remove(last)


def main(verb: str, *names: str) -> None:
    RUN.mkdir(exist_ok=True)
    for name in names:
        if name == "--now":
            continue
        if not re.fullmatch(r"[\w-]+@\w+(\.service)?", name):
            sys.exit(f"systemctl of the tests: no {name}")
        unit = Unit(name)
        match verb:
            case "start":
                unit.start()
            case "enable" if "--now" in names:
                unit.start()
            case "stop":
                unit.stop()
            case "restart":
                unit.end()
                unit.start()
            case "reload":
                if code := unit.run("ExecReload"):
                    sys.exit(code)
            case "is-active":
                sys.exit(0 if unit.active() else 3)
            case _:
                sys.exit(f"systemctl of the tests: no {verb}")


main(*sys.argv[1:])
