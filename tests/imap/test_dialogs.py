"""Runs tests/dialogs/*.txt: what clients say and what they must hear, over a socket,
against the real store.

    C: a1 SELECT INBOX      client 1 sends a line (C2: client 2, and so on)
    S: * 3 EXISTS           the next line that client 1 hears must match
    S: ***                  any lines, until a line matches the next S: line
    D: anna INBOX (\\Seen) Subject: x\\r\\n\\r\\nbody
                            a mail comes, straight into the store
    # comment

Each client connects at its first line. In S: lines `...` stands for any text, and
`<name>` for a word, which is bound at its first use and stays the same in all later
lines, also in C: lines. `\\r\\n` is a line end, in literals. A client whose first line
is S: begins with its greeting.
"""

import re
from pathlib import Path

import pytest
from harness import STORES, Client, Running

from obox.mailbox.invariants import check
from obox.store import NewMail
from obox.types import StorageId

DIALOGS = sorted((Path(__file__).parent.parent / "dialogs").glob("*.txt"))
_LINE = re.compile(r"([CS])(\d?): ?(.*)")
_HOLE = re.compile(r"\\\.\\\.\\\.|<([a-z]\w*)>")


class Dialog:
    """A script that is being run."""

    def __init__(self, running: Running, path: Path) -> None:
        self.running = running
        self.path = path
        self.number = 0
        self.clients: dict[str, Client] = {}
        self.bound: dict[str, str] = {}
        self.skipping: set[str] = set()

    async def run(self) -> None:
        for number, raw in enumerate(self.path.read_text().splitlines(), 1):
            self.number = number
            line = raw.rstrip("\n")
            if not line.strip() or line.startswith("#"):
                continue
            if line.startswith("D: "):
                await self.deliver(line[3:])
                continue
            match = _LINE.fullmatch(line)
            assert match, f"{self.path.name}:{number}: {line!r}"
            who, text = match[2] or "1", match[3]
            client = await self.client(who, greeted=match[1] == "S")
            if match[1] == "C":
                client.send(self.filled(text).replace("\\r\\n", "\r\n") + "\r\n")
            elif text == "***":
                self.skipping.add(who)
            else:
                await self.hear(who, client, text)

    async def client(self, who: str, *, greeted: bool) -> Client:
        if who not in self.clients:
            self.clients[who] = await self.running.client(greet=not greeted)
        return self.clients[who]

    async def deliver(self, text: str) -> None:
        name, mailbox, rest = text.split(" ", 2)
        flags, _, source = rest.removeprefix("(").partition(") ")
        user = await self.running.store.open_user(name, StorageId(name))
        await user.append(mailbox, [NewMail(source.replace("\\r\\n", "\r\n").encode(), tuple(flags.split()))])
        await user.release()

    def filled(self, text: str) -> str:
        return re.sub(r"<([a-z]\w*)>", lambda match: self.bound.get(match[1], match[0]), text)

    async def hear(self, who: str, client: Client, pattern: str) -> None:
        skipped = []
        while True:
            line = (await client.line()).decode(errors="backslashreplace")
            if self.matches(pattern, line):
                self.skipping.discard(who)
                return
            skipped.append(line)
            where = f"{self.path.name}:{self.number}: client {who} expected\n  {self.filled(pattern)}\nheard\n  "
            if not line or who not in self.skipping:
                pytest.fail(where + "\n  ".join(skipped))

    def matches(self, pattern: str, line: str) -> bool:
        names: list[str] = []

        def hole(match: re.Match[str]) -> str:
            name = match[1]
            if name is None:
                return "(?:.*?)"
            if name in self.bound:
                return re.escape(self.bound[name])
            if name in names:
                return f"(?P={name})"
            names.append(name)
            return rf"(?P<{name}>[^\s\])]+)"

        found = re.fullmatch(_HOLE.sub(hole, re.escape(pattern.replace("\\r\\n", "\r\n"))), line, re.DOTALL)
        if found:
            self.bound.update(found.groupdict())
        return found is not None


@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize("path", DIALOGS, ids=lambda path: path.stem)
async def test_dialog(path: Path, tmp_path: Path, store: str) -> None:
    async with STORES[store](tmp_path) as running:
        await Dialog(running, path).run()
        for user in running.store.users.values():
            for box in user.boxes.values():
                check(box.state)
