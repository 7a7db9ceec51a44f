"""Back to the model before: with the pictures that came since, from the vectors in the index."""

import os
import shutil
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from conftest import run_command
from exchange_faults import Case, hidden, run_cases, words
from test_teach_graph import head_for, write_taught
from tiny_model import write_model, write_picture, write_pictures

from deeprank.export.teach.start import read_start
from deeprank.export.teach.undo import undo
from deeprank.export.teach.vectors import mapping
from deeprank.runtime.errors import DeepRankError
from deeprank.runtime.files import file_sha256
from deeprank.runtime.index import Index
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.maintenance.model_exchange import replace_model
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.modelfile import METADATA_KEY, open_model

PICTURES = 10


@pytest.fixture
def index(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "photos", [f"a/{i}.png" for i in range(PICTURES)])
    sync(tmp_path / "index", [tmp_path / "photos"], model=write_model(tmp_path / "model.onnx"))
    return tmp_path / "index"


def teach(index: Path, strength: float) -> None:
    model = index / "model.onnx"
    start, of = read_start(model), file_sha256(model)
    head = head_for(16, strength)
    taught = write_taught(start, head, index.parent / "taught.onnx", previous=of)
    replace_model(index, taught, mapping(open_model(model, device="cpu").info, head), of=of)


def state(index: Path) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], str]:
    assert verify(index).problems == ()
    with Store.open(index) as store:
        return *store.vectors(), store.meta().model_sha256


def test_undo_leads_back_with_the_pictures_that_came_since(index: Path, tmp_path: Path) -> None:
    ids, vectors, model = state(index)
    teach(index, 0.6)
    assert state(index)[2] == file_sha256(tmp_path / "taught.onnx") != model
    write_picture(tmp_path / "photos" / "a" / "new.png", 500)
    sync(index, [tmp_path / "photos"])
    result = undo(index)
    assert (result.model_name, result.taught, result.embedded) == ("tiny-0", False, False)
    assert result.exchange.compared == PICTURES + 1
    now, back, again = state(index)
    assert again == model
    assert now[:PICTURES].tolist() == ids.tolist()
    np.testing.assert_allclose(back[:PICTURES], vectors, atol=3e-7)
    assert not (index / "previous.onnx").exists()
    with Index.open(index) as opened:
        assert opened.search(tmp_path / "photos" / "a" / "new.png", 1)[0].distance < 1e-6
    report = sync(index, [tmp_path / "photos"])
    assert report.unchanged == PICTURES + 1
    with pytest.raises(DeepRankError, match="was not taught, so there is nothing to undo"):
        undo(index)


def test_taught_twice_is_undone_in_two_steps(index: Path, tmp_path: Path) -> None:
    first = state(index)
    teach(index, 0.3)
    once = state(index)
    teach(index, 0.8)  # on the vectors of the start, not on those of the first head
    assert state(index)[1].shape == once[1].shape
    assert undo(index).taught
    np.testing.assert_allclose(state(index)[1], once[1], atol=3e-7)
    assert state(index)[2] == once[2]
    assert not undo(index).taught  # without previous.onnx: the head is taken off
    np.testing.assert_allclose(state(index)[1], first[1], atol=3e-7)
    assert state(index)[2] == first[2]


def test_a_damaged_former_model_is_named_and_can_be_done_without(index: Path) -> None:
    first = state(index)
    teach(index, 0.3)
    (index / "previous.onnx").write_bytes(b"damaged")
    with pytest.raises(DeepRankError, match=r"previous.onnx is not the model.*verify --repair"):
        undo(index)
    assert verify(index, repair=True).remaining == ()
    undo(index)
    assert state(index)[2] == first[2]


def test_pictures_are_embedded_again_where_vectors_cannot_be_computed(index: Path, tmp_path: Path) -> None:
    """As of a taught model that other software changed: its head cannot be taken off."""
    first = state(index)
    model = index / "model.onnx"
    taught = write_taught(read_start(model), head_for(16), tmp_path / "taught.onnx", previous=file_sha256(model))
    changed = onnx.load(taught)
    del changed.metadata_props[1]
    assert [entry.key for entry in changed.metadata_props] == [METADATA_KEY]
    onnx.save(changed, taught)
    mapped = mapping(open_model(model, device="cpu").info, head_for(16))
    replace_model(index, taught, mapped, of=file_sha256(model))
    result = undo(index)
    assert (result.embedded, result.taught) == (True, False)
    np.testing.assert_array_equal(state(index)[1], first[1])
    assert state(index)[2] == first[2]
    replace_model(index, taught, mapped, of=file_sha256(model))
    (index / "previous.onnx").unlink()
    before = shutil.copytree(index, tmp_path / "before")
    with pytest.raises(DeepRankError, match="cannot be taken off"):
        undo(index)
    for path in before.rglob("*"):
        assert path.read_bytes() == (index / path.relative_to(before)).read_bytes()


@pytest.mark.thorough
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_an_interrupt_tells_which_model_the_index_has(index: Path, tmp_path: Path) -> None:
    former = state(index)[2]
    teach(index, 0.6)
    taught = state(index)[2]
    expected = {
        ("rename 2", "terminate", True): (143, taught, "interrupted; the index is unchanged."),
        ("durable", "interrupt", False): (130, former, "interrupted; the index has its former model again."),
        ("tidy", "error", False): (0, former, "has its former model again (tiny-0)"),
    }
    places = [Path(shutil.copytree(index, tmp_path / str(number) / "index")) for number in range(len(expected))]
    cases = [
        Case(words("deeprank-teach", "--undo", "--index", place), str(place), *case)  # type: ignore[arg-type]
        for place, case in zip(places, expected, strict=True)
    ]
    for case, place, ended in zip(cases, places, run_cases(cases), strict=True):
        status, model, says = expected[case.step, case.fault, case.renames]
        assert (ended.status, state(place)[2]) == (status, model), ended
        assert says in ended.said, ended


def test_undo_in_the_folder_of_the_index(index: Path) -> None:
    first = state(index)
    teach(index, 0.6)
    result = run_command("deeprank-teach", "--undo", "--index", ".", cwd=index)
    assert result.stdout == ". has its former model again (tiny-0); its vectors were computed.\n"
    assert state(index)[2] == first[2]
    assert hidden(index.parent) == []
