"""Requests that no correct client of the admin API sends. The answer has words and no
traceback, and the log gets no long line."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest
from adminservice import Service
from structlog.testing import capture_logs

from obox.admin import TABLE

API = "/doveadm/v1"


@pytest.fixture(autouse=True)
def no_errors(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    caplog.set_level(logging.INFO)
    yield
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.fixture
def usual_depth() -> Iterator[None]:
    """Set the interpreter's usual recursion limit. A property test that ran before may
    have raised it."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(before)


@pytest.mark.usefixtures("usual_depth")
@pytest.mark.parametrize("levels", [990, 5_000, 1_000_000])
@pytest.mark.parametrize(
    "form", ['[["who", {{"user": {0}{1}}}, "t"]]', "{0}{1}", '[["userList", {{"x": {0}1{1}}}, ""]]']
)
async def test_deeply_nested_json(service: Service, form: str, levels: int) -> None:
    body = form.format("[" * levels, "]" * levels)
    got = await service.client.post(API, content=body.encode())
    assert got.status_code in (200, 400)
    if levels > 1000:
        assert got.status_code == 400
        assert len(got.text) < 200
    body = '{"a":' * levels + "1" + "}" * levels
    assert (await service.client.post(API, content=f'[["who", {body}, "t"]]'.encode())).status_code in (200, 400)


@pytest.mark.usefixtures("usual_depth")
@pytest.mark.parametrize("words", [["OR"], ["NOT"], ["OR", "NOT"], ["("]])
async def test_a_deeply_nested_query(service: Service, words: list[str]) -> None:
    query = words * (1_500 // len(words)) + ["ALL"] * 1_501
    body = json.dumps([["search", {"user": "anna@example.org", "query": query}, "t"]])
    got = await service.client.post(API, content=body.encode())
    assert got.status_code == 200
    assert "levels" in got.text


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"null",
        b"1e999",
        b"[1]",
        b'[["who"]]',
        b'[["who", [], "t"]]',
        b'["\\ud800"]',
        b'[["who",{},"t"],]',
    ],
)
async def test_what_is_no_request(service: Service, body: bytes) -> None:
    got = await service.client.post(API, content=body)
    assert got.status_code == 400
    assert len(got.text) < 300


async def test_the_log_repeats_little_of_what_was_sent(service: Service) -> None:
    with capture_logs() as logged:
        await service.ask("x" * 100_000, user="y" * 100_000)
        await service.ask("mailboxList", user="z" * 100_000)
        await service.ask("mailboxList", users=["z" * 100_000] * 5)
        await service.ask("mailboxList", user={"a": ["z" * 100_000]})
    assert logged
    assert max(len(repr(line)) for line in logged) < 4000


MARKS = "\u0301" * 16_384 + "\u0316" * 16_384
LEFT_OUT = {"stop", "reload", "metacachePull"}
"""These verbs end the backend, read its configuration, or send requests to other
hosts."""


async def test_no_text_of_a_command_is_normalised_unmeasured(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """NFC takes quadratic time in a sequence of combining characters. Each text of each
    command is such a sequence, while its other parameters are valid."""
    found: list[int] = []
    plain = unicodedata.normalize

    def normalize(form: Any, text: str) -> str:
        found.append(max(map(len, re.findall("[\u0301\u0316]+", text)), default=0))
        return plain(form, text)

    monkeypatch.setattr("unicodedata.normalize", normalize)
    asked = 0
    for name, verb in TABLE.items():
        fields = [field for field in msgspec.structs.fields(verb.params) if "str" in str(field.type)]
        for field in fields if name not in LEFT_OUT else ():
            params: dict[str, Any] = {one.encode_name: usual(one) for one in fields if one.required}
            params |= {"user": "anna@example.org"} if any(one.name == "user" for one in fields) else {}
            for text in (MARKS, "e" + "\u0301" * 31, "e" + "\u0301" * 30):
                params[field.encode_name] = [text] if "list" in str(field.type) else text
                await service.ask(name, **params)
                asked += 1
    assert asked > 150
    assert max(found) == 30


def usual(field: Any) -> Any:
    value = {"query": "ALL", "field": "all", "fields": "uid", "mailbox_mask": "*"}.get(field.name, "INBOX")
    return [value] if "list" in str(field.type) else value


@pytest.mark.parametrize("sent", [b'[["userList", {}', b'[["userList", {}, "t"]]'])
async def test_a_client_that_leaves(service: Service, sent: bytes) -> None:
    """The client closes the connection in the middle of its request, or before the
    answer."""
    path = str(service.backend.parts.config.state_dir / "admin.sock")
    for how in ("abort", "close"):
        for accept in (b"", b"Accept: application/x-ndjson\r\n"):
            _, writer = await asyncio.open_unix_connection(path)
            head = b"POST /doveadm/v1 HTTP/1.1\r\nHost: x\r\n" + accept + b"Content-Length: 23\r\n\r\n"
            writer.write(head + sent)
            await asyncio.sleep(0.02)
            getattr(writer.transport, how)()
            await asyncio.sleep(0.02)
    got = await service.client.post(API, content=json.dumps([["userList", {}, "t"]]))
    assert got.status_code == 200


@pytest.mark.parametrize("number", [2**63, 2**64, 10**30, -1, 1e300, -(10**30)])
async def test_numbers_that_fit_nothing(service: Service, number: Any) -> None:
    """Each number of each command gets a value that is out of range. The answer may be
    an error that says so, or a normal answer, but the command must not fail with a
    traceback."""
    asked = 0
    with capture_logs() as logged:
        for name, verb in TABLE.items():
            if name in ("stop", "service stop"):
                continue
            for field in msgspec.structs.fields(verb.params):
                if "int" in str(field.type) or "float" in str(field.type):
                    asked += 1
                    await service.ask(name, **{"user": "anna@example.org", field.encode_name: number})
    assert asked > 5
    assert [line for line in logged if line["event"] == "admin command failed"] == []
