"""Members and the versions of forms: newer versions are written after an upgrade, when
all backends can read them."""

from __future__ import annotations

import msgspec
import pytest
from fleet import Fleet
from structlog.testing import capture_logs

from obox.cluster import (
    Kind,
    Member,
    Orders,
    Settings,
    State,
    decode,
)
from obox.cluster.view import SETTINGS_POLLS
from obox.forms import FORMS, Form

NEW = Form(first=1, reads=2)


async def with_forms(fleet: Fleet, **forms: int) -> None:
    """Write what `cluster upgrade` writes."""
    (row,) = (await fleet.directory.all(Kind.SETTINGS)).values()
    await fleet.put(Kind.SETTINGS, "directory", msgspec.structs.replace(decode(row.value, Settings), forms=forms))


async def reading(fleet: Fleet, name: str) -> None:
    """Let a member that reads the new form join."""
    member = await fleet.join(name)
    await member.view.put(Kind.MEMBERS, name, msgspec.structs.replace(member.myself.member, reads={"test": 2}))


async def test_newer_forms_are_written_after_an_upgrade(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FORMS, "test", NEW)
    for name in ("a", "b"):
        await reading(fleet, name)
    await fleet.seconds(3)
    assert not fleet.stores["a"].raised
    await with_forms(fleet, test=2)
    await fleet.seconds(SETTINGS_POLLS + 1)
    assert [fleet.stores[name].raised for name in ("a", "b")] == [[{"test": 2}], [{"test": 2}]], "once"


async def test_a_backend_that_comes_in_the_moment_of_an_upgrade_is_waited_for(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`cluster upgrade` has not seen it, and it has not seen `cluster upgrade`."""
    monkeypatch.setitem(FORMS, "test", NEW)
    for name in ("a", "b"):
        await reading(fleet, name)
    await with_forms(fleet, test=2)
    await fleet.put(Kind.MEMBERS, "old", Member("backend", "default", "127.0.0.1", {}, {"journal": 1}))
    with capture_logs() as logs:
        await fleet.seconds(2 * SETTINGS_POLLS)
    said = [line["backends"] for line in logs if line["event"].startswith("newer forms are not written yet")]
    assert set(said) == {"old cannot read test 2"}
    assert len(said) == 2, "each says it once"
    assert not fleet.stores["a"].raised
    await fleet.put(Kind.ORDERS, "old", Orders(State.OFFLINE))
    await fleet.seconds(2)
    assert fleet.stores["a"].raised == [{"test": 2}]


async def test_a_directory_that_was_lost_learns_the_forms_from_the_bucket(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FORMS, "test", NEW)
    await reading(fleet, "a")
    fleet.stores["a"].allowed = None  # before the start it does not know
    await fleet.seconds(2)
    fleet.stores["a"].allowed = {"test": 2}
    await fleet.seconds(2)
    assert not fleet.stores["a"].raised
    (row,) = (await fleet.directory.all(Kind.SETTINGS)).values()
    assert decode(row.value, Settings).forms == {"test": 2}
