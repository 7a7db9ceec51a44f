"""Messages for bad input: one sentence, the right exit status, and nothing left behind."""

from pathlib import Path

import pytest
from bad_input import CASES, Case, say
from tiny_model import write_model


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_one_sentence(case: Case, tmp_path: Path) -> None:
    if case.needs is not None:
        pytest.importorskip(case.needs)
    write_model(tmp_path / "model.onnx")
    result = say(case, tmp_path)
    assert "Traceback" not in result.stderr
    assert "internal error" not in result.stderr
    assert result.returncode == case.status, result.stderr
    assert case.says in result.stderr
    assert "\x1b" not in result.stderr
    if case.status == 1:
        errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1
    assert not (tmp_path / "the-code-ran").exists()
    assert not list(tmp_path.rglob("*.tmp*"))
