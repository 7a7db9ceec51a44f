"""``deeprank-train`` learns from ratings: of an index, and of a CSV."""

import csv
import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import run_command
from tiny_model import write_model, write_pictures

from deeprank.runtime.embedder import Embedder
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.ratings import NewComparison, add_comparisons, set_mark
from deeprank.runtime.index.ratings.export import export_ratings
from deeprank.runtime.index.sync.sync import sync
from deeprank.runtime.progress import SilentMonitor
from deeprank.train.ratings.head import Head
from deeprank.train.ratings.learner import margins
from deeprank.train.ratings.rated import folds_of
from deeprank.train.ratings.sources import RatedSource, rated_index, rated_pictures

COUNT = 200


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, a model, an index, and the ratings of somebody who looks at a few of the model's numbers."""
    folder = tmp_path_factory.mktemp("rated")
    write_pictures(folder / "photos", [f"{'ab'[i % 2]}/{i}.png" for i in range(COUNT)])
    sync(folder / "index", [folder / "photos"], model=write_model(folder / "model.onnx"), device="cpu")
    contents, vectors, paths = pictures_of(folder / "index")
    triplets = ratings(vectors[:, :4], 900)
    add_comparisons(folder / "index", [NewComparison(*(contents[row] for row in each)) for each in triplets])
    write_csv(folder / "rated.csv", paths, triplets)
    write_csv(folder / "few.csv", paths, triplets[:40])
    write_csv(folder / "flips.csv", paths, np.random.default_rng(5).permuted(triplets, axis=1))
    return folder


def pictures_of(index: Path) -> tuple[list[bytes], np.ndarray, list[str]]:
    with Store.open(index) as store:
        ids, vectors = store.vectors()
        items = store.items(ids)
    return [items[id].sha256 for id in ids], vectors, [items[id].path.decode() for id in ids]


def ratings(taste: np.ndarray, count: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    triplets = np.array([rng.choice(len(taste), 3, replace=False) for _ in range(count)])
    turned = margins(taste, triplets) < 0
    triplets[turned] = triplets[turned][:, [0, 2, 1]]
    return triplets


def write_csv(path: Path, paths: list[str], triplets: np.ndarray) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["query", "positive", "negative"])
        writer.writerows([[paths[row] for row in each] for each in triplets])


def facts(text: str) -> dict[str, str]:
    return {line[:22].strip(): line[22:].strip() for line in text.splitlines() if line[:22].strip()}


def test_an_index_teaches(made: Path, tmp_path: Path) -> None:
    said = run_command("deeprank-train", "--index", made / "index", cwd=tmp_path)
    shown = facts(said.stdout)
    assert shown["verdict"] == "better"
    run = tmp_path / "runs/latest"
    metrics = json.loads((run / "metrics.json").read_text())
    config = json.loads((run / "config.json").read_text())
    assert (config["kind"], config["schema"], metrics["schema"]) == ("ratings", 1, 1)
    assert metrics["ratings"] == config["ratings"] <= 900
    assert metrics["cross_validated"]["low"] > 0
    # the head that was measured is the one that was written
    contents, vectors, _ = pictures_of(made / "index")
    triplets = ratings(vectors[:, :4], 900)
    held = triplets[folds_of([contents[row] for row in triplets[:, 0]]) == 0]
    head = Head.load(run / "head.safetensors")
    assert (margins(vectors, held) > 0).mean() == pytest.approx(metrics["before"]["similarity_precision"], abs=0.01)
    assert (margins(head.apply(vectors), held) > 0).mean() == pytest.approx(
        metrics["after"]["similarity_precision"], abs=0.01
    )
    assert (run / "start.onnx").read_bytes() == (made / "model.onnx").read_bytes()
    assert "better" in (run / "report.html").read_text("utf-8")
    assert "<script" not in (run / "report.html").read_text("utf-8")
    resumed = run_command("deeprank-train", "--resume", run, cwd=tmp_path, status=1)
    assert "nothing to resume" in resumed.stderr


@pytest.mark.thorough
def test_a_csv_and_pictures_teach_the_same(made: Path, tmp_path: Path) -> None:
    by_index = run_command(
        "deeprank-train", "--index", made / "index", "--ratings", made / "rated.csv", "--out", tmp_path / "a"
    )
    by_pictures = run_command(
        *("deeprank-train", made / "photos", "--ratings", made / "rated.csv", "--model", made / "model.onnx"),
        *("--out", tmp_path / "b"),
    )
    shown = [facts(said.stdout) for said in (by_index, by_pictures)]
    assert shown[0]["held out"] == shown[1]["held out"]
    assert shown[0]["verdict"] == shown[1]["verdict"] == "better"


@pytest.mark.thorough
def test_labels_teach_beside_ratings(made: Path, tmp_path: Path) -> None:
    command = ("deeprank-train", "--index", made / "index", "--with-labels", "--force", "--out", tmp_path / "run")
    run_command(*command)
    assert json.loads((tmp_path / "run/config.json").read_text())["with_labels"] is True


@pytest.mark.parametrize(("name", "verdict", "says"), [("few", "too few", "too thin"), ("flips", "not better", "more")])
def test_what_is_not_better_is_refused(made: Path, tmp_path: Path, name: str, verdict: str, says: str) -> None:
    command = ("deeprank-train", "--index", made / "index", "--ratings", made / f"{name}.csv")
    said = run_command(*command, cwd=tmp_path, status=1)
    assert facts(said.stdout)["verdict"] == verdict
    assert says in said.stderr
    assert len(said.stderr.strip().splitlines()[-1]) < 500
    assert not (tmp_path / "runs").exists()
    forced = run_command(*command, "--force", cwd=tmp_path)
    assert says in forced.stderr
    assert Head.load(tmp_path / "runs/latest/head.safetensors").start_dim == 16


@pytest.mark.thorough
def test_a_taught_index_learns_from_its_start(made: Path, tmp_path: Path) -> None:
    import onnx
    from onnx import helper

    from deeprank.runtime.modelfile import METADATA_KEY, open_model

    run_command("deeprank-train", "--index", made / "index", "--out", tmp_path / "first")
    head = Head.load(tmp_path / "first/head.safetensors")
    shutil.copytree(made / "photos", tmp_path / "photos")
    # a model that gives the appended vectors: the start's graph with the head's nodes behind
    model = onnx.load(made / "model.onnx")
    info = open_model(made / "model.onnx", device="cpu").info
    graph = model.graph
    graph.node[-1].output[0] = "start"
    constants = {
        "mean": head.mean,
        "w": np.ascontiguousarray(head.weight.T),
        "a": np.float32(np.sqrt(1 - head.strength)),
        "b": np.float32(np.sqrt(head.strength)),
    }
    graph.initializer.extend(onnx.numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items())
    graph.node.extend(
        [
            helper.make_node("Sub", ["start", "mean"], ["c"]),
            helper.make_node("MatMul", ["c", "w"], ["m"]),
            helper.make_node("LpNormalization", ["m"], ["u"], axis=1, p=2),
            helper.make_node("Mul", ["start", "a"], ["left"]),
            helper.make_node("Mul", ["u", "b"], ["right"]),
            helper.make_node("Concat", ["left", "right"], ["embedding"], axis=1),
        ]
    )
    graph.output[0].type.tensor_type.shape.dim[1].dim_value = head.dim
    values = {**json.loads(info.to_json()), "embedding_dim": head.dim, "training": {"taught": head.taught()}}
    helper.set_model_props(model, {METADATA_KEY: json.dumps(values)})
    onnx.save(model, tmp_path / "taught.onnx")
    assert Embedder(tmp_path / "taught.onnx", device="cpu").dim == head.dim
    sync(tmp_path / "index", [tmp_path / "photos"], model=tmp_path / "taught.onnx", device="cpu")
    run_command(
        *(
            "deeprank-train",
            "--index",
            tmp_path / "index",
            "--ratings",
            made / "rated.csv",
            "--out",
            tmp_path / "second",
        )
    )
    again = Head.load(tmp_path / "second/head.safetensors")
    assert again.start_dim == head.start_dim == 16
    assert np.abs(again.mean - head.mean).max() < 1e-5
    assert (
        hashlib.sha256((tmp_path / "second/start.onnx").read_bytes()).digest()
        == hashlib.sha256((tmp_path / "taught.onnx").read_bytes()).digest()
    )


# -- a CSV and the index's own ratings -------------------------------------------------------------------------------


def taught_by(source: RatedSource) -> list[tuple[bytes, ...]]:
    """The contents of the triplets that teach, in their order."""
    return [tuple(source.rated.contents[row] for row in triplet) for triplet in source.rated.triplets.tolist()]


def rated_by(path: Path, columns: str, *rows: str) -> Path:
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


Q, A, B = "a/0.png", "b/1.png", "a/2.png"


@pytest.mark.parametrize(
    ("columns", "rows", "winner", "left_out"),
    [
        pytest.param("", [(A, ""), (A, ""), (B, "")], B, {"contradicting": 2}, id="the newest of one rater"),
        pytest.param(
            ",rater", [(B, ",X"), (B, ",X"), (B, ",X"), (A, ",Y"), (A, ",Z")], A, {"repeated": 2, "outvoted": 1},
            id="the majority of raters",
        ),
        pytest.param(
            ",time", [(A, ",1000"), (B, ",900"), (B, ",800")], A, {"contradicting": 2}, id="the newest by its time"
        ),
        pytest.param(",time", [(A, ","), (B, ",900")], A, {"contradicting": 1}, id="without a time: the newest"),
        pytest.param(",rater", [(A, ",X"), (A, ",X"), (B, ",Y")], None, {"repeated": 1, "undecided": 2}, id="even"),
    ],
)  # fmt: skip
def test_of_a_csv_the_newest_answer_counts_then_the_majority(
    made: Path, tmp_path: Path, columns: str, rows: list, winner: str | None, left_out: dict
) -> None:
    other = f"b/3.png,a/4.png,b/5.png{',' if columns else ''}"  # or there would be nothing to learn from
    lines = [f"{Q},{one},{B if one == A else A}{more}" for one, more in rows]
    table = rated_by(tmp_path / "rated.csv", f"query,positive,negative{columns}", *lines, other)
    contents, _, paths = pictures_of(made / "index")
    content = dict(zip(paths, contents, strict=True))
    expected = [] if winner is None else [(content[Q], content[winner], content[B if winner == A else A])]
    sources = [
        rated_index(made / "index", table, with_labels=False),
        rated_pictures(
            str(made / "photos"),
            table,
            str(made / "model.onnx"),
            SilentMonitor(),
            labels=None,
            with_labels=False,
            device="cpu",
        ),
    ]
    for source in sources:
        assert [each for each in taught_by(source) if each[0] == content[Q]] == expected
        assert source.left_out == left_out


def test_the_exported_ratings_of_an_index_teach_what_it_teaches(made: Path, tmp_path: Path) -> None:
    index = Path(shutil.copytree(made / "index", tmp_path / "index"))
    contents, _, _ = pictures_of(index)
    rng = np.random.default_rng(3)
    for rater in ("Ann", "=Bob", None):
        rows = np.array([rng.choice(8, 3, replace=False) for _ in range(150)])  # many questions come again
        add_comparisons(index, [NewComparison(*(contents[row] for row in each)) for each in rows], rater=rater)
        for row in range(1, 7):
            set_mark(index, contents[0], contents[row], bool(rng.integers(2)), rater=rater)
    export_ratings(index, tmp_path / "exported.csv")
    own, exported = (rated_index(index, table, with_labels=False) for table in (None, tmp_path / "exported.csv"))
    assert taught_by(exported) == taught_by(own)
    assert exported.left_out == own.left_out
    assert set(own.left_out) >= {"repeated", "contradicting", "outvoted"}
    with (tmp_path / "exported.csv").open(newline="") as file:
        answers = len(list(csv.DictReader(file)))
    votes = answers - sum(own.left_out.values())
    assert len(own.rated.triplets) < votes <= 4 * len(own.rated.triplets)


def test_a_faulty_time_is_named_by_its_line(made: Path, tmp_path: Path) -> None:
    table = rated_by(tmp_path / "rated.csv", "query,positive,negative,time", f"{Q},{A},{B},yesterday")
    for words in (("--index", made / "index"), (made / "photos",)):
        said = run_command("deeprank-train", *words, "--ratings", table, cwd=tmp_path, status=1)
        assert "line 2: time 'yesterday'; expected whole seconds since 1970" in said.stderr
