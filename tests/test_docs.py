"""The documentation: its links lead somewhere, its commands exist, it fits its columns, the README is short."""

import re
from pathlib import Path

import pytest
from bad_input import BEGIN, CASES, DOCUMENT, END

from deeprank.runtime.umbrella import completion
from deeprank.runtime.umbrella.commands import COMMANDS, SHORT_FORMS

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
CARD = ROOT / "models" / "pretrained" / "README.md"
PAGES = [README, ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", CARD, *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(page: Path) -> str:
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", prose(page)):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_lines_have_at_most_100_columns(page: Path) -> None:
    """Tables are one line a row, except those of the README."""
    lines = page.read_text("utf-8").splitlines()
    long = [line for line in lines if len(line) > 100 and (page == README or not line.startswith("|"))]
    assert long == []


def test_the_readme_is_one_page() -> None:
    assert len(prose(README).split()) <= 1000


def test_the_readme_leads_to_every_page() -> None:
    linked = {(ROOT / link.partition("#")[0]).resolve() for link in re.findall(r"\]\(([^)]+)\)", prose(README))}
    assert linked >= set(PAGES) - {README}


def commands(page: Path) -> list[list[str]]:
    """Our commands in the page's blocks and in its text, a list of words each; of a pipe the first command."""
    text = page.read_text("utf-8")
    blocks = "\n".join(FENCE.findall(text)).replace("\\\n", " ")
    spans = re.findall(r"`([^`]+)`", FENCE.sub("", text))
    lines = re.findall(r"^(?:\$ )?deeprank[ -]([a-z]+(?: .*)?)$", "\n".join([blocks, *spans]), re.MULTILINE)
    return [re.split(r" \| |\s#|\[", line)[0].split() for line in lines]


@pytest.fixture(scope="module")
def options() -> dict[str, set[str]]:
    """The names of each command's options; those of a short form are those of the command it is short for."""
    known = {command: {name for one in many for name in one.names} for command, many in completion._options()}
    return known | {short: known[" ".join(words)] for short, words in SHORT_FORMS.items()}


@each_page
def test_commands_and_options_exist(page: Path, options: dict[str, set[str]]) -> None:
    for command, *words in commands(page):
        if command == "completion" or "COMMAND" in words or (command in COMMANDS and command not in options):
            continue  # no options; a placeholder; its extra is not installed
        name = f"{command} {words[0]}" if command == "index" and words else command
        assert name in options, (command, words)
        given = {word.partition("=")[0] for word in words if re.match(r"--?[a-z]", word)}
        assert given <= options[name], (name, given - options[name])


def test_each_case_of_bad_input_has_its_row() -> None:
    rows = DOCUMENT.read_text("utf-8").split(BEGIN)[1].split(END)[0].strip().splitlines()[2:]
    assert [row.split(" | ")[0].removeprefix("| ") for row in rows] == [case.what for case in CASES]
    assert [row for row, case in zip(rows, CASES, strict=True) if case.says.replace("|", "\\|") not in row] == []
