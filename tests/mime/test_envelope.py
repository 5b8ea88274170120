"""ENVELOPE read back from its wire form."""

from obox.mime import envelope
from obox.mime.readback import VALUE_BYTES_MAX, Envelope, First, first_address, read_envelope

MAIL = (
    b'Date: Mon, 1 Jan 2024 10:00:00 +0000\r\nSubject: a \\ "b" %b\r\nFrom: "N \\" M" <f@x.org>, g@y.org\r\n'
    b"To: Team: t@x.org, u@x.org;\r\nCc: c@x.org\r\nIn-Reply-To: <r@x>\r\nMessage-ID: <m@x>\r\n\r\n"
)


def test_values_of_the_header() -> None:
    """A value that is 8-bit comes as a literal."""
    for odd in (b"", b"caf\xc3\xa9", b"(x) {3}", b"NIL"):
        found = read_envelope(envelope(MAIL % odd))
        assert found == Envelope(
            b"Mon, 1 Jan 2024 10:00:00 +0000",
            (b'a \\ "b" ' + odd).strip(),
            found.sender,
            found.to,
            found.cc,
            b"<r@x>",
            b"<m@x>",
        )
        assert first_address(found.sender) == First(b'N " M', b"f", b"x.org")
        assert first_address(found.to) == First(None, b"Team", None)
        assert first_address(found.cc) == First(None, b"c", b"x.org")


def test_addresses_with_literals() -> None:
    mail = b'From: "caf\xc3\xa9 \\\\ \\"x\\"" <f@x.org>, g@y.org\r\nTo: <t@x.org>\r\n\r\n'
    found = read_envelope(envelope(mail))
    assert first_address(found.sender) == First(b'caf\xc3\xa9 \\ "x"', b"f", b"x.org")
    assert first_address(found.to) == First(None, b"t", b"x.org")
    assert first_address(found.cc) is None


def test_a_mail_without_a_header() -> None:
    assert read_envelope(envelope(b"\r\nbody")) == Envelope()


def test_what_is_no_envelope() -> None:
    for wire in (b"", b"NIL", b"()", b"(NIL NIL)", b"(" * 1_000, b'("' * 1_000, b"{9}\r\n", b'("a" {99}\r\nx'):
        assert read_envelope(wire) == Envelope()


def test_only_the_beginning_of_a_long_value_is_kept() -> None:
    for char in (b"x", b'\\"', b"\xc3\xa9"):
        mail = b'Date: %b\r\nFrom: "%b" <f@x.org>\r\nTo: t@x.org\r\n\r\n' % (char * 9_000, char * 9_000)
        found = read_envelope(envelope(mail))
        assert found.date is not None
        assert len(found.date) == VALUE_BYTES_MAX
        first = first_address(found.sender)
        assert first is not None
        assert first.name is not None
        assert VALUE_BYTES_MAX // 2 <= len(first.name) <= VALUE_BYTES_MAX
        assert first_address(found.to) == First(None, b"t", b"x.org")
