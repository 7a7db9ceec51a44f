"""Online triplets against the paper's formulas: chi-square tests on small sets that can be enumerated."""

import itertools
from collections import Counter

import numpy as np
import pytest
from scipy.stats import chisquare

from deeprank.runtime.errors import TrainingError
from deeprank.train.sampling.online import (
    DrawRules,
    OnlineSampler,
    Reservoir,
    draw_triplets,
    fill_reservoirs,
    make_pools,
    total_relevances,
)
from deeprank.train.sampling.relevance import PairRelevance, Part, VectorRelevance, total_relevance

# The seeds are fixed, so a test passes always or never; a right sampler fails one in ten thousand of them.
UNLIKELY = 1e-4
LABELS = np.array([0, 1, 0, 2, 1, 0, 2, 0, 1, 1, 0, 2, 3])


def symmetric(labels: np.ndarray, seed: int = 0) -> np.ndarray:
    """r(i, j) in [0.05, 1] within a class, a few of them 0, and 0 across classes."""
    random = np.random.default_rng(seed)
    values = random.uniform(0.05, 1.0, (len(labels), len(labels)))
    values[random.random(values.shape) < 0.1] = 0
    values = np.triu(values, 1).astype(np.float32).astype(np.float64)
    return (values + values.T) * (labels[:, None] == labels[None, :])


def listed(matrix: np.ndarray) -> PairRelevance:
    first, second = np.nonzero(np.triu(matrix))
    return PairRelevance(first, second, matrix[first, second].astype(np.float32), len(matrix))


def drawn(matrix: np.ndarray, labels: np.ndarray, rules: DrawRules, count: int, seed: int = 0):
    relevance = listed(matrix)
    random = np.random.default_rng(seed)
    pools = make_pools(labels, total_relevances(labels, relevance), 0, random)
    return draw_triplets(pools, relevance, count, rules, random)


def fits(found: Counter, expected: dict) -> bool:
    """Chi-square of counts against probabilities; nothing may be found that cannot be. Rare cells are joined."""
    assert set(found) <= {cell for cell, share in expected.items() if share > 0}
    total = sum(found.values())
    cells = [(found[cell], share * total) for cell, share in expected.items() if share > 0]
    often = [pair for pair in cells if pair[1] >= 5]
    rare = np.sum([pair for pair in cells if pair[1] < 5] or [(0, 0)], axis=0)
    if rare[1] >= 5:
        often.append(tuple(rare))
    observed, wanted = np.array(often).T
    assert len(often) > 1
    return chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > UNLIKELY


# -- the formulas ------------------------------------------------------------------------------------------------------


def test_queries_are_drawn_by_total_relevance():
    matrix = symmetric(LABELS)
    found = Counter(drawn(matrix, LABELS, DrawRules(1.0, 9.0, 0.0), 20000).triplets[:, 0].tolist())
    totals = matrix.sum(1)
    assert fits(found, dict(enumerate(totals / totals.sum())))


@pytest.mark.parametrize("threshold", [9.0, 0.4])
def test_positives_are_drawn_by_capped_relevance(threshold: float):
    matrix = symmetric(LABELS)
    triplets = drawn(matrix, LABELS, DrawRules(1.0, threshold, 0.0), 30000).triplets
    found = Counter(map(tuple, triplets[:, :2].tolist()))
    totals, capped = matrix.sum(1), np.minimum(threshold, matrix)
    expected = {
        (query, other): totals[query] / totals.sum() * capped[query, other] / capped[query].sum()
        for query, other in itertools.product(range(len(LABELS)), repeat=2)
        if capped[query].sum() > 0
    }
    assert fits(found, expected)


def test_out_of_class_negatives_are_uniform_over_the_other_classes():
    matrix = symmetric(LABELS)
    triplets = drawn(matrix, LABELS, DrawRules(1.0, 9.0, 0.0), 30000).triplets
    for label in range(3):
        others = np.flatnonzero(label != LABELS)
        found = Counter(triplets[LABELS[triplets[:, 0]] == label, 2].tolist())
        assert fits(found, dict.fromkeys(others.tolist(), 1 / len(others)))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 1.0])
def test_the_share_of_out_of_class_negatives(share: float):
    matrix = symmetric(LABELS)
    triplets = drawn(matrix, LABELS, DrawRules(share, 9.0, 0.1), 20000).triplets
    outside = LABELS[triplets[:, 0]] != LABELS[triplets[:, 2]]
    if share in (0.0, 1.0):
        assert outside.mean() == share
    else:
        assert fits(Counter(outside.tolist()), {True: share, False: 1 - share})


def in_class_distribution(matrix: np.ndarray, threshold: float, margin: float) -> tuple[dict, float]:
    """Return the probability of each in-class triplet by the definition, and that of giving an example up."""
    totals, capped = matrix.sum(1), np.minimum(threshold, matrix)
    shares: dict = {}
    for query, positive in itertools.product(range(len(matrix)), repeat=2):
        if capped[query, positive] == 0:
            continue
        pair = totals[query] / totals.sum() * capped[query, positive] / capped[query].sum()
        allowed = (matrix[query, positive] - matrix[query] >= margin) & (np.arange(len(matrix)) != positive)
        weights = capped[query] * allowed / capped[query].sum()
        success = 1 - (1 - weights.sum()) ** 20
        for negative in np.flatnonzero(weights):
            shares[query, positive, int(negative)] = pair * success * weights[negative] / weights.sum()
    kept = sum(shares.values())
    return {cell: share / kept for cell, share in shares.items()}, 1 - kept


@pytest.mark.parametrize(("threshold", "margin"), [(9.0, 0.0), (9.0, 0.3), (0.5, 0.2)])
def test_in_class_triplets_have_the_distribution_of_the_definition(threshold: float, margin: float):
    matrix = symmetric(LABELS)
    count = 40000
    result = drawn(matrix, LABELS, DrawRules(0.0, threshold, margin), count)
    queries, positives, negatives = result.triplets.T
    assert (matrix[queries, positives] - matrix[queries, negatives] >= margin).all()
    assert (queries != positives).all()
    assert (positives != negatives).all()
    assert (queries != negatives).all()
    expected, lost = in_class_distribution(matrix, threshold, margin)
    assert fits(Counter(map(tuple, result.triplets.tolist())), expected)
    # Examples until `count` succeed: a negative binomial.
    mean, deviation = count * lost / (1 - lost), np.sqrt(count * lost) / (1 - lost)
    assert abs(result.given_up - mean) < 5 * deviation
    assert margin == 0.0 or result.given_up > 0


# -- the sampler -------------------------------------------------------------------------------------------------------


def vectors(count: int = 90, classes: int = 5, dim: int = 6, apart: float = 2.0):
    random = np.random.default_rng(3)
    labels = random.permutation(np.arange(count) % classes)
    values = random.normal(size=(count, dim)) + apart * random.normal(size=(classes, dim))[labels]
    return labels, VectorRelevance((Part(values.astype(np.float16), 1.0),), np.arange(count))


def a_sampler(labels, relevance, seed: int = 0, buffer: int = 0, batch: int = 20, steps: int = 0, **rules: float):
    wanted = DrawRules(**{"out_of_class": 0.2, "positive_threshold": 0.95, "relevance_margin": 0.02, **rules})
    return OnlineSampler(
        labels, relevance, rules=wanted, batch_size=batch, steps_per_epoch=steps, buffer=buffer, seed=seed
    )


@pytest.mark.parametrize("buffer", [0, 6])
def test_the_plan_depends_on_seed_and_epoch_alone(buffer: int):
    labels, relevance = vectors()
    first, again = a_sampler(labels, relevance, buffer=buffer), a_sampler(labels, relevance, buffer=buffer)
    again.epoch(7)
    plan = again.epoch(3)
    assert np.array_equal(first.epoch(3), plan)
    assert first.given_up == again.given_up
    assert not np.array_equal(plan, first.epoch(4))
    assert not np.array_equal(plan, a_sampler(labels, relevance, seed=1, buffer=buffer).epoch(3))


@pytest.mark.parametrize("buffer", [0, 8])
def test_batches_are_triplets_side_by_side(buffer: int):
    labels, relevance = vectors()
    sampler = a_sampler(labels, relevance, buffer=buffer, batch=20)
    assert (sampler.batch_size, sampler.steps) == (18, 5)
    assert a_sampler(labels, relevance, steps=3).epoch(0).shape == (3, 18)
    triplets = sampler.triplets
    assert triplets.considered == 6
    for batch in sampler.epoch(0):
        queries, positives, negatives = (
            batch[places.numpy()] for places in (triplets.anchors, triplets.positives, triplets.negatives)
        )
        assert (labels[queries] == labels[positives]).all()
        for query, positive, negative in zip(queries, positives, negatives, strict=True):
            if labels[query] == labels[negative]:
                to_positive, to_negative = relevance.block(np.array([query]), np.array([positive, negative]))[0]
                assert float(to_positive) - float(to_negative) >= 0.02


def test_what_cannot_be_drawn_from_is_refused():
    labels, relevance = vectors()
    with pytest.raises(TrainingError, match=r"1 class; .*--out-of-class 0"):
        a_sampler(np.zeros(90, dtype=np.int64), relevance)
    with pytest.raises(TrainingError, match=r"no in-class negative that is 2 less relevant.*lower"):
        a_sampler(labels, relevance, relevance_margin=2.0).epoch(0)
    nothing = listed(np.zeros((90, 90)))
    with pytest.raises(TrainingError, match="relevance above 0"):
        a_sampler(labels, nothing).epoch(0)


# -- reservoirs --------------------------------------------------------------------------------------------------------


def kept_items(weights: np.ndarray, capacity: int, times: int) -> Counter:
    random = np.random.default_rng(5)
    found: Counter = Counter()
    for _ in range(times):
        stream = ((int(item), 0, float(weights[item])) for item in random.permutation(len(weights)))
        items, _, _ = fill_reservoirs(stream, capacity, random)[0].contents()
        found[tuple(sorted(items.tolist()))] += 1
    return found


def test_a_buffer_of_one_is_a_draw_by_relevance():
    weights = np.array([0.5, 3.0, 1.0, 0.0, 0.25])
    expected = {(item,): weight / weights.sum() for item, weight in enumerate(weights)}
    assert fits(kept_items(weights, 1, 8000), expected)


def test_a_buffer_holds_what_drawing_one_after_the_other_would_give():
    weights = np.array([0.5, 3.0, 1.0, 2.0, 0.25])
    expected: Counter = Counter()
    for order in itertools.permutations(range(len(weights)), 3):
        left, share = weights.sum(), 1.0
        for item in order:
            share *= weights[item] / left
            left -= weights[item]
        expected[tuple(sorted(order))] += share
    assert sum(expected.values()) == pytest.approx(1)
    assert fits(kept_items(weights, 3, 8000), dict(expected))


def test_a_buffer_knows_how_likely_each_picture_was_to_be_in_it():
    """Then Σ 1/probability over the kept ones is, on average, 1 for every picture (Horvitz and Thompson)."""
    weights = np.array([0.5, 3.0, 1.0, 2.0, 0.25, 1.5])
    random = np.random.default_rng(6)
    times = 6000
    estimates = np.zeros((times, len(weights)))
    for row in estimates:
        reservoir = fill_reservoirs(((item, 0, weight) for item, weight in enumerate(weights)), 3, random)[0]
        items, kept_weights, likely = reservoir.contents()
        row[items] = 1 / likely
        assert np.array_equal(kept_weights, weights[items])
    assert (np.abs(estimates.mean(0) - 1) < 5 * estimates.std(0) / np.sqrt(times)).all()
    assert (reservoir.seen, reservoir.total) == (6, pytest.approx(weights.sum()))


def test_small_and_whole_buffers():
    """Likely ∝ r for a small one, which is the paper's rule; certain for one that holds all."""
    weights = np.random.default_rng(0).uniform(0.1, 5.0, 4000)
    stream = [(item, 0, weight) for item, weight in enumerate(weights.tolist())]
    _, kept, likely = fill_reservoirs(stream, 8, np.random.default_rng(1))[0].contents()
    assert np.allclose(likely / kept, (likely / kept)[0], rtol=0.01)
    items, _, likely = fill_reservoirs(stream, 4000, np.random.default_rng(1))[0].contents()
    assert items.tolist() == list(range(4000))
    assert (likely == 1).all()
    empty = Reservoir(3)
    assert [len(part) for part in empty.contents()] == [0, 0, 0]


def test_draws_through_buffers_follow_the_same_formulas():
    """Averages over many epochs, each with other buffers; uniform draws from the buffers would be far off."""
    labels, relevance = vectors(count=240, classes=2, apart=0.7)
    members = [np.flatnonzero(labels == label) for label in range(2)]
    totals = np.zeros(240)
    positive_relevance = 0.0
    for own in members:
        totals[own] = total_relevance(relevance, own)
    for own in members:
        block = relevance.block(own, own).astype(float)
        positive_relevance += (totals[own] * (block**2).sum(1) / block.sum(1)).sum() / totals.sum()
    query_total = (totals**2).sum() / totals.sum()
    sampler = a_sampler(labels, relevance, buffer=24, batch=150, steps=2, out_of_class=1.0, positive_threshold=9.0)
    plans = np.concatenate([sampler.epoch(epoch).reshape(-1, 3) for epoch in range(120)])
    found = np.array([relevance.block(row[:1], row[1:2])[0, 0] for row in plans])
    assert totals[plans[:, 0]].mean() == pytest.approx(query_total, rel=0.01)
    assert found.mean() == pytest.approx(positive_relevance, rel=0.01)
    # Uniform over the other class, although its buffer is not.
    outside = [plans[labels[plans[:, 0]] == label, 2] for label in range(2)]
    for label, negatives in enumerate(outside):
        assert totals[negatives].mean() == pytest.approx(totals[members[1 - label]].mean(), rel=0.015)
    assert query_total > 1.06 * totals.mean()
