"""Searching an index: a scan and the graph agree to the last bit, and both with a plain computation."""

import json
import math
import shutil
import threading
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import DIM, distances, write_model, write_picture, write_pictures

from deeprank.runtime.errors import IndexStateError, PictureError, QueryError
from deeprank.runtime.files import file_sha256
from deeprank.runtime.index import Index
from deeprank.runtime.index.ann import hnsw
from deeprank.runtime.index.ann.costs import Choice, Costs
from deeprank.runtime.index.database.records import Item, checksum, is_sound
from deeprank.runtime.index.database.writer import Writer, create_database, writing
from deeprank.runtime.index.graph_update import update_graph
from deeprank.runtime.index.info import index_info
from deeprank.runtime.index.maintenance.compact import compact
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.sync.sync import sync

GOLDEN = Path(__file__).parent / "golden" / "index-schema-1"
GOLDEN_HITS = [(13, "caf\udce9/\udcff.png", "caf\udce9"), (4, "a/3.png", "a"), (9, "b/2.png", "b")]
GOLDEN_DISTANCES = [1.1618145827335868, 1.2215151885041284, 1.4460979242498206]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return write_pictures(folder, [f"{label}/{i}.png" for label in ("cats", "dogs", "birds") for i in range(20)])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]) -> Path:
    folder = tmp_path_factory.mktemp("index")
    sync(folder / "i", [pictures[0].parents[1]], model=write_model(folder / "model.onnx"))
    return folder / "i"


def unit(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def synthetic(folder: Path, vectors: np.ndarray, labels: int = 3) -> Path:
    """Make an index of given vectors; the files they would come from do not exist."""
    folder.mkdir(parents=True)
    model = write_model(folder / "model.onnx", dim=vectors.shape[1])
    create_database(folder, file_sha256(model), vectors.shape[1])
    with writing(folder) as writer:
        add(writer, writer.add_root(b"/nowhere"), vectors, labels)
        writer.commit()
        assert update_graph(writer) is None
    return folder


def add(writer: Writer, root: int, vectors: np.ndarray, labels: int = 3, prefix: str = "") -> list[int]:
    return [
        writer.add(
            Item(0, root, f"{prefix}{i}.png".encode(), f"label{i % labels}", i, i, zlib.crc32(v).to_bytes(32, "big")),
            v.astype("<f4").tobytes(),
        )
        for i, v in enumerate(vectors)
    ]


def test_hits_against_a_plain_computation(index: Path, pictures: list[Path]) -> None:
    query = pictures[7]
    expected = distances(query, pictures)
    nearest = [str(pictures[i]) for i in np.argsort(expected)]
    with Index.open(index) as opened:
        assert len(opened) == 60
        hits = opened.search(query, 10)
        assert [hit.path for hit in hits] == nearest[:10]
        np.testing.assert_allclose([hit.distance for hit in hits], np.sort(expected)[:10], atol=1e-5)
        assert [hit.path for hit in opened.search(str(query), 10, farthest=True)] == nearest[::-1][:10]
        with query.open("rb") as file:
            assert opened.search(file, 10) == hits
        cats_and_birds = [path for path in nearest if "/dogs/" not in path]
        assert [hit.path for hit in opened.search(query, 25, label=["cats", "birds"])] == cats_and_birds[:25]
        far_dogs = [path for path in nearest[::-1] if "/dogs/" in path]
        assert [hit.path for hit in opened.search(query, 9, label="dogs", farthest=True)] == far_dogs[:9]
        limit = float(np.sort(expected)[4]) + 1e-4
        assert [hit.path for hit in opened.search(query, 10, max_distance=limit)] == nearest[:5]
        with pytest.raises(QueryError, match="squared distance"):
            opened.search(query, 10, max_distance=-1)
        assert opened.labels() == ["birds", "cats", "dogs"]
        hit = hits[0]
        assert (Path(hit.root) / hit.relative, hit.label) == (query, "cats")
        assert opened.remarks == []


@pytest.mark.parametrize("kind", ["noise", "clusters", "copies"])
def test_scan_and_graph_agree_to_the_last_bit(tmp_path: Path, kind: str) -> None:
    vectors = unit(3000, 24, 0)
    if kind == "clusters":
        centres = unit(40, 24, 1)[np.random.default_rng(2).integers(0, 40, 3000)]
        vectors = centres + 0.05 * vectors
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    if kind == "copies":
        vectors = np.repeat(vectors[:600], 5, axis=0)
    folder = synthetic(tmp_path / "i", vectors)
    queries = np.concatenate([vectors[:40], unit(40, 24, 5)])
    with Index.open(folder) as opened:
        exact_ids, exact = opened.search_vectors(queries, 12, method="exact")
        graph_ids, graph = opened.search_vectors(queries, 12, method="hnsw")
        assert opened.remarks == []
    double = vectors.astype(np.float64)
    for row, query in enumerate(queries.astype(np.float64)):
        plain = np.square(double - query).sum(axis=1)
        order = np.lexsort((np.arange(3000), plain))[:12]
        np.testing.assert_array_equal(exact_ids[row], order + 1)
        np.testing.assert_allclose(exact[row], plain[order], rtol=1e-13)
    shared = 0
    for row in range(len(queries)):
        exactly = dict(zip(exact_ids[row].tolist(), exact[row].tolist(), strict=True))
        found = dict(zip(graph_ids[row].tolist(), graph[row].tolist(), strict=True))
        shared += len(exactly.keys() & found.keys())
        assert all(found[item] == exactly[item] for item in exactly.keys() & found.keys())
        assert list(found.values()) == sorted(found.values())
    assert shared / exact_ids.size > 0.95


def test_equally_distant_items_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    vectors = np.concatenate([np.repeat(unit(1, 24, 0), 200, axis=0), unit(300, 24, 1)])
    folder = synthetic(tmp_path / "i", vectors)
    with Index.open(folder) as opened:
        for k in (1, 7, 199, 200, 201):
            ids, found = opened.search_vectors(vectors[:1], k, method="exact")
            np.testing.assert_array_equal(ids[0][:200], np.arange(1, k + 1)[:200])
            assert (found[0][: min(k, 200)] == 0).all()
        ids, _ = opened.search_vectors(-vectors[:1], 5, farthest=True)
        np.testing.assert_array_equal(ids, [[1, 2, 3, 4, 5]])


def test_after_many_removals_and_additions_only_what_is_there_is_found(tmp_path: Path) -> None:
    vectors = unit(2000, 24, 0)
    folder = synthetic(tmp_path / "i", vectors)
    alive = dict(enumerate(vectors, 1))
    random = np.random.default_rng(1)
    for step in range(6):
        with writing(folder) as writer:
            gone = random.choice(list(alive), 150, replace=False).tolist()
            writer.remove(gone)
            for item in gone:
                del alive[item]
            new = unit(60, 24, 100 + step)
            alive |= dict(zip(add(writer, 1, new, prefix=f"{step}-"), new, strict=True))
            writer.commit()
            if step % 2:
                update_graph(writer)
        assert verify(folder).problems == ()
        ids, rows = np.array(list(alive)), np.stack(list(alive.values())).astype(np.float64)
        queries = unit(20, 24, 50 + step)
        with Index.open(folder) as opened:
            graph_ids, _ = opened.search_vectors(queries, 10, method="hnsw")
            exact_ids, exact = opened.search_vectors(queries, 10, method="exact")
            assert opened.remarks == []
        for row, query in enumerate(queries.astype(np.float64)):
            plain = np.square(rows - query).sum(axis=1)
            order = np.argsort(plain)[:10]
            np.testing.assert_array_equal(exact_ids[row], ids[order])
            np.testing.assert_allclose(exact[row], plain[order], rtol=1e-13)
        assert np.isin(graph_ids, ids).all()
        shared = [np.isin(found, exactly).sum() for found, exactly in zip(graph_ids, exact_ids, strict=True)]
        assert np.mean(shared) > 9.8


def with_costs(folder: Path, **costs: float) -> Path:
    """Let the graph of an index say that it was measured on another machine."""
    with writing(folder) as writer:
        row = writer.graph()
        assert row is not None
        parameters = json.loads(row.parameters)
        parameters["measured"]["costs"] = costs
        writer.set_graph(replace(row, parameters=json.dumps(parameters)))
    return folder


def test_auto_uses_the_graph_once_loading_it_would_have_paid(tmp_path: Path) -> None:
    vectors = unit(1500, 24, 0)
    costs = {"scan": 1.0, "scan_each": 0.5, "graph": 0.1, "graph_each": 0.1, "load": 50.0}
    folder = with_costs(synthetic(tmp_path / "i", vectors), **costs)

    def loaded(index: Index) -> bool:
        return index._gallery is not None and index._gallery.graph_loaded

    with Index.open(folder) as opened:
        asked = 0
        while not loaded(opened):
            opened.search_vectors(vectors[asked : asked + 1])
            asked += 1
        assert asked == math.floor(50 / (1.0 - 0.1)) + 1
        opened.search_vectors(vectors[:1], method="exact")
    for many, pays in ((124, False), (126, True)):  # 0.4 ms are gained by each
        with Index.open(folder) as opened:
            opened.search_vectors(vectors[:many])
            assert loaded(opened) is pays
            opened.search_vectors(vectors[:many])
            assert loaded(opened)
    with Index.open(folder) as opened:
        opened.load_graph()
        assert loaded(opened)
    with_costs(folder, **{**costs, "graph_each": 0.6})  # many at a time are sooner scanned
    with Index.open(folder) as opened:
        for _ in range(3):
            opened.search_vectors(vectors)
        assert not loaded(opened)


def test_never_more_than_twice_what_knowing_the_future_would_take() -> None:
    """The rule against the best choice in hindsight, for any number of queries."""
    costs = Costs(scan=1.0, scan_each=0.3, graph=0.2, graph_each=0.1, load=40.0)
    for count in range(1, 400):
        choice, loaded, spent = Choice(), False, 0.0
        for _ in range(count):
            if choice.is_graph(costs, 1, loaded=loaded):
                spent += costs.graph + (0 if loaded else costs.load)
                loaded = True
            else:
                spent += costs.scan
        assert spent <= 2 * min(count * costs.scan, costs.load + count * costs.graph) + costs.scan


def test_the_recall_that_is_recorded_against_brute_force(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hnsw, "MIN_EF", 1)  # so that the graph misses some
    monkeypatch.setattr(hnsw, "EF_PER_NEIGHBOUR", 1)
    vectors = unit(3000, 96, 0)
    folder = synthetic(tmp_path / "i", vectors)
    measured = index_info(folder).graph["measured"]  # type: ignore[index]
    assert (measured["items"], measured["k"]) == (3000, 30)
    asked = np.arange(0, 3000, 10)
    with Index.open(folder) as opened:
        found, _ = opened.search_vectors(vectors[asked], 31, method="hnsw")
    shared = []
    for place, ids in zip(asked, found, strict=True):
        distances = ((vectors.astype(np.float64) - vectors[place]) ** 2).sum(axis=1)
        distances[place] = np.inf
        shared.append(np.isin(np.argsort(distances)[:30] + 1, ids).mean())
    assert 0.5 < np.mean(shared) < 0.98
    assert measured["recall"] == pytest.approx(np.mean(shared), abs=0.05)


def test_a_graph_of_an_earlier_version_is_measured_by_the_next_sync(tmp_path: Path) -> None:
    folder = synthetic(tmp_path / "i", unit(1500, 24, 0))
    with writing(folder) as writer:
        row = writer.graph()
        assert row is not None
        old = {name: value for name, value in json.loads(row.parameters).items() if name != "measured"}
        writer.set_graph(replace(row, parameters=json.dumps(old)))
    assert "measured" not in index_info(folder).graph  # type: ignore[operator]
    with writing(folder) as writer:
        assert update_graph(writer) is None
    assert index_info(folder).graph["measured"]["items"] == 1500  # type: ignore[index]


def test_a_few_new_items_wait_beside_a_large_graph(tmp_path: Path) -> None:
    """A sync that adds one picture does not write the graph of all others anew, and the picture is found."""
    vectors = unit(2040, 24, 0)
    folder = synthetic(tmp_path / "i", vectors[:2000])

    def grown(first: int, stop: int, *, whole: bool = False) -> str:
        with writing(folder) as writer:
            ids = add(writer, 1, vectors[first:stop], prefix=f"{first}-")
            assert ids == list(range(first + 1, stop + 1))
            writer.commit()
            assert update_graph(writer, whole=whole) is None
        assert verify(folder).problems == ()
        with Index.open(folder) as opened:
            for method in ("exact", "hnsw"):
                found, distances = opened.search_vectors(vectors[first:stop], 3, method=method)  # type: ignore[arg-type]
                assert found[:, 0].tolist() == ids
                assert (distances[:, 0] == 0).all()
            nearest, _ = opened.search_vectors(vectors[:50], 10, method="hnsw")
            exact, _ = opened.search_vectors(vectors[:50], 10, method="exact")
            np.testing.assert_array_equal(nearest, exact)
        return file_sha256(folder / "graph.hnsw")

    first = file_sha256(folder / "graph.hnsw")
    assert grown(2000, 2020) == first  # a hundredth
    second = grown(2020, 2021)
    assert second != first
    assert grown(2021, 2025) == second
    assert grown(2025, 2026, whole=True) != second
    assert compact(folder).graph_built is False


def test_k_beyond_the_index(index: Path, pictures: list[Path]) -> None:
    with Index.open(index) as opened:
        for method in ("exact", "hnsw"):
            assert len(opened.search(pictures[0], 1000, method=method)) == 60  # type: ignore[arg-type]
        assert len(opened.search(pictures[0], 1000, label="cats")) == 20
        assert opened.remarks == [
            "1000 pictures were requested, 60 exist: all of them are returned.",
            "1000 pictures were requested, 20 exist with this label: all of them are returned.",
        ]


def test_an_empty_index(tmp_path: Path) -> None:
    write_picture(tmp_path / "p" / "a.png", 1)
    sync(tmp_path / "i", [tmp_path / "p"], model=write_model(tmp_path / "model.onnx"))
    (tmp_path / "p" / "a.png").unlink()
    assert sync(tmp_path / "i", [tmp_path / "p"], allow_mass_removal=True).items == 0
    assert verify(tmp_path / "i").problems == ()
    with Index.open(tmp_path / "i") as opened:
        for method in ("auto", "exact", "hnsw"):
            assert opened.search(unit(1, DIM, 0)[0], 5, method=method) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("query", "options", "message"),
    [
        (unit(1, DIM, 0)[0], {"k": 0}, "k is 0"),
        (unit(1, DIM, 0)[0], {"k": -3}, "k is -3"),
        (np.full(DIM, np.nan, np.float32), {}, "NaN"),
        (np.full(DIM, np.inf, np.float32), {}, "NaN or infinite"),
        (unit(1, DIM + 1, 0)[0], {}, rf"float32 \[1, {DIM + 1}\].*\[n, {DIM}\]"),
        (np.ones(DIM, np.int64), {}, "int64"),
        (unit(1, DIM, 0)[0], {"label": "wolves"}, "'wolves'; expected one of 'birds', 'cats', 'dogs'"),
        (unit(1, DIM, 0)[0], {"method": "magic"}, "'magic' is unknown"),
        (unit(1, DIM, 0)[0], {"farthest": True, "max_distance": 1.0}, "one or the other"),
    ],
)
def test_queries_that_make_no_sense(index: Path, query: np.ndarray, options: dict, message: str) -> None:
    with Index.open(index) as opened, pytest.raises(QueryError, match=message):
        opened.search(query, **options)


def test_a_query_that_cannot_be_read(index: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    with Index.open(index) as opened, pytest.raises(PictureError, match=r"text\.jpg"):
        opened.search(tmp_path / "text.jpg")


def test_threads_may_share_an_index(tmp_path: Path) -> None:
    vectors = unit(2000, 24, 0)
    wrong: list[int] = []
    with Index.open(synthetic(tmp_path / "i", vectors)) as opened:

        def ask(first: int) -> None:
            for row in range(first, first + 50):
                if opened.search(vectors[row], 3, method="hnsw" if row % 2 else "exact")[0].id != row + 1:
                    wrong.append(row)

        threads = [threading.Thread(target=ask, args=(50 * number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


def test_without_hnswlib_everything_works_by_scanning(
    tmp_path: Path, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "hnswlib", None)
    hnsw._hnswlib.cache_clear()
    report = sync(tmp_path / "i", [pictures[0].parents[1]], model=write_model(tmp_path / "model.onnx"))
    assert report.items == 60
    (remark,) = report.remarks
    assert "hnswlib cannot be imported" in remark
    with Index.open(tmp_path / "i") as opened:
        assert opened.search(pictures[0], 1, method="hnsw")[0].path == str(pictures[0])
        (remark,) = opened.remarks
        assert "this index has no graph" in remark
    monkeypatch.undo()
    hnsw._hnswlib.cache_clear()
    assert sync(tmp_path / "i", [pictures[0].parents[1]]).remarks == ()
    with Index.open(tmp_path / "i") as opened:
        opened.search(pictures[0], 1, method="hnsw")
        assert opened.remarks == []


def test_the_index_of_schema_1_still_opens(tmp_path: Path) -> None:
    """A small index as the first version wrote it: what later ones write may differ, what they read may not."""
    folder = tmp_path / "i"
    shutil.copytree(GOLDEN, folder)
    (folder / "model.bin").rename(folder / "model.onnx")
    assert verify(folder).problems == ()
    with Index.open(folder) as opened:
        assert opened.embedder.info.name == "tiny-0"
        for method in ("exact", "hnsw"):
            hits = opened.search(unit(1, DIM, 0)[0], 3, method=method)  # type: ignore[arg-type]
            assert [(hit.id, hit.relative, hit.label) for hit in hits] == GOLDEN_HITS
            np.testing.assert_allclose([hit.distance for hit in hits], GOLDEN_DISTANCES, atol=1e-6)
        assert opened.remarks == []


def test_checksums_are_what_they_were() -> None:
    """They are in every index that exists: a change of these functions damages them all."""
    assert checksum(1, b"a/b\xff.png", "caf\udce9", None) == zlib.crc32(b"(1, b'a/b\\xff.png', b'caf\\xe9', None)")
    item = Item(5, 1, b"a.png", "caf\udce9", 10, 20, bytes(range(32)))
    assert item.checksum(7) == zlib.crc32(b"5 1 10 20 7 5 4;a.pngcaf\xe9" + bytes(range(32)))
    newer = item._replace(decoding=2)
    assert newer.checksum(7) == zlib.crc32(b"5 1 10 20 7 5 4;a.pngcaf\xe9" + bytes(range(32)) + b"2")


def test_every_change_of_a_row_changes_its_checksum() -> None:
    row = (5, 1, b"a.png", "cat", 10, 20, bytes(range(32)), 3, 7)
    sound = (*row, Item._make(row[:8]).checksum(7))
    assert is_sound(sound)
    others = (6, 2, b"a.pnf", "car", 11, 21, bytes(32), 1, 8)
    for place, other in enumerate(others):
        assert not is_sound((*sound[:place], other, *sound[place + 1 :]))
    for place, other in ((3, None), (3, ""), (2, "a.png"), (2, b"a.pngc"), (0, 5.0), (6, None)):
        assert not is_sound((*sound[:place], other, *sound[place + 1 :]))
    moved = (5, 1, b"a.pngc", "at", 10, 20, bytes(range(32)), 3, 7)
    assert not is_sound((*moved, sound[-1]))


def test_a_missing_index_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(IndexStateError, match=r"does not exist.*deeprank-index sync"):
        Index.open(tmp_path / "nope")
