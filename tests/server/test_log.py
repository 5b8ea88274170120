"""Log lines: a line for each event, times in UTC, no secrets, no repetition."""

import asyncio
import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import structlog

from obox.config import Secret
from obox.server import once_a_minute, set_level, set_up_logging


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    structlog.reset_defaults()
    root.handlers[:], root.level = handlers, level


def logged(level: str, format: str) -> tuple[io.StringIO, Any]:
    out = io.StringIO()
    set_up_logging(level, format, stream=out)
    return out, structlog.get_logger()


def test_json() -> None:
    out, log = logged("info", "json")
    log.debug("hidden")
    log.info(
        "login", user="ünal", size=3, data=b"\xff\r\nx", password="hush", api_key=Secret("hush"), key=Secret("hush")
    )
    logging.getLogger("botocore").warning("slow %s", "bucket")
    logging.getLogger("botocore").info("hidden")
    try:
        raise ValueError("a\nb")
    except ValueError:
        log.exception("bug")
    first, second, third = map(json.loads, out.getvalue().splitlines())
    assert list(first)[:3] == ["timestamp", "level", "event"]
    assert first["event"] == "login"
    assert first["timestamp"].endswith("Z")
    assert first["timestamp"][10] == "T"
    assert first["user"] == "ünal"
    assert first["data"] == "\\xff\\r\\nx"
    assert first["size"] == 3
    assert "hush" not in out.getvalue()
    assert (second["event"], second["logger"], second["level"]) == ("slow bucket", "botocore", "warning")
    assert "ValueError" in third["exception"]


@pytest.mark.parametrize("format", ["logfmt", "console", "auto"])
def test_one_line_that_nobody_can_forge(format: str) -> None:
    out, log = logged("debug", format)
    log.warning("bad\ncommand", line="x\r\n2026-01-01T00:00:00Z error forged\x1b[31m", secret="hush")
    assert out.getvalue().count("\n") == 1
    assert "\r" not in out.getvalue()
    assert "\x1b" not in out.getvalue()
    assert "hush" not in out.getvalue()
    out.truncate(0)
    logging.getLogger("asyncio").error("a\nb")
    assert out.getvalue().count("\n") == 1


def test_logfmt_exception_is_one_line() -> None:
    out, log = logged("debug", "logfmt")
    try:
        raise ValueError("x")
    except ValueError:
        log.exception("bug")
    assert out.getvalue().count("\n") == 1


def test_another_level_holds_for_loggers_in_use(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The new level also holds for loggers that keep their settings from their
    creation, as the loggers of the process do."""
    monkeypatch.setattr(structlog, "configure", structlog._config.configure)
    set_up_logging("info", "json")
    log, botocore = structlog.get_logger(), logging.getLogger("botocore")
    for level in ("info", "debug", "error", "info"):
        set_level(level)
        for logger in (log, log.bind(), botocore):
            logger.debug("a debug")
            logger.info("an info")
            logger.error("an error")
    said = [json.loads(line)["event"] for line in capsys.readouterr().err.splitlines()]
    usual = ["an info", "an error"] * 2 + ["an error"]
    assert said == [
        *usual,
        *["a debug", "an info", "an error"] * 2,
        *["an info", "an error"],
        *["an error"] * 3,
        *usual,
    ]


class Stream(io.StringIO):
    def __init__(self) -> None:
        super().__init__()
        self.writes: list[int] = []

    def write(self, text: str) -> int:
        self.writes.append(text.count("\n"))
        return super().write(text)


async def test_lines_of_a_turn_are_a_single_write() -> None:
    """A delivery makes a line, and many deliveries end in a turn."""
    out = Stream()
    set_up_logging("info", "json", stream=out)
    log = structlog.get_logger()
    for number in range(100):
        log.info("delivery", number=number)
    assert out.writes == []
    await asyncio.sleep(0)
    assert out.writes == [100]
    log.info("before")
    log.warning("at once")
    assert out.writes == [100, 2]
    log.info("of the loop")
    await asyncio.to_thread(log.info, "of a thread")
    logging.getLogger("botocore").warning("of a library")
    await asyncio.sleep(0)
    said = [json.loads(line)["event"] for line in out.getvalue().splitlines()]
    assert said[100:] == ["before", "at once", "of the loop", "of a thread", "of a library"]


async def test_lines_of_a_turn_are_bounded() -> None:
    out = Stream()
    set_up_logging("info", "json", stream=out)
    for _ in range(100):
        structlog.get_logger().info("long", text="x" * 10_000)
    assert len(out.getvalue()) > 900_000


@dataclass
class Account:
    name: str
    password: Secret


def test_values_that_json_does_not_have() -> None:
    out, log = logged("info", "json")
    log.info("one", account=Account("anna", Secret("hush")), among=[Secret("hush")], path=Path("/x"), big=1 << 80)
    log.info("two", text="half \ud800", number=1.5, none=None, yes=True)
    one, two = map(json.loads, out.getvalue().splitlines())
    assert "hush" not in out.getvalue()
    assert (one["path"], one["big"]) == ("/x", 1 << 80)
    assert (two["number"], two["none"], two["yes"]) == (1.5, None, True)


def test_the_last_lines_are_written_at_the_end_of_the_process() -> None:
    """The process ends in the turn in which it has logged."""
    code = """if True:
        import asyncio, structlog
        from obox.server import set_up_logging
        async def main():
            set_up_logging("info", "json")
            structlog.get_logger().info("the last line")
            raise SystemExit(3)
        asyncio.run(main())
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, json.loads(done.stderr)["event"]) == (3, "the last line")


def test_once_a_minute(log: Any) -> None:
    now = [0.0]
    quiet = once_a_minute(log, clock=lambda: now[0])
    for _ in range(5):
        quiet.error("bucket unreachable", url="s3://b")
        quiet.error("bucket unreachable", key="other")
        now[0] += 10
    assert len(log.lines) == 2
    now[0] = 61
    quiet.error("bucket unreachable", url="s3://b")
    assert log.lines[2] == ("error", "bucket unreachable", {"url": "s3://b", "suppressed": 4})
    now[0] = 122
    quiet.error("bucket unreachable")
    assert "suppressed" not in log.lines[3][2]
    for number in range(5000):
        quiet.info("many", key=str(number))
