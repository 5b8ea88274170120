"""Header fields that are added in front of a mail, the table of replies, and addresses
of unusual form."""

from __future__ import annotations

import pytest

from obox import errors
from obox.auth import Disabled
from obox.lmtp import KIND_REPLIES, Reply, reply_for
from obox.lmtp.address import ADDRESS_BYTES_MAX
from obox.lmtp.replies import INTERNAL, QUOTA_TEMPFAIL, TIMED_OUT
from obox.lmtp.trace import inspect, trace_fields


def test_every_kind_has_a_reply() -> None:
    assert set(KIND_REPLIES) == set(errors.KINDS)
    for kind, reply in KIND_REPLIES.items():
        assert str(reply.code)[0] == reply.enhanced[0]
        assert reply.code >= 400
        if not kind.permanent:
            assert reply.code < 500, "the sender must keep the mail"


def test_reply_for() -> None:
    assert reply_for(errors.NotFound()) == KIND_REPLIES[errors.NotFound]
    assert reply_for(errors.NotFound("gone fishing")) == Reply(550, "5.1.1", "gone fishing")
    # This error is derived from an error of the table.
    assert reply_for(Disabled("moved")) == Reply(550, "5.2.1", "moved")
    assert reply_for(errors.OverQuota(), quota_full_tempfail=True) == QUOTA_TEMPFAIL
    assert reply_for(errors.MailboxFull()).code == 552
    assert reply_for(errors.MailboxFull(), quota_full_tempfail=True) == QUOTA_TEMPFAIL
    assert reply_for(TimeoutError()) == TIMED_OUT
    assert reply_for(KeyError("secret")) == INTERNAL


def test_wire() -> None:
    assert Reply(550, "5.1.1", "a\r\n250 b\0").wire() == b"550 5.1.1 a 250 b \r\n"
    assert Reply(220, "", "ü").wire() == b"220 ?\r\n"
    assert Reply(250, "2.0.0", "ü").wire(utf8=True) == "250 2.0.0 ü\r\n".encode()
    assert Reply(250, "2.0.0", "\ud800").wire(utf8=True) == b"250 2.0.0  \r\n"
    assert len(Reply(250, "2.0.0", "x" * 5000).wire()) <= 512
    for text in ("ü" * 5000, "x" + "ü" * 5000, "日" * 5000, "\U0001f600" * 5000, "xy" + "\U0001f600" * 5000):
        assert len(Reply(550, "5.111.111", text).wire(utf8=True).decode().encode()) <= 512


@pytest.mark.parametrize("eol", [b"\r\n", b"\n"])
def test_inspect(eol: bytes) -> None:
    lines = [
        b"Return-Path: <old@x>",
        b"Received: from a by b with ESMTP",
        b"\tid 4XyZ-1 for <u@d>; Mon, 1 Jan 2024",
        b"received: from c by d id OTHER; x",
        b"RETURN-PATH:",
        b" <folded@x>",
        b"Delivered-To: <Bob@X.org>",
        b"delivered-to: eve@x.org",
        b"Message-Id:",
        b" <1@x>",
        b"Subject: Return-Path: x",
        b"",
        b"Return-Path: in the body",
        b"Delivered-To: body@x.org",
    ]
    found = inspect(eol.join(lines))
    assert found.source == eol.join(lines)
    assert found.queue_id == "4XyZ-1"
    assert found.message_id == "<1@x>"
    assert found.delivered_to == {"bob@x.org": 1, "eve@x.org": 1}
    assert found.hops == 2
    assert not found.loops("BOB@x.org")


@pytest.mark.parametrize(
    "source", [b"", b"\r\n", b"\n", b"\r\nDelivered-To: a", b"x", b"\xff\0", b"a: b\r\n\r\nDelivered-To: a"]
)
def test_inspect_finds_nothing(source: bytes) -> None:
    found = inspect(source)
    assert (found.source, found.delivered_to, found.queue_id, found.message_id) == (source, {}, "", "")


def test_loops_are_counted() -> None:
    """RFC 5321 §6.3: at least 100 Received fields are allowed. A few deliveries to the
    same recipient are no loop."""
    for count, loops in ((1, False), (10, False), (11, True)):
        found = inspect(b"Delivered-To: bob@x.org\r\nReceived: from a\r\n" * count + b"\r\n")
        assert found.loops("Bob@x.org") is loops, count
        assert not found.loops("eve@x.org")
    for name in (b"Received: from a", b"Delivered-To: list@x.org"):
        assert not inspect((name + b"\r\n") * 100 + b"\r\n").loops("bob@x.org")
        assert inspect((name + b"\r\n") * 101 + b"\r\n").loops("bob@x.org")


@pytest.mark.parametrize("address", ["a+" + "x" * (ADDRESS_BYTES_MAX - 6) + "@b.c", "a+" + "\xe4" * 250 + "@b.c"])
def test_loops_of_the_longest_addresses_are_counted(address: str) -> None:
    source = f"Delivered-To: <{address}>\r\n".encode() * 11 + b"\r\nbody"
    assert inspect(source).loops(address)
    assert not inspect(source).loops(address[:-1])


def test_a_header_of_nothing_but_hops_is_not_read_to_its_end() -> None:
    found = inspect(b"delivered-to:a\n" * 20_000)
    assert found.hops == 101
    assert found.delivered_to == {"a": 101}


def test_only_the_beginning_is_looked_at() -> None:
    source = b"X: " + b"y" * (1 << 20) + b"\r\nReturn-Path: <x>\r\n\r\n"
    assert inspect(source).source == source


def test_trace_fields() -> None:
    fields = trace_fields(
        reverse_path="a@b",
        recipient="ü@d",
        lhlo="mta",
        remote="::1",
        hostname="mx",
        session_id="s-1",
        protocol="UTF8LMTP",
        unix_s=0,
    )
    lines = fields.decode().split("\r\n")
    assert lines[:2] == ["Return-Path: <a@b>", "Delivered-To: ü@d"]
    assert lines[2:5] == ["Received: from mta ([IPv6:::1])", "\tby mx with UTF8LMTP", "\tid s-1"]
    assert lines[5].startswith("\tfor <ü@d>; ")
    assert "1970" in lines[5]
    assert lines[6:] == [""]


def test_a_field_of_ours_is_one_field() -> None:
    fields = trace_fields(
        reverse_path="a\r\nX: y",
        recipient="b\nX: y",
        lhlo="c\rX: y",
        remote="unix",
        hostname="mx",
        session_id="s",
        protocol="LMTP",
        unix_s=0,
    )
    assert sum(not line.startswith(b"\t") for line in fields.split(b"\r\n")[:-1]) == 3
    assert fields.count(b"\n") == fields.count(b"\r\n") == fields.count(b"\r") == 6
