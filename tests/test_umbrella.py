"""``deeprank COMMAND`` is ``deeprank-COMMAND``, and completion works in the shells themselves."""

import importlib
import os
import pty
import select
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import run_command
from tiny_model import write_model, write_picture

from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.umbrella.commands import COMMANDS

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("umbrella")
    for number in range(6):
        write_picture(folder / "photos" / f"label{number % 2}" / f"{number}.png", number)
    sync(folder / "deeprank.index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    return folder


def test_every_command_has_a_script_of_its_own() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    for name in COMMANDS:
        module, function = scripts.pop(f"deeprank-{name}").split(":")
        assert getattr(importlib.import_module(module), function).args == (name,)
    assert list(scripts) == ["deeprank"]


@pytest.mark.thorough
@pytest.mark.parametrize(
    "words",
    [
        ("query", "photos/label0/0.png", "-k", "3", "--json"),
        ("query", "--nope"),
        ("index", "info"),
        ("index", "sync", "nowhere"),
        ("index", "verify", "--nope"),
        ("doctor", "--model", "nope.onnx", "--json"),
        ("serve", "--index", "nowhere"),
        ("train", "nowhere"),
        ("train", "--version"),
    ],
)
def test_both_do_the_same(place: Path, words: tuple[str, ...]) -> None:
    single = run_command(f"deeprank-{words[0]}", *words[1:], cwd=place, status=None, as_typed=True)
    both = run_command("deeprank", *words, cwd=place, status=None)
    assert both.returncode == single.returncode
    if words[0] != "doctor":  # which tells how much memory is free
        assert both.stdout == single.stdout
    assert both.stderr.replace("usage: deeprank ", "usage: deeprank-") == single.stderr


def test_the_short_form(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx")
    write_picture(tmp_path / "photos" / "a.png", 1)
    assert "1 added" in run_command("deeprank", "sync", "photos", cwd=tmp_path).stdout
    assert "1 unchanged" in run_command("deeprank", "index", "sync", "photos", cwd=tmp_path).stdout
    assert run_command("deeprank", "sync", "--help").stdout == run_command("deeprank", "index", "sync", "--help").stdout


@pytest.mark.thorough
def test_help_and_hints_say_what_was_typed() -> None:
    for name in ("index", "query", "train"):
        text = run_command("deeprank", name, "--help").stdout
        assert text.startswith(f"usage: deeprank {name} ")
        assert f"\n  deeprank {name}" in text
        assert text == run_command("deeprank", "help", name).stdout
        single = run_command(f"deeprank-{name}", "--help", as_typed=True).stdout
        usage, examples = f"deeprank-{name}", f"\n  deeprank-{name}"
        assert single.replace(usage, f"deeprank {name}", 1).replace(examples, f"\n  deeprank {name}") == text
    assert "usage: deeprank index copy " in run_command("deeprank", "help", "index", "copy").stdout


def test_an_address_names_the_command_that_was_typed(place: Path) -> None:
    for command in ("deeprank query", "deeprank-query"):
        refused = run_command(*command.split(), "https://example.com/a.jpg", cwd=place, status=1)
        assert f"Try: curl -s https://example.com/a.jpg | {command} -\n" in refused.stderr


def test_the_umbrella_itself() -> None:
    whole = run_command("deeprank").stdout
    assert whole == run_command("deeprank", "--help").stdout == run_command("deeprank", "help").stdout
    assert whole == run_command("deeprank", "help", "help").stdout
    for name in (*COMMANDS, "sync", "completion"):
        assert f"\n  {name} " in whole
    assert run_command("deeprank", "--version").stdout == run_command("deeprank-query", "--version").stdout


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["qeury"], "did you mean deeprank query?"),
        (["search"], "did you mean deeprank query?"),
        (["serach"], "did you mean deeprank query?"),
        (["evaluate"], "did you mean deeprank eval?"),
        (["dedupe"], "did you mean deeprank index dedupe?"),
        (["photos"], "did you mean deeprank sync photos?"),
        (["model.onnx"], "did you mean deeprank query model.onnx?"),
        (["xyzzy"], "there is no command 'xyzzy'."),
        (["a\x1b[31m"], "there is no command 'a\\x1b[31m'."),
        (["--index", "i", "info"], "options come after the command"),
        (["completion", "tcsh"], "expected one of bash, zsh, fish"),
    ],
)
def test_words_that_are_no_command(place: Path, words: list[str], said: str) -> None:
    result = run_command("deeprank", *words, cwd=place, status=2)
    assert result.stdout == ""
    assert said in result.stderr.splitlines()[0]
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("name", ["train", "export", "serve"])
@pytest.mark.parametrize("missing", ["part", "packages"])
def test_a_part_that_is_not_installed(name: str, missing: str, tmp_path: Path) -> None:
    """One sentence with a command for this very interpreter; no traceback, and the others go on working."""
    absent = {"part": "deeprank.runtime.serve" if name == "serve" else f"deeprank.{name}", "packages": "torch"}[missing]
    if name == "serve":
        absent = "uvicorn"
    program = (
        f"import sys; sys.modules[{absent!r}] = None; sys.argv = ['deeprank', *sys.argv[1:]]\n"
        "from deeprank.runtime.umbrella.cli import main; main()\n"
    )
    words = {"train": ["digits"], "export": ["run"], "serve": ["--index", "i"]}[name]
    result = subprocess.run([sys.executable, "-c", program, name, *words], cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 1, result.stderr
    assert result.stderr.startswith("error: ")
    command = result.stderr.strip().partition("install them with: ")[2]
    assert command.startswith(f"{sys.executable} -m ")
    assert (" fastapi" if name == "serve" else " 'torch>=") in command.replace("'fastapi", " fastapi")
    assert subprocess.run([sys.executable, "-c", program, "--help"], capture_output=True).returncode == 0


def test_the_runtime_imports_no_other_part(tmp_path: Path) -> None:
    program = (
        "import sys; sys.argv = ['deeprank', 'help']\n"
        "from deeprank.runtime.umbrella.cli import main; main()\n"
        "print(*(name for name in sys.modules if name.startswith(('deeprank.', 'typer', 'numpy', 'torch'))))\n"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    imported = shown.splitlines()[-1].split()
    assert all(name.startswith("deeprank.runtime") for name in imported)
    assert not [name for name in imported if "query" in name or "index" in name]


SHELL_CASES = [
    ("deeprank que", "deeprank query"),
    ("deeprank query --leave", "--leave-out-query"),
    ("deeprank-query --leave", "--leave-out-query"),
    ("deeprank-query --search ex", "exact"),
    ("deeprank index ded", "dedupe"),
    ("deeprank index dedupe --keep old", "oldest"),
    ("deeprank sync --dry", "--dry-run"),
    ("deeprank-index sync --allow", "--allow-mass-removal"),
    ("deeprank train --see", "--seed"),
    ("deeprank query photo", "photos/"),
    ("deeprank sync --index deep", "deeprank.index/"),
    ("deeprank completion fi", "fish"),
    ("deeprank index rat", "ratings"),
    ("deeprank index ratings exp", "export"),
    ("deeprank-index ratings import --js", "--json"),
]


def script(shell: str, folder: Path) -> Path:
    path = folder / f"completion.{shell}"
    path.write_text(run_command("deeprank", "completion", shell).stdout)
    return path


def completed(shell: list[str], start: str, line: str, cwd: Path) -> str:
    """Type a line and the tabulator in a shell on a terminal; return what the shell makes of it."""
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(cwd)
        os.environ.update(TERM="dumb", PS1="> ", HOME=str(cwd), INPUTRC="/nonexistent")
        os.execvp(shell[0], shell)
    try:
        os.write(terminal, f"{start}; echo rea''dy\n".encode())
        until(terminal, b"ready")
        os.write(terminal, line.encode() + b"\t")
        return until(terminal, None).decode(errors="replace")
    finally:
        os.close(terminal)
        os.waitpid(child, 0)


def until(terminal: int, word: bytes | None) -> bytes:
    """Read until the word appears; without one, until nothing more comes."""
    read = b""
    while select.select([terminal], [], [], 15 if word else 2.5)[0]:
        read += os.read(terminal, 65536)
        if word is not None and word in read:
            break
    return read


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_completion_in_bash(place: Path, tmp_path: Path) -> None:
    """bash's function is asked directly, as readline does; file names it leaves to readline."""
    asked = "\n".join(f"try {line}" for line, _ in SHELL_CASES)
    program = (
        f"source {script('bash', tmp_path)}\n"
        'try() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _deeprank 2>/dev/null; echo "${COMPREPLY[*]}"; }\n'
        f"{asked}\n"
    )
    result = subprocess.run(["bash", "-c", program], cwd=place, capture_output=True, text=True)
    assert result.stderr == ""
    for given, (line, wanted) in zip(result.stdout.splitlines(), SHELL_CASES, strict=True):
        if wanted != "photos/":
            assert given == wanted.removeprefix("deeprank ").removesuffix("/"), line


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_completion_in_fish(place: Path, tmp_path: Path) -> None:
    path = script("fish", tmp_path)
    for line, wanted in SHELL_CASES:
        program = f"source {path}; complete -C '{line}'"
        result = subprocess.run(
            ["fish", "-c", program], cwd=place, capture_output=True, text=True, env={**os.environ, "HOME": str(place)}
        )
        assert wanted.removeprefix("deeprank ") in [each.partition("\t")[0] for each in result.stdout.splitlines()], (
            line
        )


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
@pytest.mark.parametrize(("line", "wanted"), SHELL_CASES[:8:3])
def test_completion_in_zsh(place: Path, tmp_path: Path, line: str, wanted: str) -> None:
    start = f"autoload -Uz compinit; compinit -u -D; source {script('zsh', tmp_path)}"
    assert wanted in completed(["zsh", "-f", "-i"], start, line, place)


def test_without_a_shell_it_says_how() -> None:
    assert "deeprank completion fish | source" in run_command("deeprank", "completion").stdout
