"""The attack of benchmarks/attack in short: no crash, no broken limit and no harm, and planted faults are found."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ATTACK = Path(__file__).resolve().parents[1] / "benchmarks" / "attack"
COLUMNS = ("tried", "refused", "answered", "crashed", "over limits", "wrong")

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory and CPU time are read from /proc")
Table = dict[tuple[str, str], dict[str, int]]


def command(*options: object) -> list[str]:
    return [sys.executable, str(ATTACK), *map(str, options)]


def run_attack(*options: object, **environment: str) -> tuple[int, Table, str]:
    """Run it; return its exit status, the figures of each row (inputs, target) by column, and all text."""
    result = subprocess.run(
        command(*options), capture_output=True, text=True, errors="replace", env={**os.environ, **environment}
    )
    return result.returncode, table_of(result.stdout), result.stdout + result.stderr


def table_of(text: str) -> Table:
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    rows = [line for line in cells if len(line) == len(COLUMNS) + 5 and line[0] != "inputs"]
    return {
        (row[0], row[1]): {name: int(cell.replace(",", "")) for name, cell in zip(COLUMNS, row[2:], strict=False)}
        for row in rows
    }


def check_clean(*options: object) -> Table:
    status, table, text = run_attack("--seed", 1, *options)
    assert status == 0, text
    assert all(row["crashed"] == row["over limits"] == row["wrong"] == 0 for row in table.values()), text
    return table


def left_behind(folder: Path) -> list[str]:
    """Return the command lines of processes that an attack started, which makes everything in this folder."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = place.read_bytes()
        except OSError:
            continue
        if os.fsencode(folder) in words:
            found.append(words.replace(b"\0", b" ").decode(errors="replace"))
    return found


@pytest.mark.thorough
@pytest.mark.timeout(1200)
def test_every_kind_is_tried_at_the_library() -> None:
    """But the pictures and archives of test_hostile_pictures and test_hostile_archives, which try each kind."""
    sys.path.insert(0, str(ATTACK))
    try:
        from cases import all_kinds

        expected = [kind.group for kind in all_kinds() if kind.family != "http"]
    finally:
        sys.path.remove(str(ATTACK))
    expected = [group for group in expected if group not in ("pictures", "archives")]
    only = ",".join(sorted(set(expected)))
    table = check_clean("--targets", "library", "--rounds", 1, "--minutes", 15, "--only", only)
    tried = {group: row["tried"] for (group, _), row in table.items()}
    assert tried["all"] == len(expected) == sum(tried[group] for group in set(expected))


@pytest.mark.thorough
def test_all_targets_for_a_quarter_of_a_minute() -> None:
    """``python benchmarks/attack`` goes on for longer, with what takes longer."""
    only = "mutated pictures,mutated arrays,http_bytes"
    table = check_clean("--minutes", 0.25, "--commands", 1, "--only", only)
    assert {target for _, target in table} == {"library", "commands", "server", ""}
    assert all(row["tried"] == row["refused"] + row["answered"] for row in table.values())


PLANTED = {"crash": "crashed", "slow": "over limits", "memory": "over limits", "error": "crashed", "harm": "wrong"}
PLANTED_AT_A_SERVER = {name: verdict for name, verdict in PLANTED.items() if name != "harm"}


def verdicts(kept: Path) -> dict[str, dict[str, str]]:
    """Return what was said of each planted fault, by target."""
    found: dict[str, dict[str, str]] = {}
    for path in kept.glob("*/case.json"):
        one = json.loads(path.read_text())
        found.setdefault(one["target"], {})[one["case"].split("/")[2]] = one["verdict"]
    return found


@pytest.mark.parametrize("targets", ["library", pytest.param("commands,server", marks=pytest.mark.thorough)])
def test_planted_faults_are_found(targets: str, tmp_path: Path) -> None:
    """The package is changed so that certain pictures crash it, take long, take memory, raise, write elsewhere."""
    options = ("--planted", "--targets", targets, "--commands", 1, "--rounds", 1, "--keep", tmp_path / "kept")
    status, table, text = run_attack(*options, TMPDIR=str(tmp_path))
    assert status == 1
    found = verdicts(tmp_path / "kept")
    if "server" in targets:  # which knows no place to do harm at
        said = found.pop("server")
        assert {name: said.get(name) for name in PLANTED if name != "harm"} == PLANTED_AT_A_SERVER, text
    for target, said in found.items():
        assert said == PLANTED, text
        expected = {"tried": 5, "refused": 0, "answered": 0, "crashed": 2, "over limits": 2, "wrong": 1}
        assert table["planted", target] == expected, text
    assert list(found) == [target for target in targets.split(",") if target != "server"]
    assert all(list(path.parent.glob("picture*")) for path in (tmp_path / "kept").glob("*/case.json"))
    assert left_behind(tmp_path) == []


@pytest.mark.thorough
def test_a_case_is_run_again_by_its_name_and_the_same_name_is_the_same_input(tmp_path: Path) -> None:
    case = "7/mutated pictures/jpeg/3"
    status, table, text = run_attack("--again", f"{case}@library:picture")
    assert status == 0, text
    assert table["mutated pictures", "library"]["tried"] == 1
    code = f"""import sys; sys.path.insert(0, {str(ATTACK)!r})
from pathlib import Path
from cases import case_of
print(case_of({case!r}).make(Path({str(tmp_path)!r}), None).read_bytes().hex())
"""
    words = [sys.executable, "-c", code]
    made = {subprocess.run(words, capture_output=True, text=True, check=True).stdout for _ in range(2)}
    assert len(made) == 1
    assert len(made.pop()) > 1000


def test_unknown_names_are_refused() -> None:
    for options in (("--only", "pictures,nonsense"), ("--targets", "moon"), ("--again", "1/nonsense/x/0")):
        status, _, text = run_attack(*options)
        assert status == 2
        assert "expected some of" in text or "there is no kind" in text


@pytest.mark.thorough
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_when_it_is_told_to_and_prints_the_table(number: int, tmp_path: Path) -> None:
    with subprocess.Popen(
        command("--minutes", 5, "--targets", "library,commands", "--out", tmp_path / "report.md"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as attack:
        while not list(tmp_path.glob("deeprank-attack-*/cases/library")):
            time.sleep(0.05)
            assert attack.poll() is None
        time.sleep(0.5)
        attack.send_signal(number)
        out, _ = attack.communicate(timeout=60)
    assert "Interrupted." in out
    assert table_of(out)
    assert (tmp_path / "report.md").read_text().startswith("`python benchmarks/attack")
    assert list(tmp_path.glob("deeprank-attack-*")) == []
    assert left_behind(tmp_path) == []
