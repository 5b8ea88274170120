"""Prose in code and in documents: what `test_words.py` measures.

In code, prose is docstrings and comments, also comments behind code. Rules between
sections and comments for tools are no prose. In documents, prose is everything except
headings, tables, blocks of code, quotations and lines that cannot be broken.

Texts are what operators and clients read of the running program: events and keys of the
log, messages of errors, and descriptions of options, parameters and settings.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from typing import NamedTuple

FOR_TOOLS = ("# --", "# type:", "# noqa", "# ruff:", "# fmt:")


def prose_of_code(text: str) -> Iterator[tuple[int, str]]:
    """Yield number and text of each line that has a docstring or a comment."""
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
    """Yield number and text of each line of prose of a Markdown page."""
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and line.strip() and not line.lstrip().startswith(("#", "|", ">", "<!--")):
            yield number, line


def first_paragraph(text: str) -> str:
    """Return the first paragraph of a page, below its title."""
    match = re.match(r"# .+\n\n((?:.+\n)+)", text)
    return " ".join(match[1].split()) if match else ""


def docstrings_of_functions(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and first paragraph of the docstring of each function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (docstring := ast.get_docstring(node)):
            yield node.lineno, " ".join(docstring.partition("\n\n")[0].split())


class Text(NamedTuple):
    """A text of the running program. kind: `event`, `error` or `description`. In text,
    `{}` stands for each value. keys: those of a line of the log."""

    line: int
    kind: str
    text: str
    keys: tuple[str, ...] = ()


_LEVELS = frozenset(("debug", "info", "warning", "error", "exception", "critical"))
_ERROR = re.compile(
    r"(?:\w*Error|NotFound|Exists|NoPerm|OverQuota|Expunged|InUse|Limit|MailboxFull|TooBig|Invalid|Unavailable|"
    r"Elsewhere|Temporary|Corrupt|Refused|Malformed)$"
)
_DESCRIBED_AT = {"_set": 2, "_counter": 2, "Gauge": 1, "Counter": 1, "Histogram": 1}
"""Calls that have a description as a positional argument, and its position."""
_DESCRIBED_BY = frozenset(("help", "short_help", "description"))


def texts_of_code(text: str) -> Iterator[Text]:
    """Yield the texts that a file gives to the log, to errors and to descriptions."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            yield from _texts_of_call(node)


def _texts_of_call(call: ast.Call) -> Iterator[Text]:
    function = call.func
    name = (
        function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""
    )
    if (
        isinstance(function, ast.Attribute)
        and name in _LEVELS
        and ast.unparse(function.value).endswith(("log", "logger"))
    ):
        keys = tuple(keyword.arg for keyword in call.keywords if keyword.arg)
        yield from (Text(call.lineno, "event", found, keys) for found in _strings(call.args[:1]))
    elif _ERROR.match(name):
        yield from (Text(call.lineno, "error", found) for found in _strings(call.args))
    elif name in _DESCRIBED_AT:
        at = _DESCRIBED_AT[name]
        yield from (Text(call.lineno, "description", found) for found in _strings(call.args[at : at + 1]))
    described = [keyword.value for keyword in call.keywords if keyword.arg in _DESCRIBED_BY]
    yield from (Text(call.lineno, "description", found) for found in _strings(described))


def _strings(nodes: list[ast.expr]) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            yield "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.IfExp):
            yield from _strings([node.body, node.orelse])
        elif isinstance(node, ast.BinOp):
            yield from _strings([node.left, node.right])
