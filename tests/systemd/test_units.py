"""The units of `systemd/`: systemd accepts them, they are closed enough, and the
programs that they run exist.

How they work together (a stop flushes, a restart does not) needs a running systemd.
tests/operations simulates it.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from admintool import cli as oboxadm
from obox.config import load
from obox.main import cli as obox

ROOT = Path(__file__).parent.parent.parent
UNITS = sorted(path for path in (ROOT / "systemd").iterdir() if path.suffix != ".conf")
SERVICES = [path for path in UNITS if path.suffix == ".service"]
TIMERS = [path for path in UNITS if path.suffix == ".timer"]
EXPOSURE_MAX = 25
"""The exposure that systemd-analyze computes, in tenths. 100 means no sandbox at
all."""


def directives(unit: Path) -> list[tuple[str, str]]:
    parts = (line.strip().partition("=") for line in unit.read_text().splitlines() if not line.startswith("#"))
    return [(key, value) for key, equals, value in parts if equals]


def values(unit: Path, name: str) -> list[str]:
    return [value for key, value in directives(unit) if key == name]


def commands(unit: Path) -> Iterator[list[str]]:
    """Return the commands that a unit runs, with its instance filled in. Of a shell's
    `-c` it returns the command of obox."""
    for key, value in directives(unit):
        if key.startswith("Exec"):
            words = shlex.split(value.replace("%i", "mail1"))
            if words[0] == "sh":
                words = shlex.split(words[2].rpartition("exec ")[2])
            yield words


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in words], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.needs("systemd-analyze")
def test_systemd_accepts_them(tmp_path: Path) -> None:
    """The paths of the programs are filled in, because systemd looks for
    `ExecStart=obox` only in its own path."""
    for unit in UNITS:
        text = re.sub(r"^(Exec\w+=)(?=obox)", rf"\g<1>{Path(sys.executable).parent}/", unit.read_text(), flags=re.M)
        (tmp_path / unit.name).write_text(text)
    out = run("systemd-analyze", "verify", "--man=no", "--recursive-errors=yes", *sorted(tmp_path.iterdir()))
    ours = [line for line in out.stderr.splitlines() if "obox" in line]
    assert ours == []
    broken = tmp_path / "obox-backend@.service"
    broken.write_text(broken.read_text().replace("[Service]\n", "[Service]\nNoSuchSetting=1\n"))
    out = run("systemd-analyze", "verify", "--man=no", broken)
    assert "NoSuchSetting" in out.stderr, "it would have said so"


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_sandbox(unit: Path) -> None:
    out = run("systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_MAX}", unit)
    assert out.returncode == 0, out.stdout + out.stderr
    assert "Overall exposure level" in out.stdout


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_memory_is_bounded(unit: Path) -> None:
    """Whatever a client sends, the machine and its other services keep enough
    memory."""
    (most,) = values(unit, "MemoryMax")
    assert re.fullmatch(r"[1-9][0-9]*[MG%]", most)
    if unit.name == "obox-backend@.service":
        (high,) = values(unit, "MemoryHigh")
        assert 50 <= int(high.rstrip("%")) < int(most.rstrip("%")) <= 90
        assert values(unit, "Restart") == ["on-failure"], "a backend that was ended for its memory comes back"


@pytest.mark.needs("systemd-analyze")
@pytest.mark.parametrize("unit", TIMERS, ids=lambda unit: unit.name)
def test_timers(unit: Path) -> None:
    """Each timer runs once a day at most, at night. It has a service, and stops with
    its backend."""
    (calendar,) = values(unit, "OnCalendar")
    out = run("systemd-analyze", "calendar", "--iterations=2", calendar)
    assert out.returncode == 0, out.stderr
    first, second = re.findall(r"(?:Next elapse|Iter\. #2): \w+ (\S+ \S+)", out.stdout)
    assert first.split()[1] == second.split()[1] < "06:00:00"
    assert unit.with_suffix(".service") in SERVICES
    assert values(unit, "PartOf") == values(unit, "WantedBy") == ["obox-backend@%i.service"]
    assert values(unit.with_suffix(".service"), "Requisite") == ["obox-backend@%i.service"]


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_what_they_run_is_a_command_of_ours(unit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The commands of obox parse these lines, and do not run them."""
    found = list(commands(unit))
    assert found
    for words in found:
        if words == ["true"]:
            continue
        root: click.Command = {"obox": obox, "oboxadm": oboxadm}[words[0]]
        assert words[words.index("-c") + 1] == "/etc/obox/mail1.toml"
        context = root.make_context(words[0], words[1:])
        while isinstance(root, click.Group):
            name, command, rest = root.resolve_command(context, [*context._protected_args, *context.args])
            assert command is not None
            context, root = command.make_context(name, rest, parent=context), command
        assert capsys.readouterr().err == ""


def test_a_wrong_option_is_noticed() -> None:
    with pytest.raises(click.UsageError):
        obox.commands["serve"].make_context("serve", ["--no-such-option"])


def test_limits_fit_the_program() -> None:
    unit = ROOT / "systemd/obox-backend@.service"
    seconds = {key: int(value) for key, value in directives(unit) if value.isdigit()}
    default_s = load(None, {"OBOX_STORAGE__URL": "memory://"}).server.shutdown_timeout
    assert seconds["TimeoutStopSec"] > default_s
    assert values(unit, "Type") == ["notify"]
    assert values(unit, "KillSignal") == ["SIGUSR1"], "a stop that leaves the flush to obox-metacache-flush@"
    assert {"64", "78"} == set(values(unit, "RestartPreventExitStatus")[0].split())
    flush = ROOT / "systemd/obox-metacache-flush@.service"
    words = next(words for words in commands(flush) if "stop" in words)
    limit_s = int(words[words.index("-t") + 1])
    assert values(flush, "TimeoutStopSec") == [f"{(limit_s + 60) // 60}min"], "and what oboxadm waits for the end"


def test_the_flush_hears_of_stops_alone() -> None:
    """PartOf, BindsTo or Requires would also pass restarts on to the flush."""
    for name in ("obox-metacache-flush@.service", "obox-backend-up@.service"):
        unit = ROOT / "systemd" / name
        assert values(unit, "StopPropagatedFrom") == ["obox-backend@%i.service"]
        assert not {key for key, _ in directives(unit)} & {"PartOf", "BindsTo", "Requires"}
        assert "obox-backend@%i.service" in values(unit, "After")[0], "stopped before it"
        assert name.replace("@", "@%i") in values(ROOT / "systemd/obox-backend@.service", "Wants")[1]
    up, flush = ROOT / "systemd/obox-backend-up@.service", ROOT / "systemd/obox-metacache-flush@.service"
    assert "obox-metacache-flush@%i.service" in values(up, "After")[0], "its mark goes first"
    assert f"/run/{values(up, 'RuntimeDirectory')[0]}" in values(flush, "ExecStop")[0]


def test_the_state_is_where_they_allow_it(tmp_path: Path) -> None:
    """The paths are the defaults, and those that the text of the units advises."""
    unit = ROOT / "systemd/obox-backend@.service"
    writable = [f"/var/lib/{name}" for name in values(unit, "StateDirectory")[0].split()]
    assert str(load(None, {"OBOX_STORAGE__URL": "memory://", "HOME": str(tmp_path)}).state_dir) in writable
    advised = re.findall(r'state_dir = "([^"]+)"', unit.read_text())
    assert advised == [writable[-1]]
