"""Signals, the drain, the reload, and the messages to the service manager."""

import asyncio
import os
import resource
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENT_S

from obox.errors import Unavailable
from obox.server import Lifecycle, LoopLag, Notifier, Reloaded, raise_open_files_limit
from obox.server import lifecycle as module


class Manager:
    """The socket of the service manager."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self.sock.setblocking(False)
        self.environ = {"NOTIFY_SOCKET": address}

    def petted(self, count: int) -> Callable[[], bool]:
        """Return a condition: the watchdog has been notified `count` times from now
        on."""
        seen: list[list[str]] = []
        return lambda: seen.extend(self.messages()) or seen.count(["WATCHDOG=1"]) >= count

    def messages(self) -> list[list[str]]:
        out = []
        while True:
            try:
                out.append(self.sock.recv(4096).decode().split("\n"))
            except BlockingIOError:
                return out


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    got = Manager(str(tmp_path / "notify") if request.param == "path" else f"@obox-test-{os.getpid()}-{time.time_ns()}")
    yield got
    got.sock.close()


def make(log: Any, *, environ: dict[str, str] | None = None, timeout_s: float = 5) -> Lifecycle:
    return Lifecycle(log=log, notifier=Notifier(environ or {}), drain_timeout_s=timeout_s)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENT_S):
        while not condition():  # noqa: ASYNC110 - what is waited for has no event of its own
            await asyncio.sleep(0.01)


async def test_signals_reload_and_drain_in_order(log: Any, manager: Manager) -> None:
    life, done = make(log, environ=manager.environ), []

    def drain(name: str) -> Callable[[], Awaitable[None]]:
        async def work() -> None:
            assert life.draining
            done.append(name)

        return work

    def prepare() -> Callable[[], Reloaded]:
        done.append("checked")
        return lambda: done.append("used") or Reloaded()

    life.on_stop("listeners", drain("listeners"))
    life.on_stop("flush", drain("flush"))
    life.on_reload("tls", prepare)
    running = asyncio.create_task(life.run(status="serving"))
    await asyncio.sleep(0.05)
    assert not life.draining
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: "used" in done)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, PATIENT_S) == 0
    assert done == ["checked", "used", "listeners", "flush"]
    first, reloading, again, stopping = manager.messages()
    assert first == again == ["READY=1", "STATUS=serving"]
    assert reloading[0] == "RELOADING=1"
    age_us = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000 - int(reloading[1].removeprefix("MONOTONIC_USEC="))
    assert 0 <= age_us < PATIENT_S * 1e6, "the clock that systemd compares with"
    assert stopping[0] == "STOPPING=1"
    extend = int(stopping[2].removeprefix("EXTEND_TIMEOUT_USEC="))
    assert 5e6 < extend < 60e6, "the drain's limit and a bit"


async def test_a_failed_reload_keeps_everything(log: Any) -> None:
    life, used = make(log), []

    def bad() -> Callable[[], Reloaded]:
        raise ValueError("imap.listen = 7: no")

    life.on_reload("good", lambda: lambda: used.append("good") or Reloaded())
    life.on_reload("config", bad)
    running = asyncio.create_task(life.run(signals=False))
    life.reload()
    await until(lambda: log.lines)
    life.stop()
    await running
    assert used == []
    assert log.lines[0] == (
        "error",
        "reload failed, the old configuration stays",
        {"step": "config", "error": "imap.listen = 7: no"},
    )


async def test_who_asks_for_a_reload_hears_how_it_went(log: Any) -> None:
    life = make(log)
    answers: list[Reloaded | Exception] = [
        Reloaded(("log.level",), ("imap.listen", "state_dir")),
        ValueError("no"),
        Reloaded(),
    ]

    def prepare() -> Callable[[], Reloaded]:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return lambda: answer

    life.on_reload("configuration", prepare)
    early = asyncio.create_task(life.reloaded())
    await asyncio.sleep(0)
    running = asyncio.create_task(life.run(signals=False))
    assert await early == (("log.level",), ("imap.listen", "state_dir"))
    assert log.lines == [
        ("info", "configuration reloaded", {"settings": ["log.level"]}),
        (
            "warning",
            "configuration reloaded, some changes wait for a restart",
            {"settings": ["imap.listen", "state_dir"]},
        ),
    ]
    with pytest.raises(ValueError, match="no"):
        await life.reloaded()
    two = [asyncio.create_task(life.reloaded()) for _ in range(2)]
    assert await asyncio.gather(*two) == [((), ())] * 2, "one reload for both"
    assert not answers
    assert [level for level, _, _ in log.lines[3:]] == ["info"]
    late = asyncio.create_task(life.reloaded())
    await asyncio.sleep(0)
    life.stop()
    for asking in (late, life.reloaded()):
        with pytest.raises(Unavailable):
            await asking
    await running


async def test_a_drain_that_hangs_is_cut_and_the_next_runs(log: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HURRY_S", 0.05)
    life, done = make(log, timeout_s=0.05), []

    async def hang() -> None:
        await asyncio.Event().wait()

    async def fail() -> None:
        raise OSError("disk")

    async def flush() -> None:
        done.append("flush")

    for work in (hang, fail, flush):
        life.on_stop(work.__name__, work)
    life.stop()
    assert await asyncio.wait_for(life.run(signals=False), PATIENT_S) == 0
    assert done == ["flush"]
    assert [(event, values.get("step")) for _, event, values in log.lines[1:-1]] == [
        ("drain cut short", "hang"),
        ("drain failed", "fail"),
    ]


async def test_a_second_signal_hurries(log: Any) -> None:
    life, done = make(log, timeout_s=10 * PATIENT_S), []

    async def sessions() -> None:
        done.append("sessions")
        await asyncio.Event().wait()

    async def flush() -> None:
        done.append("flush")

    life.on_stop("sessions", sessions)
    life.on_stop("flush", flush)
    running = asyncio.create_task(life.run())
    await asyncio.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)
    await until(lambda: done)
    os.kill(os.getpid(), signal.SIGTERM)
    assert await asyncio.wait_for(running, PATIENT_S) == 0
    assert done == ["sessions", "flush"]


async def test_a_stop_for_a_restart_differs_from_others(log: Any) -> None:
    """SIGUSR1 stops the backend for a restart. After a SIGTERM it only shortens the
    stop: the flush is still done."""
    for signals, returning in (([signal.SIGUSR1], True), ([signal.SIGTERM, signal.SIGUSR1], False)):
        life, seen = make(log, timeout_s=10 * PATIENT_S), []

        async def drain(life: Lifecycle = life, seen: list[bool] = seen, more: bool = len(signals) > 1) -> None:
            seen.append(life.returning)
            if more:
                await asyncio.Event().wait()

        life.on_stop("flush", drain)
        running = asyncio.create_task(life.run())
        await asyncio.sleep(0.02)
        for number in signals:
            os.kill(os.getpid(), number)
            await until(lambda seen=seen: seen)
        assert await asyncio.wait_for(running, PATIENT_S) == 0
        assert seen == [returning]
        assert life.returning is returning


async def test_the_dog_is_petted_while_it_drains(log: Any, manager: Manager) -> None:
    """A flush of many users may take longer than the watchdog waits."""
    notifier = Notifier({**manager.environ, "WATCHDOG_USEC": "20000"})
    life = Lifecycle(log=log, notifier=notifier, drain_timeout_s=10 * PATIENT_S)

    async def flush() -> None:
        manager.messages()
        await until(manager.petted(3))

    life.on_stop("flush", flush)
    life.stop()
    assert await asyncio.wait_for(life.run(signals=False), PATIENT_S) == 0
    assert ("warning", "drain cut short", {"step": "flush"}) not in log.lines


async def test_watchdog(log: Any, manager: Manager) -> None:
    notifier = Notifier({**manager.environ, "WATCHDOG_USEC": "20000"})
    assert notifier.watchdog_interval_s == 0.01
    assert Notifier({**manager.environ, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": "1"}).watchdog_interval_s is None
    life = Lifecycle(log=log, notifier=notifier, drain_timeout_s=1)
    running = asyncio.create_task(life.run(signals=False))
    await until(manager.petted(3))
    life.stop()
    await running


async def test_nobody_listens() -> None:
    Notifier({"NOTIFY_SOCKET": "/nowhere/notify"}).ready("x")
    Notifier({}).ready()


def test_open_files() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, before[1]))
        assert raise_open_files_limit() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 256
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_loop_lag(log: Any) -> None:
    seen: list[float] = []
    task = asyncio.create_task(LoopLag(observe=seen.append, log=log, interval_s=0.01).run())
    await asyncio.sleep(0)
    time.sleep(0.6)  # noqa: ASYNC251 - the very thing to be seen
    await until(lambda: seen)
    task.cancel()
    assert seen[0] > 0.5
    assert log.lines[0][1] == "event loop was late"
