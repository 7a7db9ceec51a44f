"""Layouts of data sets: each is read right or refused, and docs/data.md shows what is printed."""

from pathlib import Path

import pytest
from data_layouts import BEGIN, CASES, DOCUMENT, END, Case, read, rows


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.what)
def test_layout(case: Case, tmp_path: Path) -> None:
    (tmp_path / "DATA").mkdir()
    dataset, line = read(case, tmp_path / "DATA")
    if dataset is None:
        assert case.counts is None, line
        return
    splits = len(dataset.train), len(dataset.val), len(dataset.test)
    assert (len(dataset.classes), *splits) == case.counts
    assert not {s.path for s in dataset.train} & {s.path for s in (*dataset.val, *dataset.test)}
    assert {sample.label for sample in dataset.val} <= set(dataset.classes)
    assert f"{case.counts[0]} class" in line
    assert f"{splits[0]} train" in line


def test_the_document_shows_what_is_printed() -> None:
    text = DOCUMENT.read_text("utf-8")
    assert text.split(BEGIN)[1].split(END)[0].strip().splitlines() == rows()
