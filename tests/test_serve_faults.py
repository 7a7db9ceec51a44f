"""The faults of benchmarks/serve_faults in short: nothing is lost, mixed up or a 5xx, and planted faults are found."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import run_command
from tiny_model import write_model, write_pictures

from deeprank.runtime.index import Index
from deeprank.runtime.index.uploads import remove_items

FAULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "serve_faults"


@dataclass(frozen=True)
class Ran:
    """What the benchmark said: each line's requests, wrong, lost, 5xx; and all of it."""

    status: int
    table: dict[str, list[int]]
    text: str

    def check_clean(self, *words: str) -> int:
        """Look at the line with each of these words: all went well; return the requests of all."""
        requests = 0
        for word in words:
            found = [figures for name, figures in self.table.items() if word in name]
            assert len(found) == 1, f"{word}\n{self.text}"
            assert found[0][1:] == [0, 0, 0], self.text
            requests += found[0][0]
        assert not [
            line for line in self.text.splitlines() if line.startswith("FAILED") and any(w in line for w in words)
        ]
        return requests


def run_faults(*options: object, **environment: str) -> Ran:
    result = subprocess.run(
        [sys.executable, str(FAULTS), *map(str, options)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment},
    )
    cells = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    table = {name: [int(each.replace(",", "")) for each in figures[:4]] for name, *figures in cells[1:]}
    assert table, result.stdout + result.stderr
    return Ran(result.returncode, table, result.stdout + result.stderr)


@pytest.fixture(scope="module")
def ran() -> Ran:
    """All kinds but the storms, and the stalls, which need a machine that does nothing else.

    ``python benchmarks/serve_faults`` runs more.
    """
    contract = ["contract"] * (importlib.util.find_spec("schemathesis") is not None)
    kinds = ["floods", "changes", "endings", "fuzz", *contract]
    sizes = "--pictures 60 --large 10 --slow 10 --rounds 1 --kills 1 --uploads 80 --megapixels 6 --examples 1"
    parts = "--phases coverage,fuzzing --servers writing --formats PNG,WebP"
    return run_faults("--only", ",".join(kinds), *sizes.split(), *parts.split())


@pytest.mark.thorough
def test_a_thousand_at_once_get_each_their_own_answer_and_too_many_are_told_so() -> None:
    ran = run_faults("--only", "storms", "--pictures", 300, "--clients", 1000, "--storms", 1)
    assert ran.status == 0, ran.text
    assert ran.check_clean("a picture of its own", "all kinds of questions") == 2000
    assert ran.check_clean("accepts 8 requests") > 500


@pytest.mark.thorough
def test_large_uploads_are_bounded_and_slow_clients_hold_nobody_up(ran: Ran) -> None:
    ways = (
        "byte by byte",
        "never end",
        "middle of an upload",
        "before they are answered",
        "read nothing",
        "promise more",
    )
    assert ran.check_clean("20 MB at once", *ways) > 500


@pytest.mark.thorough
def test_the_index_changes_under_those_who_ask(ran: Ran) -> None:
    changes = (
        "added, changed, moved, removed",
        "remove --label",
        "compact",
        "--reembed",
        "copied over",
        "damaged index",
    )
    assert ran.check_clean(*changes) > 500


@pytest.mark.thorough
def test_what_was_acknowledged_survives_a_kill_and_what_was_accepted_is_answered(ran: Ran) -> None:
    assert ran.check_clean("kill -9") > 50
    assert ran.check_clean("SIGTERM") == 100


@pytest.mark.skipif(importlib.util.find_spec("schemathesis") is None, reason="needs schemathesis")
@pytest.mark.thorough
def test_it_does_what_its_openapi_document_says(ran: Ran) -> None:
    assert ran.check_clean("schemathesis, a token") > 200


@pytest.mark.thorough
def test_uploads_that_nobody_means(ran: Ran) -> None:
    assert ran.check_clean("mutated pictures of", "bombs", "malformed forms", "uploaded to the index") > 250


@pytest.mark.thorough
def test_nothing_else_went_wrong(ran: Ran) -> None:
    assert ran.status == 0, ran.text


@pytest.mark.thorough
def test_the_runs_find_answers_that_are_mixed_up(tmp_path: Path) -> None:
    """In a copy of the package, those who are answered together get each other's answers."""
    copy = tmp_path / "deeprank" / "runtime"
    shutil.copytree(FAULTS.parents[1] / "runtime", copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = copy / "serve" / "batching.py"
    sound, broken = "zip(callers, results,", "zip(callers, [*results[1:], *results[:1]],"
    assert sound in source.read_text()
    source.write_text(source.read_text().replace(sound, broken))
    found = run_faults(
        *["--only", "storms", "--pictures", "60", "--clients", "100", "--storms", "1"], PYTHONPATH=str(tmp_path)
    )
    assert found.status == 1, found.text
    assert found.table["all"][1] > 0, found.text


def test_a_number_that_is_another_picture_by_now_removes_nothing(tmp_path: Path) -> None:
    """A request to remove one waits while the index is embedded anew, and the numbers are given out anew."""
    paths = write_pictures(tmp_path / "photos", ["a.png", "b.png"])
    index = tmp_path / "my.index"
    run_command(
        "deeprank-index", "sync", paths[0].parent, "--index", index, "--model", write_model(tmp_path / "m.onnx")
    )
    contents = [hashlib.sha256(path.read_bytes()).digest() for path in paths]
    with Index.open(index) as opened:
        numbers = [opened.item(str(path)).id for path in paths]
    assert [removed.found for removed in remove_items(index, numbers, contents[::-1])] == [False, False]
    assert [removed.found for removed in remove_items(index, numbers, [contents[0], bytes(32)])] == [True, False]
    with Index.open(index) as opened:
        assert len(opened) == 1
