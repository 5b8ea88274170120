"""Threads of mails: the algorithms ORDEREDSUBJECT and REFERENCES of RFC 5256 §3, and
REFS, which has no RFC: REFERENCES without subjects, and the thread with the newest mail
is the last.

Theory of operation. The number of a mail is its position among the mails of the
command. The nodes of REFERENCES are mails and dummies. A dummy stands for a mail that
others refer to, and that is not among them. Links are made mail by mail. Then dummies
are pruned, roots of the same subject are joined, and siblings are sorted. All of this
is done in steps (a generator that yields). No function recurses, because a thread may
be as deep as a mailbox is large.

Invariant: each mail is in one thread, once. Pure.
"""

from __future__ import annotations

from array import array
from collections.abc import Generator, Sequence
from typing import Final

import numpy as np

from ..errors import Limit
from .sorting import CHARS_MAX, Numbers

STEP: Final = 2_000
"""At most 2,000 nodes are handled in one step: 2 ms."""
REFERENCES_MAX: Final = 10_000_000
"""All mails together may have at most ten million references. 500,000 mails with twenty
references each have as many."""
WALK_MAX: Final = 20_000_000
"""At most 20 million links are followed to find loops, which takes some seconds."""
LIST_MAX: Final = 1_000
"""Python sorts at most 1,000 siblings. numpy sorts more."""

Steps = Generator[None, None, "Forest"]


class Forest:
    """Threads in order. children: the children of each node, in order. mails: how many
    of the first nodes are mails. The nodes after them are dummies."""

    def __init__(self, roots: Sequence[int], children: dict[int, list[int]], mails: int) -> None:
        self.roots, self.children, self.mails = roots, children, mails

    def written(self, numbers: Sequence[int]) -> Generator[None, None, bytes]:
        """Return thread-lists. numbers: the number that is written for each mail. RFC
        5256 §5."""
        out: list[str] = []
        count = 0
        for root in self.roots:
            stack: list[int | str] = [")", root, "("]
            while stack:
                node = stack.pop()
                if isinstance(node, str):
                    out.append(node)
                    continue
                below = self.children.get(node, [])
                is_mail = node < self.mails
                if is_mail:
                    out.append(str(numbers[node]))
                if below and is_mail:
                    out.append(" ")
                if len(below) == 1:
                    stack.append(below[0])
                else:
                    for child in reversed(below):
                        stack += [")", child, "("]
                count += 1
                if count % STEP == 0:
                    yield
        return "".join(out).encode()


def by_subject(subjects: Numbers, dates: Numbers) -> Forest:
    """Make the threads of ORDEREDSUBJECT. The mails of a base subject are a thread, and
    the first of them is the parent of the others. subjects: a number for each mail. It
    is equal for equal base subjects."""
    count = len(subjects)
    if not count:
        return Forest([], {}, 0)
    order = np.lexsort((dates, subjects))
    ordered = subjects[order]
    starts = np.flatnonzero(np.append(True, ordered[1:] != ordered[:-1]))
    firsts = order[starts]
    by_date = np.lexsort((firsts, dates[firsts]))
    ends = np.append(starts[1:], count)
    children = {
        int(order[start]): order[start + 1 : end].tolist()
        for start, end in zip(starts.tolist(), ends.tolist(), strict=True)
        if end - start > 1
    }
    return Forest(firsts[by_date].tolist(), children, count)


class References:
    """The algorithms REFERENCES and REFS: call `add` for each mail, then `forest` or
    `by_newest`."""

    def __init__(self, count: int) -> None:
        """count: the number of mails."""
        self._count = count
        self._ids: dict[bytes, int] = {}
        """Message-IDs, each with a number of its own."""
        self._id_bytes = 0
        self._nodes: list[int | None] = []
        """The node of each Message-ID, None as long as it has none."""
        self._references = array("i")
        """Numbers of Message-IDs: those that the first mail refers to, then those of
        the second mail, and so on."""
        self._ends: list[int] = []
        self._parents: list[int | None] = [None] * count
        """The parent of each node, None at the top."""
        self._children: dict[int, list[int]] = {}
        self._walked = 0

    def add(self, message_id: bytes, references: Sequence[bytes]) -> None:
        """Note the next mail. message_id: b"" if there is none. If an earlier mail has
        the same Message-ID, the mail counts as a mail without. Raises Limit."""
        number = len(self._ends)
        if message_id and self._nodes[self._id(message_id)] is None:
            self._nodes[self._ids[message_id]] = number
        self._references.extend(map(self._id, references))
        self._ends.append(len(self._references))
        if len(self._references) > REFERENCES_MAX or self._id_bytes > CHARS_MAX:
            raise Limit("the mails refer to too many others")

    def _id(self, message_id: bytes) -> int:
        new = len(self._ids)
        found = self._ids.setdefault(message_id, new)
        if found == new:
            self._nodes.append(None)
            self._id_bytes += len(message_id)
        return found

    def _node(self, of: int) -> int:
        """Return the node of a Message-ID. It is a dummy if no mail has it."""
        node = self._nodes[of]
        if node is None:
            node = self._nodes[of] = len(self._parents)
            self._parents.append(None)
        return node

    def _is_above(self, node: int, other: int) -> bool:
        """Return whether a node is `other`, or above it."""
        if node == other:
            return True
        if not self._children.get(node):
            return False
        above: int | None = other
        while above is not None:
            if above == node:
                return True
            above = self._parents[above]
            self._walked += 1
        if self._walked > WALK_MAX:
            raise Limit("the threads are too deep")
        return False

    def _link(self, parent: int, child: int) -> None:
        self._parents[child] = parent
        self._children.setdefault(parent, []).append(child)

    def _connect(self, number: int, references: Sequence[int]) -> None:
        """Link a mail and what it refers to. RFC 5256 §3 (REFERENCES), step 1."""
        above: int | None = None
        for one in references:
            node = self._node(one)
            if above is not None and self._parents[node] is None and not self._is_above(node, above):
                self._link(above, node)
            above = node
        old = self._parents[number]
        if above == old:
            return
        if old is not None:
            self._walked += len(self._children[old])
            self._children[old].remove(number)
            self._parents[number] = None
        if above is not None and not self._is_above(number, above):
            self._link(above, number)

    def forest(self, ranks: Numbers, subjects: Sequence[int], replies: Sequence[bool]) -> Steps:
        """Return the threads of REFERENCES. ranks: the rank of each mail by date.
        subjects: a number for each base subject, 0 for an empty subject. replies:
        whether the subject of a mail is that of a reply."""
        roots = yield from self._linked()
        keys = self._keys(ranks)
        roots = yield from self._sorted_all(roots, keys, deep=False)
        roots = yield from self._joined(roots, subjects, replies, keys)
        roots = yield from self._sorted_all(roots, keys, deep=True)
        return Forest(roots, self._children, self._count)

    def by_newest(self, ranks: Numbers) -> Steps:
        """Return the threads of REFS, sorted by their newest mails. ranks: the rank of
        each mail by date."""
        roots = yield from self._linked()
        roots = yield from self._sorted_all(roots, self._keys(ranks), deep=True)
        newest, order = self._keys(ranks), (yield from self._below(roots))
        for at, node in enumerate(reversed(order)):
            for child in self._children.get(node, ()):
                newest[node] = max(newest[node], newest[child])
            if at % STEP == 0:
                yield
        return Forest(in_order(roots, newest), self._children, self._count)

    def _keys(self, ranks: Numbers) -> list[int]:
        """Return the ranks of all nodes, 0 for dummies."""
        return [*ranks.tolist(), *([0] * (len(self._parents) - self._count))]

    def _linked(self) -> Generator[None, None, list[int]]:
        """Make all links, and return the roots in any order."""
        begin, walked = 0, 0
        for number, end in enumerate(self._ends):
            self._connect(number, self._references[begin:end])
            begin = end
            if number % STEP == 0 or self._walked - walked > STEP:
                walked = self._walked
                yield
        self._ids, self._nodes = {}, []
        return (yield from self._pruned())

    # -- steps 2 and 3 -------------------------------------------------------------------------------------------------

    def _below(self, roots: Sequence[int]) -> Generator[None, None, list[int]]:
        """Return all nodes, each before those below it."""
        order = list(roots)
        at = 0
        while at < len(order):
            order += self._children.get(order[at], ())
            at += 1
            if at % STEP == 0:
                yield
        return order

    def _pruned(self) -> Generator[None, None, list[int]]:
        """Remove dummies: those without children, and those below the top, whose
        children take their place."""
        roots = [node for node, parent in enumerate(self._parents) if parent is None]
        order = yield from self._below(roots)
        for at, node in enumerate(reversed(order)):
            if node in self._children:
                kept: list[int] = []
                for child in self._children[node]:
                    some = [child] if child < self._count else self._children.pop(child, [])
                    # The shorter list goes into the longer: the order comes later.
                    kept, some = (kept, some) if len(kept) >= len(some) else (some, kept)
                    kept += some
                self._children[node] = kept
            if at % STEP == 0:
                yield
        top: list[int] = []
        for node in roots:
            below = self._children.get(node, [])
            if node < self._count or len(below) > 1:
                top.append(node)
            else:
                top += below
                self._children.pop(node, None)
        return top

    # -- steps 4 and 6 -------------------------------------------------------------------------------------------------

    def _sorted_all(self, roots: list[int], keys: list[int], *, deep: bool) -> Generator[None, None, list[int]]:
        """Sort siblings by date. A dummy has the date of its first child. deep: below
        mails, too."""
        order = (yield from self._below(roots)) if deep else roots
        for at, node in enumerate(reversed(order)):
            if deep or node >= self._count:
                below = self._children.get(node)
                if below:
                    below = self._children[node] = in_order(below, keys)
                    if node >= self._count:
                        keys[node] = keys[below[0]]
            if at % STEP == 0:
                yield
        return in_order(roots, keys)

    # -- step 5 --------------------------------------------------------------------------------------------------------

    def _first(self, node: int) -> int:
        """Return the mail whose subject is that of a root's thread."""
        return node if node < self._count else self._children[node][0]

    def _joined(
        self, roots: list[int], subjects: Sequence[int], replies: Sequence[bool], keys: list[int]
    ) -> Generator[None, None, list[int]]:
        """Join roots of the same base subject."""
        table: dict[int, int] = {}
        mails = self._count
        for at, node in enumerate(roots):
            subject = subjects[self._first(node)]
            old = table.get(subject)
            if subject and (
                old is None
                or (node >= mails > old)
                or (old < mails and node < mails and replies[old] and not replies[node])
            ):
                table[subject] = node
            if at % STEP == 0:
                yield
        gone: set[int] = set()
        added: list[int] = []
        for at, node in enumerate(roots):
            subject = 0 if node in gone else subjects[self._first(node)]
            other = table.get(subject, node) if subject else node
            if other != node:
                gone.add(node)
                if other >= mails:
                    self._children[other] += [node] if node < mails else self._children.pop(node)
                elif replies[node] and not replies[other]:
                    self._children.setdefault(other, []).append(node)
                else:
                    dummy = len(keys)
                    keys.append(0)
                    self._children[dummy] = [other, node]
                    gone.add(other)
                    added.append(dummy)
                    table[subject] = dummy
            if at % STEP == 0:
                yield
        return [node for node in [*roots, *added] if node not in gone]


def in_order(nodes: list[int], keys: Sequence[int]) -> list[int]:
    """Return siblings by their keys."""
    if len(nodes) <= LIST_MAX:
        return sorted(nodes, key=keys.__getitem__)
    order = np.argsort(np.fromiter(map(keys.__getitem__, nodes), dtype=np.int64, count=len(nodes)), kind="stable")
    found: list[int] = np.array(nodes, dtype=np.int64)[order].tolist()
    return found
