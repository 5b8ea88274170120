"""SASL PLAIN and LOGIN, without I/O."""

from base64 import b64encode

import pytest

from obox.auth import Challenge, Credentials, SaslCancelled, SaslError, SaslServer, mechanisms


def test_only_with_tls() -> None:
    assert mechanisms(True) == ("PLAIN", "LOGIN")
    assert mechanisms(False) == ()


def test_plain_with_initial_response() -> None:
    got = SaslServer().start("plain", b64encode("\0bob\0päss".encode()))
    assert got == Credentials("bob", "päss")
    assert "päss" not in repr(got)


def test_plain_without_initial_response() -> None:
    server = SaslServer()
    assert server.start("PLAIN") == Challenge(b"")
    assert server.step(b64encode(b"bob\0bob\0x")) == Credentials("bob", "x")


def test_login() -> None:
    server = SaslServer()
    asked = server.start("LOGIN")
    assert asked == Challenge(b"Username:")
    assert isinstance(asked, Challenge)
    assert asked.wire == b"VXNlcm5hbWU6"
    assert server.step(b64encode(b"bob")) == Challenge(b"Password:")
    assert server.step(b64encode(b"x")) == Credentials("bob", "x")


def test_login_with_the_name_as_initial_response() -> None:
    server = SaslServer()
    assert server.start("LOGIN", b64encode(b"bob")) == Challenge(b"Password:")
    assert server.step(b"") == Credentials("bob", "")


@pytest.mark.parametrize(
    ("mechanism", "initial", "text"),
    [
        ("CRAM-MD5", None, "Unsupported"),
        ("", None, "Unsupported"),
        ("PLAIN", b"?", "base64"),
        ("PLAIN", b"AGI=AGI=", "base64"),
        ("PLAIN", b" AGIAYg==", "base64"),
        ("PLAIN", b"=", "three parts"),
        ("PLAIN", b64encode(b"bob\0x"), "three parts"),
        ("PLAIN", b64encode(b"\0b\0x\0y"), "three parts"),
        ("PLAIN", b64encode(b"eve\0bob\0x"), "another user"),
        ("PLAIN", b64encode(b"\0\0x"), "empty"),
        ("PLAIN", b64encode(b"\0b\xff\0x"), "UTF-8"),
        ("PLAIN", b"A" * 9000, "too long"),
        ("LOGIN", b"=", "empty"),
        ("LOGIN", b64encode(b"b\0b"), "NUL"),
    ],
)
def test_mistakes(mechanism: str, initial: bytes | None, text: str) -> None:
    with pytest.raises(SaslError, match=text):
        SaslServer().start(mechanism, initial)


def test_cancelled() -> None:
    server = SaslServer()
    server.start("PLAIN")
    with pytest.raises(SaslCancelled):
        server.step(b"*")


def test_out_of_turn() -> None:
    server = SaslServer()
    with pytest.raises(SaslError, match="No auth"):
        server.step(b"")
    server.start("LOGIN")
    with pytest.raises(SaslError, match="already"):
        server.start("PLAIN")
