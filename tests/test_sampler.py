"""Balanced batches: their shape, their evenness, and that they depend on seed and epoch alone."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deeprank.runtime.errors import TrainingError
from deeprank.train.sampling.sampler import BalancedSampler


def a_sampler(labels, classes: int = 4, each: int = 3, steps: int = 0, seed: int = 0) -> BalancedSampler:
    return BalancedSampler(labels, classes_per_batch=classes, pictures_per_class=each, steps_per_epoch=steps, seed=seed)


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=2, max_size=8).filter(lambda counts: max(counts) > 1),
    classes=st.integers(2, 10),
    each=st.integers(2, 12),
    seed=st.integers(0, 5),
)
def test_every_batch_is_balanced(counts, classes, each, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    sampler = a_sampler(labels, classes, each, steps=3, seed=seed)
    plan = sampler.epoch(1)
    assert plan.shape == (3, min(classes, len(counts)) * each)
    for batch in plan:
        groups = batch.reshape(-1, each)
        seen = [set(labels[group].tolist()) for group in groups]
        assert all(len(one) == 1 for one in seen)
        assert len(set.union(*seen)) == len(groups)
        for group in groups:
            available = counts[labels[group[0]]]
            assert len(set(group.tolist())) == min(each, available)
            # Where a class is too small, its pictures repeat as evenly as they can.
            assert max(Counter(group.tolist()).values()) == -(-each // available)


def test_an_epoch_shows_classes_and_pictures_evenly():
    labels = np.repeat(np.arange(10), 12)
    plan = a_sampler(labels, classes=4, each=3).epoch(0)
    assert plan.shape == (10, 12)
    assert set(Counter(labels[plan.ravel()].tolist()).values()) == {12}
    assert set(Counter(plan.ravel().tolist()).values()) == {1}


def test_the_plan_depends_on_seed_and_epoch_alone():
    labels = np.repeat(np.arange(6), 5)
    first, again = a_sampler(labels), a_sampler(labels)
    again.epoch(7)
    assert np.array_equal(first.epoch(3), again.epoch(3))
    assert not np.array_equal(first.epoch(3), first.epoch(4))
    assert not np.array_equal(first.epoch(3), a_sampler(labels, seed=1).epoch(3))


def test_steps_follow_from_the_pictures():
    labels = np.repeat(np.arange(8), 30)
    assert a_sampler(labels).steps == 240 // 12
    assert a_sampler(labels, steps=5).steps == 5
    assert a_sampler([0, 0, 1, 1], classes=4, each=8).steps == 1


@pytest.mark.parametrize(
    ("labels", "message"), [([3] * 9, "1 class"), ([], "0 class"), ([0, 1, 2], "Every class has one")]
)
def test_what_cannot_be_learned_from_is_refused(labels, message):
    with pytest.raises(TrainingError, match=message):
        a_sampler(labels)
