"""Losses and miners against plain double loops, and against pytorch-metric-learning where it computes the same."""

import itertools

import numpy as np
import pytest
import torch
from pytorch_metric_learning import losses as pml_losses
from pytorch_metric_learning import miners as pml_miners

from deeprank.train.losses.objective import Objective
from deeprank.train.losses.triplet import (
    MINERS,
    Triplets,
    batch_hard,
    normalised_softmax,
    random_triplets,
    semi_hard,
    squared_distances,
    triplet_hinge,
)
from deeprank.train.options.recipes import load_config

MARGIN = 0.2


def a_batch(seed: int, classes: int = 5, each: int = 4, dim: int = 6):
    """Unit vectors around a centre a class, so that all kinds of triplets occur."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(classes, dim))
    rows = np.repeat(centres, each, axis=0) + random.normal(size=(classes * each, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    order = random.permutation(classes * each)
    labels = np.repeat(np.arange(classes), each)[order]
    return torch.from_numpy(rows[order].astype(np.float32)), torch.from_numpy(labels)


def loop_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def as_set(triplets: Triplets) -> set[tuple[int, int, int]]:
    rows = zip(triplets.anchors.tolist(), triplets.positives.tolist(), triplets.negatives.tolist(), strict=True)
    return set(rows)


@pytest.mark.parametrize("seed", range(3))
def test_squared_distances(seed: int):
    rows, _ = a_batch(seed)
    distances = squared_distances(rows)
    for i, j in itertools.product(range(len(rows)), repeat=2):
        assert float(distances[i, j]) == pytest.approx(loop_distance(rows[i], rows[j]), abs=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_hinge_is_the_papers(seed: int):
    rows, labels = a_batch(seed)
    triplets = random_triplets(squared_distances(rows), labels, MARGIN, generator(seed))
    hinge = triplet_hinge(squared_distances(rows), triplets, MARGIN)
    for value, (a, p, n) in zip(
        hinge.tolist(), zip(triplets.anchors, triplets.positives, triplets.negatives, strict=True), strict=True
    ):
        expected = max(0.0, MARGIN + loop_distance(rows[a], rows[p]) - loop_distance(rows[a], rows[n]))
        assert value == pytest.approx(expected, abs=1e-5)
    assert (hinge > 0).any()
    assert (hinge == 0).any()


def test_hinge_equals_the_library_on_all_triplets():
    from pytorch_metric_learning.distances import LpDistance

    rows, labels = a_batch(0)
    same = labels[:, None] == labels[None, :]
    triplets = [
        (a, p, n)
        for a, p, n in itertools.product(range(len(rows)), repeat=3)
        if a != p and same[a, p] and not same[a, n]
    ]
    columns = [torch.tensor(column) for column in zip(*triplets, strict=True)]
    ours = triplet_hinge(squared_distances(rows), Triplets(*columns, len(triplets)), MARGIN)
    theirs = pml_losses.TripletMarginLoss(margin=MARGIN, distance=LpDistance(power=2))(rows, labels)
    assert float(ours[ours > 0].mean()) == pytest.approx(float(theirs), abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_batch_hard_by_loops_and_by_the_library(seed: int):
    rows, labels = a_batch(seed)
    found = batch_hard(squared_distances(rows), labels, MARGIN, generator())
    expected = set()
    for a in range(len(rows)):
        distance = [loop_distance(rows[a], row) for row in rows]
        positives = [j for j in range(len(rows)) if j != a and labels[j] == labels[a]]
        negatives = [j for j in range(len(rows)) if labels[j] != labels[a]]
        expected.add((a, max(positives, key=distance.__getitem__), min(negatives, key=distance.__getitem__)))
    assert as_set(found) == expected
    theirs = pml_miners.BatchHardMiner()(rows, labels)
    assert as_set(Triplets(*theirs, 0)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_semi_hard_by_loops(seed: int):
    rows, labels = a_batch(seed)
    found = semi_hard(squared_distances(rows), labels, MARGIN, generator())
    expected, pairs = set(), 0
    for a, p in itertools.permutations(range(len(rows)), 2):
        if labels[a] != labels[p]:
            continue
        pairs += 1
        limit = loop_distance(rows[a], rows[p])
        candidates = [
            (loop_distance(rows[a], rows[n]), n)
            for n in range(len(rows))
            if labels[n] != labels[a] and limit < loop_distance(rows[a], rows[n]) < limit + MARGIN
        ]
        if candidates:
            expected.add((a, p, min(candidates)[1]))
    assert expected
    assert as_set(found) == expected
    assert found.considered == pairs


def test_random_triplets_are_uniform_and_valid():
    rows, labels = a_batch(0, classes=3, each=3)
    counts = {}
    for seed in range(600):
        triplets = random_triplets(squared_distances(rows), labels, MARGIN, generator(seed))
        assert sorted(triplets.anchors.tolist()) == list(range(9))
        for a, p, n in as_set(triplets):
            assert a != p
            assert labels[a] == labels[p] != labels[n]
            counts[a, p, n] = counts.get((a, p, n), 0) + 1
    # 9 anchors, each with 2 positives x 6 negatives: chi-square with 99 degrees of freedom, p = 0.001.
    assert len(counts) == 9 * 12
    assert sum((count - 50) ** 2 / 50 for count in counts.values()) < 149


@pytest.mark.parametrize("name", MINERS)
def test_anchors_without_a_positive_give_no_triplet(name: str):
    rows, _ = a_batch(1)
    labels = torch.arange(len(rows))
    triplets = MINERS[name](squared_distances(rows), labels, MARGIN, generator())
    assert len(triplets.anchors) == 0


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_softmax_by_loops(smoothing: float):
    rows, labels = a_batch(0)
    proxies = torch.randn(7, 6, generator=generator())
    total = 0.0
    for row, label in zip(rows.double().numpy(), labels.tolist(), strict=True):
        logits = np.array([row @ w / np.linalg.norm(w) / 0.1 for w in proxies.double().numpy()])
        log_shares = logits - np.log(np.exp(logits).sum())
        target = np.full(7, smoothing / 7)
        target[label] += 1 - smoothing
        total -= target @ log_shares
    assert float(normalised_softmax(rows, proxies, labels, 0.1, smoothing)) == pytest.approx(
        total / len(rows), abs=1e-4
    )


def test_softmax_equals_the_library():
    rows, labels = a_batch(2)
    theirs = pml_losses.NormalizedSoftmaxLoss(num_classes=5, embedding_size=6, temperature=0.08)
    ours = normalised_softmax(rows, theirs.W.detach().T, labels, 0.08)
    assert float(ours) == pytest.approx(float(theirs(rows, labels).detach()), abs=1e-4)


def objective(loss: str, **options) -> Objective:
    torch.manual_seed(0)
    return Objective(load_config("default", {"loss": loss, "embedding_dim": 6, **options}), 5)


def test_the_sum_is_that_of_its_terms():
    rows, labels = a_batch(0)
    both = objective("triplet+softmax", softmax_weight=0.5, temperature=0.08)
    triplet = objective("triplet")(rows, labels, generator()).loss
    softmax = normalised_softmax(rows, both.proxies, labels, 0.08)
    expected = triplet.item() + 0.5 * softmax.item()
    assert float(both(rows, labels, generator()).loss) == pytest.approx(expected, abs=1e-5)
    assert list(objective("triplet").parameters()) == []


def test_a_batch_without_triplets_has_a_zero_gradient():
    rows, _ = a_batch(0)
    rows = rows.requires_grad_()
    objective("triplet")(rows, torch.arange(len(rows)), generator()).loss.backward()
    assert torch.equal(rows.grad, torch.zeros_like(rows))


@pytest.mark.parametrize("loss", ["triplet", "triplet+softmax", "softmax"])
@pytest.mark.parametrize("negatives", MINERS)
def test_following_the_gradient_pulls_classes_together(loss: str, negatives: str):
    rows, labels = a_batch(3)
    free = torch.nn.Parameter(rows.clone())
    term = objective(loss, negatives=negatives)
    same = labels[:, None] == labels[None, :]

    def gap() -> float:
        distances = squared_distances(torch.nn.functional.normalize(free, dim=1)).detach()
        return float(distances[~same].mean() - distances[same].mean())

    before = gap()
    optimizer = torch.optim.SGD([free, *term.parameters()], lr=0.5)
    for step in range(30):
        optimizer.zero_grad()
        term(torch.nn.functional.normalize(free, dim=1), labels, generator(step)).loss.backward()
        optimizer.step()
    assert gap() > before + 0.1
