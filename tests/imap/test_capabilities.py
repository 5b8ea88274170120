"""docs/rfc.md and CAPABILITY say the same."""

import re
from pathlib import Path
from typing import NamedTuple

from obox.imap.capabilities import capabilities
from tests.imap.grammar import CAPABILITIES

PAGE = (Path(__file__).parent.parent.parent / "docs/rfc.md").read_text().partition("\n## ")[0]


class Row(NamedTuple):
    rfc: str
    words: list[str]
    state: str


def rows() -> list[Row]:
    """Return the rows of the page. `APPENDLIMIT=` stands for the word with any
    value."""
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| ")]
    return [Row(row[0], re.findall(r"`([^`]+)`", row[2]), row[3]) for row in cells[1:]]


def advertised() -> set[str]:
    """Return all words that some connection gets to see."""
    texts = [
        capabilities(logged_in=logged_in, secure=secure, starttls=True, append_limit=100, shared=True)
        for logged_in in (False, True)
        for secure in (False, True)
    ]
    words = " ".join(text.decode() for text in texts).split()
    return {re.sub(r"^(APPENDLIMIT=).*", r"\1", word) for word in words}


def test_the_page_has_states_of_each_rfc() -> None:
    assert len(rows()) > 30
    assert {row.state for row in rows()} == {"yes", "partial", "no"}


def test_what_is_advertised_is_on_the_page() -> None:
    """The page also names its RFC, and says how much of it is implemented."""
    reported = {word for row in rows() if row.state == "yes" for word in row.words}
    assert advertised() - reported == set()


def test_what_the_page_says_is_advertised() -> None:
    reported = {word for row in rows() if row.state == "yes" for word in row.words}
    assert reported - advertised() == set()
    denied = {word for row in rows() if row.state != "yes" for word in row.words}
    assert denied & advertised() == set()


def test_each_word_is_named_once() -> None:
    words = [word for row in rows() for word in row.words]
    assert sorted(words) == sorted(set(words))


def test_the_grammar_of_the_tests_knows_each_word() -> None:
    assert [
        word
        for word in advertised()
        if not CAPABILITIES.fullmatch(re.sub("^APPENDLIMIT=$", "APPENDLIMIT=1", word).encode())
    ] == []
