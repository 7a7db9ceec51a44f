"""Learning from rated triplets: the head, the learner, and the judgement on held-out ratings."""

import hashlib
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy.optimize import minimize

from deeprank.runtime.errors import ModelFileError, TrainingError
from deeprank.runtime.images import PictureRule
from deeprank.runtime.model.metadata import ModelInfo
from deeprank.runtime.progress import start_nothing
from deeprank.train.ratings.comparison import MIN_QUERIES, compare
from deeprank.train.ratings.curve import ratings_needed
from deeprank.train.ratings.head import Head, start_vectors
from deeprank.train.ratings.learner import Settings, directions, learn_head, margins
from deeprank.train.ratings.lesson import Trial, learn_lesson
from deeprank.train.ratings.metric import TripletMetric
from deeprank.train.ratings.rated import Rated, apart, folds_of, rated


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def some_vectors(count: int, dim: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(count, dim))).astype(np.float32)


def some_head(dim: int = 12, learned: int = 5, strength: float = 0.3) -> Head:
    rng = np.random.default_rng(7)
    weight = rng.normal(size=(learned, dim)).astype(np.float32)
    return Head(rng.normal(size=dim).astype(np.float32) / 9, weight, strength)


def contents(count: int) -> list[bytes]:
    return [hashlib.sha256(b"%d" % number).digest() for number in range(count)]


def ratings_by(taste: np.ndarray, count: int, seed: int, wrong: float = 0.0) -> np.ndarray:
    """What a rater says who compares pictures by points of their own, int64 ``[count, 3]``."""
    rng = np.random.default_rng(seed)
    triplets = np.array([rng.choice(len(taste), 3, replace=False) for _ in range(count)])
    turned = (margins(taste, triplets) < 0) != (rng.random(count) < wrong)
    triplets[turned] = triplets[turned][:, [0, 2, 1]]
    return triplets


# -- the head --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.9])
def test_distances_of_start_and_head_mix(strength: float) -> None:
    head, vectors = some_head(strength=strength), some_vectors(20, 12)
    appended = head.apply(vectors)
    assert appended.dtype == np.float32
    assert appended.shape == (20, head.dim) == (20, 17)
    assert np.allclose(np.linalg.norm(appended, axis=1), 1, atol=1e-6)
    points = vectors.astype(np.float64)
    learned = unit((points - head.mean.astype(np.float64)) @ head.weight.T.astype(np.float64))

    def squared(rows: np.ndarray) -> np.ndarray:
        return ((rows[:, None] - rows[None]) ** 2).sum(axis=2)

    expected = (1 - strength) * squared(points) + strength * squared(learned)
    assert np.abs(squared(appended.astype(np.float64)) - expected).max() < 1e-5


def test_a_head_is_saved_and_loaded(tmp_path: Path) -> None:
    head = some_head()
    head.save(tmp_path / "head.safetensors")
    again = Head.load(tmp_path / "head.safetensors")
    assert (again.mean == head.mean).all()
    assert (again.weight == head.weight).all()
    assert again.strength == head.strength


MEAN, WEIGHT, STRENGTH = np.zeros(4, np.float32), np.ones((2, 4), np.float32), np.array([0.5])


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({"mean": MEAN, "weight": WEIGHT}, "other tensors"),
        ({"mean": MEAN, "weight": WEIGHT, "strength": STRENGTH, "more": MEAN}, "other tensors"),
        ({"mean": MEAN.astype(np.float64), "weight": WEIGHT, "strength": STRENGTH}, "another kind"),
        ({"mean": MEAN, "weight": WEIGHT[:, :3].copy(), "strength": STRENGTH}, "shapes"),
        ({"mean": MEAN, "weight": WEIGHT[0], "strength": STRENGTH}, "shapes"),
        ({"mean": MEAN[:0], "weight": WEIGHT[:, :0].copy(), "strength": STRENGTH}, "numbers a vector"),
        ({"mean": MEAN, "weight": WEIGHT[:0], "strength": STRENGTH}, "numbers a vector"),
        ({"mean": MEAN, "weight": np.full((2, 4), np.nan, np.float32), "strength": STRENGTH}, "not finite"),
        ({"mean": MEAN, "weight": WEIGHT, "strength": np.array([1.0])}, "strength 1"),
        ({"mean": MEAN, "weight": WEIGHT, "strength": np.array([np.nan])}, "strength nan"),
    ],
)
def test_a_hostile_head_is_refused(tmp_path: Path, tensors: dict, says: str) -> None:
    save_file(tensors, tmp_path / "head.safetensors")
    with pytest.raises(ModelFileError, match=says):
        Head.load(tmp_path / "head.safetensors")


@pytest.mark.parametrize("data", [b"", b"no tensors", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"{}"])
def test_a_damaged_head_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "head.safetensors").write_bytes(data)
    with pytest.raises(ModelFileError, match=r"head\.safetensors"):
        Head.load(tmp_path / "head.safetensors")


def test_a_pipe_is_no_head(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "head.safetensors")
    with pytest.raises(ModelFileError, match="pipe"):
        Head.load(tmp_path / "head.safetensors")


def info(**training: object) -> ModelInfo:
    return ModelInfo("name", 17, PictureRule(8, "stretch"), "projection", training=training)


def test_a_taught_model_gives_its_start_vectors() -> None:
    head, vectors = some_head(), some_vectors(20, 12)
    assert np.abs(start_vectors(info(taught=head.taught()), head.apply(vectors)) - vectors).max() < 1e-6
    assert start_vectors(info(), vectors) is vectors


@pytest.mark.parametrize(
    "taught",
    [
        1,
        {},
        {"start_dim": 17, "strength": 0.5},
        {"start_dim": 0, "strength": 0.5},
        {"start_dim": "12", "strength": 0.5},
        {"start_dim": 12, "strength": 1},
        {"start_dim": 12, "strength": float("nan")},
        {"start_dim": 12, "strength": -0.1},
    ],
)
def test_hostile_words_of_a_taught_model_are_refused(taught: object) -> None:
    with pytest.raises(ModelFileError, match="Re-embed"):
        start_vectors(info(taught=taught), some_vectors(3, 17))


# -- the learner -----------------------------------------------------------------------------------------------------


def test_the_metric_is_the_best_one_of_a_search_over_all_matrices() -> None:
    points, (strength, decay) = some_vectors(30, 3).astype(np.float64), (0.5, 1e-2)
    triplets = ratings_by(points * [3, 1, 0.2], 40, 0)
    query, positive, negative = (points[column] for column in triplets.T)
    start = margins(some_vectors(30, 5), triplets)
    metric, rows, weights = TripletMetric(query, positive, negative, start), np.arange(40), np.full(40, 1 / 40)
    factors = metric.fit(rows, weights, strength, decay)
    root = metric.square_root(rows, factors)

    def loss(values: np.ndarray) -> float:
        matrix = (values.reshape(3, 3) + values.reshape(3, 3).T) / 2
        near = np.einsum("td,de,te->t", query - positive, matrix, query - positive)
        far = np.einsum("td,de,te->t", query - negative, matrix, query - negative)
        lacking = 0.2 - (1 - strength) * start - strength * (far - near)
        return np.logaddexp(0, 5 * lacking).mean() / 5 + decay * np.square(matrix - np.eye(3)).sum()

    best = minimize(loss, np.eye(3).ravel(), method="BFGS")
    assert loss((root.T @ root).ravel()) == pytest.approx(best.fun, abs=1e-6)


def test_a_known_taste_is_learned() -> None:
    vectors = some_vectors(400, 12)
    taste = vectors[:, :2]  # of 12 numbers, only two count
    learned = learn_head(vectors, ratings_by(taste, 300, 1))
    others = ratings_by(taste, 2000, 2)
    before = (margins(vectors, others) > 0).mean()
    after = (margins(learned.head.apply(vectors), others) > 0).mean()
    assert after > before + 0.1
    assert learned.after > learned.before
    assert learned.after == pytest.approx(after, abs=0.06)


def test_the_same_ratings_give_the_same_head() -> None:
    vectors = some_vectors(100, 8)
    triplets = ratings_by(vectors[:, :2], 60, 1)
    one, other = (learn_head(vectors, triplets) for _ in range(2))
    assert (one.head.weight == other.head.weight).all()
    assert one.settings == other.settings


def test_no_gain_is_no_head() -> None:
    vectors = some_vectors(200, 8)
    learned = learn_head(vectors, ratings_by(vectors, 100, 1))  # the model's own taste
    assert learned.settings.strength == 0
    assert learned.after == learned.before == 1


def test_classes_teach_beside_ratings() -> None:
    rng = np.random.default_rng(0)
    classes = rng.integers(0, 4, 300)
    noise = rng.normal(size=(300, 20))
    vectors = unit(np.hstack([np.eye(4)[classes] * 0.7, noise])).astype(np.float32)
    labels = np.where(rng.random(300) < 0.5, classes, -1)
    triplets = ratings_by(np.eye(4)[classes] + rng.normal(size=(300, 4)) / 100, 20, 1)
    others = ratings_by(np.eye(4)[classes] + rng.normal(size=(300, 4)) / 100, 2000, 2)

    def precision(labels: np.ndarray | None) -> float:
        head = learn_head(vectors, triplets, labels=labels, settings=Settings(0.5, 0.02)).head
        return (margins(head.apply(vectors), others) > 0).mean()

    assert precision(labels) > precision(None) + 0.02


# -- held-out ratings ------------------------------------------------------------------------------------------------


def test_a_query_stays_on_its_side() -> None:
    queries = contents(3000)
    folds = folds_of(queries)
    assert (folds == 0).mean() == pytest.approx(0.3, abs=0.03)
    assert (folds_of(queries[:100]) == folds[:100]).all()


def test_copies_are_one_picture() -> None:
    a, b, c = contents(3)
    whole = rated(some_vectors(4, 3), [a, b, a, c], [(a, b, c)], ["x", "", "x", "y"])
    assert whole.triplets.tolist() == [[0, 1, 3]]
    assert whole.labels is not None
    assert whole.labels.tolist() == [0, -1, 0, 1]
    with pytest.raises(TrainingError, match="two classes"):
        rated(some_vectors(2, 3), [a, b], [], ["x", None])


def test_the_interval_is_that_of_all_draws() -> None:
    """Of three queries there are 27 equally likely draws; ratings of one query go together."""
    queries, before = np.array([5, 5, 7, 9]), np.array([False, False, False, True])
    after = np.array([True, True, False, True])
    comparison = compare(queries, before, after)
    assert (comparison.before, comparison.after, comparison.queries) == (0.25, 0.75, 3)
    gains, counts = np.array([2, 0, 0]), np.array([2, 1, 1])
    draws = [gains[list(d)].sum() / counts[list(d)].sum() for d in np.ndindex(3, 3, 3)]
    assert comparison.low == min(draws) == 0
    assert comparison.high == max(draws) == 1
    assert comparison.verdict == "too few"


def test_the_interval_of_many_queries_is_the_normal_one() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(2000) < 0.6, rng.random(2000) < 0.7
    comparison = compare(np.arange(2000), before, after)
    change = after.astype(float) - before
    error = 1.96 * change.std() / np.sqrt(2000)
    assert comparison.low == pytest.approx(change.mean() - error, abs=0.002)
    assert comparison.high == pytest.approx(change.mean() + error, abs=0.002)
    assert comparison.verdict == "better"
    assert compare(np.arange(2000), after, before).verdict == "not better"
    assert compare(np.arange(49), before[:49] < 0, after[:49] >= 0).verdict == "too few"


@pytest.mark.thorough
@pytest.mark.parametrize(("queries", "each", "differing"), [(50, 1, 0.2), (50, 1, 0.6), (17, 3, 0.4), (25, 4, 0.6)])
def test_coin_flips_are_seldom_better(queries: int, each: int, differing: float) -> None:
    """Of heads that change answers at random, 2.5 % may seem better."""
    rng, better, repeats = np.random.default_rng(3), 0, 400
    names = np.repeat(np.arange(queries), each)
    for repeat in range(repeats):
        before = rng.random(len(names)) < 0.5
        after = np.where(rng.random(len(names)) < differing, rng.random(len(names)) < 0.5, before)
        better += compare(names, before, after, repeat).verdict == "better"
    assert better / repeats <= 0.025 + 2.6 * np.sqrt(0.025 * 0.975 / repeats)


def lesson_of(taste: np.ndarray, vectors: np.ndarray, count: int, wrong: float, seed: int = 0):
    return learn_lesson(Rated(vectors, tuple(contents(len(vectors))), ratings_by(taste, count, seed, wrong)), seed=seed)


@pytest.mark.thorough
def test_a_head_of_coin_flips_is_seldom_better() -> None:
    vectors = some_vectors(300, 16)
    lessons = [lesson_of(vectors, vectors, 200, 0.5, seed) for seed in range(40)]
    assert [lesson.verdict for lesson in lessons].count("better") <= 4
    assert sum(lesson.needed is not None for lesson in lessons) <= 1


def test_a_head_that_learned_a_taste_is_better() -> None:
    vectors = some_vectors(300, 12)
    lesson = lesson_of(vectors[:, :3], vectors, 600, 0.1)
    assert lesson.verdict == "better"
    assert lesson.refusal() is None
    assert lesson.needed is None
    assert lesson.after.similarity_precision > lesson.before.similarity_precision
    assert lesson.after.score_at_top_k is not None


def test_every_rating_is_judged_once_by_a_head_that_did_not_learn_from_it() -> None:
    vectors, triplets = some_vectors(300, 12), ratings_by(some_vectors(300, 12)[:, :3], 200, 0, 0.1)
    whole = Rated(vectors, tuple(contents(300)), triplets)
    folds = whole.folds()
    right = np.empty(len(triplets), bool)
    for fold in range(3):
        head = learn_head(vectors, triplets[apart(triplets, folds == fold)], seed=5).head
        right[folds == fold] = margins(head.apply(vectors), triplets[folds == fold]) > 0
    lesson = learn_lesson(whole, seed=5)
    assert lesson.comparison.ratings == len(triplets)
    assert lesson.comparison.before == (margins(vectors, triplets) > 0).mean()
    assert lesson.comparison.after == pytest.approx(right.mean(), abs=0.006)  # ties within rounding
    # The head that is used is the one of the first fold.
    assert lesson.ratings == apart(triplets, folds == 0).sum()
    assert lesson.after.similarity_precision == pytest.approx(right[folds == 0].mean(), abs=0.02)


def test_a_head_that_is_worse_on_its_own_held_out_ratings_is_refused() -> None:
    vectors = some_vectors(300, 12)
    lesson = lesson_of(vectors[:, :3], vectors, 600, 0.1)
    turned = replace(lesson, before=lesson.after, after=lesson.before)
    assert turned.verdict == "not better"
    assert "held out of it" in str(turned.refusal())


def test_thin_evidence_is_refused() -> None:
    vectors = some_vectors(100, 8)
    lesson = lesson_of(vectors[:, :2], vectors, 45, 0.0)
    assert lesson.verdict == "too few"
    assert "too thin" in str(lesson.refusal())
    with pytest.raises(TrainingError, match="ratings are too few"):
        lesson_of(vectors, vectors, 8, 0.0)


def pairs_of(triplets: np.ndarray) -> set[frozenset[int]]:
    return {frozenset((query, other)) for query, *others in triplets.tolist() for other in others}


def test_a_head_learns_no_rating_that_shares_a_pair_with_one_that_judges_it() -> None:
    vectors, triplets = some_vectors(40, 8), ratings_by(some_vectors(40, 8), 300, 1)
    whole = Rated(vectors, tuple(contents(40)), triplets)
    folds = whole.folds()
    for fold in range(3):
        judging = pairs_of(triplets[folds == fold])
        expected = [
            row for row, own in zip(triplets.tolist(), folds, strict=True)
            if own != fold and not pairs_of(np.array([row])) & judging
        ]  # fmt: skip
        assert 0 < len(expected) < (folds != fold).sum()
        assert Trial(whole, fold, directions(vectors), 0, start_nothing).learning.tolist() == expected


@pytest.mark.thorough
def test_opinions_on_pairs_that_have_nothing_to_do_with_the_vectors_are_not_better() -> None:
    """The same distance may be rated from both of its ends: what is said from one end must not judge."""
    better = 0
    for seed in range(13):
        rng = np.random.default_rng(seed)
        opinion = rng.random((20, 20))
        triplets = np.array([rng.choice(20, 3, replace=False) for _ in range(200)])
        near, far = ((opinion + opinion.T)[triplets[:, 0], triplets[:, column]] for column in (1, 2))
        triplets[near > far] = triplets[near > far][:, [0, 2, 1]]
        names = tuple(contents(1000 * seed + 20)[-20:])
        better += (
            learn_lesson(Rated(some_vectors(20, 100, seed), names, np.unique(triplets, axis=0))).verdict == "better"
        )
    assert better <= 1


def test_where_every_pair_is_held_out_there_is_nothing_to_learn_from() -> None:
    vectors = some_vectors(7, 4)
    with pytest.raises(TrainingError, match="The rated pictures are too few to learn from: of 200 ratings"):
        lesson_of(vectors, vectors, 200, 0.0)


def test_labels_of_what_judges_teach_nothing() -> None:
    vectors, triplets = some_vectors(60, 8), ratings_by(some_vectors(60, 8), 40, 1)
    names = contents(60)
    held = folds_of([names[row] for row in triplets[:, 0]]) == 0
    copied = int(triplets[held][0, 1])
    whole = Rated(np.vstack([vectors, vectors[[copied]]]), (*names, names[copied]), triplets, np.arange(61) % 5)
    labels = Trial(whole, 0, directions(vectors), 0, start_nothing).labels
    judging = set(triplets[held].ravel().tolist()) | {60}
    assert labels is not None
    assert labels.tolist() == [-1 if row in judging else row % 5 for row in range(61)]


@pytest.mark.thorough
def test_drawn_classes_of_drawn_vectors_are_not_better() -> None:
    rng, vectors = np.random.default_rng(0), some_vectors(150, 16)
    classes, triplets = rng.integers(0, 10, 150), np.empty((0, 3), np.int64)
    drawn = np.array([rng.choice(150, 3, replace=False) for _ in range(5000)])
    query, one, other = classes[drawn.T]
    triplets = drawn[(query == one) & (query != other)][:300]
    assert len(triplets) == 300
    assert learn_lesson(Rated(vectors, tuple(contents(150)), triplets, classes)).verdict == "not better"


def test_few_queries_are_too_few() -> None:
    vectors = some_vectors(200, 12)
    triplets = ratings_by(vectors[:, :3], 400, 0)
    queries = np.unique(triplets[:, 0])[: MIN_QUERIES - 1]
    triplets[:, 0] = queries[np.arange(400) % len(queries)]
    triplets = triplets[(triplets[:, 0] != triplets[:, 1]) & (triplets[:, 0] != triplets[:, 2])]
    lesson = learn_lesson(Rated(vectors, tuple(contents(200)), triplets))
    assert lesson.verdict == "too few"
    assert "the ratings are about 9 pictures as queries, and a verdict needs 10; rate more queries." in str(
        lesson.refusal()
    )
    many = np.arange(100) % MIN_QUERIES
    assert compare(many, many < 0, many >= 0).verdict == "better"


def test_a_head_that_changes_nothing_is_not_better() -> None:
    vectors = some_vectors(300, 12)
    lesson = lesson_of(vectors[:, :3], vectors, 600, 0.1)
    head = replace(lesson.learned.head, strength=0.0)
    without = replace(lesson, learned=replace(lesson.learned, head=head), after=lesson.before)
    assert (lesson.verdict, without.verdict) == ("better", "not better")
    assert "nothing that it could learn was better than the start" in str(without.refusal())


# -- the learning curve ----------------------------------------------------------------------------------------------

LEARNED = np.array([50, 100, 200])


def test_a_curve_that_falls_names_a_range() -> None:
    level = (np.random.default_rng(1).permutation(200) + 0.5) / 200
    law = 0.45 * (LEARNED / 50) ** -0.06  # the same queries stay wrong, and their share is exactly on the law
    wrong = np.stack([np.clip((share - level) * 200 + 0.5, 0, 1) for share in law])
    low, high = ratings_needed(300, LEARNED, (level < 0.43).astype(float), wrong, np.ones(200)) or (0, 0)
    # now: a gain of 0.016 +- 0.017; by the law, the gain is above the half width from 1.1 times the ratings on
    times = np.geomspace(1, 10, 1000)
    enough = 0.43 - 0.45 * (200 * times / 50) ** -0.06 > 1.96 * np.sqrt(0.0159 / 200 / times)
    assert 300 < low <= 300 * times[enough.argmax()] * 1.05
    assert low < high <= 1000


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param([0.4, 0.4, 0.4], id="level"),
        pytest.param([0.3, 0.35, 0.4], id="rising"),
        pytest.param([0.40, 0.20, 0.19], id="no power law"),
        pytest.param([0.2, 0.1, 0.0], id="no error left"),
        pytest.param([0.46, 0.43, 0.41], id="no gain yet"),
        pytest.param([0.405, 0.4, 0.395], id="no more than chance"),
    ],
)
def test_a_curve_that_does_not_fit_names_nothing(wrong: list[float]) -> None:
    rng = np.random.default_rng(0)
    answers = np.stack([rng.permutation(np.arange(400) < 400 * share) for share in wrong]).astype(float)
    start = rng.permutation(np.arange(400) < 160).astype(float)
    assert ratings_needed(600, LEARNED, start, answers, np.ones(400)) is None


# -- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_many_pictures_take_minutes() -> None:
    vectors = some_vectors(20_000, 256)
    begin = time.process_time()
    lesson_of(vectors[:, :20], vectors, 1000, 0.1)
    assert time.process_time() - begin < 240
