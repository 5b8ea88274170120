"""What tests of the link between members have in common."""

from __future__ import annotations

import ssl

import pytest

from obox.net.dialogue import Dialogue


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """Owners are on another machine, and have no port under TLS. Returns the
    certificates that members have seen after STARTTLS."""
    seen: list[bytes] = []
    start = Dialogue.start_tls

    async def start_tls(self: Dialogue, context: ssl.SSLContext, handshake_s: float) -> None:
        await start(self, context, handshake_s)
        seen.append(self.certificate)

    monkeypatch.setattr(Dialogue, "local", property(lambda self: False))
    monkeypatch.setattr(Dialogue, "start_tls", start_tls)
    return seen
