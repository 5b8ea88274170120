"""Senders of mails in a simulated cluster: they speak LMTP with the proxy, or with any
backend.

The servers, the links between them and the deliverers are the product's. A mail may
have several recipients, whose users belong to different backends. The answer for each
recipient is judged:

- a mail that was taken (250) is there, once;
- a mail that was not taken is there at most once, whatever the answer was;
- no mail is refused for good, and each mail is answered in time.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any, Final

from obox.accounts import Account
from obox.errors import Elsewhere
from obox.lmtp import Deliverer, Envelope, LmtpServer, Recipient, Settings
from obox.lmtp.delivery import StoreDeliverer
from obox.net.dialogue import Dialogue
from obox.proxy import Forwarder, LmtpForwarder
from obox.proxy.lmtp import ANSWER_S
from obox.proxy.waiting import PATIENCE_S
from obox.store import MailStore, NewMail
from obox.store.api import User
from obox.types import StorageId

from .loop import Host
from .model import mail_of, require, token_of
from .player import USER, Player
from .world import Node, World

OTHERS: Final = ("ben", "carl", "dora")
"""Recipients whose mail nobody reads, moves or deletes."""
LMTP_PORT: Final = 24
SETTINGS: Final = Settings()
ANSWERED_S: Final = SETTINGS.delivery_timeout_s + 2 * PATIENCE_S + 2 * ANSWER_S
"""A recipient waits for its owner to be known, then for the last attempt to begin, and
for the reply to the mail."""


class Users:
    """The user database."""

    async def account(self, user: str) -> Account | None:
        known = user == USER or user in OTHERS
        return Account(user, StorageId(user)) if known else None


class Senders:
    """All senders of a life, and the answers that they got."""

    def __init__(self, world: World, player: Player) -> None:
        self._world, self._player = world, player
        self._chance = random.Random(world.seed + 7)
        self._tried: dict[str, set[bytes]] = {user: set() for user in OTHERS}
        self._taken: dict[str, set[bytes]] = {user: set() for user in OTHERS}
        self._contents: dict[tuple[str, str, int], bytes] = {}
        """The token of each (user, mailbox, UID) that was seen."""
        self._handed: Counter[tuple[str, bytes]] = Counter()
        """How often a store was given a mail for a recipient."""
        self.results: Counter[str] = Counter()
        """Replies by their code; "" is no answer."""

    # -- a server --------------------------------------------------------------------------------------------------

    def serve(self, name: str, host: Host, deliverer: Deliverer, forwarder: Forwarder) -> LmtpServer:
        """Return the LMTP server of a member, which does not listen yet."""
        server = LmtpServer(deliverer, SETTINGS, wall_clock=self._world.now)
        server.hub.clock = self._world.clock
        server.forwards(LmtpForwarder(forwarder, Users))
        net = self._world.net

        def dies() -> None:
            net.dies(name, host, silently=self._chance.random() < 0.3)

        host.on_death = dies
        return server

    def hand(self, user: str, token: bytes) -> None:
        """A backend gives a mail to its store."""
        self._handed[user, token] += 1

    def not_here(self, user: str, token: bytes) -> None:
        """The store did not take the mail, since another backend owns the user."""
        self._handed[user, token] -= 1

    # -- a mail ----------------------------------------------------------------------------------------------------

    async def send(self, via: str, rng: random.Random) -> None:
        """Send a mail to some users."""
        users = rng.sample([USER, *OTHERS], rng.choice([1, 1, 2, 4]))
        token, world = self._player.token(), self._world
        for user in users:
            self._tried.setdefault(user, set()).add(token)
        world.note("mail", token, "to", users, "by", via)
        began, replies = world.clock(), dict.fromkeys(users, "")
        try:
            async with asyncio.timeout(ANSWERED_S):
                await self._talk(via, token, replies)
        except OSError as error:  # a TimeoutError is one, too
            world.note("mail", token, "ends with", type(error).__name__, error)
        took = world.clock() - began
        require(took < ANSWERED_S, "the sender of", token, "waited", round(took, 1), "s")
        world.note("mail", token, {user: reply[:9] for user, reply in replies.items()})
        for user, reply in replies.items():
            require(self._handed[user, token] <= 1, token, "for", user, "went to a store twice")
            self.results[reply[:3]] += 1
            require(reply[:1] in ("", "2", "4"), token, "for", user, "is refused for good:", reply)
            if reply.startswith("2"):
                self._taken.setdefault(user, set()).add(token)
                if user == USER:
                    self._player.model.delivered.add(token)

    async def _talk(self, via: str, token: bytes, replies: dict[str, str]) -> None:
        """Fill in the answer for each recipient. Raises: OSError."""
        _, dialogue = await asyncio.get_running_loop().create_connection(Dialogue, via, LMTP_PORT)
        try:
            await _reply(dialogue)
            await dialogue.send(b"LHLO sender\r\n")
            await _reply(dialogue)
            mail = mail_of(token)
            await dialogue.send(b"MAIL FROM:<from@example.org> SIZE=%d\r\n" % len(mail))
            if not (await _reply(dialogue)).startswith("250"):
                return
            accepted = []
            for user in replies:
                await dialogue.send(b"RCPT TO:<%b>\r\n" % user.encode())
                reply = await _reply(dialogue)
                if reply.startswith("250"):
                    accepted.append(user)
                else:
                    replies[user] = reply
            if accepted:
                await dialogue.send(b"BDAT %d LAST\r\n" % len(mail) + mail)
                for user in accepted:
                    replies[user] = await _reply(dialogue)
            await dialogue.send(b"QUIT\r\n")
        finally:
            dialogue.close()

    # -- looking ---------------------------------------------------------------------------------------------------

    async def look(self, node: Node, user: str, opened: Opened) -> set[bytes]:
        """Look at a user's INBOX at a backend, and return its mails."""

        async def select(_: MailStore) -> Any:
            one = await opened.open_user(user, StorageId(user))
            try:
                return await one.user.select("INBOX")
            finally:
                await one.release()

        box = await node.run(select)
        found = []
        for at, uid in enumerate(box.state.uids.tolist()):
            guid, home_uid = box.state.home_of(at)
            token = self._player.read(guid, home_uid, StorageId(user))
            require(token is not None and token in self._tried[user], user, "has a mail that nobody sent:", uid, token)
            assert token is not None
            before = self._contents.setdefault((user, box.guid, uid), token)
            require(before == token, "UID used twice", user, uid, before, token)
            found.append(token)
        await box.release()
        require(len(found) == len(set(found)), user, "has a mail twice:", found)
        return set(found)

    async def nothing_lost(self, node: Node) -> None:
        """Assert that each mail that was taken is there."""
        twice = [what for what, times in self._handed.items() if times > 1]
        require(not twice, "went to a store twice:", twice)
        for user in OTHERS:
            assert node.store is not None
            lost = self._taken[user] - await self.look(node, user, Opened(node.store))
            require(not lost, "taken for", user, "and gone:", lost)


async def _reply(dialogue: Dialogue) -> str:
    while (line := await dialogue.line())[3:4] == b"-":
        pass
    return line.decode()


class SimDeliverer(StoreDeliverer):
    """The deliverer of a simulated backend."""

    def __init__(self, senders: Senders, node: Node) -> None:
        assert node.store is not None
        self.opened = Opened(node.store)
        super().__init__(self.opened, Users(), mail_bytes_max=SETTINGS.mail_bytes_max)  # type: ignore[arg-type]  # it has what a deliverer uses of a store
        self._senders = senders

    async def deliver(self, recipient: Recipient, envelope: Envelope, source: bytes) -> None:
        token = token_of(source)
        self._senders.hand(recipient.user, token)
        try:
            await super().deliver(recipient, envelope, source)
        except Elsewhere:
            self._senders.not_here(recipient.user, token)
            raise


class Opened:
    """A store that counts who has a user open: a kick ends sessions, and neither
    deliveries nor looks."""

    def __init__(self, store: MailStore) -> None:
        self._store = store
        self.count: Counter[User] = Counter()

    async def admit(self, sid: StorageId) -> None:
        await self._store.admit(sid)

    async def open_user(self, name: str, sid: StorageId, **quota: Any) -> _Opened:
        user = await self._store.open_user(name, sid, **quota)
        self.count[user] += 1
        return _Opened(self, user)


class _Opened:
    def __init__(self, store: Opened, user: User) -> None:
        self._store, self.user = store, user

    async def append(self, name: str, mails: Sequence[NewMail]) -> Any:
        return await self.user.append(name, mails)

    async def release(self) -> None:
        self._store.count[self.user] -= 1
        await self.user.release()


__all__ = ["LMTP_PORT", "OTHERS", "Senders", "SimDeliverer"]
