"""A configuration, perhaps with a process that serves it, and a function that calls
`oboxadm`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result
from patience import PATIENT_S
from ports import free_port

from admintool import cli

ROOT = Path(__file__).parent.parent.parent
KEY = "key:of the API"
ANNA, BEN = "anna@example.org", "ben@example.org"


class Home:
    """A configuration, and perhaps a process that serves it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        (path / "users").write_text(f"{ANNA}:{{PLAIN}}secret:::::\n{BEN}:{{PLAIN}}secret:::::\n")
        self.config = path / "obox.toml"
        self.config.write_text(
            f'state_dir = "state"\n[storage]\nurl = "file://{path}/bucket"\n[imap]\nlisten = ["127.0.0.1:0"]\n'
            f'[http]\nlisten = ["127.0.0.1:{self.port}"]\napi_key = "{KEY}"\n'
        )
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("OBOX")}
        with (self.path / "log").open("ab") as log:
            program = [sys.executable, "-m", "obox.main", "serve", "-c", str(self.config)]
            self.process = subprocess.Popen(program, stdout=log, stderr=log, cwd=ROOT, env=environ)
        deadline = time.monotonic() + 30
        # The process listens now, and its bucket has answered.
        while self("who").exit_code or self("mailbox", "list", "-u", BEN).exit_code:
            assert self.process.poll() is None, (self.path / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENT_S)

    def __call__(self, *arguments: str, stdin: str | None = None, config: bool = True) -> Result:
        first = ["-c", str(self.config)] if config else []
        return CliRunner().invoke(cli, [*first, *arguments], input=stdin)

    def json(self, *arguments: str) -> Any:
        got = self("-f", "json", *arguments)
        assert got.exit_code == 0, got.stderr
        return json.loads(got.stdout)
