"""Figures, splits, samples and schedules against plain formulas."""

import io
import itertools
import math

import numpy as np
import pytest
import torch

from deeprank.runtime.datasets import DataSet, Sample, open_dataset
from deeprank.runtime.errors import DataError, DeviceError, TrainingError
from deeprank.runtime.progress import SilentMonitor
from deeprank.train.data.loaders import threaded
from deeprank.train.data.splits import prepare, sampled
from deeprank.train.loop.step import rate_factor, seeded
from deeprank.train.metrics import deviation, precision_text, rank_and_evaluate
from deeprank.train.options.recipes import load_config
from deeprank.train.report.final_evaluation import below_start
from deeprank.train.report.plots import draw_curves
from deeprank.train.run.device import torch_device


def unit(random, count: int, dim: int = 5) -> np.ndarray:
    rows = random.normal(size=(count, dim)).astype(np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.mark.parametrize("seed", range(3))
def test_figures_by_loops(seed: int):
    random = np.random.default_rng(seed)
    queries, gallery = unit(random, 7), unit(random, 40)
    query_labels, gallery_labels = random.integers(0, 4, 7), random.integers(0, 3, 40)
    found, _ = rank_and_evaluate(queries, query_labels, gallery, gallery_labels, 5, with_map=False)
    right, first, same, other = [], [], [], []
    for query, label in zip(queries, query_labels, strict=True):
        distances = [float(np.sum((query.astype(float) - row.astype(float)) ** 2)) for row in gallery]
        order = sorted(range(40), key=distances.__getitem__)[:5]
        right += [gallery_labels[index] == label for index in order]
        first.append(gallery_labels[order[0]] == label)
        for distance, theirs in zip(distances, gallery_labels, strict=True):
            (same if theirs == label else other).append(distance)
    assert found.precision_at_k == pytest.approx(np.mean(right))
    assert found.recall_at_1 == pytest.approx(np.mean(first))
    assert found.positive_distance == pytest.approx(np.mean(same), abs=1e-6)
    assert found.negative_distance == pytest.approx(np.mean(other), abs=1e-6)
    assert (found.queries, found.gallery, found.map_at_r) == (7, 40, None)


def test_deviation_by_its_definition():
    rows = unit(np.random.default_rng(0), 30)
    expected = math.sqrt(np.mean([np.sum((row - rows.mean(axis=0)) ** 2) for row in rows]))
    assert deviation(rows) == pytest.approx(expected, abs=1e-6)
    assert deviation(np.repeat(rows[:1], 9, axis=0)) < 1e-6


def fake(path: str, label: str) -> Sample:
    return Sample(path, label, 1, lambda: io.BytesIO(b"x"))


def a_dataset(counts: dict[str, int], val: dict[str, int] | None = None) -> DataSet:
    train = [fake(f"{label}/{n}.png", label) for label, count in counts.items() for n in range(count)]
    queries = [fake(f"val/{label}/{n}.png", label) for label, count in (val or {"a": 1}).items() for n in range(count)]
    return DataSet("fake", tuple(train), tuple(queries))


def test_the_splits_do_not_touch_and_cover_the_train_pictures():
    data = prepare(open_dataset("digits"))
    assert set(data.fit) & set(data.held) == set()
    assert sorted([*data.fit, *data.held]) == data.gallery.tolist()
    assert 0.1 <= len(data.held) / len(data.train) < 0.11
    assert [data.classes[label] for label in data.train_labels] == [sample.label for sample in data.train]


def test_unreadable_pictures_leave_and_the_others_keep_their_places():
    data = prepare(a_dataset({"a": 5, "b": 5}, {"a": 2, "b": 1}))
    rest = data.without([int(data.fit[0]), int(data.held[0])], [1])
    assert rest.fit.tolist() == data.fit[1:].tolist()
    assert rest.held.tolist() == data.held[1:].tolist()
    assert len(rest.gallery) == 8
    assert rest.queries.tolist() == [0, 2]


class Listener(SilentMonitor):
    def __init__(self):
        self.remarks: list[str] = []

    def remark(self, text: str) -> None:
        self.remarks.append(text)


@pytest.mark.parametrize(
    ("counts", "message"), [({"one [/x]\x1b": 9}, "have 1 class: one"), ({"a": 1, "b": 1}, "Every class has one")]
)
def test_what_cannot_be_learned_from(counts, message):
    dataset = a_dataset(counts, dict.fromkeys(counts, 1))
    with pytest.raises(TrainingError, match=message) as refusal:
        prepare(dataset).check(SilentMonitor())
    assert "\x1b" not in str(refusal.value)


def test_two_pictures_of_a_class_are_enough():
    data = prepare(a_dataset({"a": 2, "b": 2, "c": 1}, {"a": 1}))
    listener = Listener()
    data.check(listener)
    assert len(listener.remarks) == 1
    data.remark_measures(listener)
    assert data.fit.tolist() == list(range(5))
    assert not len(data.held)
    assert "the network of the last epoch is kept" in listener.remarks[1]
    with pytest.raises(TrainingError, match="No class has two readable training pictures"):
        data.without([0, 2], []).check(SilentMonitor())


def test_what_stays_of_a_class_by_either_rule():
    sizes = {"a": 2, "b": 3, "c": 4, "d": 30}
    for rule, staying in ((1, 1), (2, 2)):
        for asked in (0, 2, 99):
            data = prepare(a_dataset(sizes), holdout_pictures=asked, rule=rule)
            learned = np.bincount(data.train_labels[data.fit])
            unseen = np.bincount(data.train_labels[data.unseen], minlength=4)
            for code, size in enumerate(sizes.values()):
                assert unseen[code] == max(0, min(max(math.ceil(size / 10), asked), size - staying))
                assert learned[code] + unseen[code] == size


def test_held_out_classes_of_two_pictures_have_a_query_each():
    data = prepare(a_dataset(dict.fromkeys("abcdef", 2), {"nobody": 0}), holdout_classes=4)
    assert sorted(np.bincount(data.train_labels[data.fit])) == [2, 2]
    labels = [data.val[query].label for query in data.queries]
    assert len(labels) == len(set(labels)) == 4 == len(data.gallery)
    assert not {data.val[query].path for query in data.queries} & {sample.path for sample in data.train}
    assert len(data.train) + len(data.val) == 12


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([500, 500], 30),
        ([20] * 40, 20),  # no class fills more places
        ([2, 2, 2], 2),
        ([60, 60], 6),  # half of the 12 pictures that are not learned from
        ([40, 40], 30),  # 8 are too few to be reported on
        ([1, 1, 90, 90, 90], 13),
    ],
)
def test_one_k_for_all_galleries_of_a_run(sizes: list[int], expected: int):
    data = prepare(a_dataset({f"c{place}": size for place, size in enumerate(sizes)}, {"c0": 1}))
    assert data.k == data.unseen_k == expected
    assert 2 * data.k <= min(len(data.gallery), len(data.fit), len(data.unseen) if data.reports_unseen else 10**6)
    listener = Listener()
    data.remark_measures(listener)
    assert any(f"rankings as precision@{expected}:" in remark for remark in listener.remarks) == (expected < 30)


def test_runs_of_earlier_versions_keep_their_k():
    data = prepare(a_dataset({"a": 40, "b": 20}), rule=1)
    assert (data.k, data.unseen_k) == (30, 2)


def test_precision_is_told_beside_what_is_possible():
    assert precision_text({"precision_at_k": 0.584, "possible": 0.908}) == "0.5840 of at most 0.9080"
    assert precision_text({"precision_at_k": 0.584, "possible": 1.0}) == "0.5840"
    assert precision_text({"precision_at_k": 0.584}) == "0.5840"
    gallery, labels = unit(np.random.default_rng(0), 9), np.repeat([0, 1], [2, 7])
    figures, _ = rank_and_evaluate(gallery[:3], np.array([0, 0, 1]), gallery, labels, 4, with_map=False)
    assert figures.possible == pytest.approx((2 / 4 + 2 / 4 + 1) / 3)


@pytest.mark.parametrize("unseen", [True, False])
def test_a_ranking_below_the_start_is_a_warning(unseen: bool):
    row = {"k": 30, "precision_at_k": 0.6, "possible": 0.9}
    final = {**row, "precision_at_k": 0.8, "unseen": row} if unseen else row
    assert below_start(final) is None
    assert below_start({**final, "untrained": row}) is None
    warning = below_start({**final, "untrained": {**row, "precision_at_k": 0.65}})
    assert f"the ranking of unseen {'pictures' if unseen else 'classes'}" in warning
    assert "was 0.6500 of at most 0.9000 before" in warning
    assert "is 0.6000 of at most 0.9000 now" in warning


def test_a_class_of_one_picture_is_remarked():
    listener = Listener()
    prepare(a_dataset({"a": 9, "b": 1, "c": 9})).check(listener)
    assert listener.remarks == [
        "1 of 3 classes have only one training picture (b); it serves as a negative, but not as a positive."
    ]


def test_other_pictures_to_evaluate_on():
    dataset, other = a_dataset({"a": 9, "b": 9}), a_dataset({"b": 2, "new": 1}, {"a": 1})
    data = prepare(dataset, other)
    assert len(data.val) == 4
    assert sorted(data.val_labels.tolist()) == [0, 1, 1, 2]
    with pytest.raises(DataError, match="found x, expected one of a, b"):
        prepare(dataset, a_dataset({"x": 2}, {"y": 1}))


def test_samples_are_balanced_seeded_and_bounded():
    labels = np.repeat([0, 1, 2], [30, 4, 20])
    positions = np.arange(54)[::2]
    chosen = sampled(positions, labels, 5, seed=0)
    assert np.bincount(labels[chosen]).tolist() == [5, 2, 5]
    assert set(chosen) <= set(positions)
    assert np.array_equal(chosen, sampled(positions, labels, 5, seed=0))
    assert not np.array_equal(chosen, sampled(positions, labels, 5, seed=1))


def test_schedules_by_their_formulas():
    cosine = load_config("default", {"epochs": 10, "warmup_epochs": 2.0, "schedule": "cosine"})
    factors = [rate_factor(step, 5, cosine) for step in range(50)]
    assert factors[:10] == pytest.approx([(step + 1) / 11 for step in range(10)])
    assert factors[10:] == pytest.approx([0.5 * (1 + math.cos(math.pi * step / 40)) for step in range(40)])
    constant = load_config("default", {"epochs": 10, "warmup_epochs": 0.0, "schedule": "constant"})
    assert {rate_factor(step, 5, constant) for step in range(50)} == {1.0}


def test_a_seed_gives_the_same_draws_and_leaves_the_callers_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    draws = []
    for place in ((0, 1, 2), (0, 1, 2), (0, 1, 3), (1, 1, 2)):
        with seeded(*place) as generator:
            draws.append((float(torch.rand(1)), float(torch.rand(1, generator=generator))))
    assert torch.equal(torch.rand(1), expected)
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert all(first != second for first, second in draws)


def test_threads_keep_the_order_and_stay_bounded():
    started = itertools.count()
    results = threaded(lambda item: (item, next(started)), range(50), threads=4, ahead=6)
    first = next(results)
    assert first[0] == 0
    assert next(started) <= 8
    assert [item for item, _ in results] == list(range(1, 50))


def test_an_unknown_or_absent_device():
    with pytest.raises(DeviceError, match="expected auto, cpu or cuda"):
        torch_device("tpu")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="--device cpu"):
            torch_device("cuda")
        assert torch_device("auto").type == "cpu"


def test_curves_are_a_png():
    rows = [
        dict.fromkeys(
            (
                "loss",
                "precision_at_k",
                "recall_at_1",
                "positive_distance",
                "negative_distance",
                "active_share",
                "deviation",
            ),
            0.5,
        )
        | {"epoch": epoch}
        for epoch in (1, 2)
    ]
    file = io.BytesIO()
    draw_curves(rows, file)
    assert file.getvalue().startswith(b"\x89PNG")
