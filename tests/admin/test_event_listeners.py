"""The listeners of the configuration, and the verbs for them, with a whole backend: the
audit log, webhooks, quota warnings, a site's own listener, dead letters."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from adminservice import Service, mail

from obox import listening
from obox.admin import exits
from obox.errors import NotFound
from obox.events import Context, Event
from obox.events import group as group_module
from obox.events.webhook import sign

SECRET = b"the secret of webhooks"


class Receiver(HTTPServer):
    """Receives webhooks. refuses: whether it answers 500."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.refuses = False
        self.got: list[dict[str, Any]] = []
        self.problems: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if sign(SECRET, self.headers["X-Obox-Timestamp"], body) != self.headers["X-Obox-Signature"]:
            self.server.problems.append("the signature is wrong")
        if not self.server.refuses:
            self.server.got.append(json.loads(body))
        self.send_response(500 if self.server.refuses else 204)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(group_module, "FIRST_RETRY_S", 0.0005)
    monkeypatch.setattr(group_module, "JITTER_S", 0.0005)


async def until(reached: Callable[[], Any]) -> None:
    async with asyncio.timeout(30):
        while not reached():  # noqa: ASYNC110 - a file and a server have no event for it
            await asyncio.sleep(0.01)


def kinds(path: Path) -> list[str]:
    return [json.loads(line)["kind"] for line in path.read_text().splitlines()] if path.exists() else []


async def test_the_audit_log_has_a_line_for_each_event(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "audit.log"
    async with start(more=f'[events]\naudit_file = "{path}"\n') as service:
        await service.deliver("anna@example.org", [mail(1), mail(2)])
        await service.call("flagsAdd", user="anna@example.org", flag=["\\Seen"], query=["uid", "1"])
        events = service.backend.parts.events
        assert events is not None
        await until(lambda: events.idle() and "FlagsUpdated" in kinds(path))
        rows = await service.call("eventsGroups")
        assert [(row["group"], row["here"], row["health"], row["dead_letters"]) for row in rows] == [
            ("audit", True, "ok", 0)
        ]
        assert rows[0]["handled"] >= 3
    found = kinds(path)
    assert sorted(found) == ["Added", "FlagsUpdated", "QuotaUsageUpdated"]
    assert found.index("Added") < found.index("FlagsUpdated")
    line = json.loads(path.read_text().splitlines()[0])
    assert (line["user"], line["uids"]) == ("anna@example.org", [[1, 2]])
    assert path.stat().st_mode & 0o777 == 0o600
    async with start() as service:
        rows = await service.call("eventsGroups")
        assert [(row["group"], row["here"]) for row in rows] == [("audit", False)]
        assert await service.call("eventsLag") == [], "the stop has handled everything"


async def test_a_webhook_is_signed_and_what_it_refuses_is_delivered_again(
    start: Any, tmp_path: Path, receiver: Receiver
) -> None:
    (tmp_path / "secret").write_bytes(SECRET + b"\n")
    more = f'[events]\nwebhook_url = "{receiver.url}"\nwebhook_secret_file = "{tmp_path}/secret"\n'
    async with start(more=more) as service:
        await service.deliver("anna@example.org", [mail(1)])
        await until(lambda: receiver.got)
        assert [(one["kind"], one["user"], one["uids"]) for one in receiver.got] == [
            ("Added", "anna@example.org", [[1, 1]])
        ]
        receiver.refuses = True
        await service.deliver("ben@example.org", [mail(2)])
        events = service.backend.parts.events
        assert events is not None
        await until(lambda: events.figures()["dead_letters_total"])
        (row,) = await service.call("eventsDeadLettersList")
        assert (row["group"], row["user"], row["kind"], row["failures"]) == ("webhook", "ben@example.org", "Added", 9)
        assert "answer 500" in row["error"]
        (shown,) = await service.call("eventsDeadLettersShow", id=row["id"])
        assert json.loads(shown["event"])["uids"] == [[1, 1]]
        assert (await service.call("eventsGroups"))[0]["health"] == "degraded"
        refused = await service.refused("eventsDeadLettersRedeliver", all=True)
        assert refused["exitCode"] == 75
        assert len(await service.call("eventsDeadLettersList")) == 1, "it stays"
        receiver.refuses = False
        (done,) = await service.call("eventsDeadLettersRedeliver", group="webhook", limit=10)
        assert done == {"id": row["id"], "result": "handled"}
        assert receiver.got[-1]["user"] == "ben@example.org"
        assert await service.call("eventsDeadLettersList") == []
        assert events.figures()["dead_letters"] == 0
    assert receiver.problems == []


async def test_dead_letters_can_be_purged(start: Any, tmp_path: Path, receiver: Receiver) -> None:
    (tmp_path / "secret").write_bytes(SECRET)
    receiver.refuses = True
    more = f'[events]\nwebhook_url = "{receiver.url}"\nwebhook_secret_file = "{tmp_path}/secret"\nformat = "json"\n'
    async with start(more=more) as service:
        await service.deliver("anna@example.org", [mail(1)])
        events = service.backend.parts.events
        assert events is not None
        await until(lambda: events.figures()["dead_letters_total"])
    async with start() as service:
        for wrong in ({}, {"all": True, "group": "webhook"}, {"id": "webhook/anna"}, {"group": "A/B"}):
            assert (await service.fails("eventsDeadLettersPurge", **wrong))[0] == exits.DATA
        assert await service.call("eventsDeadLettersPurge", all=True, dryRun=True) == [
            {"group": "webhook", "dead_letters": 1}
        ]
        (row,) = await service.call("eventsDeadLettersList", group="webhook")
        refused = await service.refused("eventsDeadLettersRedeliver", id=row["id"])
        assert refused["rows"][0]["result"] == "no such group here"
        assert await service.call("eventsDeadLettersPurge", id=row["id"]) == [{"group": "webhook", "dead_letters": 1}]
        assert await service.call("eventsDeadLettersPurge", all=True) == []
        assert (await service.fails("eventsDeadLettersShow", id=row["id"]))[0] == exits.of(NotFound("it is gone"))


async def test_a_quota_warning_comes_once_for_each_share(start: Any, tmp_path: Path) -> None:
    said = tmp_path / "said"
    command = tmp_path / "warn"
    command.write_text(f'#!/bin/sh\necho "$1 $2 $4" >> {said}\n')
    command.chmod(0o755)
    more = f'[events]\nquota_command = "{command}"\nquota_warnings = ["50", "90"]\n'

    def lines() -> list[str]:
        return said.read_text().splitlines() if said.exists() else []

    async with start(more=more) as service:
        store = service.backend.parts.store
        user = await store.open_user("anna@example.org", listening.StorageId("anna@example.org"), quota_messages=10)
        events = service.backend.parts.events
        assert events is not None
        await user.append("INBOX", [_new(1)] * 4)
        await store.journal.sync()
        await until(events.idle)
        assert lines() == []
        for number in range(6):
            await user.append("INBOX", [_new(number)])
            await store.journal.sync()
            await until(events.idle)
        assert lines() == ["anna@example.org 50 0", "anna@example.org 90 0"]
        await user.release()


def _new(number: int) -> Any:
    from obox.store import NewMail

    return NewMail(mail(number))


class OwnListener:
    """An example of a site's own listener."""

    heard: list[Event] = []  # noqa: RUF012 - of all instances, for the test
    mode = "sync"

    def __init__(self, context: Context) -> None:
        self.usage = context.usage

    async def handle(self, event: Event) -> None:
        usage = await self.usage(event.user)
        assert usage is not None
        self.heard.append(event)


async def test_a_sites_own_listener(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("own", f"{__name__}:OwnListener", listening.ENTRY_POINTS)
    monkeypatch.setattr(listening, "entry_points", lambda group: [point] if group == listening.ENTRY_POINTS else [])
    async with start(more='[events]\nlisteners = ["own"]\n') as service:
        await service.deliver("anna@example.org", [mail(1)])
        assert OwnListener.heard[0].kind == "Added", "it is sync: the acknowledgement waits for it"
    with pytest.raises(listening.ConfigError, match='no "other" in the entry points'):
        async with start(name="second", more='[events]\nlisteners = ["other"]\n'):
            pass


__all__ = ["Service"]
