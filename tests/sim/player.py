"""The sessions of a user: their commands and answers, and the model that remembers
them."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Hashable
from functools import partial
from typing import Any

import numpy as np

from metacache import Change
from obox.errors import Exists, Invalid, Limit, NotFound, OboxError, Unavailable
from obox.mailbox import CLAIM_PURGED
from obox.mailbox.invariants import check
from obox.objectstore.keys import bundles_prefix, mail_key, owner_of, parse_mail_key, user_prefix
from obox.store import MailStore, NewMail
from obox.store.mails.places import place_of
from obox.store.operate import repair
from obox.types import Guid, StorageId, Uid

from .caches import Disk
from .loop import NOBODY
from .model import Broken, Client, Mail, Model, Register, flags_of, mail_of, require, token_of
from .objects import claim_in, found_mail, mails_of
from .world import ANSWER_S, CODEC, DELETE_DELAY_S, Crash, Node, World

USER = "anna"
SID = StorageId(USER)
FLAGS = ("\\Seen", "\\Flagged", "\\Deleted", "work", "later")

Op = Callable[["Player", Node, random.Random], Awaitable[None]]


KINDS = [
    "append", "many", "burst", "store", "expunge", "copy", "move", "create", "rename", "delete", "resync", "annotate"
]  # fmt: skip
"""The commands of a life."""
WEIGHTS = [8, 2, 3, 8, 3, 3, 3, 1, 1, 1, 1, 1]
GENTLE = [8, 2, 3, 8, 3, 3, 3, 1, 0, 0, 1, 0]


class Player:
    """The clients of a user, and what they have seen."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.model = Model()
        self.clients: dict[str, dict[str, Client]] = {}
        self.serial = 0
        self.residue = 0
        self.home_of: dict[tuple[str, int], tuple[str, int]] = {}
        self.split = False
        """Two writers work, and neither knows the changes of the other."""
        self.unanswered = 0
        self.acknowledged = 0
        self.checks: list[Callable[[Node], Awaitable[None]]] = []
        """What else must be true at the end, of the bucket alone."""

    # -- one command -----------------------------------------------------------------------------------------------

    async def ask(
        self,
        node: Node,
        what: str,
        work: Callable[[MailStore], Any],
        changes: list[tuple[Register, Any]],
        *,
        durable: bool = True,
        holds: Callable[[int], bool] = lambda number: True,
    ) -> Any:
        """Run a command. Return its answer, or None if the answer is NO or missing.
        changes: the facts that OK confirms; holds: whether the answer confirms the
        change of that number, or says that there was nothing to change."""
        world = self.world
        begun = [(register, value, register.begin(value)) for register, value in changes]
        began, result, ok = world.clock(), None, False
        world.note(node, what)
        try:
            result = await node.run(work)
            ok = True
            self.acknowledged += 1
            world.note(node, what, "OK", result if isinstance(result, tuple | str) else "")
        except Crash:
            world.note(node, what, "no answer")
        except (Unavailable, NotFound, Exists, Limit, Invalid) as exc:
            world.note(node, what, "NO", exc)
            self.unanswered += 1
        finally:
            durable = durable or node.settings.durability == "bucket"
            for number, (register, value, serial) in enumerate(begun):
                register.end(serial, value, ok and holds(number), world.clock(), durable)
        if not node.was_frozen:
            require(world.clock() - began <= ANSWER_S, what, "took", round(world.clock() - began, 1), "s")
        return result if ok else None

    def token(self) -> bytes:
        self.serial += 1
        token = b"mail %d" % self.serial
        self.model.tokens.add(token)
        return token

    async def boxes_of(self, node: Node) -> list[tuple[str, str]]:
        """Return the names and GUIDs of the mailboxes that this node shows."""
        try:
            user = await node.user(USER)
        except (Crash, OboxError):
            return []
        found = [(info.name, info.guid) for info in user.mailboxes() if info.guid is not None]
        for name, guid in found:
            self.model.box(guid, name)
        return found

    async def select_box(self, node: Node, name: str) -> Any:
        async def select(store: MailStore) -> Any:
            return await (await store.open_user(USER, SID)).select(name)

        try:
            return await node.run(select)
        except (Crash, OboxError):
            return None

    # -- commands ----------------------------------------------------------------------------------------------------

    async def append(self, node: Node, name: str, guid: str, count: int = 1, flags: tuple[str, ...] = ()) -> list[int]:
        tokens = [self.token() for _ in range(count)]

        async def append(store: MailStore) -> Any:
            user = await store.open_user(USER, SID)
            return await user.append(name, [NewMail(mail_of(token), flags) for token in tokens])

        done = await self.ask(node, f"append {count} to {name}", append, [])
        if done is None:
            return []
        for uid, token in zip(done.uids, tokens, strict=True):
            self.model.delivered.add(token)
            if self.model.boxes[guid].deleted.seen(True):
                # Two commands run at the same time, so the removal may come before the
                # DELETE.
                self.model.removable.add(token)
            mail = self.model.mail(guid, uid, token)
            if not mail.live.serial:
                mail.live.allowed = {True}
            for flag in FLAGS:
                mail.flag(flag, known=True)
                if flag in flags and mail.flag(flag).allowed == {False}:
                    mail.flag(flag).allowed = {True}
        return [int(uid) for uid in done.uids]

    async def burst(self, node: Node, name: str, guid: str, rng: random.Random) -> None:
        """Several senders deliver to a mailbox at nearly the same time."""

        async def send(after_s: float, count: int) -> None:
            await asyncio.sleep(after_s)
            await self.append(node, name, guid, count)

        await asyncio.gather(
            *(send(rng.choice([0, 0, 0.002, 0.01]), rng.choice([1, 1, 1, 3])) for _ in range(rng.randint(2, 7)))
        )

    def _mails(self, guid: str, box: Any, uids: list[int]) -> list[Mail]:
        found = []
        for uid in uids:
            token = self.model.contents.get((guid, uid))
            home, home_uid = box.state.home_of(box.state.position(uid))
            self.home_of[guid, uid] = home, home_uid
            if token is None:
                token = self._there(home, home_uid, "a mail without its object", guid, uid)
            new = uid not in self.model.boxes[guid].mails
            mail = self.model.mail(guid, uid, token)
            if new and self.split:
                # This mail belongs to a group that its writer takes back.
                mail.live.allowed = {False, True}
            found.append(mail)
        return found

    def read(self, home: str, home_uid: int, sid: StorageId = SID) -> bytes | None:
        """Return what the bucket has for a record."""
        return found_mail(self.world, sid, home, home_uid)[1]

    def _placed(self, guid: str, box: Any, at: int) -> bytes:
        """Return what the bucket has for the record at a position, and assert that it
        is where the record says."""
        home, home_uid = box.state.home_of(at)
        token = self._there(home, home_uid, "a mail whose object is gone:", guid, int(box.state.uids[at]))
        says = place_of(box.state, at, SID, home, home_uid)
        where = found_mail(self.world, SID, home, home_uid)[0]
        require(where == (says.under, says.start), "the mail is at", where, "and its record says", says)
        return token

    async def store(self, node: Node, name: str, guid: str, uids: list[int], op: str, flags: list[str]) -> None:
        box = await self.select_box(node, name)
        if box is None:
            return
        uids = [uid for uid in uids if box.state.position(uid) is not None]
        value = op == "add"
        changes = [(mail.flag(flag), value) for mail in self._mails(guid, box, uids) for flag in flags]
        array = np.array(uids, dtype=np.uint32)
        await self.ask(
            node,
            f"store {name} {uids} {op} {flags}",
            lambda store: box.store_flags(array, op, flags),
            changes,
            durable=False,
            holds=lambda number: box.state.position(uids[number // len(flags)]) is not None,
        )

    async def expunge(self, node: Node, name: str, guid: str, uids: list[int]) -> None:
        box = await self.select_box(node, name)
        if box is None:
            return
        uids = [uid for uid in uids if box.state.position(uid) is not None]
        mails = self._mails(guid, box, uids)
        self.model.removable |= {mail.token for mail in mails}
        array = np.array(uids, dtype=np.uint32)
        changes = [(mail.live, False) for mail in mails]
        await self.ask(node, f"expunge {name} {uids}", lambda store: box.expunge(array), changes, durable=False)

    async def copy(self, node: Node, name: str, guid: str, uids: list[int], to: str, to_guid: str, move: bool) -> None:
        box = await self.select_box(node, name)
        if box is None:
            return
        uids = [uid for uid in uids if box.state.position(uid) is not None]
        mails = {uid: mail for uid, mail in zip(uids, self._mails(guid, box, uids), strict=True)}
        array = np.array(uids, dtype=np.uint32)

        async def copy(store: MailStore) -> Any:
            user = await store.open_user(USER, SID)
            return await user.copy(box, array, to, move=move)

        changes = [(mail.live, False) for mail in mails.values()] if move else []
        both: set[Hashable] = {False, True}
        before = {uid: {flag: set(mail.flag(flag).allowed) for flag in FLAGS} for uid, mail in mails.items()}
        what = f"{'move' if move else 'copy'} {name} {uids} to {to}"
        done = await self.ask(node, what, copy, changes)
        if move and self.model.boxes[to_guid].deleted.seen(True):
            # Another writer deletes the mailbox at the same time, and neither knows of
            # the other, so the MOVE may count as earlier than the DELETE. The same
            # holds for a DELETE that was answered NO, because it may have taken effect.
            self.model.removable |= {mail.token for mail in mails.values()}
        if done is None:
            return
        for uid in set(uids) - set(done.source.tolist()) if move else ():
            mails[uid].live.allowed.add(True)
        for uid, new in zip(done.source.tolist(), done.target.tolist(), strict=True):
            copied = self.model.mail(to_guid, new, mails[uid].token)
            for flag in FLAGS:
                # Only the flags that this writer knows can be compared.
                if self.split:
                    copied.flag(flag).allowed = {False, True}
                    continue
                copied.flag(flag).allowed = both & (before[uid][flag] | mails[uid].flag(flag).allowed)

    async def resync(self, node: Node, name: str, guid: str, skip_uids: int) -> None:
        """Run force-resync, as an administrator does. No mail is lost here, so none is
        expunged. The command may take long, and be refused."""

        async def resync(store: MailStore) -> Any:
            user = await store.load_user(USER, SID)
            return await repair.resync(user, Guid(guid), keep_lost=False, skip_uids=skip_uids)

        self.world.note(node, f"resync {name}, skip {skip_uids}")
        try:
            self.world.note(node, f"resync {name}", await node.run(resync))
        except (Crash, OboxError) as exc:
            self.world.note(node, f"resync {name}", "NO", exc)

    async def create(self, node: Node, name: str) -> None:
        guid = await self.ask(
            node, f"create {name}", lambda store: self._as_user(store, lambda user: user.create(name)), []
        )
        if guid is not None:
            box = self.model.box(guid, name)
            if not box.deleted.serial:
                box.deleted.allowed = {False}

    async def delete(self, node: Node, name: str, guid: str) -> None:
        box = self.model.box(guid, name)
        changes: list[tuple[Register, Any]] = [(box.deleted, True)]
        self.model.removable |= {mail.token for mail in box.mails.values()}
        seen = await self.select_box(node, name)
        if seen is not None:
            await seen.release()
            uids = seen.state.uids.tolist()
            mails = self._mails(guid, seen, uids)
            self.model.removable |= {mail.token for mail in mails}
        await self.ask(
            node, f"delete {name}", lambda store: self._as_user(store, lambda user: user.delete(name)), changes
        )
        # The backend may have been frozen when the command came.
        self.model.removable |= {mail.token for mail in box.mails.values()}

    async def rename(self, node: Node, old: str, new: str, guid: str) -> None:
        changes: list[tuple[Register, Any]] = [(self.model.box(guid, old).name, new)]
        await self.ask(
            node, f"rename {old} {new}", lambda store: self._as_user(store, lambda user: user.rename(old, new)), changes
        )

    async def annotate(self, node: Node, name: str, guid: str, value: bytes | None) -> None:
        changes: list[tuple[Register, Any]] = [(self.model.box(guid, name).note, value)]

        async def change(user: Any) -> None:
            await user.annotations.change(name, {"/private/note": value})

        await self.ask(node, f"annotate {name}", lambda store: self._as_user(store, change), changes)

    async def _as_user(self, store: MailStore, work: Callable[[Any], Any]) -> Any:
        return await work(await store.open_user(USER, SID))

    # -- looking -----------------------------------------------------------------------------------------------------

    async def look(self, node: Node, who: str = "client", *, adopt: bool = True, complete: bool = True) -> None:
        """Look at everything as a client. Each fact must hold, and after a resync the
        client must have the truth."""
        clients = self.clients.setdefault(who, {})
        user = await self._login(node)
        shown = {info.guid: info.name for info in user.mailboxes() if info.guid is not None}
        for guid, name in shown.items():
            self.model.box(guid, name)
        for guid, box in self.model.boxes.items() if complete else ():
            if guid not in shown:
                require(box.deleted.seen(True), "mailbox is gone:", guid, box.name)
                continue
            require(box.deleted.seen(False), "mailbox is back:", guid, box.name)
            fits = any(shown[guid] == name or shown[guid].startswith(f"{name}-") for name in box.name.allowed)
            require(fits, "mailbox", guid, "is named", shown[guid], "not", box.name)
            note = user.annotations.of(shown[guid]).get("/private/note")
            require(box.note.seen(note), "mailbox", guid, "has the note", note, "not", box.note)
        for guid, name in shown.items():
            box = await self._open(node, name)
            check(box.state)
            tokens = self._tokens(guid, box)
            if complete:
                self.model.check_box(guid, box.state, tokens, adopt=adopt)
            returning = {uid for uid, mail in self.model.boxes[guid].mails.items() if mail.live.serial}
            clients.setdefault(guid, Client()).resync(box.state, f"{who} in {name}", returning)
            await box.release()
        await user.release()

    async def _login(self, node: Node) -> Any:
        return await self._again(lambda: node.user(USER))

    async def _open(self, node: Node, name: str) -> Any:
        return await self._again(lambda: node.run(lambda store: self._as_user(store, lambda user: user.select(name))))

    async def _again(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Repeat the work as a client does, while the answer is a temporary error."""
        for _ in range(6):
            try:
                return await work()
            except Unavailable:
                await asyncio.sleep(5)
        return await work()

    def _tokens(self, guid: str, box: Any) -> dict[int, bytes]:
        tokens = {}
        for at, uid in enumerate(box.state.uids.tolist()):
            self.home_of[guid, uid] = box.state.home_of(at)
            tokens[uid] = self._placed(guid, box, at)
        return tokens

    def _there(self, home: str, home_uid: int, *fault: object) -> bytes:
        """Return what the bucket has for a record, which must have an object."""
        token = self.read(home, home_uid)
        require(token is not None, *fault, (home, home_uid))
        assert token is not None
        return token

    def lost(self, node: Node) -> None:
        """The local state of a killed node is gone. What it had not written to the
        bucket may be lost."""
        self.model.crash(node.journaled_until)

    # -- random ------------------------------------------------------------------------------------------------------

    async def act(self, node: Node, rng: random.Random, *, gentle: bool = False) -> None:
        """Run a random command. gentle: only commands that commute with the commands of
        another writer at the same time."""
        boxes = await self.boxes_of(node)
        if not boxes:
            return
        name, guid = rng.choice(boxes[:1] * 3 + boxes)
        kind = rng.choices(KINDS, GENTLE if gentle else WEIGHTS)[0]
        if kind in ("append", "many"):
            flags = tuple(rng.sample(FLAGS, rng.choice([0, 0, 1, 2]))) if not gentle else ()
            await self.append(node, name, guid, 1 if kind == "append" else rng.randint(2, 5), flags)
        elif kind == "burst":
            await self.burst(node, name, guid, rng)
        elif kind == "resync":
            await self.resync(node, name, guid, rng.choice([0, 0, 1, 7]))
        elif kind == "annotate":
            await self.annotate(node, name, guid, rng.choice([None, b"", b"%d" % self.serial]))
        elif kind == "create":
            await self.create(node, f"box{self.serial}-{rng.randint(0, 99)}")
        elif kind in ("rename", "delete"):
            own = [(name, guid) for name, guid in boxes if name.startswith("box")]
            if own:
                name, guid = rng.choice(own)
                if kind == "delete":
                    await self.delete(node, name, guid)
                else:
                    await self.rename(node, name, f"box{rng.randint(0, 9)}", guid)
        else:
            await self._act_on_mails(node, rng, kind, (name, guid), boxes, gentle=gentle)

    async def _act_on_mails(
        self,
        node: Node,
        rng: random.Random,
        kind: str,
        of: tuple[str, str],
        boxes: list[tuple[str, str]],
        *,
        gentle: bool,
    ) -> None:
        """Run a command on mails that are there."""
        name, guid = of
        seen = await self.select_box(node, name)
        if seen is None:
            return
        await seen.release()
        uids = seen.state.uids.tolist()
        if not uids:
            return
        some = sorted(rng.sample(uids, min(len(uids), rng.choice([1, 1, 2, 5]))))
        if kind == "store":
            named = rng.sample(FLAGS, rng.choice([1, 1, 2]))
            op = rng.choice(["add", "remove"])
            if gentle:
                named, op = [f"z{node.name}"], "add"
            await self.store(node, name, guid, some, op, named)
        elif kind == "expunge":
            await self.expunge(node, name, guid, some)
        else:
            to, to_guid = rng.choice(boxes)
            await self.copy(node, name, guid, some, to, to_guid, kind == "move")

    # -- the end -----------------------------------------------------------------------------------------------------

    async def finish(self, nodes: list[Node]) -> None:
        """End the life: no more faults, and everybody stops. The bucket alone must have
        everything, and nothing that is no longer needed."""
        world = self.world
        await world.no_faults()
        await asyncio.sleep(90)
        for node in nodes:
            if not node.ended:
                await node.stop()
        fresh = await world.node("fresh", Disk()).start()
        await asyncio.sleep(5)
        await self.look(fresh)
        await self.nothing_lost(fresh)
        for done in self.checks:
            await done(fresh)
        await fresh.stop()
        await self.clean_up()

    async def nothing_lost(self, node: Node) -> None:
        """Assert that each acknowledged content is somewhere, unless a command may have
        removed it."""
        user = await node.user(USER)
        there: set[bytes] = set()
        for info in user.mailboxes():
            if info.guid is not None:
                box = await self.select_box(node, info.name)
                there |= set(self._tokens(info.guid, box).values())
                await box.release()
        lost = self.model.delivered - self.model.removable - there
        require(not lost, "acknowledged and gone:", lost)

    async def clean_up(self) -> None:
        """After delays, flushes and restarts the bucket must have what is needed, and
        nothing else."""
        world = self.world
        prints: list[dict[str, Any]] = []
        for life in range(3):
            node = await world.node(f"sweeper{life}", Disk()).start()
            for _ in range(3):
                user = await node.user(USER)
                for guid in list(user.root.entries):
                    if not user.root.entries[guid].cleared:
                        box = await node.run(partial(_box, user, guid))
                        box.changed(Change.IMPORTANT)
                        await node.run(partial(_flush, box))
                await asyncio.sleep(DELETE_DELAY_S + 2 * 60)
                await user.release()
            user = await node.user(USER)
            await asyncio.sleep(1)
            needed, state = await self._needed(node, user)
            prints.append(state)
            left = [key for key in world.keys(user_prefix(SID)) if key not in needed]
            missing = [key for key in needed if key not in world.memory.objects]
            await node.stop()
        require(not missing, "needed and not in the bucket:", missing)
        left = [key for key in left if not self._residue(key)]
        require(not left, "leaked:", left)
        journals = world.keys("_journal/")
        require(len(journals) <= 12, "journal objects left:", journals)
        for earlier, later in itertools.pairwise(prints):
            for guid in [guid for guid in earlier.keys() & later.keys() if not earlier[guid][1]]:
                require(earlier[guid] == later[guid], "changed over a clean restart:", earlier[guid], later[guid])

    def _residue(self, key: str) -> bool:
        """Return the objects that a crash may leave for ever below UIDNEXT, where no
        LIST looks. They are burnt UIDs, and objects that no client ever saw: void
        objects, and objects of a group that failed. The note to delete them was lost
        with the local state."""
        try:
            found = parse_mail_key(key)
        except ValueError:
            return False
        self.residue += 1
        data = self.world.memory.objects[key][0]
        shown = self.model.contents.get((found.guid, int(found.uid)))
        if not data or shown is None:
            return True
        delta = claim_in(key, data)
        if delta is None:
            return token_of(CODEC.decode(data, owner_of(key), lenient=True).payload) != shown
        rows = delta.rows
        assert rows is not None
        if delta.batches:
            contents = self.model.contents
            return all(contents.get((found.guid, uid)) != token for uid, token in mails_of(key, data))
        for uid, home, home_uid in zip(rows.uid.tolist(), rows.home.tolist(), rows.home_uid.tolist(), strict=True):
            claimed = (found.guid if home < 0 else rows.homes[home], home_uid)
            if self.home_of.get((found.guid, uid), claimed) != claimed:
                return True
        return False

    async def _needed(self, node: Node, user: Any) -> tuple[set[str], dict[str, Any]]:
        needed, state, world = set(), {}, self.world
        prefix = bundles_prefix(SID)
        root = user.rootbox.stamp
        needed |= {f"{prefix}root/{name}" for name in (*root.heads, *(n for n, _ in root.superseded))}
        for guid, entry in user.root.entries.items():
            if entry.cleared:
                continue
            box = await node.run(partial(_box, user, guid))
            names = (*box.stamp.heads, *box.stamp.segments, *(n for n, _ in box.stamp.superseded))
            needed |= {f"{prefix}{guid}/{name}" for name in names}
            for at, _ in enumerate(box.state.uids):
                home, uid = box.state.home_of(at)
                needed.add(key_with(world, home, uid))
            needed |= {key_with(world, guid, uid) for uid in box.state.holders.needed().tolist()}
            state[guid] = (entry.name, entry.deleted > 0, flags_of(box.state), box.state.uidnext)
        return needed, state


__all__ = ["CLAIM_PURGED", "NOBODY", "SID", "USER", "Broken", "Player", "parse_mail_key"]


def key_with(world: World, guid: str, uid: int) -> str:
    """Return the key of the object that has a mail, or must have it."""
    where = found_mail(world, SID, guid, uid)[0]
    return mail_key(SID, Guid(guid), Uid(uid)) if where is None else where[0]


async def _box(user: Any, guid: str, store: MailStore) -> Any:
    return await user.box(guid)


async def _flush(box: Any, store: MailStore) -> None:
    await box.flush(everything=True)
