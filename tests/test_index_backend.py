"""The backend of vector search: hnswlib keeps its contract, and an index works with another in its place."""

import ast
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from tiny_model import write_model, write_picture, write_pictures

from deeprank.runtime.index import Index
from deeprank.runtime.index.ann import graph, hnsw
from deeprank.runtime.index.ann.backend import Backend, GraphUnusableError, VectorIndex, View
from deeprank.runtime.index.ann.graph import backend_of
from deeprank.runtime.index.ann.parameters import read_parameters
from deeprank.runtime.index.info import index_info
from deeprank.runtime.index.maintenance.remove import plan_removal, remove
from deeprank.runtime.index.maintenance.verify import verify
from deeprank.runtime.index.sync.sync import sync

ROOT = Path(__file__).resolve().parents[1]


class PlainIndex:
    """A stand-in that keeps everything in numpy and compares every pair."""

    def __init__(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        self._ids, self._vectors = ids, vectors
        self._gone: set[int] = set()

    def __len__(self) -> int:
        return len(self._ids) - len(self._gone)

    def add(self, ids: np.ndarray, vectors: np.ndarray) -> None:
        self._ids = np.concatenate([self._ids, ids])
        self._vectors = np.concatenate([self._vectors, vectors])

    def delete(self, ids: np.ndarray) -> None:
        self._gone.update(ids.tolist())

    def search(self, queries: np.ndarray, k: int, *, threads: int) -> tuple[np.ndarray, np.ndarray] | None:
        live = ~np.isin(self._ids, list(self._gone))
        ids, vectors = self._ids[live], self._vectors[live]
        distances = ((queries[:, None] - vectors[None]) ** 2).sum(axis=2)
        order = np.argsort(distances, axis=1)[:, :k]
        return ids[order], np.take_along_axis(distances, order, axis=1)

    def save(self, file: IO[bytes]) -> int:
        content = np.int64(len(self._ids)).tobytes() + self._ids.astype("<i8").tobytes() + self._vectors.tobytes()
        file.write(content)
        file.flush()
        return len(content)

    def info(self) -> Mapping[str, Any]:
        return {"compares": "every pair"}


class PlainBackend:
    def create(self, dim: int, capacity: int) -> VectorIndex:
        return PlainIndex(np.empty(0, np.int64), np.empty((0, dim), np.float32))

    def load(self, file: IO[bytes], dim: int, capacity: int) -> VectorIndex:
        view = self.view(file, dim)
        return PlainIndex(view.ids, view.vectors)

    def check(self, file: IO[bytes], dim: int) -> None:
        pass

    def view(self, file: IO[bytes], dim: int) -> View:
        file.seek(0)
        content = file.read()
        count = int(np.frombuffer(content[:8], np.int64)[0])
        ids = np.frombuffer(content[8 : 8 + 8 * count], np.int64)
        vectors = np.frombuffer(content[8 + 8 * count :], np.float32).reshape(count, dim)
        return View(ids, vectors, lambda: None)


BOTH = pytest.mark.parametrize("kind", [hnsw.HnswBackend, PlainBackend])


def unit(count: int, dim: int, seed: int) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def assert_finds(index: VectorIndex, ids: np.ndarray, vectors: np.ndarray, queries: np.ndarray, k: int) -> None:
    """Compare with all distances in float64 (so few vectors that a graph finds all)."""
    found = index.search(queries, k, threads=1)
    assert found is not None
    for row, query in enumerate(queries):
        distances = ((vectors.astype(np.float64) - query) ** 2).sum(axis=1)
        order = np.argsort(distances)[:k]
        assert found[0][row].tolist() == ids[order].tolist()
        np.testing.assert_allclose(found[1][row], distances[order], atol=1e-5)


@BOTH
def test_what_is_added_deleted_and_saved_is_found(kind: type[Backend], tmp_path: Path) -> None:
    there: Backend = kind()
    ids, vectors, queries = np.arange(7, 307) * 3, unit(300, 16, 0), unit(5, 16, 1)
    index = there.create(16, 300)
    index.add(ids[:200], vectors[:200])
    assert_finds(index, ids[:200], vectors[:200], queries, 10)
    index.add(ids[200:], vectors[200:])
    with (tmp_path / "saved").open("xb+") as file:
        assert index.save(file) == (tmp_path / "saved").stat().st_size
        view = there.view(file, 16)
        order = np.argsort(view.ids)
        np.testing.assert_array_equal(view.ids[order], ids)
        np.testing.assert_array_equal(view.vectors[order], vectors)
        view.release()
        np.testing.assert_array_equal(view.vectors[order], vectors)
        again = there.load(file, 16, 301)
    again.delete(ids[::2])
    assert len(again) == 150
    assert_finds(again, ids[1::2], vectors[1::2], queries, 10)
    again.add(np.array([5]), queries[:1])
    assert len(again) == 151
    found = again.search(queries[:1], 1, threads=2)
    assert found is not None
    assert found[0].tolist() == [[5]]
    assert index.info()


def test_a_library_that_is_not_known_is_not_guessed() -> None:
    for parameters in ({"library": "faiss"}, {"library": ["hnswlib"]}, {}):
        with pytest.raises(GraphUnusableError, match="does not know"):
            backend_of(parameters)
    for text in ("[]", "not JSON"):
        with pytest.raises(GraphUnusableError, match="cannot be read"):
            read_parameters(text, 0)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "graph.hnsw"
    for content in (b"short", bytes(200), np.random.default_rng(0).bytes(4000)):
        path.write_bytes(content)
        with path.open("rb") as file, pytest.raises(GraphUnusableError, match=r"too short|has a layout"):
            hnsw.HnswBackend().view(file, 16)


def test_an_index_works_with_another_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(graph.BACKENDS, "plain", PlainBackend)
    monkeypatch.setattr(graph, "DEFAULT_BACKEND", "plain")
    monkeypatch.setitem(sys.modules, "hnswlib", None)
    hnsw._hnswlib.cache_clear()
    photos = tmp_path / "photos"
    pictures = write_pictures(photos, [f"{label}/{number}.png" for label in "ab" for number in range(30)])
    folder = tmp_path / "i"
    sync(folder, [photos], model=write_model(tmp_path / "model.onnx"))
    for step in range(3):
        with Index.open(folder) as opened:
            exact = opened.search(pictures[1], 10, method="exact")
            assert opened.search(pictures[1], 10, method="hnsw") == exact
            assert exact[0].path == str(pictures[1])
            assert opened.remarks == []
        info = index_info(folder)
        assert info.graph is not None
        assert info.graph["library"] == "plain"
        assert info.graph["compares"] == "every pair"
        assert verify(folder).problems == ()
        if step == 0:
            remove(folder, plan_removal(folder, [str(pictures[0])]))
        elif step == 1:
            write_picture(photos / "a" / "new.png", 1000)
            assert sync(folder, [photos]).added == 2  # the removed one is there, too
    hnsw._hnswlib.cache_clear()


def test_nothing_else_knows_hnswlib_or_sqlite() -> None:
    """Read from the code: which modules import them."""
    who: dict[str, set[str]] = {"hnswlib": set(), "sqlite3": set()}
    for path in [*(ROOT / "runtime").rglob("*.py"), *(ROOT / "export").rglob("*.py"), *(ROOT / "train").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) and node.level == 0 else []
            for name in names:
                if name.split(".")[0] in who:
                    who[name.split(".")[0]].add(path.relative_to(ROOT).as_posix())
    assert who["hnswlib"] == {"runtime/index/ann/hnsw.py"}
    assert all(name.startswith(("runtime/index/", "runtime/doctor/")) for name in who["sqlite3"])


def test_a_loaded_graph_follows_small_changes_without_being_loaded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, photos = tmp_path / "index", tmp_path / "photos"
    model = write_model(tmp_path / "model.onnx")
    paths = write_pictures(photos, [f"{number:03}.png" for number in range(250)])
    sync(folder, [photos], model=model)
    loads: list[str] = []
    load = graph.GraphFile.load
    monkeypatch.setattr(graph.GraphFile, "load", lambda self: (loads.append(self.sha256), load(self))[1])
    query = unit(1, 16, 5)[0]
    with Index.open(folder) as index:

        def assert_same(count: int) -> None:
            found = index.search(query, 20, method="hnsw")
            assert found == index.search(query, 20, method="exact")
            assert len(index) == count

        assert_same(250)
        first = loads[:]
        gone = index.search(query, 3)
        remove(folder, plan_removal(folder, [hit.path for hit in gone]))
        assert_same(247)
        assert not {hit.id for hit in gone} & {hit.id for hit in index.search(query, 20, method="hnsw")}
        paths[0].unlink(missing_ok=True)
        write_picture(photos / "new.png", 1000)
        sync(folder, [photos], model=model)  # brings back what was removed: too much to wait beside the graph
        assert index.search(query, 20, method="hnsw") == index.search(query, 20, method="exact")
        assert first == loads[:1]
        assert 1 < len(set(loads)) == len(loads)  # another file is loaded, once


def test_a_graph_that_is_changed_in_place_is_not_taken_for_the_one_of_the_state_before(tmp_path: Path) -> None:
    folder, photos = tmp_path / "index", tmp_path / "photos"
    write_pictures(photos, [f"{number:03}.png" for number in range(150)])
    sync(folder, [photos], model=write_model(tmp_path / "model.onnx"))
    query = unit(1, 16, 5)[0]
    with Index.open(folder) as index:
        before = index.search(query, 20, method="hnsw")
        write_pictures(photos, [f"more/{number:03}.png" for number in range(150)], first_seed=500)
        sync(folder, [photos])
        after = index.search(query, 20, method="hnsw")
        assert after == index.search(query, 20, method="exact") != before
        assert index.graph_problem is None
        target = folder / "graph.hnsw"
        content = bytearray(target.read_bytes())
        content[len(content) // 2] ^= 255
        target.unlink()
        target.write_bytes(content)
        write_picture(photos / "last.png", 999)
        sync(folder, [photos])  # which builds it again
        assert index.search(query, 20, method="hnsw") == index.search(query, 20, method="exact")
