"""Blocks of commands out of a page of the manual, and a machine to run them on.

A block is a ```sh fence; the comment above it says `test: NAME` or `not run: WHY`. They
run as printed, in bash; what stands for the machine's directories and addresses is put
in (`PLACES`, `Machine.say`), and the environment, which goes above the configuration,
names the real bucket and free ports.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from imapclient import IMAPClient
from imapclient.exceptions import IMAPClientError
from mails import simple
from patience import PATIENT_S
from ports import free_port
from processes import everything, lmtp
from servers import S3Server, s3_client

TOP = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
PLACES = ("/etc/obox", "/var/lib/obox", "/run/obox", "/backup")
BUCKET, PREFIX = "mail", "obox"
USER, PASSWORD = "anna@example.org", "secret"


class Block(NamedTuple):
    test: str
    why: str
    text: str


def blocks(page: str) -> list[Block]:
    """Return the blocks of docs/`page`. A block without a comment has neither name nor
    reason."""
    text = (TOP / "docs" / page).read_text()
    found = re.findall(r"^(?:<!-- (test|not run): (.+?) -->\n)?```sh\n(.*?)^```$", text, re.M | re.S)
    return [
        Block(name if kind == "test" else "", name if kind == "not run" else "", text) for kind, name, text in found
    ]


def commands(page: str, test: str) -> str:
    chosen = [block.text for block in blocks(page) if block.test == test]
    assert chosen, f"docs/{page} has no block of test {test!r}"
    return "".join(chosen)


class Machine:
    """An empty machine: directories, programs, and an empty bucket `mail`."""

    def __init__(self, root: Path, server: S3Server) -> None:
        self.root = root
        self.s3: Any = s3_client(server)
        self.imap, self.tls, self.metrics = free_port(), free_port(), free_port()
        for name in (*PLACES, "/bin"):
            (root / name.strip("/")).mkdir(parents=True)
        for name, program in (("obox", ""), ("oboxadm", ""), ("systemctl", "systemctl.py"), ("aws", "aws.py")):
            real = Path(sys.executable).parent / name
            run = f"{real}" if not program else f"{sys.executable} {HERE / program}"
            (root / "bin" / name).write_text(f'#!/bin/sh\nexec {run} "$@"\n')
            (root / "bin" / name).chmod(0o755)
        clean = {key: value for key, value in os.environ.items() if not key.startswith(("OBOX_", "AWS_", "XDG_"))}
        self.environ = {
            **clean,
            "PATH": f"{root}/bin:{os.environ['PATH']}",
            "OBOX_TEST_ROOT": str(root),
            "OBOX_TEST_UNITS": str(TOP / "systemd"),
            "OBOX_STORAGE__ENDPOINT_URL": server.endpoint_url,
            "OBOX_IMAP__LISTEN": f"127.0.0.1:{self.imap},127.0.0.1:{self.tls}/tls",
            "AWS_ENDPOINT_URL": server.endpoint_url,
            "AWS_ACCESS_KEY_ID": server.access_key_id,
            "AWS_SECRET_ACCESS_KEY": server.secret_access_key,
            "AWS_DEFAULT_REGION": server.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def say(self, text: str) -> str:
        """Return the commands with the places of this machine."""
        for place in PLACES:
            text = re.sub(rf"(?<![\w/]){place}\b", f"{self.root}{place}", text)
        return text.replace("127.0.0.1:9143", f"127.0.0.1:{self.metrics}")

    def run(self, text: str, code: int = 0) -> str:
        """Run commands, and return what they print. The first command that fails ends
        them."""
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", self.say(text)],
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
            cwd=self.root,
            env=self.environ,
        )
        log = self.root / "log"
        assert done.returncode == code, (done.stdout, done.stderr, log.read_text()[-3000:] if log.exists() else "")
        return done.stdout

    def path(self, place: str) -> Path:
        return Path(self.say(place))

    def certificate(self, directory: str) -> None:
        where = self.path(directory)
        where.mkdir(exist_ok=True)
        new = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=x"
        self.run(f"{new} -keyout {where}/key.pem -out {where}/cert.pem 2>/dev/null")

    def listed(self, prefix: str = PREFIX) -> list[str]:
        """List the keys of the bucket, below the prefix."""
        pages = self.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=f"{prefix}/")
        return [one["Key"][len(prefix) + 1 :] for page in pages for one in page.get("Contents", ())]

    @contextmanager
    def login(self, user: str = USER) -> Iterator[IMAPClient]:
        with IMAPClient("127.0.0.1", self.imap, ssl=False, timeout=PATIENT_S) as client:
            client.login(user, PASSWORD)
            yield client

    def see(self, user: str = USER) -> dict[str, Any]:
        """Return all that a client can see, as soon as the backend serves."""
        deadline = time.monotonic() + PATIENT_S
        while True:
            try:
                with self.login(user) as client:
                    return everything(client)
            except Exception:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def wait_serving(self) -> None:
        """Wait until the bucket has answered, because a start does not wait for
        that."""
        deadline = time.monotonic() + PATIENT_S
        while refuses(self):
            assert time.monotonic() < deadline, (self.root / "log").read_text()[-3000:]
            time.sleep(0.02)

    def deliver(self, mail: bytes, user: str = USER) -> int:
        return lmtp(str(self.path("/run/obox/lmtp")), mail, [user])[0][0]

    def pid(self) -> int:
        return int((self.root / "systemd/obox-backend@mail1.pid").read_text())

    def kill(self) -> None:
        """Kill the process as a machine that loses its power does."""
        with suppress(OSError, ValueError):
            os.kill(self.pid(), 9)
        time.sleep(0.05)


def refuses(machine: Machine) -> bool:
    try:
        with machine.login():
            return False
    except (IMAPClientError, OSError):
        return True


def live(machine: Machine) -> None:
    """Make mails of a user, with flags, a copy, a move and an expunge."""
    machine.wait_serving()
    for number in range(4):
        assert machine.deliver(simple(number)) == 250
    with machine.login() as client:
        client.select_folder("INBOX")
        client.add_flags([1, 2], ["\\Seen", "$Work"])
        client.create_folder("Projects")
        client.copy([1], "Projects")
        client.move([3], "Archive")
        client.delete_messages([4])
        client.expunge()


@contextmanager
def machine(server: S3Server) -> Iterator[Machine]:
    # The path must be short, because sockets lie below it.
    root = Path(tempfile.mkdtemp(prefix="obox-"))
    made = Machine(root, server)
    with suppress(made.s3.exceptions.BucketAlreadyOwnedByYou, made.s3.exceptions.BucketAlreadyExists):
        made.s3.create_bucket(Bucket=BUCKET)
    for page in made.s3.get_paginator("list_objects_v2").paginate(Bucket=BUCKET):
        if found := [{"Key": one["Key"]} for one in page.get("Contents", ())]:
            made.s3.delete_objects(Bucket=BUCKET, Delete={"Objects": found})
    try:
        yield made
    finally:
        made.kill()
        shutil.rmtree(root, ignore_errors=True)
