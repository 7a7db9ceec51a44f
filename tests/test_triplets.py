"""Rated triplets (``deeprank-eval --triplets``): both metrics against plain loops over the paper's words."""

import csv
import hashlib
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from conftest import MainLine, run_command
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_model import expected, square, write_model, write_pictures

from deeprank.runtime.datasets import DataSet, Sample, open_dataset
from deeprank.runtime.errors import DataError, EvaluationError
from deeprank.runtime.evaluate.embeddings import EmbeddedSplit
from deeprank.runtime.evaluate.triplets import RatedTriplets, evaluate_triplets, load_triplets
from deeprank.runtime.metrics import score_at_top_k, similarity_precision

Row = tuple[str, ...]


# -- the definitions -------------------------------------------------------------------------------------------------


def top_k_in_words(positive: list[float], negative: list[float], candidates: list[list[float]], k: int):
    """Right minus wrong triplets among those whose positive or negative is one of the k nearest, by sorted lists."""
    right = wrong = 0
    for p, n, others in zip(positive, negative, candidates, strict=True):
        ranked = sorted(others)
        farthest_shown = ranked[k - 1] if len(ranked) >= k else float("inf")
        if p <= farthest_shown or n <= farthest_shown:
            right, wrong = (right + 1, wrong) if p < n else (right, wrong + 1)
    return right - wrong, right + wrong


# Few different values, so that most cases have ties, also at the border.
distance = st.integers(0, 6).map(float)


@st.composite
def rated(draw: st.DrawFn):
    count, size = draw(st.integers(1, 6)), draw(st.integers(0, 9))
    rows = [draw(st.lists(distance, min_size=size, max_size=size)) for _ in range(count)]
    pairs = [draw(st.tuples(distance, distance)) for _ in range(count)]
    return [p for p, _ in pairs], [n for _, n in pairs], [[*pair, *row] for pair, row in zip(pairs, rows, strict=True)]


@given(rated(), st.integers(1, 12))
def test_score_at_top_k_is_what_the_paper_says(case, k: int) -> None:
    positive, negative, candidates = case
    arrays = np.array(positive), np.array(negative), np.array(candidates)
    score = score_at_top_k(*arrays, k)
    assert score == top_k_in_words(positive, negative, candidates, k)
    # The k smallest are enough, in any order, and unused places change nothing.
    fewest = np.sort(arrays[2], axis=1)[:, :k][:, ::-1]
    assert score_at_top_k(arrays[0], arrays[1], fewest, k) == score
    padded = np.pad(arrays[2], ((0, 0), (0, 3)), constant_values=np.inf)
    assert score_at_top_k(arrays[0], arrays[1], padded, k) == score


def score_each(positive, negative, candidates, k: int) -> np.ndarray:
    rows = zip(positive[:, None], negative[:, None], candidates[:, None], strict=True)
    return np.array([score_at_top_k(*row, k)[0] for row in rows])


@given(rated(), st.integers(1, 12))
def test_triplets_the_other_way_round(case, k: int) -> None:
    positive, negative, candidates = (np.array(part) for part in case)
    score, counted = score_at_top_k(positive, negative, candidates, k)
    turned, counted_too = score_at_top_k(negative, positive, candidates, k)
    assert counted == counted_too
    assert score == score_each(positive, negative, candidates, k).sum()
    ties = int(((positive == negative) & (score_each(positive, negative, candidates, k) != 0)).sum())
    assert score + turned == -2 * ties  # a tie is wrong whichever way it is read
    if (positive != negative).all():
        assert turned == -score
        assert similarity_precision(positive, negative) == pytest.approx(1 - similarity_precision(negative, positive))


def test_deeper_lists_count_more_and_the_deepest_all() -> None:
    rng = np.random.default_rng(0)
    positive, negative, others = rng.random(40), rng.random(40), rng.random((40, 50))
    candidates = np.concatenate([positive[:, None], negative[:, None], others], axis=1)
    counted = [score_at_top_k(positive, negative, candidates, k)[1] for k in range(1, 53)]
    assert counted == sorted(counted)
    assert counted[0] < counted[-1] == 40
    right = similarity_precision(positive, negative)
    assert score_at_top_k(positive, negative, candidates, 52)[0] == round(40 * right) - round(40 * (1 - right))


def test_the_border_is_the_thirtieth() -> None:
    """The default K: after 29 nearer candidates a picture counts, after 30 it does not; a tie with the 30th does."""
    for nearer, tied, counts in [(29, 0, 1), (30, 0, 0), (29, 5, 1), (0, 99, 1)]:
        others = [0.1] * nearer + [0.5] * tied + [0.9] * 100
        candidates = np.array([[0.5, 0.8, *others]])
        assert score_at_top_k(np.array([0.5]), np.array([0.8]), candidates) == (counts, counts)
        assert score_at_top_k(np.array([0.8]), np.array([0.5]), candidates) == (-counts, counts)


def test_similarity_precision_by_hand() -> None:
    assert similarity_precision(np.array([0.1, 0.5, 0.3, 0.2]), np.array([0.2, 0.4, 0.3, 0.9])) == 0.5
    assert similarity_precision(np.zeros(5), np.zeros(5)) == 0  # a collapsed network is not a good one


# -- candidates ------------------------------------------------------------------------------------------------------


def sample(path: str, label: str = "") -> Sample:
    return Sample(path, label, 0, io.BytesIO)


def split(samples: list[Sample], contents: list[int]) -> EmbeddedSplit:
    """A content is a number below 27, and its vector three digits to base 3: many pairs are equally far apart."""
    vectors = [np.unravel_index(content, (3, 3, 3)) for content in contents]
    hashes = [hashlib.sha256(bytes([content])).digest() for content in contents]
    return EmbeddedSplit(tuple(samples), np.array(vectors, dtype=np.float32).reshape(-1, 3), tuple(hashes))


def report_in_words(rows, pictures, gallery, labels, k: int):
    """Contents alone: rank, for each triplet, the gallery without the query and with what the query is rated with."""

    def far(a: int, b: int) -> float:
        return float(((np.array(np.unravel_index(a, (3, 3, 3))) - np.unravel_index(b, (3, 3, 3))) ** 2).sum())

    positive, negative, candidates = [], [], []
    for place, row in enumerate(rows):
        q, p, n = (pictures[picture] for picture in row)
        label = labels[place] if labels else None
        shown = [content for content, own in gallery if own == (label or own) and content != q]
        same = [
            other for at, other in enumerate(rows) if pictures[other[0]] == q and (not labels or labels[at] == label)
        ]
        shown += {pictures[picture] for other in same for picture in other[1:]} - set(shown)
        positive.append(far(q, p))
        negative.append(far(q, n))
        candidates.append([far(q, content) for content in shown])
    precision = sum(p < n for p, n in zip(positive, negative, strict=True)) / len(rows)
    ties = sum(p == n for p, n in zip(positive, negative, strict=True))
    sizes = [len(row) for row in candidates]
    return precision, ties, *top_k_in_words(positive, negative, candidates, k), min(sizes), max(sizes)


@pytest.mark.thorough
@settings(deadline=None, max_examples=150)
@given(st.data())
def test_candidates_are_the_gallery_without_the_query_and_with_its_rated(data: st.DataObject) -> None:
    content = st.integers(0, 26)
    gallery = data.draw(st.lists(st.tuples(content, st.sampled_from("ab")), min_size=1, max_size=40))
    gallery += [(0, "a"), (1, "b")]
    pictures = data.draw(st.lists(content, min_size=3, max_size=9))
    row = st.permutations(range(len(pictures))).map(lambda places: places[:3])
    rows = data.draw(st.lists(row, min_size=1, max_size=8))
    labels = tuple(data.draw(st.sampled_from("ab")) for _ in rows) if data.draw(st.booleans()) else None
    k = data.draw(st.integers(1, 45))
    named = [sample(f"{place}.png") for place in range(len(pictures))]
    embedded = split([sample(f"g{at}.png", label) for at, (_, label) in enumerate(gallery)], [c for c, _ in gallery])
    triplets = RatedTriplets(tuple(named), np.array(rows), labels)
    report = evaluate_triplets(triplets, [split(named, pictures)], embedded, k)
    top = report.score_at_top_k
    assert top is not None
    assert top.k == k
    found = (report.similarity_precision, report.ties, top.score, top.counted)
    expectation = report_in_words(rows, pictures, gallery, labels, k)
    assert (*found, top.fewest_candidates, top.most_candidates) == pytest.approx(expectation)


def test_a_picture_that_was_not_embedded_leaves_its_triplets_out() -> None:
    named = [sample(f"{place}.png") for place in range(4)]
    triplets = RatedTriplets(tuple(named), np.array([[0, 1, 2], [0, 1, 3], [3, 0, 1]]), None)
    report = evaluate_triplets(triplets, [split(named[:3], [0, 1, 26])])
    assert (report.count, report.left_out, report.similarity_precision) == (1, 2, 1.0)
    assert report.score_at_top_k is None
    with pytest.raises(EvaluationError, match=r"No triplet \(of 3\) has three readable pictures"):
        evaluate_triplets(triplets, [split(named[:2], [0, 1])])


# -- the file --------------------------------------------------------------------------------------------------------


def write_csv(path: Path, rows: list[Row], header: Row = ("query", "positive", "negative")) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_paths_are_of_the_data_set_or_beside_the_file(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", ["train/cat/1.png", "train/dog/2.png", "val/cat/3.png"])
    write_pictures(tmp_path / "rated", ["new, one.png", "sub/größe.png", "train/cat/1.png"], first_seed=9)
    data = open_dataset(tmp_path / "data")
    file = write_csv(
        tmp_path / "rated" / "t.csv",
        [("val/cat/3.png", "./train/cat/1.png", "sub/größe.png"), ("new, one.png", r"sub\größe.png", "val/cat/3.png")],
    )
    triplets = load_triplets(file, data)
    assert [picture.path for picture in triplets.pictures] == [
        "val/cat/3.png", "train/cat/1.png", "sub/größe.png", "new, one.png"
    ]  # fmt: skip
    assert triplets.rows.tolist() == [[0, 1, 2], [3, 2, 0]]
    assert triplets.labels is None
    # The same path lies in both places: the data set's picture is meant.
    assert triplets.pictures[1].read() == (tmp_path / "data" / "train" / "cat" / "1.png").read_bytes()
    assert [picture.path for picture in triplets.beside] == ["sub/größe.png", "new, one.png"]


def test_columns_in_any_order_and_more_of_them(tmp_path: Path) -> None:
    write_pictures(tmp_path, ["a.png", "b.png", "c.png"])
    header = ("rater", "negative", "label", "query", "positive")
    triplets = load_triplets(write_csv(tmp_path / "t.csv", [("7", "a.png", "x", "b.png", "c.png")], header))
    assert [triplets.pictures[place].path for place in triplets.rows[0]] == ["b.png", "c.png", "a.png"]
    assert triplets.labels == ("x",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "starts with the columns nothing; expected query,positive,negative"),
        ("query,positive\na.png,b.png\n", "starts with the columns query, positive; expected query,positive,negative"),
        ("query,positive,negative\n", "holds no triplets; expected a line of query,positive,negative"),
        ("query,positive,negative\na.png,b.png\n", "line 2: no negative; expected the path of a picture"),
        ("query,positive,negative\na.png,b.png,c.png\na.png,b.png,d.png\n", "line 3: negative 'd.png', which does not"),
        ("query,positive,negative\na.png,b.png,a.png\n", "line 2: 'a.png' twice; expected three different pictures"),
        ("query,positive,negative\na.png,./b.png,b.png\n", "line 2: './b.png' twice"),
        ("query,positive,negative\n../a.png,b.png,c.png\n", "line 2: '../a.png' leaves the folder of the CSV"),
        ("query,positive,negative\n/etc/passwd,b.png,c.png\n", "leaves the folder of the CSV"),
        ("query,positive,negative\n.,b.png,c.png\n", "line 2: '.'; expected the path of a picture"),
        ("query,positive,negative\na\0.png,b.png,c.png\n", r"line 2: 'a\x00.png'; expected the path of a picture"),
        ("query,positive,negative\na.png,b.png,sub\n", "line 2: negative 'sub', which does not exist"),
        ("query,positive,negative\na,b.png,c.png,d.png\n", "line 2: more fields than the first line has"),
        ("query,positive,negative,label\na.png,b.png,c.png,emu\n", "line 2: label 'emu'; expected a label of"),
        ("query,positive,negative,label\na.png,b.png,c.png,\n", "line 2: label ''; expected a label of"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    write_pictures(tmp_path, ["a.png", "b.png", "c.png", "sub/x.png"])
    file = tmp_path / "t.csv"
    file.write_text(text)
    with pytest.raises(DataError) as caught:
        load_triplets(file, DataSet("d", train=(sample("x.png", "cat"),), val=()))
    assert message in str(caught.value)
    assert str(caught.value).count("\n") == 0


def test_no_file_and_another_encoding(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist; expected a CSV of query,positive,negative"):
        load_triplets(tmp_path / "no.csv")
    with pytest.raises(DataError, match="is a folder; expected a CSV"):
        load_triplets(tmp_path)
    (tmp_path / "t.csv").write_bytes("query,positive,negative\ngröße.png,b.png,c.png\n".encode("latin-1"))
    with pytest.raises(DataError, match="is not a CSV in UTF-8"):
        load_triplets(tmp_path / "t.csv")


# -- the command -----------------------------------------------------------------------------------------------------


def vectors_of(paths: list[Path]) -> np.ndarray:
    return expected(np.stack([square(path) for path in paths]))


def far(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return ((a - b) ** 2).sum(axis=-1)


def test_alone(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx")
    paths = write_pictures(tmp_path, [f"p/{number}.png" for number in range(12)])
    places = [tuple(np.random.default_rng(seed).permutation(12)[:3]) for seed in range(25)]
    rows = [tuple(f"p/{place}.png" for place in row) for row in places]
    write_csv(tmp_path / "t.csv", [*rows, ("p/0.png", "p/1.png", "damaged.png")])
    (tmp_path / "damaged.png").write_bytes(paths[0].read_bytes()[:60])
    result = run_command("deeprank-eval", "--model", "model.onnx", "--triplets", "t.csv", "--json", cwd=tmp_path)
    vectors = vectors_of(paths)
    right = [far(vectors[q], vectors[p]) < far(vectors[q], vectors[n]) for q, p, n in places]
    assert json.loads(result.stdout) == {
        "schema": 1,
        "triplets": {
            "count": 25,
            "left_out": 1,
            "ties": 0,
            "similarity_precision": pytest.approx(np.mean(right)),
            "score_at_top_k": None,
        },
    }
    assert "left out: damaged.png is a damaged PNG" in result.stderr
    assert "1 of 26 triplets are left out" in result.stderr
    assert "name one with --data" in result.stderr
    table = run_command("deeprank-eval", "--model", "model.onnx", "--triplets", "t.csv", cwd=tmp_path).stdout
    assert table.splitlines() == ["25 triplets", f"  {'similarity precision':<34} {np.mean(right):.4f}"]


@pytest.mark.parametrize("labelled", [False, True])
def test_with_a_gallery(tmp_path: Path, labelled: bool) -> None:
    """Queries of the val pictures, beside the file and, as a copy, of the gallery; a small K, so that not all count."""
    write_model(tmp_path / "model.onnx")
    gallery = write_pictures(tmp_path / "data", [f"train/{'ab'[n % 2]}/{n}.png" for n in range(40)])
    val = write_pictures(tmp_path / "data", [f"val/{'ab'[n % 2]}/{n}.png" for n in range(6)], first_seed=100)
    beside = write_pictures(tmp_path, ["x.png", "y.png"], first_seed=200)
    (tmp_path / "copy.png").write_bytes(gallery[0].read_bytes())
    names = {str(path.relative_to(tmp_path / "data")): path for path in gallery + val}
    names |= {path.name: path for path in [*beside, tmp_path / "copy.png"]}
    rng = np.random.default_rng(5)
    rows: list[Row] = []
    for query in [*list(names)[40:], "copy.png"] * 4:
        others = [name for name in names if names[name].read_bytes() != names[query].read_bytes()]
        rows.append((query, *map(str, rng.choice(others, 2, replace=False)), "ab"[len(rows) % 2]))
    header = ("query", "positive", "negative", "label" if labelled else "note")
    write_csv(tmp_path / "t.csv", rows, header)
    result = run_command(
        "deeprank-eval", "--model", "model.onnx", "--data", "data", "--triplets", "t.csv", "--k", "5", "--json",
        cwd=tmp_path,
    )  # fmt: skip
    document = json.loads(result.stdout)
    assert (document["queries"], document["gallery"], document["k"]) == (6, 40, 5)

    content = {name: path.read_bytes() for name, path in names.items()}
    vectors = {content[name]: vector for name, vector in zip(names, vectors_of(list(names.values())), strict=True)}
    positive, negative, candidates = [], [], []
    for q, p, n, label in rows:
        shown = {path.read_bytes() for path in gallery if not labelled or path.parent.name == label}
        for other in rows:
            if content[other[0]] == content[q] and (not labelled or other[3] == label):
                shown |= {content[other[1]], content[other[2]]}
        shown.discard(content[q])
        near = {picture: float(far(vectors[content[q]], vectors[picture])) for picture in shown}
        positive.append(near[content[p]])
        negative.append(near[content[n]])
        candidates.append(list(near.values()))
    score, counted = top_k_in_words(positive, negative, candidates, 5)
    assert 0 < counted < len(rows)
    found = document["triplets"]
    assert found["similarity_precision"] == pytest.approx(np.mean(np.array(positive) < np.array(negative)))
    sizes = [len(row) for row in candidates]
    assert found["score_at_top_k"] == {
        "k": 5, "score": score, "counted": counted, "fewest_candidates": min(sizes), "most_candidates": max(sizes)
    }  # fmt: skip
    assert found["count"] == len(rows)


def test_what_does_not_go_together(tmp_path: Path) -> None:
    write_model(tmp_path / "model.onnx")
    for words, message in [
        (("--demo", "2"), "add --data DATA"),
        (("--save-embeddings", "v"), "add --data DATA"),
        (("--reference", "model.onnx"), "add --data DATA"),
        (("--reference", "model.onnx", "--data", "photos"), "leave one of the two out"),
    ]:
        failed = run_command(
            "deeprank-eval", "--model", "model.onnx", "--triplets", "t.csv", *words, cwd=tmp_path, status=1
        )
        assert failed.stderr.startswith(f"error: {'--triplets' if '--data' in words else words[0]} ")
        assert message in failed.stderr
        assert len(failed.stderr.splitlines()) == 1


def tiny_imagenet_zip(line: MainLine, path: Path) -> Path:
    """The digits, packed as Tiny ImageNet is."""
    with zipfile.ZipFile(path, "w") as packed:
        for picture in sorted((line.digits / "train").rglob("*.png")):
            label = f"n{picture.parent.name}"
            packed.write(picture, f"tiny/train/{label}/images/{label}_{picture.stem}.JPEG")
        lines = []
        for picture in sorted((line.digits / "val").rglob("*.png")):
            packed.write(picture, f"tiny/val/images/{picture.stem}.JPEG")
            lines.append(f"{picture.stem}.JPEG\tn{picture.parent.name}\t0\t0\t1\t1\n")
        packed.writestr("tiny/val/val_annotations.txt", "".join(lines))
    return path


@pytest.mark.thorough
def test_a_trained_model_on_pictures_inside_a_zip_without_torch(line: MainLine, tmp_path: Path) -> None:
    """Positives of the query's class and negatives of another: what the model was trained to tell apart."""
    data = open_dataset(tiny_imagenet_zip(line, tmp_path / "tiny.zip"))
    rng = np.random.default_rng(0)
    rows: list[Row] = []
    for query in data.val:
        positive = rng.choice([s.path for s in data.train if s.label == query.label])
        negative = rng.choice([s.path for s in data.train if s.label != query.label])
        rows.append((query.path, str(positive), str(negative)))
    (tmp_path / "elsewhere").mkdir()
    file = write_csv(tmp_path / "elsewhere" / "t.csv", rows)
    program = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(('torch', 'torchvision', 'timm', 'sklearn', 'deeprank.train')))\n"
        "from deeprank.runtime.evaluate.cli import main\nmain()"
    )
    words = ["--model", line.model, "--data", tmp_path / "tiny.zip", "--triplets", file]
    ran = subprocess.run(
        [sys.executable, "-c", program, *map(str, words), "--json"],
        capture_output=True, text=True, env={**os.environ, "COLUMNS": "160"},
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)["triplets"]
    assert found["count"] == len(data.val)
    assert found["left_out"] == 0
    assert found["similarity_precision"] > 0.9  # chance: 0.5
    top = found["score_at_top_k"]
    assert (top["k"], top["most_candidates"]) == (30, len(data.train))
    assert 0 < top["score"] <= top["counted"] < len(data.val)
    table = run_command("deeprank-eval", *words).stdout
    assert f"  {'similarity precision':<34} {found['similarity_precision']:.4f}" in table
    assert f"score-at-top-30{'':<20}{top['score']}  (of {top['counted']} triplets that reach the 30 nearest)" in table
    assert "precision@30, exact search" in table
