"""Where each verb runs in a cluster and in a unit of several workers. A verb that is
not in the table fails the test, so that the author of a verb decides."""

from __future__ import annotations

from typing import Final

import pytest

from obox.admin.loading import loaded
from obox.admin.spread import Goes, among_backends, among_workers

HERE, OWNER, ALL, ONE = Goes.HERE, Goes.OWNER, Goes.ALL, Goes.ONE

DIRECTORY: Final = """
    cluster backend add|cluster backend evacuate|cluster backend list|cluster backend remove|cluster backend status
    cluster backend update|cluster balance|cluster check|cluster dump|cluster group list|cluster group move
    cluster init|cluster load|cluster merges|cluster reboots|cluster site add|cluster site evacuate
    cluster site list|cluster site remove|cluster site status|cluster site update|cluster status|cluster upgrade
"""
CONFIGURATION: Final = """
    auth test|user add|user disable|user enable|user list|user password|user remove
"""
USERS: Final = """
    copy|expunge|fetch|flags add|flags remove|flags replace|force-resync|mailbox create|mailbox delete
    mailbox list|mailbox rename|mailbox status|mailbox subscribe|mailbox unsubscribe|metacache flush
    metacache refresh|move|obox user delete|obox user rename|obox user wait|quota get|quota recalc|rebuild
    search|storage upgrade|cluster user kick
"""
SERVERS: Final = """
    who|kick|metacache list|metacache status|metacache flushall|fscache status|log errors
"""
DISK_OF_ONE: Final = """
    fscache rescan|metacache boots|metacache remove|metacache rescan|stop|events groups
"""
BUCKET: Final = """
    storage check|storage finish-upgrade|metacache unpack|events lag|events dead-letters list
    events dead-letters show|events dead-letters redeliver|events dead-letters purge
"""


def _verbs(text: str) -> list[str]:
    return [one.strip() for line in text.split("\n") for one in line.split("|") if one.strip()]


TABLE: Final = {
    **dict.fromkeys(_verbs(DIRECTORY), (HERE, HERE)),
    **dict.fromkeys(_verbs(CONFIGURATION), (HERE, HERE)),
    **dict.fromkeys(_verbs(USERS), (OWNER, OWNER)),
    **dict.fromkeys(_verbs(SERVERS), (ALL, ALL)),
    **dict.fromkeys(_verbs(DISK_OF_ONE), (HERE, ALL)),
    **dict.fromkeys(_verbs(BUCKET), (HERE, ONE)),
    # These verbs need the directory alone, which every backend has.
    "cluster user move": (HERE, OWNER),
    "cluster user status": (HERE, OWNER),
    # Of the copies on the disk of the backend that is asked; a unit is one server.
    "metacache clean": (HERE, OWNER),
    "metacache pull": (HERE, OWNER),
    "reload": (HERE, HERE),
}
"""Where a verb runs: in a cluster, and among workers."""


async def test_each_verb_runs_where_it_belongs() -> None:
    verbs = (await loaded()).values()
    assert {verb.words: (among_backends(verb), among_workers(verb)) for verb in verbs} == TABLE


@pytest.mark.parametrize("words", _verbs(USERS))
async def test_what_concerns_a_user_works_from_anywhere(words: str) -> None:
    """No verb of a user's mail is for the member that happens to be asked."""
    (verb,) = (verb for verb in (await loaded()).values() if verb.words == words)
    assert among_backends(verb) is OWNER is among_workers(verb)
