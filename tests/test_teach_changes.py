"""What changes for a query, and where pictures are not similar any more, compared with plain computations."""

import time
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from deeprank.export.teach import presentation
from deeprank.export.teach.changes import SHOWN, changes_of, rated_queries, telling
from deeprank.export.teach.job import Taught
from deeprank.export.teach.limit import moved_limit
from deeprank.export.teach.page import Contents, render
from deeprank.runtime.index.search.items import IndexedImage
from deeprank.train.ratings.learner import margins, right_order
from deeprank.train.ratings.lesson import learn_lesson
from deeprank.train.ratings.rated import Rated
from deeprank.train.ratings.sources import RatedSource

Vectors = npt.NDArray[np.float32]


def unit(seed: int, rows: int = 150, dim: int = 6) -> Vectors:
    vectors = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def distances(vectors: Vectors) -> npt.NDArray[np.float64]:
    return ((vectors[:, None].astype(np.float64) - vectors[None]) ** 2).sum(axis=2)


def test_the_queries_to_show_and_their_neighbours() -> None:
    before, after = unit(1), unit(2)
    before[7] = before[3]  # a copy of a query is no neighbour of it
    triplets = np.random.default_rng(3).permuted(np.tile(np.arange(150), (40, 1)), axis=1)[:, :3]
    triplets[:6, 0] = 3
    triplets = triplets[(triplets[:, 0] != triplets[:, 1]) & (triplets[:, 0] != triplets[:, 2])]
    queries = rated_queries(triplets)
    assert [query.row for query in queries] == sorted(set(triplets[:, 0].tolist()))
    for query in queries:
        np.testing.assert_array_equal(query.ratings, triplets[triplets[:, 0] == query.row, 1:])
    assert rated_queries(triplets[:0]) == []
    every = changes_of(queries, before, after)
    assert [change.row for change in every] == [query.row for query in queries]
    for change in every:
        nearest = {}
        for name, vectors, shown in (("before", before, change.before), ("after", after, change.after)):
            row = distances(vectors)[change.row]
            row[[change.row, *([7] if (change.row, name) == (3, "before") else [])]] = np.inf
            expected = np.argsort(row)[:SHOWN]
            assert [each.row for each in shown] == expected.tolist()
            np.testing.assert_allclose([each.distance for each in shown], row[expected], atol=1e-6)
            nearest[name] = set(expected.tolist())
        assert change.moved == len(nearest["after"] - nearest["before"])
        own = triplets[triplets[:, 0] == change.row]
        assert change.ratings == len(own)
        assert change.right_before == right_order(before, own).sum()
        for each in (*change.before, *change.after):
            more, less = each.row in own[:, 1], each.row in own[:, 2]
            assert each.rated == ("more" if more and not less else "less" if less and not more else None)
    kinds = telling(every, 3)
    assert list(kinds) == ["gained", "typical", "lost"]
    gains = [change.gain for change in every]
    assert [change.gain for change in kinds["gained"]] == sorted(gains, reverse=True)[:3]
    assert [change.gain for change in kinds["lost"]] == sorted(gains)[:3]
    assert len({change.row for some in kinds.values() for change in some}) == 9
    assert changes_of([], before, after) == []
    assert telling([], 3) == {}
    same = changes_of(queries, before, before)
    assert {change.moved for change in same} == {0}
    assert list(telling(same, 3)) == ["typical"]


def test_the_order_of_triplets() -> None:
    vectors = unit(4)
    triplets = np.random.default_rng(5).integers(0, 150, (200, 3))
    d = distances(vectors)
    expected = [d[query, one] < d[query, other] for query, one, other in triplets]
    np.testing.assert_array_equal(right_order(vectors, triplets), expected)
    assert not right_order(vectors, np.array([[1, 2, 2]])).any()  # the same distance is a wrong order


def test_the_limit_keeps_its_share_of_the_hits() -> None:
    before, after = unit(6), unit(7, dim=9)

    def within(vectors: Vectors, limit: float) -> float:
        every = np.sort(distances(vectors) + np.diag(np.full(150, np.inf)), axis=1)[:, :10]
        return float((every <= limit).mean())

    for limit in (0.2, 0.4, 0.7):
        moved = moved_limit(limit, before, after)
        assert moved is not None
        assert within(after, moved) == pytest.approx(within(before, limit), abs=0.005)
    same = moved_limit(0.4, before, before)
    assert within(before, same or 0) == pytest.approx(within(before, 0.4), abs=0.005)
    for limit, rows in ((None, 150), (4.0, 150), (1e-9, 150), (0.4, 60)):  # none, all, no hits, few pictures
        assert moved_limit(limit, before[:rows], after[:rows]) is None


def test_names_on_the_page_are_text(tmp_path: Path) -> None:
    """Pictures of an index from elsewhere may have any name, and lie nowhere."""
    name = "<script>alert(1)</script>\u202e.png"
    image = IndexedImage(f"/photos/{name}", None, 1, "/photos", name, b"0" * 32, 1, 0)
    queries = rated_queries(np.array([[0, 1, 2]]))
    changes = changes_of(queries, unit(1, rows=3), unit(2, rows=3))
    contents = Contents(tmp_path, "<b>", [("<i>", "<u>")], telling(changes, 1), dict.fromkeys(range(3), image), 1)
    page = render(contents).decode("utf-8")
    tags: set[str] = set()
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: tags.add(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert not {"script", "i", "u"} & tags
    assert "figure" in tags
    assert "\u202e" not in page
    assert "&lt;script&gt;" in page
    assert "cannot be read" in page


def test_the_queries_of_many_ratings_are_found_at_once() -> None:
    triplets = np.random.default_rng(0).integers(0, 200_000, (200_000, 3))
    began = time.process_time()
    assert sum(len(query.ratings) for query in rated_queries(triplets)) == 200_000
    assert time.process_time() - began < 10  # by a scan for each query, minutes


def test_a_second_teaching_is_shown_against_the_model_in_use(tmp_path: Path) -> None:
    vectors = unit(1, rows=300, dim=12)
    drawn = np.random.default_rng(0).permuted(np.tile(np.arange(300), (600, 1)), axis=1)[:, :3]
    turned = margins(vectors[:, :3], drawn) < 0
    drawn[turned] = drawn[turned][:, [0, 2, 1]]
    source = RatedSource(Rated(vectors, tuple(b"%032d" % row for row in range(300)), drawn), tmp_path, "", "photos")
    taught = Taught(source, learn_lesson(source.rated), 90, 1.0, "in use")
    assert taught.lesson.verdict == "better"
    facts = dict(presentation.facts(taught))
    assert facts["verdict"] == "better than the start, but not than the model in use"
    assert facts["model in use"].startswith("similarity precision 1.000")
    assert "with the head and 1.000 with that model" in presentation.refusal(tmp_path, taught)
    document = presentation.document(tmp_path, taught, None)
    assert (document["refusal"], document["verdict"]) == ("in use", "not better")
    image = IndexedImage("/photos/a.png", None, 1, "/photos", "a.png", b"0" * 32, 1, 0)
    queries = rated_queries(np.array([[0, 1, 2]]))
    changes = telling(changes_of(queries, unit(1, rows=3), unit(2, rows=3)), 1)
    shown = changes, dict.fromkeys(range(3), image), 1, presentation.title_before(taught)
    page = render(Contents(tmp_path, "", tuple(facts.items()), *shown)).decode()
    assert 'class="strip before" aria-label="model in use"' in page
    assert 'aria-label="before"' not in page
    assert facts["model in use"] in page
