"""The fault injection of benchmarks/faults in short: nothing is lost or wrong, and planted faults are found."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FAULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "faults"
HAS_SHIM = shutil.which("cc") is not None and sys.platform == "linux"

Table = dict[str, list[int]]


def run_faults(*options: str, **environment: str) -> tuple[int, Table, str]:
    """Run the benchmark; return its status, each line's figures (runs, looked at, lost, wrong, crashes), all text."""
    result = subprocess.run(
        [sys.executable, str(FAULTS), "--pictures", "60", *options],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE", **environment},
    )
    cells = [line.strip("| ").split(" | ") for line in result.stdout.splitlines() if line.startswith("| ")]
    table = {name: [int(each.replace(",", "")) for each in figures[:5]] for name, *figures in cells[1:]}
    return result.returncode, table, result.stdout + result.stderr


def check_clean(*options: str) -> Table:
    status, table, text = run_faults(*options)
    assert status == 0, text
    assert table["all"][2:] == [0, 0, 0], text
    return table


@pytest.mark.thorough
def test_kills() -> None:
    table = check_clean("--only", "kills", "--commands", "sync,remove", "--kills", "4", "--calls", "2")
    assert table["all"][0] == (12 if HAS_SHIM else 4)
    assert all(looked_at > 0 for _, looked_at, *_ in table.values())


@pytest.mark.skipif(not HAS_SHIM, reason="needs a C compiler, and Linux")
@pytest.mark.thorough
def test_power_cuts_and_full_disks() -> None:
    table = check_clean("--only", "powercut,disk", "--commands", "sync,verify --repair", "--calls", "2")
    assert table["all"][0] >= 2 * 2 * 5


@pytest.mark.thorough
def test_readers_writers_and_other_users() -> None:
    table = check_clean("--only", "readers,writers,users", "--commands", "sync", "--seconds", "0.5", "--calls", "2")
    readers = next(figures for name, figures in table.items() if name.startswith("3 readers"))
    assert readers[0] > 3


@pytest.mark.thorough
def test_damage() -> None:
    table = check_clean("--only", "damage", "--damages", "0", "--share", "0.05")
    for name in ("graph.hnsw", "model.onnx", "items.sqlite", "ratings.sqlite"):
        assert table[f"damage to {name}"][0] > 10


BROKEN = [
    (
        "database/records",
        "and _row_crc32(*row[:-1]) == row[-1]",
        "",
        ["damage", "--files", "items.sqlite", "--share", "0.2"],
    ),
    (
        "database/writer",
        "synchronous = FULL",
        "synchronous = OFF",
        ["powercut", "--commands", "remove", "--calls", "6"],
    ),
    (
        "ratings/writer",
        "synchronous = EXTRA",
        "synchronous = FULL",
        ["powercut", "--commands", "ratings import", "--calls", "9"],
    ),
    (
        "ratings/records",
        "return comparison if sound and comparison.checksum() == check else None",
        "return comparison if sound else None",
        ["damage", "--files", "ratings.sqlite", "--share", "0.1"],
    ),
]


@pytest.mark.skipif(not HAS_SHIM, reason="needs a C compiler, and Linux")
@pytest.mark.parametrize(("module", "sound", "broken", "options"), BROKEN)
@pytest.mark.thorough
def test_the_runs_find_what_is_wrong(tmp_path: Path, module: str, sound: str, broken: str, options: list[str]) -> None:
    """Something that durability needs is left out in a copy of the package: the runs must see it."""
    copy = tmp_path / "deeprank" / "runtime"
    shutil.copytree(FAULTS.parents[1] / "runtime", copy, ignore=shutil.ignore_patterns("__pycache__"))
    source = copy / "index" / f"{module}.py"
    assert sound in source.read_text()
    source.write_text(source.read_text().replace(sound, broken))
    status, table, text = run_faults("--only", *options, PYTHONPATH=str(tmp_path))
    assert status == 1, text
    assert sum(table["all"][2:4]) > 0, text
