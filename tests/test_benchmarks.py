"""The benchmarks of vector search and of the index's scale: they run and measure what they say."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from tiny_model import expected, square, write_model, write_pictures

from deeprank.runtime import Embedder
from deeprank.runtime.index import Index

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import run  # noqa: E402
from class_groups import by_group  # noqa: E402
from made_index import make_index  # noqa: E402
from reduced_model import reduced_model  # noqa: E402
from vectors import Real, VectorSet, made, real_vectors, recall, reduction, vector_set  # noqa: E402

SMALL = 8
COUNT = 300


@pytest.fixture(scope="module")
def made_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model, class folders of pictures, a cache that all share."""
    folder = tmp_path_factory.mktemp("bench")
    write_pictures(folder / "data", [f"{label}/{i}.png" for label in "abcd" for i in range(20)])
    return {"model": write_model(folder / "model.onnx"), "data": folder / "data", "cache": folder / "cache"}


@pytest.fixture(scope="module")
def real(made_of: dict[str, Path]) -> Real:
    return real_vectors(str(made_of["model"]), str(made_of["data"]), made_of["cache"])


@pytest.fixture(scope="module")
def some(real: Real, made_of: dict[str, Path]) -> VectorSet:
    return vector_set(real, made_of["cache"], COUNT, SMALL)


def bench(script: str, *words: object, status: int = 0, code: str = "") -> str:
    """Run a script as ``make bench`` does; ``code`` runs before it."""
    script = str(BENCHMARKS / script)
    before = f"{code}\nimport runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], {{}}, '__main__')"
    command = [sys.executable, *(["-c", before] if code else []), script, *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == status, result.stdout + result.stderr
    return result.stdout + result.stderr


def options(made_of: dict[str, Path]) -> list[object]:
    return [word for name, value in made_of.items() for word in (f"--{name}", value)]


def cells(output: str, row: str) -> list[list[str]]:
    """Return the cells of every row of any table whose first cell is ``row``."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in output.splitlines() if line[:1] == "|"]
    return [line[1:] for line in lines if line[0] == row]


def test_the_real_vectors_are_the_models_and_queries_are_in_no_gallery(real: Real, made_of: dict[str, Path]) -> None:
    pictures = sorted(made_of["data"].rglob("*.png"))
    everything = expected(np.stack([square(path) for path in pictures]))
    found = np.concatenate([real.train, real.val])
    assert len(found) == len(pictures)
    assert np.abs(found[:, None] - everything[None]).max(axis=2).min(axis=1).max() < 1e-5
    assert np.abs(real.val[:, None] - real.train[None]).max(axis=2).min() > 1e-3


def test_a_gallery_is_of_real_vectors_first_then_of_made_ones(real: Real, some: VectorSet) -> None:
    gallery, small = np.array(some.gallery), reduction(real, SMALL)(real.train)
    assert gallery.shape == (COUNT, SMALL)
    assert np.allclose(np.linalg.norm(gallery, axis=1), 1, atol=1e-5)
    assert sorted(gallery[: len(small)].tolist()) == sorted(small.tolist())
    assert len(np.unique(gallery, axis=0)) == COUNT


def test_the_reduction_is_that_of_a_pca(real: Real) -> None:
    pca = pytest.importorskip("sklearn.decomposition").PCA(SMALL).fit(real.train.astype(float))
    scores = pca.transform(real.val)
    theirs = scores / np.linalg.norm(scores, axis=1, keepdims=True)
    ours = reduction(real, SMALL)(real.val)
    # Axes are free in sign: distances are what counts.
    assert np.allclose(ours @ ours.T, theirs @ theirs.T, atol=1e-4)


def test_made_vectors_are_spread_as_real_ones_in_their_class() -> None:
    random = np.random.default_rng(0)
    centres = np.repeat(np.eye(3, 6), 2_000, axis=0)
    vectors = centres + random.normal(size=(6_000, 6)) * [0.05, 0.01, 0.01, 0.1, 0.01, 0.01]
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    classes = np.repeat(np.arange(3), 2_000)
    found = np.concatenate(list(made(vectors, classes, 6_000)))
    nearest_class = (found @ centres[::2_000].T).argmax(axis=1)
    assert np.bincount(nearest_class).tolist() == pytest.approx([2_000] * 3, abs=20)
    # A quarter of the variance comes on top: half the deviation, as the noise is shrunk.
    real_spread = np.mean([vectors[classes == c].var(axis=0) for c in range(3)], axis=0)[3]
    made_spread = np.mean([found[nearest_class == c].var(axis=0) for c in range(3)], axis=0)[3]
    assert made_spread / real_spread == pytest.approx(1.25, abs=0.05)


def test_the_truth_is_that_of_a_plain_computation(some: VectorSet) -> None:
    distances = ((some.queries[:, None].astype(float) - some.gallery[None].astype(float)) ** 2).sum(axis=2)
    plain = np.argsort(distances, axis=1)[:, :30]
    assert recall(some.truth(), plain) == 1
    assert recall(np.where(np.arange(30) < 15, plain, -1), plain) == 0.5


def test_the_reduced_model_gives_the_vectors_of_the_gallery(real: Real, made_of: dict[str, Path]) -> None:
    path = reduced_model(str(made_of["model"]), real, SMALL, made_of["cache"])
    picture = made_of["data"] / "a" / "0.png"
    whole = Embedder(made_of["model"], device="cpu").embed([picture])
    assert np.allclose(Embedder(path, device="cpu").embed([picture]), reduction(real, SMALL)(whole), atol=1e-5)


def test_a_made_index_answers_like_one_that_was_synced(some: VectorSet, tmp_path: Path) -> None:
    make_index(tmp_path / "made", some.gallery)
    with Index.open(tmp_path / "made") as index:
        for method in ("exact", "hnsw"):
            assert (index.search_vectors(some.queries, 30, method=method)[0] - 1 == some.truth()).mean() > 0.99


def test_copies_are_counted_and_none_hides_another() -> None:
    output = bench("equal_vectors.py", "--sets", "400,0,0", "300,2,50")
    rows = [row for name in ("400", "400, 2 of them 50 times each") for row in cells(output, name)]
    assert [row[0] for row in rows] == ["400", "302"], output
    assert [row[4] for row in rows] == ["0 of 200"] * 2
    assert all(float(row[5]) == 1 for row in rows)


def test_vector_search_compares_what_is_installed(made_of: dict[str, Path], some: VectorSet) -> None:
    hidden = "import sys; sys.modules['voyager'] = None"
    words = [*options(made_of), "--dim", SMALL, "--sizes", COUNT, "--rounds", 1, "--singles", 2]
    output = bench("vector_search.py", *words, code=hidden)
    assert "Not installed, so left out:" in output
    assert re.search("left out: .*voyager", output)
    assert cells(output, "voyager") == []
    for name in ("deeprank", "hnswlib", "hnswlib, same graph"):
        searches = [row for row in cells(output, name) if "(" in row[3] or "(" in row[-1]]
        assert len(searches) == 9, output  # seven ef, two recalls
        assert all(float(row[1]) > 0.98 for row in searches)
    assert all(row[3] == row[5] == "1.00 (1.00 to 1.00)" for row in cells(output, "hnswlib") if "(" in row[-1])


@pytest.mark.thorough
def test_scale_measures_every_size(made_of: dict[str, Path], some: VectorSet) -> None:
    words = ["--dim", SMALL, "--sizes", f"{COUNT},{2 * COUNT}", "--rounds", 1, "--add-rounds", 1, "--added", 20]
    output = bench("scale.py", *options(made_of), *words)
    for count in (COUNT, 2 * COUNT):
        assert len(cells(output, str(count))) == 4, output  # a vector, a picture, the disk, adding
    memory = cells(output, "bare hnswlib")
    assert [row[0] for row in memory] == [str(COUNT), str(2 * COUNT)]
    assert all(row[2] == row[5] == row[8] == "1.00" for row in memory)


@pytest.mark.thorough
def test_sync_counts_what_has_not_changed(made_of: dict[str, Path]) -> None:
    output = bench("sync_unchanged.py", *options(made_of), "--files", COUNT, "--rounds", 2)
    assert len(cells(output, "none")) == 1
    (home,) = made_of["cache"].glob(f"sync-*-{COUNT}")
    said = run_command("deeprank-index", "sync", home / "tree", "--index", home / "photos.index").stdout
    # One more sync finds what the last one left: all files, the ones that changed included.
    assert said.startswith(f"0 added, 0 updated, 0 moved, 0 removed, {COUNT} unchanged, 0 skipped")


@pytest.mark.thorough
def test_serving_answers_every_client_with_its_own_picture(made_of: dict[str, Path]) -> None:
    pytest.importorskip("uvicorn")
    words = ["--model", made_of["model"], "--data", made_of["data"]]
    output = bench("serving.py", *words, "--requests", 30, "--clients", 1, 4, "--rounds", 1)
    for way in ("batching, 1", "batching, 4", "no batching, 1", "no batching, 4"):
        ((throughput, median, *_, wrong),) = cells(output, way)
        assert min(float(throughput.split()[0]), float(median.split()[0])) > 0
        assert wrong == "0"


@pytest.mark.thorough
def test_run_names_options_that_its_scripts_have() -> None:
    for script in run.SCRIPTS:
        text = bench(script.name, "--help")
        asked = [f"--{name}" for name in script.takes] + re.findall(r"--[\w-]+", f"{script.full} {script.quick}")
        assert all(re.search(rf"{option}\b", text) for option in asked), script.name


def test_run_refuses_a_model_that_is_not_there(made_of: dict[str, Path]) -> None:
    said = bench("run.py", "--model", made_of["cache"] / "no.onnx", "--data", made_of["data"], status=1)
    assert said.startswith("error: ")
    assert "does not exist; make one with deeprank-export, or leave out --model." in said


def test_learned_classes_search_among_learned_ones_and_others_among_others() -> None:
    random = np.random.default_rng(0)
    rows = random.normal(size=(90, 6)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    labels = [f"class {number % 5}" for number in range(90)]
    learned = {"class 0", "class 1", "class 2"}
    found = by_group((rows[:30], labels[:30]), (rows[30:], labels[30:]), learned)
    for group, classes in {"learned": learned, "held-out": {"class 3", "class 4"}, "all": {*labels}}.items():
        searched = [row for row in range(30, 90) if labels[row] in classes]
        right = [
            [labels[row] == labels[query] for row in sorted(searched, key=lambda row: -float(rows[query] @ rows[row]))]
            for query in range(30)
            if labels[query] in classes
        ]
        assert found[group].precision_at_10 == pytest.approx(np.mean([each[:10] for each in right]))
        assert found[group].recall_at_1 == pytest.approx(np.mean([each[0] for each in right]))
        assert found[group].recall_at_10 == pytest.approx(np.mean([any(each[:10]) for each in right]))
    assert "held-out" not in by_group((rows[:30], labels[:30]), (rows[30:], labels[30:]), {*labels})
