"""Splits of training data: what is learned from, held out and evaluated on, and how much of each."""

import io
import math

import numpy as np
import pytest

from deeprank.runtime.datasets import DataSet, Sample, open_dataset
from deeprank.runtime.errors import DataError, TrainingError
from deeprank.runtime.progress import SilentMonitor
from deeprank.train.data.splits import prepare, sampled


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
