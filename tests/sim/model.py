"""What was acknowledged, and whether it is still true.

Each fact that a client has seen is a `Register`: for example that a mail is there, that
a flag is set, or the name of a mailbox. It holds the set of values that a client may
see. An acknowledged change leaves a single value. A change without an answer leaves
both. A crash that loses the local state may bring the older value back, if the change
was acknowledged but not yet in the journal, and the contract allows that (flags and
expunges with `durability = "local"`).

A `Client` is an IMAP client with CONDSTORE and QRESYNC. It keeps what it has seen, asks
for what changed, and must then have the truth. It must never see a new UID below a UID
that it knows.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from obox.mailbox import State


@dataclass
class Register:
    allowed: set[Hashable]
    lately: list[tuple[float, set[Hashable]]] = field(default_factory=list)
    """Changes that may not be durable yet: the time of their acknowledgement, and the
    values that were allowed before."""
    serial: int = 0
    in_flight: int = 0

    def begin(self, value: Hashable) -> int:
        """A client asks for a change. From now on the change may have happened."""
        self.allowed = self.allowed | {value}
        self.lately = [(at, old | {value}) for at, old in self.lately]
        self.serial += 1
        self.in_flight += 1
        return self.serial

    def end(self, begun: int, value: Hashable, acknowledged: bool, at: float, durable: bool) -> None:
        self.in_flight -= 1
        alone = self.serial == begun and not self.in_flight
        if not acknowledged or not alone:
            return
        if durable:
            self.lately.clear()
        else:
            self.lately.append((at, set(self.allowed)))
        self.allowed = {value}

    def crash(self, since: float) -> None:
        """Allow for the loss of what was acknowledged after `since`."""
        for at, old in self.lately:
            if at >= since:
                self.allowed = self.allowed | old
        self.lately.clear()

    def seen(self, value: Hashable) -> bool:
        return value in self.allowed


@dataclass
class Mail:
    token: bytes
    live: Register
    flags: dict[str, Register] = field(default_factory=dict)

    def flag(self, name: str, known: bool = False) -> Register:
        if name not in self.flags:
            self.flags[name] = Register({False} if known else {False, True})
        return self.flags[name]


@dataclass
class Box:
    guid: str
    name: Register
    deleted: Register
    note: Register = field(default_factory=lambda: Register({None}))
    """The value of an annotation."""
    mails: dict[int, Mail] = field(default_factory=dict)


class Broken(AssertionError):
    """Something that was acknowledged is not true."""


def require(condition: object, *words: object) -> None:
    if not condition:
        raise Broken(" ".join(map(str, words)))


class Model:
    """The model of all facts about a user."""

    def __init__(self) -> None:
        self.boxes: dict[str, Box] = {}
        self.tokens: set[bytes] = set()
        self.contents: dict[tuple[str, int], bytes] = {}
        """The token of each (mailbox, UID). It never changes, for no session."""
        self.removable: set[bytes] = set()
        """Tokens of mails that a command may have removed for good."""
        self.delivered: set[bytes] = set()

    def registers(self) -> list[Register]:
        out: list[Register] = []
        for box in self.boxes.values():
            out += [box.name, box.deleted, box.note]
            for mail in box.mails.values():
                out += [mail.live, *mail.flags.values()]
        return out

    def crash(self, since: float) -> None:
        for register in self.registers():
            register.crash(since)

    def kept(self, since: float, until: float) -> None:
        """A crash kept the local state. The changes that were acknowledged after
        `since` are only in that state until the next life has written them to the
        journal, which it does by `until`."""
        for register in self.registers():
            register.lately = [(until if at >= since else at, old) for at, old in register.lately]

    def box(self, guid: str, name: str) -> Box:
        # The session that makes the change may not have its answer yet.
        if guid not in self.boxes:
            self.boxes[guid] = Box(guid, Register({name}), Register({False, name not in ("INBOX", "Trash")}))
        return self.boxes[guid]

    def saw(self, guid: str, uid: int, token: bytes) -> None:
        require(token in self.tokens, "a mail that nobody sent", guid, uid, token)
        before = self.contents.setdefault((guid, uid), token)
        require(before == token, "UID used twice", guid, uid, before, token)

    def mail(self, guid: str, uid: int, token: bytes) -> Mail:
        """Note that a client saw a mail. The mail must then stay until a client removes
        it."""
        self.saw(guid, uid, token)
        mails = self.boxes[guid].mails
        if uid not in mails:
            mails[uid] = Mail(token, Register({True}))
        return mails[uid]

    def check_box(self, guid: str, state: State, tokens: dict[int, bytes], *, adopt: bool = True) -> None:
        """Compare a mailbox with the facts. tokens: those of the mails that are there,
        read from the bucket."""
        box = self.boxes[guid]
        for uid, token in tokens.items():
            self.saw(guid, uid, token)
        for uid, mail in box.mails.items():
            there = uid in tokens
            require(mail.live.seen(there), "mail is" if there else "mail is not", "there:", guid, uid, mail)
            if not there:
                continue
            require(tokens[uid] == mail.token, "another mail", guid, uid)
            flags = flags_of(state)[uid]
            for name, register in mail.flags.items():
                require(register.seen(name in flags), "flag", name, "of", guid, uid, "is", name in flags, mail)
        if adopt:
            for uid, token in tokens.items():
                self.mail(guid, uid, token)


def flags_of(state: State) -> dict[int, frozenset[str]]:
    return {
        uid: frozenset(state.flags.of_bits(bits))
        for uid, bits in zip(state.uids.tolist(), state.bits.tolist(), strict=True)
    }


class Client:
    """What a client remembers of a mailbox."""

    def __init__(self) -> None:
        self.modseq = 0
        self.top = 0
        self.mails: dict[int, frozenset[str]] = {}

    def clone(self) -> Client:
        other = Client()
        other.modseq, other.top, other.mails = self.modseq, self.top, dict(self.mails)
        return other

    def resync(self, state: State, who: str, returning: set[int]) -> None:
        """Do SELECT (QRESYNC …) or FETCH 1:* (FLAGS) (CHANGEDSINCE … VANISHED). The
        client must then have the truth. returning: UIDs whose expunge was lost with the
        local state, and that may therefore come back."""
        truth = flags_of(state)
        require(self.modseq <= state.highestmodseq, who, "HIGHESTMODSEQ fell", self.modseq, state.highestmodseq)
        known = np.array(sorted(self.mails), dtype=np.uint32)
        for uid in state.gone_since(self.modseq, known).tolist():
            self.mails.pop(uid, None)
        changed = state.uids[state.modseqs > np.uint64(state.trusted(self.modseq))].tolist()
        for uid in changed:
            if uid not in self.mails:
                require(uid > self.top or uid in returning, who, "a new UID below one that was shown", uid, self.top)
            self.mails[uid] = truth[uid]
        self.modseq = state.highestmodseq
        self.top = max(self.top, state.uidnext - 1)
        if self.mails != truth:
            wrong = {
                uid: (sorted(self.mails.get(uid, ["-"])), sorted(truth.get(uid, ["-"])))
                for uid in self.mails.keys() | truth.keys()
                if self.mails.get(uid) != truth.get(uid)
            }
            raise Broken(f"{who}: after a resync the client does not have the truth: {wrong}")


def token_of(source: bytes) -> bytes:
    return source.rsplit(b"\r\n\r\n", 1)[1]


def mail_of(token: bytes) -> bytes:
    return b"Subject: " + token + b"\r\nFrom: a@example.org\r\n\r\n" + token


__all__ = ["Any", "Box", "Broken", "Client", "Mail", "Model", "Register", "flags_of", "mail_of", "require", "token_of"]
