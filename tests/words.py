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
    """Yield line and first paragraph of the docstring of each function, except the help
    texts of groups of commands."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (docstring := ast.get_docstring(node)):
            groups = ["group(" in ast.unparse(decorator) for decorator in node.decorator_list]
            if not any(groups):
                yield node.lineno, " ".join(docstring.partition("\n\n")[0].split())


def comments_of_code(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and text of each comment: a block of lines, or the end of a line."""
    block: list[str] = []
    end = 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT or token.string.startswith((*FOR_TOOLS, "#!")):
            continue
        line, comment = token.start[0], token.string.lstrip("# ")
        if token.line[: token.start[1]].strip():
            yield line, comment
        elif block and line == end + 1:
            block.append(comment)
            end = line
        else:
            if block:
                yield end - len(block) + 1, " ".join(block)
            block, end = [comment], line
    if block:
        yield end - len(block) + 1, " ".join(block)


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


VERBS = _set("""
    abandon accept account act adapt add advertise advise affect agree allow answer append apply arrive ask assert
    assign be bear become begin believe belong bind break bring build call cancel carry catch cause cease change
    check choose cite claim clean close collapse combine come commit compare compress configure connect consist
    contain continue convert copy cost count cover crash create cut decide decode decompress define delay delete
    deliver deny depend describe detect die differ discard disconnect disturb do drop edit empty encode end enter
    escape evaluate exceed exchange exclude exist expect expire expunge fail fall fence fetch fill find finish fit
    flush fold follow forget form format forward free gather get give go greet group grow guard halve hand handle
    hang happen help hide hint hold hurt identify ignore import include increase inflate install join keep kill know
    lack last lead learn leave lengthen let lie like limit link list listen live load lock log look lose lower make
    map mark match matter mean measure meet mend merge move name need note notice number obey observe occur offer
    open order own parse pass pause pay permit pick pin plan point poll pose prepare prevent print process produce
    promise protect prove pull put queue quote race raise reach react read rebuild recalculate receive record
    recount refer refuse register release reload remain remember remove rename repeat replace replay reply report
    request require rescan reserve reset resolve rest restore retain retry return reuse rewrite rise rotate run save
    say search see select send separate serve set share show sign skip sleep sort speak spend split stage stand
    start stay stop store subscribe succeed suffice suit sum support surprise survive switch sync take tell tend
    test think translate treat trust try turn understand undo unload unsubscribe upgrade upload use vary visit wait
    wake want warn watch win work wrap write yield
""")
"""Verbs with which a docstring may begin, as an order to the function."""
_NOT_PLURAL = _set("empty free last like live lower open own")
"""Words that are mostly adjectives unless a sentence begins with them."""
_FINITE = _set("""
    am are became began belonged came can cannot could did does gave goes got had has have held is kept knew knows
    left may met might must said saw shall should took used was were will would wrote believed copied covered forged
    owned read resumes signed stopped switched listed changed died hung closed fenced started
""")
_PREPOSITIONS = _set("after at before by for from in of on to until with")
_AUXILIARIES = _set("can cannot could did do does had has have may might must not shall should will would")
_NO_VERB_AFTER = _PREPOSITIONS | _AUXILIARIES | _set("a an and any each every its no or the their to")
"""A word after one of these is a noun, an infinitive, or part of the verb before."""
_SUBORDINATE = _set("how if that what when where whether which while who whom whose why because unless")
"""Words that begin a clause with a verb of its own."""
_NO_SENTENCE = re.compile(
    r"[a-z0-9_]+(?:, [a-z0-9_]+)*: |"  # the meaning of a parameter
    r"[\w\"(*-][^.;:]* =/? |[\"*]|"  # ABNF
    r"RFC [\dRFC §.,;and()-]+(?:$|: |[\w-]+: )|"  # a source, or what it says
    r"[A-Z]+-[A-Z]+: "
)


def _third_person(verb: str) -> str:
    if verb.endswith(("ch", "o", "s", "sh", "x", "z")):
        return verb + "es"
    return verb[:-1] + "ies" if verb.endswith("y") and verb[-2] not in "aeo" else verb + "s"


_FINITE |= {_third_person(verb) for verb in VERBS} | (VERBS - _NOT_PLURAL)


def _no_verb_after(word: str) -> frozenset[str]:
    if word in ("are", "is", "was", "were"):
        return frozenset()
    return _AUXILIARIES if word in _AUXILIARIES else _NO_VERB_AFTER


def is_fragment(text: str) -> bool:
    """Return whether the first sentence of a docstring or comment lacks a verb.

    This is a guess: it counts words that can be verbs, and the clauses that need a verb
    of their own. ABNF, and the meaning of a parameter (`size: octets`), are no
    sentences and no fragments.
    """
    if _NO_SENTENCE.match(text):
        return False
    plain = re.sub(r"`[^`]*`", "X", text)
    sentence = re.match(r"(.*?)(?:[.;!?](?=\s+[^a-z]|$)|$)", plain, re.DOTALL)
    words = re.findall(r"[\w'-]+", sentence[1] if sentence else plain)
    if not words:
        return True
    if words[0].lower() in VERBS | {"raises", "returns"} and words[0][0].isupper() and words[1:2] != ["of"]:
        return False
    if words[0].lower() == "whether":
        return True
    lower = ["", *(word.lower() for word in words), ""]
    verbs = clauses = 0
    for before, word, after in zip(lower, lower[1:], lower[2:], strict=False):
        verbs += bool(before) and word in _FINITE and before not in _no_verb_after(word)
        clauses += word in _SUBORDINATE and not (after in ("for", "of") or (word == "that" and before in _PREPOSITIONS))
    return verbs <= clauses


def identifiers(text: str) -> Iterator[tuple[int, str]]:
    """Yield line and spelling of each name that a file defines."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.lineno, node.name
        elif isinstance(node, ast.arg):
            yield node.lineno, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.lineno, node.attr


def words_of(identifier: str) -> list[str]:
    """Return the words of a name: "many" and "names" of `ManyNames` or `MANY_NAMES`."""
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", identifier)]


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
