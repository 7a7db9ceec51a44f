"""Items with equal vectors: the graph has one node for all of them, and every one is found."""

import json
import time
import zlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny_model import write_model

from deeprank.runtime.doctor.index import graph_finding
from deeprank.runtime.files import file_sha256
from deeprank.runtime.index import Index
from deeprank.runtime.index.ann.backend import GraphUnusableError
from deeprank.runtime.index.ann.copies import VectorTable, decode_copies, encode_copies, first_equal, grouped
from deeprank.runtime.index.ann.graph import GraphFile, open_graph
from deeprank.runtime.index.ann.hnsw import HnswBackend
from deeprank.runtime.index.database.records import GraphRow, Item
from deeprank.runtime.index.database.store import Store
from deeprank.runtime.index.database.writer import Writer, create_database, writing
from deeprank.runtime.index.graph_update import update_graph
from deeprank.runtime.index.info import index_info
from deeprank.runtime.index.layout import GRAPH
from deeprank.runtime.index.maintenance.compact import compact
from deeprank.runtime.index.maintenance.copy import copy as copy_index
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.presentation import info_lines

DIM = 16


def unit(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def content(vector: np.ndarray) -> bytes:
    return zlib.crc32(vector.tobytes()).to_bytes(32, "big")


def add(writer: Writer, vectors: np.ndarray, prefix: str = "") -> list[int]:
    return [
        writer.add(
            Item(0, 1, f"{prefix}{place}.png".encode(), f"label{place % 3}", place, place, content(vector)),
            vector.astype("<f4").tobytes(),
        )
        for place, vector in enumerate(vectors)
    ]


def make(folder: Path, vectors: np.ndarray, *, graph: bool = True) -> Path:
    folder.mkdir(parents=True)
    model = write_model(folder / "model.onnx", dim=vectors.shape[1])
    create_database(folder, file_sha256(model), vectors.shape[1])
    with writing(folder) as writer:
        writer.add_root(b"/nowhere")
        add(writer, vectors)
        writer.commit()
        if graph:
            assert update_graph(writer) is None
    return folder


def graph_file(folder: Path) -> GraphFile:
    with Store.open(folder) as store:
        row = store.graph()
        assert row is not None
        return open_graph(folder, row, store.meta())


def plain(vectors: dict[int, np.ndarray], query: np.ndarray, k: int, *, farthest: bool = False) -> list[int]:
    """Rank by (distance, id) in float64, by the formula."""
    ids = np.array(sorted(vectors))
    rows = np.stack([vectors[item] for item in ids.tolist()]).astype(np.float64)
    distances = np.square(rows - query.astype(np.float64)).sum(axis=1)
    return ids[np.lexsort((ids, -distances if farthest else distances))][:k].tolist()


def unlike(vectors: dict[int, np.ndarray], query: np.ndarray, k: int, limit: float) -> list[tuple[int, int]]:
    """Return ids and numbers of near-duplicates, as --unique should: the plain loop over everything."""
    kept: list[list[int]] = []
    for item in plain(vectors, query, len(vectors)):
        for group in kept:
            difference = vectors[group[0]].astype(np.float64) - vectors[item]
            if (difference**2).sum() <= limit:
                group[1] += 1
                break
        else:
            if len(kept) == k:
                break
            kept.append([item, 0])
    return [(item, hidden) for item, hidden in kept]


def assert_right(opened: Index, vectors: dict[int, np.ndarray], queries: np.ndarray) -> None:
    """Compare everything that searches with copies with plain loops."""
    for method in ("exact", "hnsw"):
        for k in (1, 7, 40, len(vectors) + 5):
            found, distances = opened.search_vectors(queries, k, method=method)  # type: ignore[arg-type]
            for row, query in enumerate(queries):
                assert found[row].tolist() == plain(vectors, query, k)
                expected = [np.square(vectors[item].astype(np.float64) - query).sum() for item in found[row].tolist()]
                np.testing.assert_allclose(distances[row], expected, rtol=1e-12, atol=1e-30)
    query = queries[0]
    far, _ = opened.search_vectors(queries[:1], 25, farthest=True)
    assert far[0].tolist() == plain(vectors, query, 25, farthest=True)
    with Store.open(opened.path) as store:
        items = store.items(list(vectors))
    some = {item: vector for item, vector in vectors.items() if items[item].label == "label1"}
    if some:
        assert [hit.id for hit in opened.search(query, 25, label="label1")] == plain(some, query, 25)
        assert [hit.id for hit in opened.search(query, 9, label="label1", farthest=True)] == plain(
            some, query, 9, farthest=True
        )
    left_out = items[plain(vectors, query, 1)[0]].sha256
    others = {item: vector for item, vector in vectors.items() if items[item].sha256 != left_out}
    for method in ("exact", "hnsw"):
        for k in (3, 12):
            hits = opened.search(query, k, unique=0.01, method=method)  # type: ignore[arg-type]
            assert [(hit.id, hit.near_duplicates) for hit in hits] == unlike(vectors, query, k, 0.01)
            hits = opened.search(query, k, exclude_sha256=[left_out], method=method)  # type: ignore[arg-type]
            assert [hit.id for hit in hits] == plain(others, query, k)
            hits = opened.search(query, k, exclude_sha256=[left_out], unique=0.01, method=method)  # type: ignore[arg-type]
            assert [(hit.id, hit.near_duplicates) for hit in hits] == unlike(others, query, k, 0.01)


def drawn(random: np.random.Generator, pool: np.ndarray, count: int) -> np.ndarray:
    """Draw vectors of which a few come again and again."""
    return pool[np.minimum(random.geometric(0.04, size=count) - 1, len(pool) - 1)]


@pytest.mark.parametrize("seed", range(3))
def test_copies_that_come_and_go_against_plain_loops(tmp_path: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    pool = unit(150, DIM, seed)
    pool[1] = pool[0] + np.float32(1e-4)  # a near-duplicate that is no copy
    first = drawn(random, pool, 120)
    folder = make(tmp_path / "i", first)
    vectors = dict(enumerate(first, 1))
    with Index.open(folder) as kept_open:
        for step in range(7):
            queries = np.concatenate([pool[random.choice(60, 2)], unit(1, DIM, 900 + step)])
            assert_right(kept_open, vectors, queries)
            assert verify(folder).problems == ()
            with Index.open(folder) as opened:
                assert_right(opened, vectors, queries[:1])
                assert opened.remarks == [] or all("are there" in remark for remark in opened.remarks)
            with writing(folder) as writer:
                gone = random.choice(list(vectors), int(random.integers(1, 60)), replace=False).tolist()
                if step == 3:  # the items that the nodes were made for, all of them
                    gone = sorted({first for first in graph_file(folder).made_for.tolist() if first in vectors})
                writer.remove(gone)
                for item in gone:
                    del vectors[item]
                new = drawn(random, pool, int(random.integers(1, 70)))
                vectors |= dict(zip(add(writer, new, f"{step}-"), new, strict=True))
                writer.commit()
                if step % 3 != 1:
                    update_graph(writer)
            if step == 4:
                compact(folder)
                file = graph_file(folder)
                distinct = {vector.tobytes() for vector in vectors.values()}
                assert len(file.made_for) == len(distinct)
                assert file.dead == 0


def test_the_graph_has_one_node_for_each_vector_however_it_grows(tmp_path: Path) -> None:
    pool = unit(50, DIM, 0)
    folder = make(tmp_path / "i", np.repeat(pool[:30], 10, axis=0))

    def nodes() -> int:
        return len(graph_file(folder).made_for)

    assert nodes() == 30
    with writing(folder) as writer:
        added = add(writer, np.repeat(pool, 3, axis=0), "more")
        writer.commit()
        update_graph(writer)
    assert nodes() == 50
    with writing(folder) as writer:  # all of one vector go, and one comes back
        writer.remove([*range(1, 11), *added[:3]])
        writer.commit()
        update_graph(writer)
    assert (nodes(), graph_file(folder).dead) == (50, 1)
    with writing(folder) as writer:
        back = add(writer, pool[:1], "back")
        writer.commit()
        update_graph(writer, whole=False)
    with Index.open(folder) as opened:
        assert opened.search_vectors(pool[:1], 1, method="hnsw")[0].tolist() == [back]
    with writing(folder) as writer:
        back += add(writer, pool[:9], "again")
        writer.commit()
        update_graph(writer)
    assert (nodes(), graph_file(folder).dead) == (50, 0)
    with Index.open(folder) as opened:
        assert opened.search_vectors(pool[:1], 2, method="hnsw")[0].tolist() == [back[:2]]
    report = compact(folder)
    assert not report.graph_built
    info = index_info(folder)
    assert info.graph is not None
    assert (info.graph["items"], info.graph["vectors"], info.graph["removed"]) == (447, 50, 0)
    assert "copies" not in info.graph
    assert info_lines(info)[-1] == "graph      50 vectors of 447 pictures, 0 removed ones"


def test_placeholders_hide_no_other_picture(tmp_path: Path) -> None:
    """Four vectors 1,000 times each, and 2,000 others; graphs differ from one build to the next."""
    others, placeholders = unit(2000, 32, 0), unit(4, 32, 1)
    vectors = np.concatenate([others, np.repeat(placeholders, 1000, axis=0)])
    places = np.random.default_rng(2).permutation(len(vectors))
    folder = make(tmp_path / "i", vectors[places], graph=False)
    own = np.argsort(places)[:2000] + 1
    for _ in range(3):
        with writing(folder) as writer:
            writer.set_graph(None)
            assert update_graph(writer) is None
        with Index.open(folder) as opened:
            found, distances = opened.search_vectors(others, 10, method="hnsw")
            exact, _ = opened.search_vectors(others, 10, method="exact")
            copies, zeros = opened.search_vectors(placeholders, 1200, method="hnsw")
        assert found[:, 0].tolist() == own.tolist()
        assert (distances[:, 0] == 0).all()
        assert np.mean([np.isin(*rows).mean() for rows in zip(found, exact, strict=True)]) > 0.999
        for row in range(4):
            of_row = np.flatnonzero((places - 2000) // 1000 == row) + 1
            assert copies[row, :1000].tolist() == of_row[(places[of_row - 1] >= 2000)].tolist()
        assert (zeros[:, :1000] == 0).all()
        assert (zeros[:, 1000:] > 0).all()
    measured = index_info(folder).graph["measured"]  # type: ignore[index]
    assert (measured["items"], measured["recall"] > 0.99) == (6000, True)


def test_copies_cost_no_more_than_other_vectors(tmp_path: Path) -> None:
    """Time of all cores, for what took minutes: the graph, its measuring, and searches for one of the copies."""

    def seconds(name: str, vectors: np.ndarray) -> float:
        folder = make(tmp_path / name, vectors, graph=False)
        start = time.process_time()
        with writing(folder) as writer:
            assert update_graph(writer) is None
        with Index.open(folder) as opened:
            for method in ("exact", "hnsw"):
                opened.search(vectors[0], 10, unique=0.05, method=method)  # type: ignore[arg-type]
                for _ in range(10):
                    opened.search_vectors(vectors[:20], 10, method=method)  # type: ignore[arg-type]
        return time.process_time() - start

    distinct = seconds("distinct", unit(6000, 64, 0))
    assert seconds("two", np.repeat(unit(2, 64, 1), 3000, axis=0)) < distinct
    mixed = np.concatenate([np.repeat(unit(2, 64, 1), 2000, axis=0), unit(2000, 64, 0)])
    assert seconds("mixed", mixed) < distinct
    assert (tmp_path / "mixed" / GRAPH).stat().st_size < 0.4 * (tmp_path / "distinct" / GRAPH).stat().st_size


def with_old_graph(folder: Path) -> Path:
    """Put a graph into an index as earlier versions built them: a node for each item."""
    with writing(folder) as writer:
        ids, vectors = writer.vectors()
        index = HnswBackend().create(vectors.shape[1], len(ids))
        index.add(ids, vectors)
        with (folder / GRAPH).open("xb") as file:
            size = index.save(file)
        parameters = json.dumps({"library": "hnswlib", **index.info()})
        writer.set_graph(GraphRow(file_sha256(folder / GRAPH), size, parameters, int(ids[-1])))
    return folder


def test_a_graph_of_an_earlier_version_with_many_copies_is_built_anew(tmp_path: Path) -> None:
    vectors = np.concatenate([np.repeat(unit(1, DIM, 0), 30, axis=0), unit(100, DIM, 1)])
    folder = with_old_graph(make(tmp_path / "i", vectors, graph=False))
    assert verify(folder).problems == ()
    finding = graph_finding(folder)
    assert finding.status == "warning"
    assert "29 of its 130 vectors are copies" in finding.found
    with Index.open(folder) as opened:
        assert_right(opened, dict(enumerate(vectors, 1)), vectors[[0, 50]])
        with writing(folder) as writer:
            assert update_graph(writer) is None
        assert len(graph_file(folder).made_for) == 101
        assert_right(opened, dict(enumerate(vectors, 1)), vectors[[0, 50]])
    assert graph_finding(folder).status == "ok"


def test_a_graph_of_an_earlier_version_with_few_copies_stays_until_it_is_compacted(tmp_path: Path) -> None:
    vectors = np.concatenate([np.repeat(unit(1, DIM, 0), 3, axis=0), unit(300, DIM, 1)])
    folder = with_old_graph(make(tmp_path / "i", vectors, graph=False))
    assert graph_finding(folder).status == "ok"
    alive = dict(enumerate(vectors, 1))
    before = file_sha256(folder / GRAPH)
    with writing(folder) as writer:
        update_graph(writer)
    assert file_sha256(folder / GRAPH) == before
    with writing(folder) as writer:  # what is added to it shares its nodes
        new = np.concatenate([vectors[:20], unit(20, DIM, 2)])
        alive |= dict(zip(add(writer, new, "new"), new, strict=True))
        writer.commit()
        update_graph(writer)
    assert len(graph_file(folder).made_for) == 323
    with Index.open(folder) as opened:
        assert_right(opened, alive, vectors[[0, 50]])


def test_compacting_makes_one_node_of_the_few_copies_in_a_graph_of_an_earlier_version(tmp_path: Path) -> None:
    vectors = np.concatenate([np.repeat(unit(1, DIM, 0), 3, axis=0), unit(300, DIM, 1)])
    folder = with_old_graph(make(tmp_path / "i", vectors, graph=False))
    assert compact(folder).graph_built
    assert len(graph_file(folder).made_for) == 301
    assert not compact(folder).graph_built


@pytest.mark.parametrize(
    "change",
    [
        lambda copies: {**copies, "count": copies["count"] + 1},
        lambda copies: {**copies, "count": copies["count"] - 1},
        lambda copies: {**copies, "count": -1},
        lambda copies: {**copies, "count": 10**30},
        lambda copies: {**copies, "count": "many"},
        lambda copies: {**copies, "ids": copies["nodes"]},
        lambda copies: {**copies, "ids": "!"},
        lambda copies: {**copies, "ids": copies["ids"][:-8]},
        lambda copies: {**copies, "ids": 7},
        lambda copies: {**copies, "nodes": encode_copies(np.arange(9), np.arange(9))["ids"]},
        lambda copies: encode_copies(np.array([2, 3, 10**9]), np.array([1, 1, 1])),
        lambda copies: encode_copies(np.array([2, 3, 2**63 - 1]), np.array([1, 1, 1])),
        lambda copies: encode_copies(np.array([11, 12]), np.array([1, 1])),
        lambda copies: {"count": 1},
        lambda copies: [],
        lambda copies: "text",
        lambda copies: 3,
    ],
)
def test_what_does_not_belong_to_the_graph_is_refused_and_the_vectors_are_scanned(tmp_path: Path, change) -> None:
    vectors = np.concatenate([np.repeat(unit(1, DIM, 0), 10, axis=0), unit(20, DIM, 1)])
    folder = make(tmp_path / "i", vectors)
    with writing(folder) as writer:
        row = writer.graph()
        assert row is not None
        parameters = json.loads(row.parameters)
        parameters["copies"] = change(parameters["copies"])
        writer.set_graph(replace(row, parameters=json.dumps(parameters)))
    with Index.open(folder) as opened:
        found, _ = opened.search_vectors(vectors[:1], 12, method="hnsw")
        assert found[0].tolist() == plain(dict(enumerate(vectors, 1)), vectors[0], 12)
        assert "of equal vectors" in opened.remarks[0] or "holds other" in opened.remarks[0]
    assert verify(folder).problems != ()
    assert verify(folder, repair=True).remaining == ()


def test_what_is_recorded_of_copies_is_read_as_it_was_written() -> None:
    random = np.random.default_rng(0)
    nodes = random.permutation(np.arange(1, 2000, 3))
    ids = np.setdiff1d(np.arange(3000, 9000, 2), nodes)
    of = random.choice(nodes, len(ids))
    places, more = decode_copies(encode_copies(ids[::-1], of[::-1]), nodes, 9000, len(ids))
    assert sorted(zip(nodes[places].tolist(), more.tolist(), strict=True)) == sorted(
        zip(of.tolist(), ids.tolist(), strict=True)
    )
    assert (np.diff(places) >= 0).all()
    for empty in (None, encode_copies(ids[:0], of[:0])):
        assert [len(part) for part in decode_copies(empty, nodes, 0, 0)] == [0, 0]
    with pytest.raises(GraphUnusableError):
        decode_copies(encode_copies(ids, of), nodes[:0], 9000, len(ids))


@pytest.mark.parametrize("first_column", ["drawn", "constant"])
def test_known_vectors_against_a_dictionary(first_column: str) -> None:
    random = np.random.default_rng(1)
    pool = unit(900, 8, 3)
    if first_column == "constant":
        pool[:, 0] = 0
    stored = pool[:300]
    table = VectorTable(np.arange(300), stored)
    seen = {vector.tobytes(): place for place, vector in enumerate(stored)}
    last = 300
    for _ in range(40):
        vectors = pool[random.integers(0, len(pool), int(random.integers(1, 60)))]
        ids = np.arange(last, last + len(vectors))
        last += len(vectors)
        expected = [seen.setdefault(vector.tobytes(), item) for vector, item in zip(vectors, ids.tolist(), strict=True)]
        assert table.nodes_of(ids, vectors).tolist() == expected


def test_zero_and_minus_zero_are_equal() -> None:
    vectors = np.array([[0.0, 1.0], [-0.0, 1.0], [0.0, -1.0]], dtype=np.float32)
    assert first_equal(vectors).tolist() == [0, 0, 2]
    nodes, different = grouped(np.array([5, 7, 9]), vectors)
    assert (nodes.ids.tolist(), nodes.places.tolist(), nodes.more.tolist()) == ([5, 9], [0], [7])
    assert different.tolist() == vectors[[0, 2]].tolist()
    assert (nodes.count, nodes.items, nodes.item_ids().tolist()) == (2, 3, [5, 7, 9])
    assert nodes.among(np.array([7])).item_ids().tolist() == [7]


def test_copies_are_copied_with_the_index(tmp_path: Path) -> None:
    vectors = np.concatenate([np.repeat(unit(1, DIM, 0), 30, axis=0), unit(100, DIM, 1)])
    folder = make(tmp_path / "i", vectors)
    with writing(folder) as writer:
        writer.remove([1, 5, 40])
        writer.commit()
    alive = {item: vector for item, vector in enumerate(vectors, 1) if item not in (1, 5, 40)}
    copy_index(folder, tmp_path / "copy")
    with Index.open(tmp_path / "copy") as opened:
        assert opened.graph_problem is None
        assert_right(opened, alive, vectors[[0, 50]])
        assert Counter(len(opened.search(vectors[0], k, unique=0.01)) for k in (1, 2, 3)) == {1: 1, 2: 1, 3: 1}


def test_without_a_graph_and_with_copies_that_wait_beside_one(tmp_path: Path) -> None:
    """The same vector can be in the graph and among what is scanned beside it: ids decide between them."""
    vectors = np.concatenate([np.repeat(unit(1, DIM, 0), 12, axis=0), unit(1300, DIM, 1)])
    folder = make(tmp_path / "i", vectors, graph=False)
    alive = dict(enumerate(vectors, 1))
    with Index.open(folder) as opened:
        assert opened.search_vectors(vectors[:1], 20)[0][0].tolist() == plain(alive, vectors[0], 20)
    with writing(folder) as writer:
        assert update_graph(writer) is None
        before = writer.graph()
        assert before is not None
        new = np.concatenate([vectors[[0, 20, 0, 30, 20]], unit(2, DIM, 3)])
        alive |= dict(zip(add(writer, new, "new"), new, strict=True))
        writer.remove([1, 3, 21])
        writer.commit()
        assert update_graph(writer) is None
        after = writer.graph()
        assert after is not None
        assert after.sha256 == before.sha256
    for item in (1, 3, 21):
        del alive[item]
    assert verify(folder).problems == ()
    with Index.open(folder) as opened:
        for place in (0, 20, 30, 50):
            for k in (1, 3, 11, 13):
                for method in ("exact", "hnsw"):
                    found, _ = opened.search_vectors(vectors[place : place + 1], k, method=method)  # type: ignore[arg-type]
                    assert found[0].tolist() == plain(alive, vectors[place], k)
                    hits = opened.search(vectors[place], k, unique=1e-9, method=method)  # type: ignore[arg-type]
                    assert [(hit.id, hit.near_duplicates) for hit in hits] == unlike(alive, vectors[place], k, 1e-9)
