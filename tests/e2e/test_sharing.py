"""Users of a real backend share a mailbox, and the bucket alone brings the ACL back."""

from __future__ import annotations

import imaplib
from collections.abc import Callable

import pytest
from imapclient.exceptions import IMAPClientError
from mails import simple
from processes import PASSWORD, USERS, Backend

ANNA, BEN = USERS
WORK = f"shared/{ANNA}/Work"


def test_users_share_a_mailbox(make: Callable[..., Backend]) -> None:
    backend = make(sections={"imap": {"acl": True}})
    backend.start()
    with backend.login(ANNA) as anna, backend.login(BEN) as ben:
        assert b"ACL" in ben.capabilities()
        anna.create_folder("Work")
        anna.append("Work", simple(1))
        anna.setacl("Work", BEN, "lrsi")
        assert WORK in [name for _, _, name in ben.list_folders()]
        ben.select_folder(WORK)
        assert ben.fetch([1], [b"BODY[]"])[1][b"BODY[]"] == simple(1)
        ben.append(WORK, simple(2))
        anna.select_folder("Work")
        assert anna.search("SEEN") == [1]
    # Neither a crash nor the loss of all local state takes the ACL away.
    backend.kill()
    backend.lose_state()
    backend.start()
    with backend.login(ANNA) as anna, backend.login(BEN) as ben:
        ben.select_folder(WORK)
        assert sorted(ben.search("ALL")) == [1, 2]
        anna.setacl("Work", BEN, "-lrsi")
        with pytest.raises(IMAPClientError, match="Mailbox was deleted"):
            ben.search("ALL")
        assert WORK not in [name for _, _, name in ben.list_folders()]
    assert backend.stop() == 0


def test_workers_share_nothing_and_say_so(make: Callable[..., Backend]) -> None:
    backend = make(sections={"server": {"workers": 2}, "imap": {"acl": True}})
    backend.start()
    with backend.login(ANNA) as anna:
        assert b"ACL" not in anna.capabilities()
    with imaplib.IMAP4("127.0.0.1", backend.imap) as plain:
        plain.login(ANNA, PASSWORD)
        kind, (text,) = plain.setacl("INBOX", BEN, "lr")
        assert kind == "NO"
        assert b"Mailboxes are not shared here" in text
    assert backend.stop() == 0
