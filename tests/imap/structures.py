"""The grammar of ENVELOPE, BODY and BODYSTRUCTURE. RFC 3501 §9, RFC 9051 §9."""

from __future__ import annotations

from typing import Any

from tests.imap.terminals import Terminals


class Structures(Terminals):
    """rev2: whether the client has enabled IMAP4rev2."""

    rev2 = False

    def envelope(self) -> list[Any]:
        """Read date, subject, from, sender, reply-to, to, cc, bcc, in-reply-to,
        message-id"""
        self.need(b"(")
        found: list[Any] = []
        for i in range(10):
            if i:
                self.need(b" ")
            found.append(self.addresses() if 2 <= i <= 7 else self.nstring())
        self.need(b")")
        return found

    def addresses(self) -> list[Any] | None:
        return None if self.nil() else self.items(self.address, empty=False, sep=b"")

    def address(self) -> list[bytes | None]:
        """ "(" addr-name SP addr-adl SP addr-mailbox SP addr-host ")"; a group begins
        and ends without a host."""
        self.need(b"(")
        found = [self.nstring()]
        for _ in range(3):
            self.need(b" ")
            found.append(self.nstring())
        self.need(b")")
        return found

    def body(self, *, extended: bool, depth: int = 0) -> Any:
        if depth > 200:
            self.fail("less depth")
        self.need(b"(")
        if self.data.startswith(b"(", self.at):
            parts = [self.body(extended=extended, depth=depth + 1)]
            while self.data.startswith(b"(", self.at):
                parts.append(self.body(extended=extended, depth=depth + 1))
            self.need(b" ")
            subtype = self.string()
            if extended and self.take(b" "):
                self.parameters()
                self.body_extension()
            self.need(b")")
            return subtype, parts
        kind = self.string()
        self.need(b" ")
        subtype = self.string()
        self.need(b" ")
        parameters = self.parameters()
        for _ in range(2):  # id, description
            self.need(b" ")
            self.nstring()
        self.need(b" ")
        encoding = self.string()
        self.need(b" ")
        octets = self.number()
        inner = None
        media = kind.upper(), subtype.upper()
        # Message/global is a basic part in IMAP4rev1.
        if media == (b"MESSAGE", b"RFC822") or (self.rev2 and media == (b"MESSAGE", b"GLOBAL")):
            self.need(b" ")
            envelope = self.envelope()
            self.need(b" ")
            inner = envelope, self.body(extended=extended, depth=depth + 1)
            self.need(b" ")
            self.number()
        elif media[0] == b"TEXT":
            self.need(b" ")
            self.number()
        if extended and self.take(b" "):
            self.nstring()  # MD5
            self.body_extension()
        self.need(b")")
        return kind, subtype, parameters, encoding, octets, inner

    def parameters(self) -> list[tuple[bytes, bytes]] | None:
        if self.nil():
            return None

        def one() -> tuple[bytes, bytes]:
            name = self.string()
            self.need(b" ")
            return name, self.string()

        return self.items(one, empty=False)

    def body_extension(self) -> None:
        """[SP body-fld-dsp [SP body-fld-lang [SP body-fld-loc]]]; body-extension is for
        RFCs to come."""
        if not self.take(b" "):
            return
        if not self.nil():
            self.need(b"(")
            self.string()
            self.need(b" ")
            self.parameters()
            self.need(b")")
        if not self.take(b" "):
            return
        if self.data.startswith(b"(", self.at):
            self.items(self.string, empty=False)
        else:
            self.nstring()
        if self.take(b" "):
            self.nstring()
