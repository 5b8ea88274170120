"""What a start costs, as counts: modules that are imported, packages that `make serve` installs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY_MODULES_MAX = 540
"""Of a start with a directory as bucket; a module costs half a millisecond on average, numpy's 100 among them."""
OWN_BYTES_MAX = 1_550_000
"""Source of our own modules at a start: they cost by their size, however it is cut into files."""
OWN = ("obox", "metacache", "fscache")

UNUSED = (
    "aioboto3", "aiobotocore", "aiohttp", "attr", "boto3", "botocore", "cassandra", "cryptography.x509", "hypothesis",
    "pygments", "pytest", "rich", "watchdog",
)  # fmt: skip
"""Libraries that a backend with a directory as bucket and without certificates has no use for."""

START = """
import asyncio, json, sys
from pathlib import Path
from obox import demo, main
from obox.backend import Backend
from obox.config import load
import obox.server

config = load(str(demo.prepare(Path(sys.argv[1]))), {"OBOX_IMAP__LISTEN": "127.0.0.1:0",
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
    got = subprocess.run(
        [sys.executable, "-c", START, str(tmp_path / "demo")], check=False, capture_output=True, text=True, cwd=ROOT
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


def test_rich_is_still_there_for_tables() -> None:
    """obox/__init__.py hides it from structlog alone."""
    program = "import obox, structlog, rich.table, sys; assert structlog.dev.rich is None, 'a start pays for rich'"
    got = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=ROOT)
    assert got.returncode == 0, got.stderr


def make(directory: Path, target: str) -> str:
    """What `make` would do there."""
    got = subprocess.run(["make", "--dry-run", target], check=False, capture_output=True, text=True, cwd=directory)
    assert got.returncode == 0, got.stderr
    return got.stdout


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """As far as `make` looks at it, without a .venv."""
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
