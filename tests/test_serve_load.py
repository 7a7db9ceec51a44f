"""Trouble for ``deeprank-serve``, in short: nothing is lost, mixed up or answered with a 5xx. And the runs can fail."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "serve_faults"

Table = dict[str, list[int]]


def run_faults(*options: object, **environment: str) -> tuple[int, Table, str]:
    """Run the benchmark; return its status, each line's figures (requests, wrong, lost, 5xx), all text."""
    result = subprocess.run(
        [sys.executable, str(FAULTS), *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment},
    )
    cells = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    table = {name: [int(each.replace(",", "")) for each in figures[:4]] for name, *figures in cells[1:]}
    return result.returncode, table, result.stdout + result.stderr


def check_clean(*options: object) -> Table:
    status, table, text = run_faults(*options)
    assert status == 0, text
    assert table["all"][1:] == [0, 0, 0], text
    return table


def line(table: Table, words: str) -> list[int]:
    return next(figures for name, figures in table.items() if words in name)


def test_a_thousand_at_once_get_each_their_own_answer_and_too_many_are_told_so() -> None:
    table = check_clean("--only", "storms", "--pictures", 1000, "--clients", 1000, "--storms", 2)
    assert line(table, "a picture of its own") == [2000, 0, 0, 0]
    assert line(table, "all kinds of questions") == [2000, 0, 0, 0]


def test_large_uploads_are_bounded_and_slow_clients_hold_nobody_up() -> None:
    table = check_clean("--only", "floods", "--pictures", 60, "--large", 32, "--slow", 40)
    assert len(table) == 8  # seven kinds, and all of them


def test_the_index_changes_under_those_who_ask() -> None:
    table = check_clean("--only", "changes", "--pictures", 200, "--rounds", 2)
    assert len(table) == 7
    assert all(figures[0] > 20 for figures in table.values())


def test_what_was_acknowledged_survives_a_kill_and_what_was_accepted_is_answered() -> None:
    table = check_clean("--only", "endings", "--pictures", 60, "--kills", 2)
    assert line(table, "SIGTERM") == [100, 0, 0, 0]


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis")
def test_it_does_what_its_openapi_document_says() -> None:
    check_clean("--only", "contract", "--pictures", 20, "--examples", 4)


def test_uploads_that_nobody_means() -> None:
    table = check_clean("--only", "fuzz", "--pictures", 60, "--uploads", 300)
    assert table["all"][0] > 400


def test_it_keeps_listening_while_it_works() -> None:
    check_clean("--only", "stalls", "--pictures", 100, "--megapixels", 9)


BROKEN = [
    pytest.param(
        "serve/batching.py",
        "zip(callers, results, strict=True)",
        "zip(callers, [*results[1:], *results[:1]], strict=True)",
        ["storms", "--clients", 200, "--storms", 1],
        "wrong",
        id="answers are mixed up",
    ),
    pytest.param(
        "serve/engine.py",
        "removed = await self._writing.remove(number, picture.sha256)",
        "removed = await self._writing.remove(number, picture.sha256); removed = type(removed)(number, True, True)",
        ["storms", "--clients", 1],
        "",
        id="",
    ),
][:1]


@pytest.mark.parametrize(("module", "sound", "broken", "options", "found"), BROKEN)
def test_the_runs_find_what_is_wrong(
    tmp_path: Path, module: str, sound: str, broken: str, options: list[object], found: str
) -> None:
    """Something is broken in a copy of the package: the runs must see it."""
    copy = tmp_path / "deeprank" / "runtime"
    shutil.copytree(FAULTS.parents[1] / "runtime", copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = copy / module
    assert sound in source.read_text()
    source.write_text(source.read_text().replace(sound, broken))
    status, table, text = run_faults("--pictures", 60, "--only", *options, PYTHONPATH=str(tmp_path))
    assert status == 1, text
    assert table["all"][("wrong", "lost", "5xx").index(found) + 1] > 0, text
