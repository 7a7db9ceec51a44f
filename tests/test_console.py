"""The console: a command's streams, its exit status and its last line."""

import ast
import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import write_model, write_picture

import deeprank.runtime
import deeprank.runtime.cli
from deeprank.runtime.cli import _Speed, progress_in_stages
from deeprank.runtime.console import from_here, to_paste
from deeprank.runtime.index.sync.sync import sync

SHOWS = "-v shows where. Please report it."
NOTHING = "nothing was left half-written."


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("raise DataError('found x; expected y.')", 1, "error: found x; expected y.\n"),
        ("raise DataError('a\\x1b[31mb')", 1, "error: a\\x1b[31mb\n"),
        ("1 / 0", 1, f"error: internal error (ZeroDivisionError: division by zero); {SHOWS}\n"),
        ("raise KeyboardInterrupt", 130, "interrupted.\n"),
        ("open('/nonexistent/x')", 1, f"error: /nonexistent/x: No such file or directory; {NOTHING}\n"),
        ("sys.exit(3)", 3, ""),
        ("print('done')", 0, ""),
    ],
)
def test_endings(body: str, status: int, said: str) -> None:
    program = (
        "import sys; from deeprank.runtime.console import guarded; from deeprank.runtime.errors import DataError\n"
        f"@guarded\ndef command(*, verbose):\n    {body}\n"
        "command(verbose='-v' in sys.argv)\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (status, said)
    verbose = subprocess.run([sys.executable, "-c", program, "-v"], capture_output=True, text=True)
    assert ("Traceback" in verbose.stderr) == (status in (1, 130))


def test_a_reader_that_has_gone_is_no_error() -> None:
    body = "print('x' * 10_000_000)"
    program = f"from deeprank.runtime.console import guarded\n@guarded\ndef command():\n    {body}\ncommand()\n"
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.wait(60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()


BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_index(tmp_path_factory.mktemp("streams"))


def make_index(folder: Path) -> Path:
    for number in range(6):
        write_picture(folder / "photos" / f"label{number % 2}" / f"{number}.png", number)
    sync(folder / "my.index", [folder / "photos"], model=write_model(folder / "model.onnx"))
    return folder


def in_shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}"}
    return subprocess.run(["bash", "-c", line], cwd=cwd, capture_output=True, text=True, env=environment, timeout=120)


CLOSED = ["<&-", ">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"]


@pytest.mark.parametrize("closed", CLOSED)
def test_closed_streams(closed: str, tmp_path: Path) -> None:
    """The work is done; what is said goes nowhere rather than into a file that has the number of a closed stream."""
    place = make_index(tmp_path)
    write_picture(place / "photos" / "new.png", 99)
    (place / "photos" / "broken.png").write_bytes(b"no picture")  # something to remark
    synced = in_shell(f"deeprank-index sync photos --index my.index {closed}", place)
    assert synced.returncode == 0, synced.stderr
    asked = in_shell(f"deeprank-query photos/new.png --index my.index -k 1 --html page.html {closed}", place)
    assert asked.returncode == 0, asked.stderr
    assert (place / "page.html").read_bytes().startswith(b"<!")
    assert in_shell("deeprank-index verify --index my.index", place).returncode == 0
    assert json.loads(in_shell("deeprank-index info --index my.index --json", place).stdout)["items"] == 7
    for result in (synced, asked):
        assert "Traceback" not in result.stderr
        assert ">" in closed or result.stdout
        if "2>&-" in closed:
            assert "broken.png" not in result.stdout
            assert "wrote" not in result.stdout


@pytest.mark.thorough
@pytest.mark.parametrize("command", ["train", "export", "index info", "query", "eval", "doctor", "serve"])
@pytest.mark.parametrize("closed", [">&-", "<&- >&- 2>&-"])
def test_every_command_bears_closed_streams(command: str, closed: str, tmp_path: Path) -> None:
    for words, status in (("--help", 0), ("--no-such-option", 2)):
        result = in_shell(f"deeprank-{command} {words} {closed}", tmp_path)
        assert result.returncode == status
        stdout_is_open = ">&-" not in closed.replace("2>&-", "")
        assert bool(result.stdout) == (words == "--help" and stdout_is_open)
        assert "Traceback" not in result.stderr


@pytest.mark.thorough
def test_an_error_is_an_error_without_streams(tmp_path: Path) -> None:
    for closed in (">&-", "<&- >&- 2>&-"):
        for command in ("deeprank-index info", "deeprank-query x.png", "deeprank-doctor --model no.onnx"):
            result = in_shell(f"{command} {closed}", tmp_path)
            assert result.returncode == 1
            assert result.stdout == "" or "doctor" in command
            assert "internal error" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize(
    "command",
    [
        "deeprank-query photos/label0/0.png --index my.index -k 6",
        "deeprank-query photos/label0/0.png --index my.index -k 6 --json",
        "deeprank-query photos/label0/0.png --index my.index -k 6 --paths-only",
        "deeprank-index info --index my.index --json",
        "deeprank-index --help",
        "deeprank-query --help",
        "deeprank-query --version",
        "deeprank --help",
        "deeprank index info --index my.index",
        "deeprank completion fish",
    ],
)
def test_a_full_disk_behind_stdout(indexed: Path, command: str) -> None:
    result = in_shell(f"{command} > /dev/full", indexed)
    assert result.returncode == 1
    assert result.stderr == "error: standard output cannot be written (No space left on device).\n"
    assert in_shell(f"{command} 2> /dev/full", indexed).returncode == 0


def test_large_output_and_a_full_disk() -> None:
    program = (
        "from deeprank.runtime.console import guarded, standard_streams\n"
        "@guarded\ndef command():\n    print('x' * 10_000_000)\n"
        "with standard_streams(): command()\n"
    )
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run([sys.executable, "-c", program], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (ended.returncode, ended.stderr[:39]) == (1, "error: standard output cannot be writte")


def test_an_encoding_without_the_characters(tmp_path: Path) -> None:
    make_index(tmp_path)
    write_picture(tmp_path / "photos" / "写真" / "é.png", 33)
    in_shell("deeprank-index sync photos --index my.index", tmp_path)
    line = "PYTHONUTF8=0 PYTHONIOENCODING=ascii deeprank-query photos/*/é.png --index my.index -k 1"
    shown = in_shell(line, tmp_path)
    assert shown.returncode == 0
    assert r"\u5199\u771f" in shown.stdout


@pytest.mark.parametrize("name", ["deeprank-query", "deeprank query"])
def test_an_interruption_is_no_error(indexed: Path, name: str) -> None:
    command = [str(BIN / name.split()[0]), *name.split()[1:], "-", "--index", "my.index"]
    process = subprocess.Popen(command, cwd=indexed, stdin=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdin.write(bytes(1_000_000))  # more than a pipe holds: when that is written, it is being read
    time.sleep(0.1)  # a signal in the microsecond before a blocking read is handled after it, here never
    process.send_signal(signal.SIGINT)
    process.wait(60)
    assert (process.returncode, process.stderr.read()) == (130, b"interrupted.\n")
    process.stderr.close()
    with contextlib.suppress(BrokenPipeError):
        process.stdin.close()


def test_an_interruption_at_a_question(indexed: Path) -> None:
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(indexed)
        os.execv(BIN / "deeprank-index", ["deeprank-index", "remove", "photos/label0/0.png", "--index", "my.index"])
    said = b""
    while b"[y/N]" not in said:
        said += os.read(terminal, 1000)
    # Python's input() loses a signal that comes just before it begins to read; so Ctrl-C is pressed until it works.
    with contextlib.suppress(OSError):  # the terminal goes with the command
        while True:
            os.write(terminal, b"\x03")
            while select.select([terminal], [], [], 2)[0]:
                said += os.read(terminal, 1000)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert said.splitlines()[-1] == b"interrupted."  # below ^C


def test_an_interruption_by_another_name() -> None:
    """What C++ makes of Ctrl-C while it is being imported."""
    body = "try: raise KeyboardInterrupt\n    except KeyboardInterrupt as e: raise ImportError('failed') from e"
    program = f"from deeprank.runtime.console import guarded\n@guarded\ndef command():\n    {body}\ncommand()\n"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "interrupted.\n")


def test_time_left_is_told_once_there_is_a_rate_to_tell_it_by() -> None:
    speed = _Speed(18_000)
    for place in range(16):  # a first batch, 10 s after the beginning
        speed.add(1, 10.4 + place / 1000)
        assert speed.words() == []
    speed.add(16, 12.0)
    assert speed.words() == []
    for batch in range(2, 12):
        speed.add(16, 10.4 + 1.6 * batch)
    # Sixteen in 1.6 s, so 10 a second; what came before the second batch does not count.
    rate, left = speed.words()
    assert float(rate.removesuffix("/s")) == pytest.approx(10, rel=0.01)
    minutes, seconds = re.fullmatch(r"(\d+) min (\d\d) s left", left).groups()
    assert 60 * int(minutes) + int(seconds) == pytest.approx((18_000 - 12 * 16) / 10, rel=0.01)
    endless = _Speed(None)
    for second in range(10):
        endless.add(5, float(second))
    assert endless.words() == ["5/s"]


def test_a_download_that_begins_again_has_no_rate() -> None:
    speed = _Speed(1000)
    speed.add(900, 0.0)
    speed.add(-900, 5.0)
    assert speed.words() == []


def test_stages_are_shown_one_after_the_other(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(deeprank.runtime.cli, "_LINE_INTERVAL", 0)
    with progress_in_stages() as start:
        advance = start("features", 10, "pictures", 3)
        advance(2, "loss 0.5")
        advance(5)
        start("copying", 4, "MB")()
    assert capsys.readouterr().err.splitlines() == [
        "features (after 3 from before): 2 of 7 pictures, loss 0.5",
        "features (after 3 from before): 7 of 7 pictures",
        "copying: 1 of 4 MB",
    ]


def test_an_interruption_before_a_typer_command_begins() -> None:
    program = (
        "import typer\nfrom deeprank.runtime.cli import application\n"
        "app = application('Help.', ['x'])\n"
        "def stop(value): raise KeyboardInterrupt\n"
        "@app.command()\ndef command(word: str = typer.Option('x', callback=stop)): ...\n"
        "app([])\n"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (130, "interrupted.\n")


def test_paths_as_they_can_be_typed_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path, shown in (("a/b", "a/b"), ("..photos", "..photos"), ("-x", "-x"), (".", "."), ("../y", None)):
        whole = (tmp_path / path).resolve()
        assert str(from_here(whole)) == (str(whole) if shown is None else shown)
    assert to_paste("deeprank-query", from_here(tmp_path / "-x")) == "deeprank-query ./-x"
    assert from_here(os.fsencode(tmp_path / "a")) == Path("a")


def printing(module: Path) -> list[str]:
    """Return the calls of a module that print, but for those of a module that is run as a program."""
    body = [
        part
        for part in ast.parse(module.read_text()).body
        if "__name__" not in ast.unparse(getattr(part, "test", part))
    ]
    calls = [node.func for part in body for node in ast.walk(part) if isinstance(node, ast.Call)]
    return [name for name in map(ast.unparse, calls) if name in ("print", "typer.echo", "click.echo")]


def test_only_the_commands_and_the_console_print() -> None:
    folders = [Path(deeprank.runtime.__file__).parents[1] / part for part in ("runtime", "models", "train", "export")]
    modules = [module for folder in folders for module in folder.rglob("*.py")]
    found = {module: printing(module) for module in modules if module.name not in ("cli.py", "console.py")}
    assert len(found) > 100
    assert {str(module): calls for module, calls in found.items() if calls} == {}
