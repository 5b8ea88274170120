"""Ready fields of a mail are expensive or impossible to compute. The mail is stored
once, acknowledged, and readable."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from machines import Machine
from structlog.testing import capture_logs
from turns import turns

from obox import mime
from obox.store import NewMail
from obox.store.api import Fields
from obox.store.mails import write

FIELDS = b"".join(name + b": " + b"a," * 10_000 + b"\r\n" for name in (b"From", b"To", b"Cc"))
NESTED = (FIELDS + b"Content-Type: message/rfc822\r\n\r\n") * 60
SMALL = b"Subject: s\r\nTo: " + b"a," * 20_000 + b"\r\n\r\nbody\r\n"


@pytest.mark.parametrize("source", [SMALL, NESTED, b"\n" * 5_000_000], ids=["small", "nested", "large"])
async def test_an_address_bomb_is_stored_once_and_logged_once(machine: Machine, source: bytes) -> None:
    async with machine.run() as life:
        user = await life.user()
        with capture_logs() as logs, turns() as found:
            appended = await user.append("INBOX", [NewMail(source)])
            box = await user.select("INBOX")
            (fields,) = await box.fields(appended.uids)
            assert await box.mail(appended.uids[0]) == source
        found.check()
        assert isinstance(fields, Fields)
        assert len(fields.packed) < 200_000
        assert len(box.state) == 1
        warnings = [entry for entry in logs if entry["event"] == "mail exceeds the limits of its ready fields"]
        assert len(warnings) == (source is not FIELDS and b"a," in source)
        for entry in warnings:
            assert "addresses" in entry["limits"]
            assert entry["uid"] == appended.uids[0]


@pytest.mark.parametrize("size", [100, 100_000])
async def test_a_bug_in_parsing_costs_the_description_alone(
    machine: Machine, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = b"Subject: s\r\n\r\n" + b"x" * size

    def summary(mail: bytes, budget: Any = None) -> Any:
        raise RecursionError("a bug")

    async with machine.run() as life:
        user = await life.user()
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(mime, "summary", summary)
            appended = await user.append("INBOX", [NewMail(source)])
            box = await user.select("INBOX")
            (fields,) = await box.fields(appended.uids)
        assert isinstance(fields, Fields)
        assert fields.header is None, "it is read with the mail"
        assert fields.body == b'("application" "octet-stream" NIL NIL NIL "7bit" %d)' % len(source)
        assert any(entry["event"] == "ready fields could not be made" for entry in logs)
        assert await box.mail(appended.uids[0]) == source
        (fields,) = await box.fields(appended.uids)
        assert isinstance(fields, Fields)
        assert fields.envelope == mime.summary(source).envelope, "what could not be made was not kept"


async def test_a_mail_in_the_bucket_does_not_wait_for_its_description(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the sender would get 451 for a mail that is stored, and send it
    again."""
    monkeypatch.setattr(write, "FIELDS_S", 0.01)
    go = threading.Event()
    plain = mime.summary

    def summary(mail: bytes, budget: Any = None) -> Any:
        if budget is None:
            go.wait(60)
        return plain(mail, budget)

    async with machine.run() as life:
        user = await life.user()
        with monkeypatch.context() as patch:
            patch.setattr(mime, "summary", summary)
            try:
                appended = await user.append("INBOX", [NewMail(SMALL)])
            finally:
                go.set()
        box = await user.select("INBOX")
        assert box.state.uids.tolist() == appended.uids
        (fields,) = await box.fields(appended.uids)
        assert isinstance(fields, Fields)
        assert fields.envelope == plain(SMALL).envelope
