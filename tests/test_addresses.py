"""Which addresses count as the same client, and how an address is written into a
mail."""

import pytest

from obox.addresses import counted, literal


@pytest.mark.parametrize(
    ("remote", "as_one", "written"),
    [
        ("192.0.2.1", "192.0.2.1", "[192.0.2.1]"),
        ("::ffff:192.0.2.1", "192.0.2.1", "[192.0.2.1]"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64", "[IPv6:2001:db8:1:2:3:4:5:6]"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64", "[IPv6:2001:db8:1:2::9]"),
        ("fe80::1%eth0", "fe80::/64", "[IPv6:fe80::1]"),
        ("127.0.0.1", "", "[127.0.0.1]"),
        ("::1", "", "[IPv6:::1]"),
        ("::ffff:127.0.0.1", "", "[127.0.0.1]"),
        ("", "", "[]"),
        ("unix", "", "[unix]"),
    ],
)
def test_addresses(remote: str, as_one: str, written: str) -> None:
    assert counted(remote) == as_one
    assert literal(remote) == written
