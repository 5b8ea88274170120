"""The manual says what the program does."""

import functools
import importlib
import re
import tomllib
from pathlib import Path

import pytest

from obox.config import SECTIONS, Setting, load, settings

ROOT = Path(__file__).parent.parent
MANUAL = (ROOT / "docs/config.md").read_text()
EXAMPLE = (ROOT / "obox.toml").read_text()


@pytest.mark.parametrize("row", settings(), ids=lambda row: row.key)
def test_each_setting_is_in_the_manual_with_default_and_reason(row: Setting) -> None:
    part = re.split(r"^## ", MANUAL, flags=re.M)
    title = f"[{row.section}]" if row.section else "Top level"
    section = next(text for text in part if text.startswith(title))
    cells = next((line for line in section.splitlines() if line.startswith(f"| `{row.name}` |")), "")
    assert cells, f"{row.key} is not in docs/config.md"
    _, _, default, allowed, restart, doc, _ = (cell.strip() for cell in re.split(r"(?<!\\)\|", cells))
    assert default == f"`{row.default_toml()}`"
    assert allowed
    assert restart == ("yes" if row.restart else "")
    assert doc == row.doc


def test_the_manual_names_nothing_else() -> None:
    # Settings of [remote] have a dot in their names.
    named = re.findall(r"^\| `(\w+)` \|", MANUAL, flags=re.M)
    assert sorted(named) == sorted(row.name for row in settings())


def test_the_manual_says_which_settings_a_remote_may_have() -> None:
    section = MANUAL[MANUAL.index('## [remote."network"]') :]
    named = re.findall(r"^\| `([\w.]+)` \|$", section, flags=re.M)
    assert named == [row.key for row in settings() if row.remote]


def test_the_examples_of_a_remote_load(tmp_path: Path) -> None:
    section = MANUAL[MANUAL.index('## [remote."network"]') :]
    (example,) = re.findall(r"```toml\n(.*?)```", section, flags=re.S)
    for text, networks in ((example, 2), (uncommented(), 1)):
        file = tmp_path / "obox.toml"
        file.write_text(text)
        assert len(load(str(file), {"OBOX_STORAGE__URL": "memory://"}).remotes) == networks


def uncommented() -> str:
    """`#key = value` and `#[section]` are settings, `# text` is prose."""
    return re.sub(r"^#(?=[\[a-z])", "", EXAMPLE, flags=re.M)


def test_the_example_names_each_setting_and_its_default() -> None:
    document = tomllib.loads(uncommented())
    for row in settings():
        if row.key == "storage.url":
            continue
        place = document[row.section] if row.section else document
        assert row.name in place, f"{row.key} is not in obox.toml"
        shown = row.kind.show(row.kind.parse(place[row.name], Path()))
        assert shown == row.default_toml(), row.key
    assert set(SECTIONS) <= set(document)


def test_the_example_is_a_valid_start(tmp_path: Path) -> None:
    for text in (EXAMPLE, uncommented()):
        file = tmp_path / "obox.toml"
        file.write_text(text)
        got = load(str(file), {})
        assert got.imap
        assert got.lmtp


def test_the_licence_is_in_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    assert "!LICENSE\n" in (ROOT / ".dockerignore").read_text()
    assert re.search(r"^COPY .*\bLICENSE\b", (ROOT / "Dockerfile").read_text(), flags=re.M)


# -- links and names -----------------------------------------------------------------------------------------------

PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")])
PACKAGES = ("obox", "metacache", "fscache", "admintool", "bench")
FOLDERS = (*PACKAGES, "docs", "tests", "systemd")
NO_MODULES = {"obox.listeners", "obox.toml", "obox.target"}
"""Names of files that look like dotted names."""
RETIRED: dict[str, str] = {}
"""Names that a decision mentions and that the code does not have any longer, with the
reason why the page keeps them."""


def prose(text: str) -> str:
    """Return a page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M)


@functools.cache
def headings(page: Path) -> dict[str, str]:
    """Return the headings of a page by anchor, as GitHub makes anchors."""
    out: dict[str, str] = {}
    for title in re.findall(r"^#+ (.+)$", prose(page.read_text()), flags=re.M):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "")
        slug = re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-")
        again = sum(1 for one in out if re.fullmatch(rf"{re.escape(slug)}(-\d+)?", one))
        out[f"{slug}-{again}" if again else slug] = text
    for anchor, title in re.findall(r'<a id="([\w-]+)"></a>\*\*([^*]+)\*\*', page.read_text()):
        out[anchor] = title
    return out


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_go_somewhere(page: Path) -> None:
    wrong = []
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(page.read_text()))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (anchor and anchor not in headings(file)):
            wrong.append(target)
    assert not wrong


def resolves(name: str) -> bool:
    """Return whether a dotted name is a module, or a name in a module."""
    module, names = name, []
    while True:
        try:
            found: object = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, last = module.rpartition(".")
            names.insert(0, last)
            if not module:
                return False
    for one in names:
        if one in getattr(found, "__dataclass_fields__", ()) or one in getattr(found, "__annotations__", ()):
            found = None
        elif not hasattr(found, one):
            return False
        else:
            found = getattr(found, one)
    return True


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_names_of_the_code_are_in_the_code(page: Path) -> None:
    spans = re.findall(r"`([^`\n]+)`", prose(page.read_text()))
    names = {
        name
        for span in spans
        for name in re.findall(rf"(?<![\w./-])((?:{'|'.join(PACKAGES)})(?:\.\w+)+)(?![\w/-])", span)
        if name not in NO_MODULES
    }
    wrong = sorted(name for name in names if name not in RETIRED and not resolves(name))
    paths = {path.rstrip("./") for span in spans for path in re.findall(rf"^((?:{'|'.join(FOLDERS)})/[\w./-]+)$", span)}
    wrong += sorted(path for path in paths if path not in RETIRED and not (ROOT / path).exists())
    assert not wrong


def test_headings_that_the_code_cites_are_there() -> None:
    """Docstrings and pages cite headings in the form `docs/format.md, "Pull"`."""
    wrong = []
    steps = {
        page: re.findall(r"^(?:- |\d+\. |\| )?\*\*([^*]+?)\.?\*\*", page.read_text(), flags=re.M) for page in PAGES
    }
    sources = [path for top in PACKAGES for path in (ROOT / top).rglob("*.py")]
    for path in (*sources, *PAGES):
        for page, title in re.findall(r"docs/(\w+\.md),\s+\"([^\"]+)\"", path.read_text()):
            cited = ROOT / "docs" / page
            named = [*headings(cited).values(), *steps.get(cited, ())]
            if not any(one == title or one.startswith((f"{title},", f"{title}:", f"{title} ")) for one in named):
                wrong.append(f"{path.relative_to(ROOT)}: {page}, {title}")
    assert not wrong
