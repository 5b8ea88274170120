"""Prose that can be read: short lines, and pages that begin with their use.

Whether a sentence is good is for a reader to judge (CONTRIBUTING.md, "Words"). This
file checks what can be counted.
"""

import re
from pathlib import Path

import pytest
from layers import files
from words import (
    Text,
    comments_of_code,
    docstrings_of_functions,
    first_paragraph,
    identifiers,
    is_fragment,
    prose_of_code,
    prose_of_page,
    texts_of_code,
    words_of,
)

from obox.admin import rows

ROOT = Path(__file__).parent.parent
CODE_COLUMNS_MAX = 88
PAGE_COLUMNS_MAX = 100

ROOMS_LEFT: set[str] = set()
"""Rooms whose prose is not rewritten yet. The set may only shrink."""

METAPHORS = re.compile(
    r"\b(aftermath|buri\w+|bury\w*|dug|newcomers?|reckon\w*|refuses? to know|settl\w+|tells?|told|"
    r"vouch\w*|whoever)\b",
    re.IGNORECASE,
)
"""Words for which the field has a term (docs/glossary.md)."""

NAME_METAPHORS = re.compile(
    r"(?:aftermath|anew|buri\w+|bury\w*|dug|newcomers?|ones|reckon\w*|settle\w*|tells?|told|vouch\w*|whoever)$"
)
"""Words that a name of the code does not have."""

SO_MANY = re.compile(r"\b(?:so (?:many|much)|at (?:most|least) so)\b", re.IGNORECASE)
"""A number that the reader has to look up: "So many mails are sorted at most". The
sentence says the number or its name: "At most 20,000 mails are sorted"."""

PRONOUN_ONE = re.compile(
    r"\bones\b|\bone (?:that|which|who)\b|"
    r"\b(?:another|each|earlier|every|first|last|later|new|newer|newest|next|old|older|oldest|other|present|right|same|"
    r"such|that|this|wrong) one(?:[.,;:)]|$)",
    re.IGNORECASE,
)
"""`one` instead of a noun. It is a number only (CONTRIBUTING.md, "Words")."""

FRAGMENT = re.compile(r"(?:And|As|But|By|Else|For|From|Of|Or|Past|So|That|To|Whose)\b")
"""First words of a docstring that begins in the middle of a sentence."""

LABEL_FRAGMENT = re.compile(
    r"(?:also|and|as|because|before|but|else|first|from|if|not|now|of|or|perhaps|see|since|so|that|where|which|with|"
    r"\w+ed (?:meanwhile|since|while))\b"
)
"""First words of a comment that is neither a sentence nor the name of something."""

NOT_PLAIN = re.compile(
    r"\b[Ww]e\b|\bus\b|\b[Oo]urs?\b|(?<!here )\b(?:is|are) no (?!longer)|\bmakes? no sense|\bno good\b|\bno more$|"
    r"\bno use\b|\bspeaks? of\b|\bleft alone\b|\bcalled off\b|\bgave up\b|\bnot now\b|\banew\b"
)
"""Phrases that a text of the program does not use. It names who or what is meant."""

EVENT_NOT_PLAIN = re.compile(r"^(?:an?|the|what|whether) |(?<![.\w])[a-z]+_\w+|[.;:]$|: ", re.IGNORECASE)
"""An event of the log begins with its subject, and has words instead of an identifier.
"""

DESCRIPTION_NOT_PLAIN = re.compile(r"^(?:as|better|by|in|of|that|these|they|those) ", re.IGNORECASE)
"""A description begins with the noun or the verb that it describes."""

TEXTS_LEFT: set[str] = set()
"""Rooms whose texts are not rewritten yet. The set may only shrink."""

FILES = files(("obox", "metacache", "fscache", "admintool", "bench"))
TESTS = {name: path for name, path in files(("tests",)).items() if name != "tests.test_words"}
PAGES = sorted(
    [*ROOT.glob("docs/*.md"), *ROOT.glob("docs/decisions/*.md"), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
)


def room_of(name: str) -> str:
    """`obox.imap.commands.fetch` belongs to `obox.imap`, `bench.imap` to `bench`."""
    return ".".join(name.split(".")[: 2 if name.startswith("obox") else 1])


def not_a_term(line: str) -> bool:
    return any(pattern.search(line) for pattern in (METAPHORS, PRONOUN_ONE))


def not_plain(text: Text) -> bool:
    kinds = {"event": EVENT_NOT_PLAIN, "description": DESCRIPTION_NOT_PLAIN}
    special = kinds.get(text.kind)
    return not_a_term(text.text) or bool(
        SO_MANY.search(text.text) or NOT_PLAIN.search(text.text) or (special is not None and special.search(text.text))
    )


def too_long(path: Path) -> list[str]:
    lines = prose_of_code(path.read_text())
    return [f"{number}: {line.strip()}" for number, line in lines if len(line) > CODE_COLUMNS_MAX]


@pytest.mark.parametrize("name", [name for name in FILES | TESTS if room_of(name) not in ROOMS_LEFT])
def test_docstrings_and_comments_end_at_88_columns(name: str) -> None:
    assert not too_long((FILES | TESTS)[name])


@pytest.mark.parametrize("name", FILES | TESTS)
def test_docstrings_and_comments_say_their_numbers(name: str) -> None:
    lines = prose_of_code((FILES | TESTS)[name].read_text())
    assert not [f"{number}: {line.strip()}" for number, line in lines if SO_MANY.search(line)]


@pytest.mark.parametrize("name", [name for name in FILES | TESTS if room_of(name) not in ROOMS_LEFT])
def test_docstrings_and_comments_have_no_metaphors(name: str) -> None:
    lines = prose_of_code((FILES | TESTS)[name].read_text())
    assert not [f"{number}: {line.strip()}" for number, line in lines if not_a_term(line)]


def fragments(code: str) -> list[str]:
    """Return the docstrings of functions, and the comments, that are no sentences.

    A comment may also name what it stands at ("bytes of the buffer"): it begins with a
    small letter, or has no full stop.
    """
    docstrings = [
        f"{line}: {text}" for line, text in docstrings_of_functions(code) if FRAGMENT.match(text) or is_fragment(text)
    ]
    comments = [
        f"{line}: {text}"
        for line, text in comments_of_code(code)
        if ((text[:1].isupper() and text.endswith(".")) or LABEL_FRAGMENT.match(text)) and is_fragment(text)
    ]
    return docstrings + comments


@pytest.mark.parametrize("name", [name for name in FILES | TESTS])
def test_docstrings_of_functions_and_comments_are_no_fragments(name: str) -> None:
    assert not fragments((FILES | TESTS)[name].read_text())


@pytest.mark.parametrize("name", [name for name in FILES | TESTS])
def test_names_have_no_metaphors(name: str) -> None:
    names = {(0, name.rpartition(".")[2]), *identifiers((FILES | TESTS)[name].read_text())}
    assert not [f"{line}: {found}" for line, found in names if any(map(NAME_METAPHORS.match, words_of(found)))]


@pytest.mark.parametrize("name", [name for name in FILES if room_of(name) not in TEXTS_LEFT])
def test_events_errors_and_descriptions_are_plain(name: str) -> None:
    assert not [f"{text.line}: {text.text}" for text in texts_of_code(FILES[name].read_text()) if not_plain(text)]


@pytest.mark.parametrize("verb", sorted(rows.COLUMNS.keys() | rows.NONE.keys()))
def test_columns_and_messages_of_verbs_are_plain(verb: str) -> None:
    texts = [*rows.COLUMNS.get(verb, {}).values(), rows.NONE.get(verb, "")]
    assert not [text for text in texts if not_a_term(text) or SO_MANY.search(text) or NOT_PLAIN.search(text)]


def test_keys_of_the_log_are_described() -> None:
    used = {key for path in FILES.values() for text in texts_of_code(path.read_text()) for key in text.keys}
    page = (ROOT / "docs/operations.md").read_text().partition("## The log\n")[2].partition("\n## ")[0]
    described = {key for row in re.findall(r"^\| (`.*?) \|", page, re.MULTILINE) for key in re.findall(r"`(\w+)`", row)}
    assert used - {"exc_info"} == described, "docs/operations.md, The log"


def test_texts_that_are_done_are_no_longer_left() -> None:
    left = {
        room_of(name)
        for name in FILES
        if room_of(name) in TEXTS_LEFT and any(map(not_plain, texts_of_code(FILES[name].read_text())))
    }
    assert left == TEXTS_LEFT, "take what is done out of TEXTS_LEFT"


def test_rooms_that_are_done_are_no_longer_left() -> None:
    left = {room_of(name) for name, path in FILES.items() if room_of(name) in ROOMS_LEFT and too_long(path)}
    assert left == ROOMS_LEFT, "take what is done out of ROOMS_LEFT"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_lines_of_a_page_end_at_100_columns(page: Path) -> None:
    lines = prose_of_page(page.read_text())
    assert not [f"{number}: {line}" for number, line in lines if len(line) > PAGE_COLUMNS_MAX]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_no_metaphors(page: Path) -> None:
    assert not [line for _, line in prose_of_page(page.read_text()) if not_a_term(line)]
    assert not SO_MANY.search(page.read_text())


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
    assert SO_MANY.search("So many rows of a key are kept.")
    assert SO_MANY.search("A hit renews the time at most so often.")
    assert not_a_term("a login settles who serves the user")
    code = 'def f():\n    """As if all were well.\n\n    More."""\n    def g(): "Assert."\n'
    assert [text for _, text in docstrings_of_functions(code) if FRAGMENT.match(text)] == ["As if all were well."]
    assert is_fragment("The mails that match.")
    assert is_fragment("Whether a view may still count mails that are expunged now.")
    assert is_fragment("Bytes in whole blocks")
    assert not is_fragment("Return the mails that match.")
    assert not is_fragment("`view` will ask for no record any more.")
    assert not is_fragment("size: octets, as received")
    code = "x = 1  # deleted meanwhile\n# The rest\n# of it.\n# ruff: noqa\ny = 2  # bytes of it\n"
    assert fragments(code) == ["2: The rest of it.", "1: deleted meanwhile"][::-1]
    assert not not_a_term("Only one of several writers succeeds; each has one key.")


def test_the_checks_see_names() -> None:
    code = "class ToldNames:\n    def f(self, settle_s):\n        self._vouched = SETTLE_S = 1\n        told()\n"
    found = [name for _, name in identifiers(code) if any(map(NAME_METAPHORS.match, words_of(name)))]
    assert sorted(found) == ["SETTLE_S", "ToldNames", "_vouched", "settle_s"]


def test_the_checks_see_the_texts_of_the_program() -> None:
    code = """
log.warning("what we wrote is no mail", key=key, reason=why)
self._log.error(f"upkeep of {name} failed", **more)
raise Invalid(f"size {size!r}; allowed: octets")
raise Exists("makes no sense" if a else "the name is in use")
user: Annotated[str, Meta(description="Of the hash")]
row = _set(kinds.size(), "1G", "it is told")
"""
    found = list(texts_of_code(code))
    assert [(text.kind, text.text, text.keys) for text in found if text.kind == "event"] == [
        ("event", "what we wrote is no mail", ("key", "reason")),
        ("event", "upkeep of {} failed", ()),
    ]
    assert {text.line for text in found} == {2, 3, 4, 5, 6, 7}
    assert {text.text for text in found if not_plain(text)} == {
        "what we wrote is no mail",
        "makes no sense",
        "Of the hash",
        "it is told",
    }
    assert not_plain(Text(1, "event", "passwd_file_loaded"))
    assert not_plain(Text(1, "event", "a mail is lost"))
    assert not not_plain(Text(1, "event", "cluster.secret_file is weak"))
