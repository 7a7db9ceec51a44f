"""The libraries that are compared in vector search, each with the same M, ef while building, metric and threads.

All store float32 and compare squared Euclidean distances. ``build`` writes what ``open`` reads; ``search`` takes
float32 ``[q, d]`` and returns the places of about the ``k`` nearest, ``[q, k]``.
"""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from made_index import Making, make_index
from vectors import Ids, K, Vectors

from deeprank.runtime.devices import usable_cores
from deeprank.runtime.index.ann import hnsw
from deeprank.runtime.index.layout import GRAPH
from deeprank.runtime.index.search.index import Index

M = hnsw.LINKS
EF_CONSTRUCTION = hnsw.EF_CONSTRUCTION


class Peer(ABC):
    """An index of one library; ``name`` is also what its file is called."""

    name: str
    module: str
    distribution: str

    @classmethod
    def installed(cls) -> bool:
        """Tell whether the library is there, with all that it needs."""
        try:
            cls.prepare()
        except ImportError:
            return False
        return True

    @classmethod
    def prepare(cls) -> None:
        """Import the library."""
        importlib.import_module(cls.module)

    @classmethod
    @abstractmethod
    def build(cls, vectors: Vectors, path: Path, model: Path) -> Making | None:
        """Build an index with all usable cores, and save it; ``model`` is kept in the index where that is usual."""

    @classmethod
    @abstractmethod
    def open(cls, path: Path, dim: int) -> Peer:
        """Read what was saved."""

    @abstractmethod
    def set_ef(self, ef: int) -> None:
        """Set the breadth of searches from here on."""

    @abstractmethod
    def search(self, queries: Vectors, k: int, threads: int) -> Any:
        """Search; the places found, ``[q, k]``."""


class Hnswlib(Peer):
    """Bare hnswlib, which deeprank uses, too."""

    name, module, distribution = "hnswlib", "hnswlib", "hnswlib"

    def __init__(self, index: Any) -> None:
        self.index = index

    @classmethod
    def build(cls, vectors: Vectors, path: Path, model: Path) -> Making | None:
        import hnswlib

        index = hnswlib.Index("l2", vectors.shape[1])
        index.init_index(len(vectors), ef_construction=EF_CONSTRUCTION, M=M)
        index.add_items(vectors, np.arange(len(vectors)), num_threads=usable_cores())
        index.save_index(str(path))
        return None

    @classmethod
    def open(cls, path: Path, dim: int) -> Hnswlib:
        import hnswlib

        index = hnswlib.Index("l2", dim)
        index.load_index(str(path))
        return cls(index)

    def set_ef(self, ef: int) -> None:
        self.index.set_ef(ef)

    def search(self, queries: Vectors, k: int, threads: int) -> Any:
        return self.index.knn_query(queries, k, num_threads=threads)[0]


class SameGraph(Hnswlib):
    """Bare hnswlib on the file of deeprank's index: its labels are ids, which begin at 1."""

    name = "hnswlib, same graph"

    @classmethod
    def open(cls, path: Path, dim: int) -> Hnswlib:
        return super().open(path / GRAPH, dim)

    def search(self, queries: Vectors, k: int, threads: int) -> Any:
        return super().search(queries, k, threads).astype(np.int64) - 1


class Faiss(Peer):
    """faiss-cpu's IndexHNSWFlat."""

    name, module, distribution = "faiss", "faiss", "faiss-cpu"

    def __init__(self, index: Any) -> None:
        self.index = index

    @classmethod
    def build(cls, vectors: Vectors, path: Path, model: Path) -> Making | None:
        import faiss

        faiss.omp_set_num_threads(usable_cores())
        index = faiss.IndexHNSWFlat(vectors.shape[1], M)
        index.hnsw.efConstruction = EF_CONSTRUCTION
        index.add(vectors)
        faiss.write_index(index, str(path))
        return None

    @classmethod
    def open(cls, path: Path, dim: int) -> Faiss:
        import faiss

        return cls(faiss.read_index(str(path)))

    def set_ef(self, ef: int) -> None:
        self.index.hnsw.efSearch = ef

    def search(self, queries: Vectors, k: int, threads: int) -> Any:
        import faiss

        faiss.omp_set_num_threads(threads)
        return self.index.search(queries, k)[1]


class Usearch(Peer):
    """usearch's Index."""

    name, module, distribution = "usearch", "usearch.index", "usearch"

    def __init__(self, index: Any) -> None:
        self.index = index

    @classmethod
    def build(cls, vectors: Vectors, path: Path, model: Path) -> Making | None:
        index = cls._new(vectors.shape[1])
        index.add(np.arange(len(vectors), dtype=np.uint64), vectors, threads=usable_cores())
        index.save(str(path))
        return None

    @classmethod
    def open(cls, path: Path, dim: int) -> Usearch:
        index = cls._new(dim)
        index.load(str(path))
        return cls(index)

    @classmethod
    def _new(cls, dim: int) -> Any:
        from usearch.index import Index as UsearchIndex

        return UsearchIndex(ndim=dim, metric="l2sq", dtype="f32", connectivity=M, expansion_add=EF_CONSTRUCTION)

    def set_ef(self, ef: int) -> None:
        self.index.expansion_search = ef

    def search(self, queries: Vectors, k: int, threads: int) -> Any:
        keys = self.index.search(queries, k, threads=threads).keys
        return np.asarray(keys).reshape(len(queries), -1)


class Voyager(Peer):
    """Spotify's voyager."""

    name, module, distribution = "voyager", "voyager", "voyager"

    def __init__(self, index: Any) -> None:
        self.index, self.ef = index, -1

    @classmethod
    def build(cls, vectors: Vectors, path: Path, model: Path) -> Making | None:
        import voyager

        index = voyager.Index(
            voyager.Space.Euclidean,
            num_dimensions=vectors.shape[1],
            M=M,
            ef_construction=EF_CONSTRUCTION,
            max_elements=len(vectors),
        )
        index.add_items(vectors, np.arange(len(vectors)).tolist(), num_threads=usable_cores())
        index.save(str(path))
        return None

    @classmethod
    def open(cls, path: Path, dim: int) -> Voyager:
        import voyager

        return cls(voyager.Index.load(str(path)))

    def set_ef(self, ef: int) -> None:
        self.ef = ef

    def search(self, queries: Vectors, k: int, threads: int) -> Any:
        return self.index.query(queries, k, num_threads=threads, query_ef=self.ef)[0]


class Deeprank(Peer):
    """``Index.search_vectors`` of an index folder: ids and exact distances, with the index's own checks and lock.

    It decides by itself how many threads a search takes.
    """

    name, module, distribution = "deeprank", "hnswlib", "deep-ranking"
    # A search for K asks the graph for a few more.
    default_ef = max(hnsw.MIN_EF, hnsw.EF_PER_NEIGHBOUR * (K + 9))

    def __init__(self, index: Index) -> None:
        self.index = index

    @classmethod
    def build(cls, vectors: Vectors, path: Path, model: Path) -> Making | None:
        return make_index(path, vectors, model)

    @classmethod
    def open(cls, path: Path, dim: int) -> Deeprank:
        return cls(Index.open(path))

    def set_ef(self, ef: int) -> None:
        hnsw.MIN_EF, hnsw.EF_PER_NEIGHBOUR = ef, 0

    def search(self, queries: Vectors, k: int, threads: int) -> Ids:
        return self.index.search_vectors(queries, k, method="hnsw")[0] - 1

    def scan(self, queries: Vectors, k: int) -> Ids:
        """Search without the graph."""
        return self.index.search_vectors(queries, k, method="exact")[0] - 1


PEERS: Mapping[str, type[Peer]] = {peer.name: peer for peer in (Deeprank, Hnswlib, Faiss, Usearch, Voyager)}
ALL: Mapping[str, type[Peer]] = {**PEERS, SameGraph.name: SameGraph}


def installed_peers(wanted: Sequence[str]) -> list[str]:
    """Return those that can be imported, and say which cannot."""
    there = [name for name in wanted if PEERS[name].installed()]
    missing = sorted(set(wanted) - set(there))
    if missing:
        print(f"Not installed, so left out: {', '.join(missing)} (pip install '<checkout>[bench]').\n", flush=True)
    return there
