"""The PROXY protocol header, versions 1 and 2: which client a proxy speaks for.

Pure: it takes bytes and returns a `Via`, or the number of bytes that are still missing.
The header is the first thing on a connection, before TLS. Bytes that follow the header
must not be read with it, so `need` never asks for a byte too many. See haproxy
doc/proxy-protocol.txt, §2.1 and §2.2.
"""

from __future__ import annotations

import ipaddress
import re
import struct
from dataclasses import dataclass

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
V1_BYTES_MAX = 107  # §2.1: the longest line, CRLF included
V2_HEAD_BYTES = 16  # signature 12, version and command 1, family 1, length 2
# Addresses and TLVs: a certificate's names are the longest seen.
V2_BYTES_MAX = V2_HEAD_BYTES + 4096
PP2_TYPE_SSL = 0x20
PP2_CLIENT_SSL = 0x01

_V1 = re.compile(rb"PROXY (?:UNKNOWN(?: .*)?|TCP([46]) (\S+) (\S+) (\d{1,5}) (\d{1,5}))\r\n")


class ProxyError(Exception):
    """The peer did not send a valid header. This is the peer's mistake, and the
    connection ends."""


@dataclass(frozen=True, slots=True)
class Via:
    """What the proxy says about its client.

    client, local: (address, port) at both ends of the client's connection. They are
    None if the proxy speaks for itself (a health check); then the transport's addresses
    are right. tls: the client's connection to the proxy is encrypted.
    """

    client: tuple[str, int] | None = None
    local: tuple[str, int] | None = None
    tls: bool = False


def need(data: bytes, arrived: bytes) -> int:
    """Return how many bytes of `arrived` belong to the header, at least 1 if it has
    any.

    data: the header so far. arrived: the bytes that came after it.

    Raises: ProxyError, as soon as the bytes cannot be a header.
    """
    seen = data + arrived
    if SIGNATURE.startswith(seen[:12]) and len(seen) < 12:
        return len(arrived)
    if seen.startswith(SIGNATURE):
        total = V2_HEAD_BYTES
        if len(seen) >= V2_HEAD_BYTES:
            total += int.from_bytes(seen[14:16], "big")
        if total > V2_BYTES_MAX:
            raise ProxyError("header too long")
        return min(len(arrived), total - len(data))
    end = seen.find(b"\n") + 1
    if not (b"PROXY " + seen[6:]).startswith(seen) or (end or len(seen)) > V1_BYTES_MAX:
        raise ProxyError("no PROXY header")
    return (end or len(seen)) - len(data)


def complete(data: bytes) -> bool:
    """Return whether `data`, collected by `need`, is a whole header."""
    if data.startswith(SIGNATURE):
        return len(data) >= V2_HEAD_BYTES and len(data) == V2_HEAD_BYTES + int.from_bytes(data[14:16], "big")
    return data.startswith(b"PROXY") and data.endswith(b"\n")


def parse(data: bytes) -> Via:
    """Read a whole header. Raises: ProxyError."""
    try:
        return _parse_v2(data) if data.startswith(SIGNATURE) else _parse_v1(data)
    except (ValueError, struct.error) as error:
        raise ProxyError(f"bad PROXY header: {error}") from error


def _parse_v1(data: bytes) -> Via:
    match = _V1.fullmatch(data)
    if not match:
        raise ProxyError("bad PROXY line")
    if not match[1]:
        return Via()
    kind = ipaddress.IPv4Address if match[1] == b"4" else ipaddress.IPv6Address
    source, target = (str(kind(match[i].decode("ascii"))) for i in (2, 3))
    ports = int(match[4]), int(match[5])
    if max(ports) > 65535:
        raise ProxyError("bad port")
    return Via((source, ports[0]), (target, ports[1]))


def _parse_v2(data: bytes) -> Via:
    version, command, family = data[12] >> 4, data[12] & 15, data[13]
    if version != 2 or command > 1:
        raise ProxyError("bad version or command")
    if command == 0:  # LOCAL: the proxy itself
        return Via()
    body = data[V2_HEAD_BYTES:]
    if family == 0x11:  # TCP over IPv4
        source, target, *ports = struct.unpack_from("!4s4sHH", body)
        rest = body[12:]
    elif family == 0x21:  # TCP over IPv6
        source, target, *ports = struct.unpack_from("!16s16sHH", body)
        rest = body[36:]
    else:  # UNSPEC, datagrams, unix sockets: no address that we could use
        return Via()
    tls = any(kind == PP2_TYPE_SSL and value[:1] and value[0] & PP2_CLIENT_SSL for kind, value in _tlvs(rest))
    client, local = str(ipaddress.ip_address(source)), str(ipaddress.ip_address(target))
    return Via((client, ports[0]), (local, ports[1]), tls)


def _tlvs(data: bytes) -> list[tuple[int, bytes]]:
    out, at = [], 0
    while at < len(data):
        kind, length = struct.unpack_from("!BH", data, at)
        at += 3
        if at + length > len(data):
            raise ProxyError("TLV too long")
        out.append((kind, data[at : at + length]))
        at += length
    return out
