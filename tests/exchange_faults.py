"""Commands that are killed, interrupted or given an error at a chosen step of an exchange of two indexes."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

__all__ = ["Case", "Ended", "hidden", "run_cases", "words"]

# Before a rename of the exchange, counted from 1, where it is not one step; or after it: before the parent folder is
# made durable, or before the former index is deleted.
Step = Literal["rename 1", "rename 2", "rename 3", "durable", "tidy", "never"]
# "delete FOLDER": nothing but that, an empty folder.
Fault = Literal["kill", "interrupt", "terminate", "error"] | str


@dataclass(frozen=True)
class Case:
    """A command on an index, and what happens to it; ``renames``: the system has no exchange in one step."""

    words: Sequence[str]
    index: str
    step: Step = "never"
    fault: Fault = "kill"
    renames: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (9 if it was killed), and what it said."""

    status: int
    said: str


PROGRAM = """
import errno, json, os, signal, sys, tempfile
from pathlib import Path
import hnswlib, onnxruntime
import deeprank.runtime.index.cli, deeprank.runtime.index.search.index
from deeprank.runtime import files
from deeprank.runtime.umbrella import cli

cases = json.load(sys.stdin)
if any(case["words"][0] == "deeprank-teach" for case in cases):
    import deeprank.export.teach.undo

def fail(fault, path):
    if fault == "kill":
        os._exit(9)
    if fault == "interrupt":
        raise KeyboardInterrupt
    if fault == "error":
        raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
    if fault == "terminate":
        os.kill(os.getpid(), signal.SIGTERM)
    else:
        os.rmdir(fault.removeprefix("delete "))

def prepare(case):
    index, step = Path(case["index"]), case["step"]
    names = {str(index), *(str(index.with_name(f".{index.name}.{kind}")) for kind in ("reembed", "aside"))}
    before, renames = (index / "model.onnx").stat().st_ino, 0

    def is_there(event, arguments):
        nonlocal renames
        if event == "os.rename" and {str(path) for path in arguments[:2]} <= names:
            renames += 1
            return step == f"rename {renames}"
        if not (index / "model.onnx").exists() or (index / "model.onnx").stat().st_ino == before:
            return False
        if event == "open":
            return step == "durable" and str(arguments[0]) == str(index.parent)
        return event == "shutil.rmtree" and step == "tidy" and str(arguments[0]) in names

    def hook(event, arguments):
        nonlocal step
        if event in ("os.rename", "open", "shutil.rmtree") and is_there(event, arguments):
            step = "never"
            fail(case["fault"], arguments[0])

    if case["renames"]:
        files._exchanged = lambda one, other: False
    sys.addaudithook(hook)

def run(case, said):
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.dup2(said, 1)
    os.dup2(said, 2)
    sys.argv, status = case["words"], 1
    try:
        prepare(case)
        getattr(cli, case["words"][0].removeprefix("deeprank-"))()
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

ended = []
for case in cases:
    with tempfile.TemporaryFile() as said:
        status = run(case, said.fileno())
        said.seek(0)
        ended.append([status, said.read().decode()])
json.dump(ended, sys.stdout)
"""


def run_cases(cases: Sequence[Case]) -> list[Ended]:
    """Run the commands, one after another, each in a process of its own."""
    content = json.dumps([asdict(case) for case in cases])
    result = subprocess.run([sys.executable, "-c", PROGRAM], input=content, capture_output=True, text=True, cwd="/")
    assert result.returncode == 0, result.stderr
    ended = [Ended(*each) for each in json.loads(result.stdout)]
    assert len(ended) == len(cases)
    assert not [each for each in ended if "Traceback" in each.said or "internal error" in each.said], ended
    return ended


def words(*command: object) -> list[str]:
    """Return the words of a command."""
    return [str(word) for word in command]


def hidden(folder: Path) -> list[str]:
    """Return the names of what lies hidden in a folder."""
    return sorted(path.name for path in folder.glob(".*"))
