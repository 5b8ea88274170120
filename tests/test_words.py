"""Prose that can be read: short lines, and pages that begin with their use.

What a sentence says and how is for a reader to judge (CONTRIBUTING.md, "Words"); what
can be counted is counted here.
"""

import re
from pathlib import Path

import pytest
from layers import files
from words import first_paragraph, prose_of_code, prose_of_page

ROOT = Path(__file__).parent.parent
CODE_COLUMNS_MAX = 88
PAGE_COLUMNS_MAX = 100

ROOMS_LEFT: set[str] = set()
"""Rooms whose prose is not rewritten yet. The set may only shrink."""

METAPHORS = re.compile(
    r"\b(aftermath|buri\w+|bury\w*|dug|newcomers?|reckon\w*|tells?|told|vouch\w*|whoever)\b", re.IGNORECASE
)
"""Words for which the field has a term (docs/glossary.md)."""

PRONOUN_ONE = re.compile(
    r"\bones\b|\bone (?:that|which|who)\b|"
    r"\b(?:another|each|earlier|every|first|last|later|new|newer|newest|next|old|older|oldest|other|present|right|same|"
    r"such|that|this|wrong) one(?:[.,;:)]|$)",
    re.IGNORECASE,
)
"""`one` instead of a noun. It is a number only (CONTRIBUTING.md, "Words")."""

FILES = files(("obox", "metacache", "fscache", "admintool", "bench"))
PAGES = sorted(
    [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/decisions/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
)


def room_of(name: str) -> str:
    """`obox.imap.commands.fetch` belongs to `obox.imap`, `bench.imap` to `bench`."""
    return ".".join(name.split(".")[: 2 if name.startswith("obox") else 1])


def not_a_term(line: str) -> bool:
    return bool(METAPHORS.search(line) or PRONOUN_ONE.search(line))


def too_long(name: str) -> list[str]:
    lines = prose_of_code(FILES[name].read_text())
    return [f"{number}: {line.strip()}" for number, line in lines if len(line) > CODE_COLUMNS_MAX]


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) not in ROOMS_LEFT])
def test_docstrings_and_comments_end_at_88_columns(name: str) -> None:
    assert not too_long(name)


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) not in ROOMS_LEFT])
def test_docstrings_and_comments_have_no_metaphors(name: str) -> None:
    lines = prose_of_code(FILES[name].read_text())
    assert not [f"{number}: {line.strip()}" for number, line in lines if not_a_term(line)]


def test_rooms_that_are_done_are_no_longer_left() -> None:
    left = {room_of(name) for name in FILES if room_of(name) in ROOMS_LEFT and too_long(name)}
    assert left == ROOMS_LEFT, "take what is done out of ROOMS_LEFT"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_a_page_end_at_100_columns(page: Path) -> None:
    lines = prose_of_page(page.read_text())
    assert not [f"{number}: {line}" for number, line in lines if len(line) > PAGE_COLUMNS_MAX]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_no_metaphors(page: Path) -> None:
    assert not [line for _, line in prose_of_page(page.read_text()) if not_a_term(line)]


@pytest.mark.parametrize(
    "page", [*sorted(ROOT.glob("docs/*.md")), ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name
)
def test_a_page_begins_with_its_use(page: Path) -> None:
    assert first_paragraph(page.read_text()).startswith("After reading this page ")


def test_the_checks_see_what_they_look_for() -> None:
    code = f'x = 1  # {"a" * 90}\n"""\n{"b" * 90}\n"""\ny = "{"c" * 90}"\n# ---- {"-" * 90}\n'
    assert [number for number, line in prose_of_code(code) if len(line) > CODE_COLUMNS_MAX] == [1, 3]
    page = f"# {'t' * 110}\n\nUse.\n\n| {'c' * 110} |\n```\n{'f' * 110}\n```\n- {'p ' * 60}\n"
    assert [number for number, line in prose_of_page(page) if len(line) > PAGE_COLUMNS_MAX] == [9]
    assert first_paragraph(page) == "Use."
    assert not_a_term("lines below what buried them")
    assert not_a_term("The use that this is itself does not count as one which was.")
    assert not_a_term("a newer bundle replaces the older one")
    assert not not_a_term("Only one of several writers succeeds; each has one key.")
