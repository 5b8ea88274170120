"""How many connections an address may have: an IPv6 address counts as its network."""

import pytest

from obox.errors import Limit
from obox.net import Registry, Who, is_loopback


class Client:
    def who(self) -> Who:
        raise NotImplementedError

    def stop(self, reason: str) -> None:
        raise NotImplementedError

    abort = stop
    idle_since = None


def test_one_ipv6_network_is_one_address() -> None:
    registry = Registry()
    first, second = Client(), Client()
    registry.enter(first, "2001:db8:1:2::1", most=2)
    registry.enter(second, "2001:db8:1:2:ffff::2", most=2)
    with pytest.raises(Limit):
        registry.enter(Client(), "2001:db8:1:2::3", most=2)
    registry.enter(Client(), "2001:db8:1:3::1", most=2)
    for number in range(5):
        registry.enter(Client(), ("::1", "127.0.0.1", "::ffff:127.0.0.2", "", "127.9.9.9")[number], most=2)
    registry.leave(first, "2001:db8:1:2::1", "")
    registry.enter(Client(), "2001:db8:1:2::3", most=2)
    registry.enter(Client(), "192.0.2.1", most=1)
    with pytest.raises(Limit):
        registry.enter(Client(), "::ffff:192.0.2.1", most=1)


def test_this_machines_own() -> None:
    assert all(is_loopback(remote) for remote in ("", "127.0.0.1", "::1", "::1%lo", "::ffff:127.0.0.1"))
    assert not any(is_loopback(remote) for remote in ("junk", "192.0.2.1", "2001:db8::1"))
