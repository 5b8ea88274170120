"""PROXY headers: the result does not depend on how the bytes are split, no byte behind
the header is used up, and a header with errors is refused."""

import ipaddress
import struct

import pytest

from obox.net.proxy import SIGNATURE, ProxyError, Via, complete, need, parse


def v2(family: int, body: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + struct.pack("!BBH", command, family, len(body)) + body


def addresses(source: str, target: str, ports: tuple[int, int]) -> bytes:
    return ipaddress.ip_address(source).packed + ipaddress.ip_address(target).packed + struct.pack("!HH", *ports)


V4 = addresses("192.0.2.7", "198.51.100.1", (4000, 143))
SSL_TLV = b"\x20\x00\x05\x01\x00\x00\x00\x00"
GOOD = [
    (b"PROXY TCP4 192.0.2.7 198.51.100.1 4000 143\r\n", Via(("192.0.2.7", 4000), ("198.51.100.1", 143))),
    (b"PROXY TCP6 2001:db8::1 2001:db8::2 4000 143\r\n", Via(("2001:db8::1", 4000), ("2001:db8::2", 143))),
    (b"PROXY UNKNOWN\r\n", Via()),
    (b"PROXY UNKNOWN ffff::1 ffff::2 1 2\r\n", Via()),
    (v2(0x11, V4), Via(("192.0.2.7", 4000), ("198.51.100.1", 143))),
    (v2(0x11, V4 + b"\x04\x00\x02xx" + SSL_TLV), Via(("192.0.2.7", 4000), ("198.51.100.1", 143), tls=True)),
    (v2(0x21, addresses("2001:db8::1", "2001:db8::2", (1, 2))), Via(("2001:db8::1", 1), ("2001:db8::2", 2))),
    (v2(0x00, b"", command=0x20), Via()),
    (v2(0x31, b"\0" * 216), Via()),
]


@pytest.mark.parametrize(("header", "via"), GOOD)
@pytest.mark.parametrize("step", [1, 2, 3, 7, 16, 1000])
def test_any_split(header: bytes, via: Via, step: int) -> None:
    stream, read = header + b"a1 CAPABILITY\r\n", b""
    while not complete(read):
        ahead = stream[len(read) : len(read) + step]
        count = need(read, ahead)
        assert 1 <= count <= len(ahead)
        read += ahead[:count]
    assert read == header
    assert parse(read) == via


@pytest.mark.parametrize("data", [b"a1 LOGIN a b\r\n", b"PROXX", b"\r\n\r\nx", b"PROXY " + b"x" * 102])
def test_refused_at_the_first_wrong_byte(data: bytes) -> None:
    with pytest.raises(ProxyError):
        need(b"", data)
    with pytest.raises(ProxyError):
        _ = [need(data[:at], data[at : at + 1]) for at in range(len(data))]


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1\r\n",
        b"PROXY TCP4 ::1 ::1 1 2\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n",
        b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n",
        v2(0x11, b"short"),
        v2(0x11, V4, command=0x31),
        v2(0x11, V4, command=0x22),
        v2(0x11, V4 + b"\x04\xff\xff"),
    ],
)
def test_bad_headers(header: bytes) -> None:
    with pytest.raises(ProxyError):
        parse(header)


def test_a_v2_header_has_a_limit() -> None:
    with pytest.raises(ProxyError, match="too long"):
        need(b"", SIGNATURE + b"\x21\x11\xff\xff")
