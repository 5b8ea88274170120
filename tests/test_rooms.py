"""The settings that rooms get from the configuration, where they are computed and not
only renamed."""

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from obox import rooms
from obox.config import load


@pytest.mark.parametrize(
    ("first", "most", "delays"),
    [("2s", "16s", [0, 2, 4, 8, 16]), ("2s", "15s", [0, 2, 4, 8, 15]), ("5s", "3s", [0, 3]), ("0", "16s", [0])],
)
def test_login_delays_double_up_to_the_most(first: str, most: str, delays: list[float]) -> None:
    environ = {"OBOX_AUTH__FAILURE_DELAY": first, "OBOX_AUTH__MAX_FAILURE_DELAY": most}
    assert list(rooms.login_delays(load(None, {"OBOX_STORAGE__URL": "memory://", **environ}))) == delays


@pytest.mark.parametrize(
    ("secret", "mode", "reason"),
    [("short", 0o600, "fewer than 32 characters"), ("s" * 32, 0o644, "mode 0600"), ("s" * 32, 0o600, "")],
)
def test_a_short_or_readable_secret_is_warned_of_and_used(tmp_path: Path, secret: str, mode: int, reason: str) -> None:
    """An operator who rotates secrets does not lose the cluster."""
    file = tmp_path / "secret"
    file.write_text(f"{secret}\n")
    file.chmod(mode)
    config = load(None, {"OBOX_STORAGE__URL": "memory://", "OBOX_CLUSTER__SECRET_FILE": str(file)})
    with capture_logs() as logs:
        assert rooms.link_secrets(config) == (secret.encode(),)
    reported = [(line["event"], line["log_level"], line["path"]) for line in logs]
    assert reported == ([("cluster.secret_file is weak", "warning", str(file))] if reason else [])
    assert all(reason in line["reason"] for line in logs)
