"""The first minute after a clone: what `make serve` starts speaks IMAP and LMTP, keeps
the mail, and prints how to connect."""

from __future__ import annotations

import imaplib
import os
import shlex
import signal
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from ports import free_port
from test_backends import PATIENCE_S

ROOT = Path(__file__).parent.parent.parent
USER, PASSWORD = "demo@example.org", "demo"


def started_by_make() -> list[str]:
    """Return the command that `make serve` runs last, with the program of this test
    run."""
    lines = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", "serve"], check=True, capture_output=True, text=True, cwd=ROOT
    ).stdout.splitlines()
    program, *arguments = shlex.split(lines[-1])
    assert program == ".venv/bin/obox"
    return [str(Path(sys.executable).with_name("obox")), *arguments]


@contextmanager
def serving(directory: Path, environ: dict[str, str]) -> Iterator[str]:
    """Run the command in `directory`. Yield what it prints until it is ready."""
    with (
        (directory / "log").open("a") as log,
        subprocess.Popen(
            started_by_make(), cwd=directory, env=environ, stdout=subprocess.PIPE, stderr=log, text=True
        ) as process,
    ):
        try:
            assert process.stdout is not None
            said = ""
            for line in process.stdout:
                said += line
                if line.startswith("Stop with Ctrl-C"):
                    break
            yield said
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
        finally:
            process.kill()


@pytest.mark.needs("make")
def test_what_make_serve_starts(tmp_path: Path) -> None:
    imap, lmtp, http = free_port(), free_port(), free_port()
    environ = {key: value for key, value in os.environ.items() if not key.startswith("OBOX_")}
    environ |= {"OBOX_IMAP__LISTEN": f"127.0.0.1:{imap}", "OBOX_LMTP__LISTEN": f"127.0.0.1:{lmtp}"}
    environ |= {"OBOX_HTTP__LISTEN": f"127.0.0.1:{http}"}
    with serving(tmp_path, environ) as said:
        assert f"user      {USER}   password  {PASSWORD}" in said
        assert f"127.0.0.1:{imap}" in said
        with imaplib.IMAP4("127.0.0.1", imap) as client:
            client.login(USER, PASSWORD)
            assert client.select("INBOX") == ("OK", [b"3"])
            found = client.fetch("1:3", "BODY.PEEK[HEADER.FIELDS (SUBJECT)]")[1]
            assert b"Subject: Welcome to obox\r\n\r\n" in [part[1] for part in found if isinstance(part, tuple)]
        with smtplib.LMTP("127.0.0.1", lmtp) as sender:
            assert sender.sendmail("a@b", [USER], "Subject: one more\r\n\r\nhello\r\n") == {}
    # Ctrl-C stopped it. The state is gone, and the bucket alone has everything.
    assert (tmp_path / "demo/bucket").is_dir()
    for path in sorted((tmp_path / "demo/state").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    with serving(tmp_path, environ), imaplib.IMAP4("127.0.0.1", imap) as client:
        client.login(USER, PASSWORD)
        assert client.select("INBOX") == ("OK", [b"4"]), "the first mails are not delivered twice"
    assert "Traceback" not in (tmp_path / "log").read_text()
