"""The settings that rooms get from the configuration, where they are computed and not
only renamed."""

import pytest

from obox import rooms
from obox.config import load


@pytest.mark.parametrize(
    ("first", "most", "delays"),
    [("2s", "16s", [0, 2, 4, 8, 16]), ("2s", "15s", [0, 2, 4, 8, 15]), ("5s", "3s", [0, 3]), ("0", "16s", [0])],
)
def test_login_delays_double_up_to_the_most(first: str, most: str, delays: list[float]) -> None:
    environ = {"OBOX_AUTH__FAILURE_DELAY": first, "OBOX_AUTH__MAX_FAILURE_DELAY": most}
    assert list(rooms.login_delays(load(None, {"OBOX_STORAGE__URL": "memory://", **environ}))) == delays
