"""The log: an event on each line of stderr, in UTC, as JSON, logfmt or console text.

Invariant: the log has no secrets. Values under a name that means a secret are masked,
and `Secret` masks itself. Control characters are escaped, so that a client cannot forge
a line. Lines come in the order in which they were logged.

The lines of one turn of the loop are one write. A warning, an error, or a line of
another thread is written at once, with all lines before it.
"""

from __future__ import annotations

import asyncio
import atexit
import json
import logging
import re
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, MutableMapping
from functools import lru_cache
from typing import Any, Protocol, TextIO

import msgspec.json
import structlog

MASK = "********"
# keys of a `once_a_minute`; with more, keys older than a minute are dropped
KEYS_MAX = 1024

# Warnings and errors kept in memory for `oboxadm log errors`, about a kilobyte each.
RECENT_MAX = 1000

_SECRET = re.compile(r"pass(word|wd)?|secret(_access_key)?|token|authorization|api_key|credentials?|master_key", re.I)
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_PLAIN = frozenset({str, int, float, bool, type(None)})
_ENCODER = msgspec.json.Encoder()
_LEVEL_NAMES = {"warn": "warning", "exception": "error"}
PENDING_BYTES = 65_536
"""Lines that wait for the end of the turn are written when they are this long."""
_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}

Event = MutableMapping[str, Any]


@lru_cache(maxsize=1024)
def _is_secret(key: str) -> bool:
    return _SECRET.fullmatch(key) is not None


def _shown(value: Any) -> Any:
    """Return a value as the log shows it: on a single line."""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    if isinstance(value, str) and not value.isprintable():
        return _CONTROL.sub(lambda match: repr(match[0])[1:-1], value)
    return value


@lru_cache(maxsize=2)
def _second(now_s: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now_s))


class _Prepared:
    """Makes an event ready to be rendered: time, level and event come first, in every
    line. It is a single step, since a mail makes a line.

    worker: the name of this process, "" for none.
    """

    def __init__(self, worker: str) -> None:
        self._worker = {"worker": worker} if worker else {}

    def __call__(self, _: Any, method: str, event: Event) -> Event:
        seconds, microseconds = divmod(time.time_ns() // 1000, 1_000_000)
        out: dict[str, Any] = {
            # The date is formatted once a second.
            "timestamp": f"{_second(seconds)}.{microseconds:06d}Z",
            "level": _LEVEL_NAMES.get(method, method),
            "event": "",
        }
        for key, value in event.items():
            out[key] = MASK if _is_secret(key) and value not in (None, "") else _shown(value)
        out.update(self._worker)
        return out


def _as_json(_: Any, __: str, event: Event) -> str:
    """Return a line of JSON. Values that JSON does not have are shown as text.

    msgspec would look into a dataclass, which may have a secret.
    """
    if _PLAIN.issuperset(map(type, event.values())):
        try:
            return _ENCODER.encode(event).decode()
        except (ValueError, OverflowError):
            pass  # half of a surrogate pair, or a number above 64 bits
    return json.dumps(event, default=str, ensure_ascii=False, separators=(",", ":"))


recent: deque[dict[str, Any]] = deque(maxlen=RECENT_MAX)


def recent_problems() -> list[dict[str, Any]]:
    """Return the last warnings and errors of this process, the oldest first."""
    return list(recent)


def remember(_: Any, __: str, event: Event) -> Event:
    """Keep warnings and errors, masked and on a single line as they are logged."""
    if event.get("level") in ("warning", "error", "critical", "exception"):
        kept = {key: value for key, value in event.items() if not key.startswith("_") and key != "exc_info"}
        recent.append({key: value if isinstance(value, int | float) else str(value) for key, value in kept.items()})
    return event


class _Leveled(structlog.BoundLoggerBase):
    """The class of every logger of the process. Modules keep their loggers for ever, so
    `set_level` replaces methods of this class instead."""


class _Output:
    """Writes lines, those of a turn of the loop together. Lines may come from any
    thread."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.RLock()
        self._lines: list[str] = []
        self._bytes = 0

    def add(self, line: str, *, at_once: bool = False) -> None:
        loop = None if at_once else asyncio._get_running_loop()
        with self._lock:
            self._lines.append(line)
            self._bytes += len(line)
            if loop is None or self._bytes >= PENDING_BYTES:
                self.flush()
            elif len(self._lines) == 1:
                loop.call_soon(self.flush)

    def flush(self) -> None:
        """Write what waits."""
        with self._lock:
            if self._lines:
                lines, self._lines, self._bytes = self._lines, [], 0
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()


class _Writer:
    """What structlog gives its lines to: a method for each level."""

    def __init__(self, output: _Output) -> None:
        self._output = output

    def msg(self, line: str) -> None:
        self._output.add(line)

    def urgent(self, line: str) -> None:
        self._output.add(line, at_once=True)

    debug = info = msg
    warn = warning = error = exception = critical = fatal = urgent


class _Handler(logging.StreamHandler[TextIO]):
    """Lines of libraries that use the standard library's logging."""

    def __init__(self, stream: TextIO, output: _Output) -> None:
        super().__init__(stream)
        self._output = output

    def emit(self, record: logging.LogRecord) -> None:
        self._output.flush()
        super().emit(record)


def set_level(level: str) -> None:
    """Set the lowest level that is logged from now on, also by loggers that are in
    use."""
    for name, method in vars(structlog.make_filtering_bound_logger(_LEVELS[level])).items():
        if not name.startswith("__"):
            setattr(_Leveled, name, method)
    # Below the level warning, libraries log much, such as a line for each request of an
    # SDK. That is for debugging only.
    logging.getLogger().setLevel(logging.DEBUG if level == "debug" else max(logging.WARNING, _LEVELS[level]))
    for name in ("asyncio", "uvicorn", "uvicorn.error", "botocore", "urllib3"):
        logging.getLogger(name).setLevel(max(logging.INFO if level == "debug" else logging.WARNING, _LEVELS[level]))


def set_up_logging(
    level: str = "info", format: str = "auto", *, stream: TextIO | None = None, worker: str = ""
) -> None:
    """Send structlog and the standard library's logging to the same stream.

    level: debug, info, warning, error. format: json, logfmt, console; auto: console on
    a terminal, else json. worker: a name that every line carries, "" for none.
    """
    out = stream or sys.stderr
    if format == "auto":
        format = "console" if out.isatty() else "json"
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.StackInfoRenderer(),
        _Prepared(worker),
        remember,
    ]
    end: list[structlog.typing.Processor]
    if format == "console":
        end = [structlog.dev.ConsoleRenderer(colors=out.isatty(), exception_formatter=structlog.dev.plain_traceback)]
    else:
        render: structlog.typing.Processor = _as_json if format == "json" else structlog.processors.LogfmtRenderer()
        end = [structlog.processors.format_exc_info, render]
    output = _Output(out)
    atexit.register(output.flush)
    structlog.configure(
        processors=[*shared, *end],
        wrapper_class=_Leveled,
        logger_factory=lambda *_: _Writer(output),
        cache_logger_on_first_use=stream is None,
    )
    handler = _Handler(out, output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *end],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    set_level(level)


class _Logs(Protocol):
    def info(self, event: str, **values: Any) -> Any: ...
    def warning(self, event: str, **values: Any) -> Any: ...
    def error(self, event: str, **values: Any) -> Any: ...


class OnceAMinute:
    """A logger that repeats a line at most once a minute, with the number of lines that
    it left out."""

    def __init__(self, logger: _Logs, interval_s: float, clock: Callable[[], float]) -> None:
        self._logger = logger
        self._interval_s = interval_s
        self._clock = clock
        # Key -> [time of the last line, lines left out since].
        self._said: dict[str, list[float]] = {}

    def info(self, event: str, *, key: str = "", **values: Any) -> None:
        self._log(self._logger.info, event, key, values)

    def warning(self, event: str, *, key: str = "", **values: Any) -> None:
        self._log(self._logger.warning, event, key, values)

    def error(self, event: str, *, key: str = "", **values: Any) -> None:
        self._log(self._logger.error, event, key, values)

    def _log(self, say: Callable[..., Any], event: str, key: str, values: dict[str, Any]) -> None:
        now, key = self._clock(), f"{event}\0{key}"
        last = self._said.get(key)
        if last is not None and now - last[0] < self._interval_s:
            last[1] += 1
            return
        if last is not None and last[1]:
            values["suppressed"] = int(last[1])
        if len(self._said) >= KEYS_MAX:
            self._said = {k: v for k, v in self._said.items() if now - v[0] < self._interval_s}
            if len(self._said) >= KEYS_MAX:
                self._said.clear()
        self._said[key] = [now, 0]
        say(event, **values)


def once_a_minute(
    logger: _Logs, *, interval_s: float = 60.0, clock: Callable[[], float] = time.monotonic
) -> OnceAMinute:
    """Wrap a logger for errors that repeat, such as an unreachable bucket. key:
    distinguishes lines with the same event.
    """
    return OnceAMinute(logger, interval_s, clock)
