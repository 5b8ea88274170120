"""The costs of a start as counts: the modules that are imported, and the packages that
`make serve` installs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from obox import demo

ROOT = Path(__file__).parent.parent
LIBRARY_MODULES_MAX = 360
"""The modules of a start with a directory as the bucket. A module costs half a
millisecond on average; 100 of them are numpy's."""
OWN_BYTES_MAX = 1_700_000
"""The size of obox's own modules at a start. Their cost follows from their size,
however many files they are. The verbs of the administrator are not among them."""
PACKAGES_MAX = 50
"""The packages that `make serve` installs. Each costs a third of a second of CPU time,
without downloads."""
OWN = ("obox", "metacache", "fscache")

UNUSED = (
    "aioboto3", "aiobotocore", "aiohttp", "argon2", "attr", "bcrypt", "boto3", "botocore", "cassandra", "cryptography",
    "h11", "hypothesis", "obox.admin", "obox.pop3", "obox.server.http", "obox.web", "obox.wiring", "passlib",
    "prometheus_client", "psutil", "pygments", "pytest", "rich", "starlette", "uvicorn", "watchdog",
)  # fmt: skip
"""Libraries and rooms that a backend does not need if its bucket is a directory, it
has no keys, no certificates and no [pop3], nobody has logged in, and no client of HTTP
has connected."""

START = """
import asyncio, json, sys
from obox import main
from obox.backend import Backend
from obox.config import load

config = load(sys.argv[1], {"OBOX_IMAP__LISTEN": "127.0.0.1:0",
    "OBOX_LMTP__LISTEN": "127.0.0.1:0", "OBOX_HTTP__LISTEN": "127.0.0.1:0"})

async def run():
    backend = Backend(config)
    running = asyncio.ensure_future(backend.run(signals=False))
    await asyncio.wait([running, asyncio.ensure_future(backend.ready.wait())], return_when=asyncio.FIRST_COMPLETED)
    backend.lifecycle.stop()
    return await running

code = main._run(run)
print(json.dumps(sorted(sys.modules)))
sys.exit(code)
"""


def test_a_start_imports_what_it_needs(tmp_path: Path) -> None:
    config = demo.prepare(tmp_path / "demo")
    got = subprocess.run(
        [sys.executable, "-c", START, str(config)], check=False, capture_output=True, text=True, cwd=ROOT
    )
    assert got.returncode == 0, got.stderr
    modules = json.loads(got.stdout.splitlines()[-1])
    found = [name for name in modules if any(name == one or name.startswith(one + ".") for one in UNUSED)]
    assert found == []
    own = [name for name in modules if name.partition(".")[0] in OWN]
    assert len(modules) - len(own) <= LIBRARY_MODULES_MAX
    assert sum(map(source_bytes, own)) <= OWN_BYTES_MAX


def source_bytes(module: str) -> int:
    path = ROOT / module.replace(".", "/")
    return next(file.stat().st_size for file in (path / "__init__.py", path.with_suffix(".py")) if file.exists())


def test_make_serve_installs_few_packages() -> None:
    """These are the packages that obox depends on, and their own dependencies, without
    extras. aioboto3 is a requirement of the project and brings 14 of them."""
    found: set[str] = set()
    asked = ["obox"]
    while asked:
        name = canonicalize_name(asked.pop())
        if name in found:
            continue
        found.add(name)
        for line in metadata.requires(name) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                asked.append(requirement.name)
    assert len(found) <= PACKAGES_MAX, sorted(found)


def test_rich_is_still_there_for_tables() -> None:
    """obox/__init__.py hides the package only from structlog."""
    program = "import obox, structlog, rich.table, sys; assert structlog.dev.rich is None, 'a start pays for rich'"
    got = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=ROOT)
    assert got.returncode == 0, got.stderr


def make(directory: Path, *arguments: str, first: Path | None = None) -> str:
    """Return what `make` would do. first: the folder in which programs are looked for
    first."""
    path = os.environ["PATH"] if first is None else f"{first}:{os.environ['PATH']}"
    got = subprocess.run(
        ["make", "--no-print-directory", "--dry-run", *arguments],
        check=False,
        capture_output=True,
        text=True,
        cwd=directory,
        env={**os.environ, "PATH": path},
    )
    assert got.returncode == 0, got.stderr
    return got.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """Copy the part of the tree that `make` looks at, without a .venv."""
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path)
    return tmp_path


@pytest.mark.needs("make")
def test_serve_installs_the_package_alone_and_says_so(clone: Path) -> None:
    serve = make(clone, "serve")
    assert "pip install" in serve
    assert "[test]" not in serve
    assert "--quiet" not in serve
    assert serve.index("echo") < serve.index("pip install"), "the first line says what happens"
    for target in ("install", "test", "lint", "bench"):
        assert ".[test]" in make(clone, target), target


@pytest.mark.needs("make")
def test_nothing_is_installed_twice(clone: Path) -> None:
    (clone / ".venv").mkdir()
    (clone / ".venv/.installed").touch()
    assert "pip install" not in make(clone, "serve")
    assert ".[test]" in make(clone, "test")
    (clone / ".venv/.test").touch()
    assert "pip install" not in make(clone, "test")


@pytest.mark.needs("make")
def test_the_fast_tests_run_on_a_second_python_where_there_is_one(clone: Path) -> None:
    (clone / ".venv").mkdir()
    for name in (".installed", ".test"):
        (clone / ".venv" / name).touch()
    (fast,) = [line.partition("pytest")[2] for line in make(clone, "check").splitlines() if "not needs" in line]
    lines = make(clone, "newest", "NEWEST=python3.14").splitlines()
    assert any(line.startswith("python3.14 -m venv .venv/newest") for line in lines)
    assert lines[-1] == f".venv/newest/bin/python -m pytest{fast}"
    (said,) = make(clone, "newest", "NEWEST=").splitlines()
    assert "the fast tests run on" in said
    whole = make(clone, "test-all", "NEWEST=python3.14")
    assert lines[-1] in whole


@pytest.mark.needs("make")
def test_the_second_python_is_another_one_and_the_newest(clone: Path, tmp_path: Path) -> None:
    for name in ("python3.12", "python3.13", "python3.14"):
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)
    assert "tests on python3.14 as well" in make(clone, "newest", "PYTHON=python3.11", first=tmp_path)
    assert "tests on python3.13 as well" in make(clone, "newest", "PYTHON=python3.14", first=tmp_path)
    for name in ("python3.13", "python3.14"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 127\n")
    assert "tests on python3.12 as well" in make(clone, "newest", "PYTHON=python3.11", first=tmp_path)
    (tmp_path / "python3.12").write_text("#!/bin/sh\nexit 127\n")
    assert "on python3.11 alone" in make(clone, "newest", "PYTHON=python3.11", first=tmp_path)
