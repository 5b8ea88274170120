"""Addresses of clients as limits count them: IPv4 by address, IPv6 by /64.

A client that has an IPv6 address has all 2^64 addresses of its network (RFC 6177 §2
gives a site at least a /64), so a limit for single addresses would not limit it. An
IPv4 address inside IPv6 (`::ffff:192.0.2.1`) counts as the IPv4 address. This module
does not know what is counted.
"""

from __future__ import annotations

import ipaddress
from functools import lru_cache
from typing import Final

IPV6_PREFIX_BITS: Final = 64
"""Addresses with the same prefix of this length count as the same client. A provider
gives a subscriber a network of this size or larger.
"""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@lru_cache(maxsize=256)
def parsed(remote: str) -> Address | None:
    """Parse an address. An IPv4 address inside IPv6 becomes IPv4. Returns None for a
    unix socket, and for text that is not an address.

    A scope (`fe80::1%eth0`, RFC 4007 §11) is left out.
    """
    try:
        address = ipaddress.ip_address(remote.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def counted(remote: str) -> str:
    """Return what a limit counts: the IPv4 address, or the network of an IPv6 address.

    "" for addresses of this machine, which a proxy or a webmail server uses for many
    clients, and for what is no address, such as a unix socket.
    """
    address = parsed(remote)
    if address is None or address.is_loopback:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.IPv6Network((address, IPV6_PREFIX_BITS), strict=False))
    return str(address)


def literal(remote: str) -> str:
    """Return an address literal: `[192.0.2.1]` or `[IPv6:2001:db8::1]`. RFC 5321
    §4.1.3."""
    address = parsed(remote)
    if address is None:
        return f"[{remote}]"
    return f"[IPv6:{address}]" if isinstance(address, ipaddress.IPv6Address) else f"[{address}]"
