"""Log lines: a line for each event, times in UTC, no secrets, no repetition."""

import io
import json
import logging
from collections.abc import Iterator
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
