"""Lines of prose in code and in documents: what `test_words.py` measures.

In code, prose is docstrings and comments, also comments behind code. Rules between
sections and comments for tools are no prose. In documents, prose is everything except
headings, tables, blocks of code, quotations and lines that cannot be broken.
"""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator

FOR_TOOLS = ("# --", "# type:", "# noqa", "# ruff:", "# fmt:")


def prose_of_code(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line that has a docstring or a comment."""
    lines = text.splitlines()
    found: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        alone = not token.line[: token.start[1]].strip()
        docstring = token.type == tokenize.STRING and token.string.lstrip("rR").startswith('"""') and alone
        comment = token.type == tokenize.COMMENT and not token.string.startswith(FOR_TOOLS)
        if docstring or comment:
            found.update(range(token.start[0], token.end[0] + 1))
    for number in sorted(found):
        yield number, lines[number - 1]


def prose_of_page(text: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line of prose of a Markdown page."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and line.strip() and not line.lstrip().startswith(("#", "|", ">", "<!--")):
            yield number, line


def first_paragraph(text: str) -> str:
    """The first paragraph of a page, below its title."""
    match = re.match(r"# .+\n\n((?:.+\n)+)", text)
    return " ".join(match[1].split()) if match else ""
