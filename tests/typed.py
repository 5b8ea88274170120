"""mypy on the product, `bench` and the helpers of the tests: `python -m tests.typed`.

One run checks all of them, since each run reads the product first. mypy wants a single
name for each file, and it is the name by which other helpers import the file.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("obox", "metacache", "fscache", "admintool", "bench")
FULL = ("imap", "pop3", "stores")
"""Other folders import these folders and files by full names: `tests.imap.harness`."""


def helpers() -> dict[str, Path]:
    """Return the helpers by the names that mypy gets."""
    paths = [path for path in (ROOT / "tests").rglob("*.py") if not path.name.startswith("test_")]
    found = {name_of(path): path for path in sorted(paths)}
    assert len(found) == len(paths), "two helpers have the same name"
    return found


def name_of(path: Path) -> str:
    """Return the name by which others import a helper. Pytest puts `tests`, and the
    folder of a test that is no package, on the path. Nobody imports a `conftest`."""
    inside = path.relative_to(ROOT / "tests").with_suffix("")
    if (path.parent / "__init__.py").exists():
        return ".".join(inside.parts).removesuffix(".__init__")
    if inside.parts[0] in FULL or inside.name == "conftest":
        return ".".join(("tests", *inside.parts))
    return inside.name


def folders() -> Iterator[str]:
    """Yield the folders in which mypy looks for the helpers."""
    yield "tests"
    for path in sorted({path.parent for path in helpers().values()} - {ROOT / "tests"}):
        if path.name not in FULL and not (path / "__init__.py").exists():
            yield f"tests/{path.name}"


def main(*arguments: str) -> int:
    command = [sys.executable, "-m", "mypy", *arguments]
    command += [word for package in PACKAGES for word in ("-p", package)]
    command += [word for name in helpers() for word in ("-m", name)]
    env = {**os.environ, "MYPYPATH": os.pathsep.join(folders())}
    return subprocess.run(command, check=False, cwd=ROOT, env=env).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
