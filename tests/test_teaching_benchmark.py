"""The benchmark of teaching: raters answer by their taste, err and skip as they should, and a head learns it."""

import io
import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from deeprank.runtime.datasets import Sample
from deeprank.runtime.evaluate.embeddings import EmbeddedSplit

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))

from panels import Panel, panels
from raters import Rater, Taste, taste
from rating_sessions import METHODS, Collection, Rated, held_out_ratings, session, start

COLOURS = {"red": (220, 30, 30), "blue": (30, 40, 210)}


def sample(path: str, label: str, picture: Image.Image) -> Sample:
    file = io.BytesIO()
    picture.save(file, "PNG")
    return Sample(path, label, len(file.getvalue()), lambda: io.BytesIO(file.getvalue()))


def striped(colour: str, *, across: bool, shift: int = 0) -> Image.Image:
    """Stripes of a colour and of half of it."""
    places = np.arange(96) + shift
    bright = np.where(places // 12 % 2 == 0, 1.0, 0.5)
    shade = np.tile(bright, (96, 1)) if across else np.tile(bright[:, None], (1, 96))
    return Image.fromarray((shade[..., None] * COLOURS[colour]).astype(np.uint8))


@pytest.fixture(scope="module")
def drawn() -> list[Sample]:
    kinds = [(colour, across) for colour in COLOURS for across in (True, False)]
    return [
        sample(
            f"{colour}-{across}-{shift}.png",
            "even" if shift % 2 == 0 else "odd",
            striped(colour, across=across, shift=shift),
        )
        for colour, across in kinds
        for shift in (0, 1, 2)
    ]


@pytest.mark.parametrize(
    ("name", "alike", "other"),
    [
        ("colour", "red-False-2", "blue-True-0"),
        ("shape", "blue-True-2", "red-False-0"),
        ("class", "blue-False-2", "red-True-1"),
    ],
)
def test_a_taste_prefers_what_it_says(drawn: list[Sample], name: str, alike: str, other: str) -> None:
    paths = [each.path.removesuffix(".png") for each in drawn]
    similar = taste(name, drawn, np.arange(len(drawn)))
    query, first, second = (paths.index(path) for path in ("red-True-0", alike, other))
    assert similar.prefers(query, first, second) is True
    assert similar.prefers(query, second, first) is False
    assert similar.prefers(query, first, first) is None
    assert similar.distances[query, query] == 0


def line(count: int) -> Taste:
    """Pictures on a line."""
    places = np.arange(count, dtype=np.float32)
    distances = np.abs(places[:, None] - places)
    return Taste(distances, distances <= 1)


def test_raters_err_and_skip_as_often_as_they_say() -> None:
    similar = line(50)
    rater = Rater(similar, 0.2, np.random.default_rng(0))
    draws = np.random.default_rng(1)
    answers = [rater.answer(*draws.choice(50, 3, replace=False).tolist()) for _ in range(4000)]
    wrong = [similar.prefers(*answer) is False for answer in answers if answer is not None]
    assert 0.18 < np.mean(wrong) < 0.22
    assert rater.skipped == answers.count(None)
    assert rater.skipped > 100


def unit(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def planted() -> Rated:
    """A model whose vectors show the kind first, and the colour only a little; the taste is the colour."""
    rng = np.random.default_rng(0)
    kinds, colours = rng.normal(size=(240, 12)), rng.normal(size=(240, 6))
    samples = tuple(Sample(f"{row}.jpg", f"{row % 4}", 1, io.BytesIO) for row in range(240))
    split = EmbeddedSplit(
        samples, unit(np.hstack([kinds, 0.5 * colours])), tuple(bytes([row] * 32) for row in range(240))
    )
    looks = unit(colours)
    distances = (2 - 2 * looks @ looks.T).clip(0)
    collection = Collection("planted", split, 200)
    similar = Taste(distances, distances < np.quantile(distances, 0.1, axis=1)[:, None])
    return Rated(collection, similar, held_out_ratings(collection, similar), collection)


@pytest.mark.thorough
def test_ratings_teach_a_planted_taste(planted: Rated) -> None:
    before = start(planted).figures
    points = list(session(planted, METHODS["clever"], 0.0, 0, (50, 400), rounds=True))
    assert [point.ratings for point in points] == [50, 400]
    assert points[1].figures.similarity > before.similarity + 0.1
    assert points[1].figures.precision > before.precision + 0.1
    assert points[1].figures.similarity > points[0].figures.similarity
    assert points[0].verdict == "too few"
    assert points[1].verdict == "better"


def test_the_drawing_holds_every_curve() -> None:
    shown = [
        Panel("a & b", {"one": [(0, 0.5), (50, 0.6)], "two": [(0, 0.5)]}, 0.9),
        Panel("c", {"one": [], "two": []}, 0.5),
    ]
    drawing = panels("title", (0, 50), "ceiling", shown)
    assert "a &amp; b" in drawing
    assert drawing.count('class="line c1" d="M5') == 1
