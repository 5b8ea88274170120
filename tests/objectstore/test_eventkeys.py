"""The keys of objects for events."""

from __future__ import annotations

import pytest

from obox.objectstore import eventkeys, keys
from obox.objectstore.eventkeys import CursorKey, DeadKey
from obox.types import StorageId

CURSOR = CursorKey("audit", "mail1", "01a22e34a3e2193f", 255, "01a22e34a3e2193f-0badf00d")
DEAD = DeadKey("audit", StorageId("anna@example.org"), 4096, "0badf00d")


def test_literal_keys() -> None:
    cursor = "_events/audit/cursor/mail1/01a22e34a3e2193f/00000000000000ff.01a22e34a3e2193f-0badf00d"
    assert eventkeys.cursor_key(CURSOR) == cursor
    assert eventkeys.dead_key(DEAD) == "_events/audit/dead/anna@example.org/0000000000001000.0badf00d"
    assert eventkeys.parse_cursor_key(cursor) == CURSOR
    assert eventkeys.parse_dead_key(eventkeys.dead_key(DEAD)) == DEAD
    for key in (cursor, eventkeys.dead_key(DEAD)):
        assert key.startswith(eventkeys.events_prefix("audit"))
        assert keys.owner_of(key) == keys.owner_in(f"/copy/of/bucket/{key}") == key.encode()


@pytest.mark.parametrize(
    "key",
    [
        "_events/audit/cursor/mail1/01/ff.x",
        "_events/audit/cursor/mail1/01/00000000000000ff",
        "_events/a_b/x/cursor/mail1/01/00000000000000ff.x",
        "_events/audit/dead/anna/0000000000001000.0BADF00D",
        "_events/audit/dead/A/0000000000001000.0badf00d",
        "_journal/audit/dead/0000000000001000",
    ],
)
def test_other_keys_are_refused(key: str) -> None:
    for parse in (eventkeys.parse_cursor_key, eventkeys.parse_dead_key):
        with pytest.raises(ValueError, match=r".*"):
            parse(key)
