"""The help of every command, at several widths."""

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import typer
from conftest import BIN, run_command
from fork_server import forking_server
from typer.main import get_command

from deeprank.runtime.helptext import command_help
from deeprank.runtime.query.arguments import make_parser
from deeprank.runtime.umbrella.commands import load

COMMANDS = ["train", "export", "index", "embed", "query", "eval", "serve", "doctor"]
INDEX = ["sync", "info", "verify", "remove", "compact", "copy", "export", "import", "load", "dedupe", "ratings"]
RATINGS = ["export", "import", "info"]
ALL = [(f"deeprank-{name}",) for name in COMMANDS] + [("deeprank-index", name) for name in INDEX]
ALL += [("deeprank-index", "ratings", name) for name in RATINGS]
OPTION = re.compile(r"(?<![\w-])--[a-z](?:[a-z0-9-]*[a-z0-9])?")


@functools.cache
def shown(*words: str, locale: str = "C.UTF-8") -> str:
    """What the real command prints at 80 columns."""
    if locale == "C.UTF-8" and (server := forking_server(torch=False)):  # help needs no torch
        result = server.run([*words, "--help"], None, {"COLUMNS": "80"})
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout
    command = [str(BIN / words[0]), *words[1:], "--help"]
    environment = {**os.environ, "COLUMNS": "80", "LC_ALL": locale, "PYTHONUTF8": "0"}
    result = subprocess.run(command, capture_output=True, env=environment, check=True)
    assert result.stderr == b""
    return result.stdout.decode("ascii")  # whatever the locale, it can be shown


def parser_of(*words: str) -> Any:
    """The command's own parser: argparse's for the query, else Typer's."""
    name = words[0].removeprefix("deeprank-")
    if name == "query":
        return make_parser()
    command = get_command(load(name).app)
    return functools.reduce(lambda group, word: group.commands[word], words[1:], command)


def rendered(*words: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    parser = parser_of(*words)
    if words[0] == "deeprank-query":
        return parser.format_help()
    return command_help(
        parser, parser.context_class(parser, info_name=" ".join(words), help_option_names=["-h", "--help"])
    )


def option_names(*words: str) -> set[str]:
    parser = parser_of(*words)
    if words[0] == "deeprank-query":
        return {name for name in parser.option_names() if name.startswith("--")}
    return {
        name
        for each in parser.params
        if not getattr(each, "hidden", False)
        for name in (*each.opts, *each.secondary_opts)
        if name.startswith("--")
    }


def test_the_list_is_whole() -> None:
    listed = re.findall(r"^  ([a-z]+) ", shown("deeprank"), flags=re.MULTILINE)
    assert [name for name in listed if name in COMMANDS] == COMMANDS
    assert re.findall(r"^  ([a-z]+) ", shown("deeprank-index"), flags=re.MULTILINE)[: len(INDEX)] == INDEX


@pytest.mark.parametrize("words", [*ALL, ("deeprank",), ("deeprank", "completion")], ids=" ".join)
def test_it_fits_80_columns(words: tuple[str, ...]) -> None:
    text = shown(*words)
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith(f"usage: {' '.join(words)} ")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_it_fits_others(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    assert rendered(*words, columns=80, monkeypatch=monkeypatch).strip() == shown(*words).strip()
    for columns in (40, 60, 120):
        text = rendered(*words, columns=columns, monkeypatch=monkeypatch)
        prose = text.partition("examples:")[0].split("\n", 1)[1]  # commands are not broken into lines
        too_long = [line for line in prose.splitlines() if len(line) > min(columns, 100)]
        assert [line for line in too_long if len(line.split()) > 2] == []


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_every_option_is_whole(words: tuple[str, ...]) -> None:
    text = shown(*words)
    options = text[text.index("options:") :]
    at_the_left = {name for line in options.splitlines() if line[:3] in ("  -",) for name in OPTION.findall(line)}
    missing = option_names(*words) - at_the_left
    assert not missing
    # What a sentence says of an option names one that there is, and is not cut at a hyphen either.
    assert not [line for line in text.splitlines() if line.endswith("-") and not line.endswith(" -")]
    for noise in ("TEXT", "INTEGER", "<str>", "<int", "<path>", "<bool>", "╭", "│"):
        assert noise not in text


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_examples_are_of_the_command_itself(words: tuple[str, ...]) -> None:
    examples = shown(*words).partition("examples:")[2]
    own = [line for line in examples.splitlines() if line.startswith(f"  {' '.join(words)}")]
    assert own
    if words[0] == "deeprank-index" and len(words) > 1:
        assert own == [line for line in examples.splitlines() if line.startswith("  deeprank-")]


def test_brackets_stay() -> None:
    export, serve = (" ".join(shown(f"deeprank-{name}").split()) for name in ("export", "serve"))
    assert "float pictures [n, 3, S, S] to vectors [n, d]" in export
    assert "127.0.0.1 and [::1]" in serve


def test_examples_of_a_group_are_one_of_each() -> None:
    examples = shown("deeprank-index").partition("examples:")[2].split("\n")[1:]
    assert [line.split()[1] for line in examples if line.strip()] == INDEX


def test_help_is_the_same_in_every_locale() -> None:
    for locale in ("C", "POSIX", "en_US.ISO-8859-1", "tr_TR.UTF-8"):
        assert shown("deeprank-index", "sync", locale=locale) == shown("deeprank-index", "sync")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["deeprank-query", "a.jpg", "--topk", "3"], "here it is called --k."),
        (["deeprank-query", "a.jpg", "-n", "3"], "here it is called --k."),
        (["deeprank-query", "a.jpg", "--lable", "x"], "did you mean --label?"),
        (["deeprank-query", "a.jpg", "--weights", "x"], "here it is called --model."),
        (["deeprank-query", "a.jpg", "--gpu"], "here it is called --device cuda."),
        (["deeprank-index", "sync", "a", "--recursive"], "folders are always read recursively."),
        (["deeprank-index", "sync", "a", "--force"], "--allow-mass-removal"),
        (["deeprank-index", "sync", "a", "--ignore", "x"], "here it is called --exclude."),
        (["deeprank-index", "info", "--only", "x"], "there is no option --only; see --help."),  # it has no --include
        (["deeprank-serve", "--bind", "0.0.0.0"], "here it is called --host."),
        (["deeprank-serve", "--qwertz"], "there is no option --qwertz; see --help."),
        (["deeprank-eval", "--top-k=3"], "here it is called --k."),
    ],
)
def test_options_by_the_names_they_have_elsewhere(words: list[str], said: str, tmp_path: Path) -> None:
    result = run_command(*words, status=2, cwd=tmp_path)
    assert result.stdout == ""
    error, usage = result.stderr.splitlines()
    assert error.startswith("error: there is no option -")
    assert said in error
    assert usage.startswith(f"usage: {words[0]}")


def test_short_and_long_k() -> None:
    for name in ("deeprank-query", "deeprank-eval"):
        assert "\n  -k, --k K " in shown(name)


@pytest.mark.parametrize(
    "words",
    [("deeprank-index", "sync"), *((f"deeprank-{name}",) for name in ("train", "eval", "serve", "doctor"))],
    ids=" ".join,
)
def test_an_unknown_device_is_wrong_usage(words: tuple[str, ...]) -> None:
    with pytest.raises(typer.BadParameter, match="expected auto, cpu or cuda") as refused:
        parser_of(*words).make_context(" ".join(words), ["--device", "abacus"])
    assert "--device" in refused.value.format_message()
