"""Queries and galleries of ``deeprank-eval`` against plain loops over vectors made without our code."""

import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from tiny_model import expected, square, write_model, write_pictures

K = 4
COUNTS = {"cats": 6, "dogs": 3, "owls": 2}


def names_of(split: str, each: dict[str, int]) -> list[str]:
    return [f"{split}/{label}/{number}.png" for label, count in each.items() for number in range(count)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``data`` with splits whose names are written in other ways, and a model."""
    folder = tmp_path_factory.mktemp("eval")
    seed = 0
    for split, each in (("Train", COUNTS), ("valid", {"cats": 2, "dogs": 1}), ("TEST", {"cats": 1, "owls": 3})):
        seed += len(write_pictures(folder / "data", names_of(split, each), first_seed=seed))
    write_model(folder / "model.onnx")
    return folder


def evaluated(folder: Path, *words: object, status: int = 0):
    return run_command("deeprank-eval", "--model", "model.onnx", *words, "--k", K, cwd=folder, status=status)


def figures(folder: Path, *words: object) -> dict:
    return json.loads(evaluated(folder, *words, "--json").stdout)


def files(folder: Path, split: str) -> list[Path]:
    return sorted((folder / "data" / split).rglob("*.png"))


def by_folder(path: Path) -> str:
    return path.parent.name


def measured(
    queries: Sequence[Path], gallery: Sequence[Path], label: Callable[[Path], str] = by_folder
) -> tuple[float, float, float, float]:
    """precision@K, the best possible one, recall@1 and MAP@R; a query never finds itself."""
    rows = []
    vectors = {path: expected(square(path)[None])[0] for path in {*queries, *gallery}}
    for query in queries:
        others = [path for path in gallery if path != query]
        order = sorted(others, key=lambda path: float(((vectors[query] - vectors[path]) ** 2).sum()))
        right = [label(path) == label(query) for path in order]
        relevant = sum(right)
        hits = [sum(right[: n + 1]) / (n + 1) for n in range(relevant) if right[n]]
        average = sum(hits) / relevant if relevant else None
        rows.append((sum(right[:K]) / K, min(relevant, K) / K, float(right[0]), average))
    precision, possible, first = (float(np.mean([row[place] for row in rows])) for place in range(3))
    return precision, possible, first, float(np.mean([row[3] for row in rows if row[3] is not None]))


def same(document: dict, figures: tuple[float, float, float, float]) -> None:
    found = document["precision_at_k"]["runtime_exact"], document["possible_precision_at_k"]
    assert (*found, document["recall_at_1"], document["map_at_r"]) == pytest.approx(figures)
    assert document["precision_at_k"]["runtime_hnsw"] == pytest.approx(figures[0])


@pytest.mark.parametrize(
    ("words", "split"), [((), "valid"), (("--split", "val"), "valid"), (("--split", "Test"), "TEST")]
)
def test_splits(folder: Path, words: tuple[str, ...], split: str) -> None:
    document = figures(folder, "--data", "data", *words)
    assert (document["queries"], document["gallery"]) == (len(files(folder, split)), len(files(folder, "Train")))
    same(document, measured(files(folder, split), files(folder, "Train")))


def test_what_is_said_before_and_beside_the_figures(folder: Path) -> None:
    result = evaluated(folder, "--data", "data", "--split", "test")
    lines = result.stderr.splitlines()
    assert lines[0] == "3 classes (cats … owls), 11 train, 3 val; 2 to 6 pictures a class; test: 4, evaluated on"
    possible = measured(files(folder, "TEST"), files(folder, "Train"))[1]
    assert possible < 1
    assert f" of at most {possible:.4f}" in next(line for line in result.stdout.splitlines() if "exact search" in line)
    table = run_command("deeprank-eval", "--models", "model.onnx", "--data", "data", "--k", K, cwd=folder).stdout
    assert "is possible as precision@4" in table


def test_two_data_sets(folder: Path) -> None:
    result = evaluated(folder, "--queries", "data/TEST", "--gallery", "data/Train", "--json")
    same(json.loads(result.stdout), measured(files(folder, "TEST"), files(folder, "Train")))
    lines = result.stderr.splitlines()
    assert lines[0] == "queries: 2 classes (cats, owls), 4 pictures; 1 to 3 pictures a class"
    assert lines[1] == "gallery: 3 classes (cats … owls), 11 pictures; 2 to 6 pictures a class"
    result = evaluated(folder, "--queries", "data/Train", "--gallery", "data/TEST", "--json")
    assert "Warning: 1 class of the queries is not in the gallery: dogs; no correct result" in result.stderr


def test_queries_that_lie_in_the_gallery_do_not_find_themselves(folder: Path) -> None:
    everything = [path for split in ("Train", "valid", "TEST") for path in files(folder, split)]
    result = evaluated(folder, "--queries", "data/TEST", "--gallery", "./data/", "--json")
    same(json.loads(result.stdout), measured(files(folder, "TEST"), everything))
    assert "4 queries are also in the gallery; no picture counts as its own neighbour" in result.stderr
    assert "with the same bytes" not in result.stderr
    rows = [f"{path.relative_to(folder / 'data').as_posix()},{path.parent.name}" for path in files(folder, "TEST")]
    (folder / "data" / "test.csv").write_text("\n".join(["path,label", *rows]))
    for queries in (folder / "data" / "TEST", "data/test.csv"):
        document = figures(folder, "--queries", queries, "--gallery", "data")
        same(document, measured(files(folder, "TEST"), everything))
    same(figures(folder, "--queries", "data", "--gallery", "data"), measured(everything, everything))


def test_queries_and_gallery_of_two_tables(folder: Path) -> None:
    everything = files(folder, "TEST") + files(folder, "Train")
    for name, paths in (("asked.csv", files(folder, "TEST")), ("held.csv", everything)):
        rows = [f"{path.relative_to(folder).as_posix()},{path.parent.name}\n" for path in paths]
        (folder / name).write_text("path,label\n" + "".join(rows))
    result = evaluated(folder, "--queries", "asked.csv", "--gallery", folder / "held.csv", "--json")
    same(json.loads(result.stdout), measured(files(folder, "TEST"), everything))
    assert "4 queries are also in the gallery; no picture counts as its own neighbour" in result.stderr


def test_queries_and_gallery_that_a_table_marks(folder: Path) -> None:
    everything = [path for split in ("Train", "valid", "TEST") for path in files(folder, split)]
    rows, queries, gallery = [], [], []
    for place, path in enumerate(everything):
        marks = ("", "") if place < 5 else (str(place % 3 != 0), str(place % 3 != 1))
        split = "train" if place < 5 else "validation"
        rows.append((f"c{place % 2}", path.relative_to(folder).as_posix(), split, *marks))
        queries += [path] if marks[0] == "True" else []
        gallery += [path] if marks[1] == "True" else []
    with (folder / "oml.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("label", "path", "split", "is_query", "is_gallery"), *rows])
    document = figures(folder, "--data", "oml.csv")
    assert (document["queries"], document["gallery"]) == (len(queries), len(gallery))
    same(document, measured(queries, gallery, lambda path: f"c{everything.index(path) % 2}"))


def test_sheets_vectors_and_triplets_of_two_data_sets(folder: Path) -> None:
    write_pictures(folder / "beside", ["x.png"], first_seed=900)
    rows = ["query,positive,negative", "data/TEST/cats/0.png,data/Train/cats/0.png,beside/x.png"]
    (folder / "rated.csv").write_text("\n".join(rows) + "\n")
    words = ("--queries", "data/TEST", "--gallery", "data/Train", "--triplets", "rated.csv")
    result = evaluated(folder, *words, "--save-embeddings", "kept", "--demo", 1, "--out", "sheets", "--json")
    assert json.loads(result.stdout)["triplets"]["count"] == 1
    kept = np.load(folder / "kept" / "queries.npz")
    assert list(kept["paths"]) == [path.relative_to(folder).as_posix() for path in files(folder, "TEST")]
    sheets = sorted(path.name for path in (folder / "sheets").iterdir())
    assert sheets == ["01-farthest.png", "01-nearest.png", "nearest.png"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--queries", "data"), "--queries is given without --gallery"),
        (("--gallery", "data"), "--gallery is given without --queries"),
        (("--queries", "data", "--gallery", "data", "--data", "data"), "--data and --queries both name pictures"),
        (("--queries", "data", "--gallery", "data", "--split", "val"), "--split chooses a split of --data"),
        (("--data", "data", "--split", "train"), "--split 'train'; expected val or test"),
        (("--data", "data/Train", "--split", "test"), "holds no test pictures; expected a test split"),
        (("--data", "data", "--labels", "none"), "--labels none is for an index alone"),
        (("--queries", "data", "--gallery", "gone"), "gone does not exist"),
        (("--triplets", "rated.csv", "--split", "test"), "--split needs a data set"),
    ],
)
def test_refusals(folder: Path, words: tuple[str, ...], message: str) -> None:
    result = evaluated(folder, *words, status=1)
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]


def test_no_arguments_show_the_help(tmp_path: Path) -> None:
    result = run_command("deeprank-eval", cwd=tmp_path)
    assert result.stdout == run_command("deeprank-eval", "--help", cwd=tmp_path).stdout
    assert result.stdout.startswith("usage: deeprank-eval")
    assert result.stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_small_gallery_lowers_k_unless_it_is_named(folder: Path) -> None:
    size = sum(COUNTS.values())
    shown = run_command("deeprank-eval", "--model", "model.onnx", "--data", "data", cwd=folder)
    assert f"measured as precision@{size}: the gallery has no more pictures" in shown.stderr
    assert f"precision@{size}, exact search" in shown.stdout
    words = ("--model", "model.onnx", "--data", "data", "-k", size + 1)
    refused = run_command("deeprank-eval", *words, cwd=folder, status=1)
    assert (
        refused.stderr.splitlines()[-1]
        == f"error: k = {size + 1}; expected 1 to {size}, the number of gallery pictures."
    )
    assert "exact search" not in refused.stderr  # said before anything is embedded
