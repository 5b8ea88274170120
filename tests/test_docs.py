"""What the manual says is what the program does."""

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
    named = re.findall(r"^\| `(\w+)` \|", MANUAL, flags=re.M)  # those of [remote] have a dot
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


def test_the_compose_file_says_what_the_program_knows() -> None:
    """No YAML parser here: indentation and `NAME: value` are all that the file uses."""
    lines = [line for line in (ROOT / "minio-compose.yml").read_text().splitlines() if line.strip()]
    assert not any("\t" in line for line in lines)
    assert [line for line in lines if re.match(r"\w", line)] == ["services:", "volumes:"]
    assert [line.strip() for line in lines if re.match(r"  \w", line)] == ["s3:", "backend:", "bucket:", "state:"]
    given = {}
    for line in lines:
        if match := re.fullmatch(r' {6}(OBOX_\w+): "?([^"]*)"?', line):
            given[match[1]] = match[2]
    image = (ROOT / "Dockerfile").read_text()
    given |= dict(re.findall(r"(OBOX_\w+)=(\S+)", image))
    got = load(None, given)
    assert got.imap
    assert got.lmtp
    assert got.http
    ports = [listen.port for section in (got.imap, got.lmtp, got.http) for listen in section.listen]
    assert [int(port) for port in re.findall(r'127\.0\.0\.1:\d+:(\d+)"', "\n".join(lines))] == ports
    assert f"EXPOSE {' '.join(map(str, ports))}\n" in image
    assert re.search(r"image: chrislusf/seaweedfs:\d+\.\d+$", "\n".join(lines), re.M), "pinned"


def test_the_licence_is_in_every_package() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert "Version 2.0, January 2004" in (ROOT / "LICENSE").read_text()
    assert "!LICENSE\n" in (ROOT / ".dockerignore").read_text()
    assert re.search(r"^COPY .*\bLICENSE\b", (ROOT / "Dockerfile").read_text(), flags=re.M)
