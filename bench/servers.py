"""The servers that are measured: processes of this run, on loopback, below a temporary
directory.

Each is a context manager: however the run ends, its servers end and their data is
deleted.
"""

from __future__ import annotations

import importlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil

PASSWORD: Final = "secret"
START_S: Final = 30.0
STOP_S: Final = 60.0
DOVECOT: Final = "/usr/sbin/dovecot"
DOVECOT_POP3: Final = Path("/usr/lib/dovecot/pop3")
"""Debian has it in a package of its own."""


class NoStart(Exception):
    """A server did not start; the text ends with its log."""


@dataclass
class Server:
    """A running server."""

    name: str
    process: subprocess.Popen[bytes]
    imap: int
    lmtp: int
    http: int = 0
    imaps: int = 0
    pop3: int = 0
    """0: the server has no POP3."""
    home: Path = field(default_factory=Path)

    def processes(self) -> list[psutil.Process]:
        root = psutil.Process(self.process.pid)
        return [root, *root.children(recursive=True)]

    def cpu_s(self) -> float:
        """Return the user and system seconds of all its processes that are alive
        now."""
        total = 0.0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_bytes(self) -> int:
        """Return the memory of its processes that no other process shares (USS)."""
        total = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                total += process.memory_full_info().uss
        return total

    def requests(self) -> dict[str, int]:
        """Return the number of requests to the bucket since the start, by "op kind"."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/metrics", timeout=10) as answer:
            text = answer.read().decode()
        pattern = r'obox_objectstore_requests_total\{op="(\w+)",kind="(\w+)"\} ([0-9.e+]+)'
        return {f"{op} {kind}": int(float(count)) for op, kind, count in re.findall(pattern, text)}


def free_ports(count: int) -> list[int]:
    held = [socket.socket() for _ in range(count)]
    try:
        for one in held:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in held]
    finally:
        for one in held:
            one.close()


def _tests(module: str) -> Any:
    """Import a module of the tests."""
    directory = str(Path(__file__).parent.parent / "tests")
    if directory not in sys.path:
        sys.path.insert(0, directory)
    return importlib.import_module(module)


def _wait(process: subprocess.Popen[bytes], ports: Sequence[int], log: Path) -> None:
    deadline = time.monotonic() + START_S
    for port in ports:
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise NoStart(log.read_text(errors="replace")[-2000:])
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                time.sleep(0.05)


def _kill(process: subprocess.Popen[bytes], stop_s: float) -> None:
    """Send SIGTERM to the server, and after `stop_s` SIGKILL to what is left of its
    process group. No other process is in this group.
    """
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(stop_s)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(10)


@dataclass(frozen=True)
class Bucket:
    """The place where an obox keeps its mail."""

    url: str
    endpoint_url: str = ""
    access_key_id: str = ""
    secret_access_key: str = ""


@contextmanager
def run_obox(
    home: Path,
    bucket: Bucket,
    users: Sequence[str],
    name: str = "obox",
    *,
    more: str = "",
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Run a backend with empty local state. At the end it flushes, as after SIGTERM.

    more: sections that the configuration has as well. environment: variables beside
    those of this process.
    """
    home.mkdir()
    imap, lmtp, http, imaps, pop3 = free_ports(5)
    cert, key = _tests("certificates").certificate(home)
    (home / "users").write_text("".join(f"{user}:{{PLAIN}}{PASSWORD}:::::\n" for user in users))
    (home / "users").chmod(0o600)
    storage = {key: value for key, value in vars(bucket).items() if value}
    (home / "obox.toml").write_text(
        'state_dir = "state"\n'
        + "[storage]\n"
        + "".join(f"{key} = {json.dumps(value)}\n" for key, value in storage.items())
        + f'[tls]\ncert = "{cert}"\nkey = "{key}"\n[auth]\npasswd_file = "users"\n'
        + f'[imap]\nlisten = ["127.0.0.1:{imap}", "127.0.0.1:{imaps}/tls"]\nmax_user_sessions = 0\n'
        + f'[lmtp]\nlisten = ["127.0.0.1:{lmtp}"]\n'
        + f'[pop3]\nlisten = ["127.0.0.1:{pop3}"]\n[http]\nlisten = ["127.0.0.1:{http}"]\n'
        + more
    )
    log = home / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "obox.main", "serve", "-c", str(home / "obox.toml")],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            env={**os.environ, **(environment or {})},
        )
    try:
        _wait(process, [imap, lmtp, http, pop3], log)
        _wait_for_store(process, log)
        yield Server(name, process, imap, lmtp, http, imaps, pop3, home)
    finally:
        _kill(process, STOP_S)


def _wait_for_store(process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while b"store ready" not in log.read_bytes():
        if process.poll() is not None or time.monotonic() > deadline:
            raise NoStart(log.read_text(errors="replace")[-2000:])
        time.sleep(0.05)


def dovecot_version() -> str:
    """Return the version, or "" if Dovecot is not installed."""
    if not os.access(DOVECOT, os.X_OK):
        return ""
    answer = subprocess.run([DOVECOT, "--version"], capture_output=True, text=True, check=False)
    return answer.stdout.split(" ")[0].strip()


_DOVECOT_CONF: Final = """\
base_dir = {home}/run
state_dir = {home}/state
log_path = {home}/log
default_internal_user = {internal}
default_internal_group = {internal_group}
default_login_user = {login}
protocols = {protocols}
ssl = no
disable_plaintext_auth = no
auth_mechanisms = plain
first_valid_uid = 1
mail_location = sdbox:{home}/mail/%u
mail_max_userip_connections = 0
mail_fsync = optimized
{compress}
submission_host =
passdb {{
  driver = passwd-file
  args = {home}/users
}}
userdb {{
  driver = static
  args = uid={mail} gid={mail_group} home={home}/mail/%u allow_all_users=yes
}}
service imap-login {{
  {unconfined}
  inet_listener imap {{
    address = 127.0.0.1
    port = {imap}
  }}
  inet_listener imaps {{
    port = 0
  }}
}}
{pop3}
service lmtp {{
  inet_listener lmtp {{
    address = 127.0.0.1
    port = {lmtp}
  }}
}}
service anvil {{
  {unconfined}
}}
service stats {{
  {unconfined}
}}
"""


_DOVECOT_POP3: Final = """\
service pop3-login {{
  {unconfined}
  inet_listener pop3 {{
    address = 127.0.0.1
    port = {pop3}
  }}
  inet_listener pop3s {{
    port = 0
  }}
}}
"""


_DOVECOT_ZSTD: Final = """\
mail_plugins = zlib
plugin {
  zlib_save = zstd
  zlib_save_level = 3
}
"""


@contextmanager
def run_dovecot(home: Path, users: Sequence[str], *, compress: bool = False) -> Iterator[Server]:
    """Run Dovecot with sdbox on the local disk.

    If root runs it, Dovecot uses its own users. Otherwise it runs as the present user.
    compress: it compresses mails, as obox does.
    """
    home.mkdir()
    imap, lmtp, pop3 = free_ports(3)
    has_pop3, unconfined = DOVECOT_POP3.exists(), "" if os.getuid() == 0 else "chroot ="
    me = pwd.getpwuid(os.getuid())
    if os.getuid() == 0:
        internal, login, mail = pwd.getpwnam("dovecot"), pwd.getpwnam("dovenull"), pwd.getpwnam("nobody")
    else:
        internal = login = mail = me
    (home / "users").write_text("".join(f"{user}:{{PLAIN}}{PASSWORD}:::::\n" for user in users))
    (home / "mail").mkdir()
    os.chown(home / "mail", mail.pw_uid, mail.pw_gid)
    import grp

    (home / "dovecot.conf").write_text(
        _DOVECOT_CONF.format(
            home=home,
            imap=imap,
            lmtp=lmtp,
            internal=internal.pw_name,
            internal_group=grp.getgrgid(internal.pw_gid).gr_name,
            login=login.pw_name,
            mail=mail.pw_uid,
            mail_group=mail.pw_gid,
            compress=_DOVECOT_ZSTD if compress else "",
            unconfined=unconfined,
            protocols="imap lmtp pop3" if has_pop3 else "imap lmtp",
            pop3=_DOVECOT_POP3.format(unconfined=unconfined, pop3=pop3) if has_pop3 else "",
        )
    )
    log = home / "log"
    with (home / "out").open("wb") as out:
        process = subprocess.Popen(
            [DOVECOT, "-F", "-c", str(home / "dovecot.conf")],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        _wait(process, [imap, lmtp], log if log.exists() else home / "out")
        yield Server("Dovecot", process, imap, lmtp, pop3=pop3 if has_pop3 else 0, home=home)
    finally:
        _kill(process, 10)


@contextmanager
def run_seaweedfs() -> Iterator[Bucket | None]:
    """Run a SeaweedFS with a bucket, in the same way as the tests do. Yields None if
    the package is missing.
    """
    servers = _tests("servers")
    if servers.weed_program() is None:
        yield None
        return
    with servers.run_seaweedfs() as server:
        servers.s3_client(server).create_bucket(Bucket="bench")
        yield Bucket("s3://bench", server.endpoint_url, server.access_key_id, server.secret_access_key)


@contextmanager
def run_cassandra(home: Path) -> Iterator[str]:
    """Run a Cassandra with a keyspace and a role for the directory, and yield its URL.
    The password of the role is in `home/cassandra.password`. Raises NoStart: a program
    is missing."""
    module = _tests("cassandra_server")
    if gone := [program for program in module.PROGRAMS if shutil.which(program) is None]:
        raise NoStart(f"needs {gone[0]}")
    with module.run_cassandra() as server:
        yield cassandra_directory(server, home)


def cassandra_directory(server: Any, home: Path, keyspace: str = "bench") -> str:
    """Make a keyspace and a role for a directory in a server of the tests. Return the
    URL."""
    one = "{'class': 'SimpleStrategy', 'replication_factor': 1}"
    server.run(
        f"DROP KEYSPACE IF EXISTS {keyspace}",
        f"CREATE KEYSPACE {keyspace} WITH replication = {one}",
        f"CREATE ROLE IF NOT EXISTS {keyspace} WITH PASSWORD = '{PASSWORD}' AND LOGIN = true",
        f"GRANT ALL ON KEYSPACE {keyspace} TO {keyspace}",
    )
    (home / "cassandra.password").write_text(PASSWORD + "\n")
    (home / "cassandra.password").chmod(0o600)
    return f"cassandra://{keyspace}@{server.host}:{server.port}/{keyspace}"


@contextmanager
def scratch() -> Iterator[Path]:
    """Make a temporary directory that other users may pass through. The processes of
    Dovecot run as other users.
    """
    import tempfile

    path = Path(tempfile.mkdtemp(prefix="obox-bench-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
