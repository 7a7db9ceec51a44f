"""Messages for bad input: one sentence, the right exit status, and nothing left behind."""

import shutil
from pathlib import Path

import pytest
from bad_input import CASES, Case
from conftest import run_command
from tiny_model import write_model


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all cases are made, one after another: so their index need be made only once, for its paths are whole."""
    folder = tmp_path_factory.mktemp("bad-input") / "case"
    folder.mkdir()
    return folder


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_one_sentence(case: Case, place: Path) -> None:
    if case.needs is not None:
        pytest.importorskip(case.needs)
    shutil.rmtree(place)
    place.mkdir()
    write_model(place / "model.onnx")
    result = run_command(*case.make(place), cwd=place, status=None)
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr
    assert result.returncode == case.status, result.stderr
    assert case.says in result.stderr
    assert "\x1b" not in result.stderr
    if case.status == 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
    assert not (place / "the-code-ran").exists()
    assert not list(place.rglob("*.tmp*"))
