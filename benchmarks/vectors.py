"""Real embeddings, and galleries of any size and dimension made from them.

A gallery of at most as many vectors as there are train pictures is a random choice of the real ones. A larger one holds
all real ones and, beyond them, made ones: a real vector plus Gaussian noise with the covariance of the real differences
within a class, scaled to unit length. The noise is shrunk by ``NOISE``: unshrunk, the 30th neighbour of a query lies a
third farther among made vectors than among as many real ones; so, at 50,000 x 128, it lies at 0.65 against 0.58, and a
graph with ef 128 finds 0.996 of the 30 nearest in both. ``--check`` measures that. Fewer dimensions than the model's
come from a PCA of the train vectors, scaled to unit length again. Queries are embeddings of val pictures, never in a
gallery.

    python benchmarks/vectors.py --data tiny-imagenet-subset.zip --cache cache --dim 128 --sizes 1000000 --check
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from deeprank.runtime import Embedder
from deeprank.runtime.datasets import open_dataset
from deeprank.runtime.evaluate.embeddings import embed_split
from deeprank.runtime.files import file_sha256
from deeprank.runtime.model.pretrained import find_model
from deeprank.runtime.scan import nearest

Vectors = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]

K = 30
QUERIES = 1_000
NOISE = 0.5
_ROWS_AT_A_TIME = 50_000


@dataclass(frozen=True)
class Real:
    """Embeddings of real pictures: ``train`` and ``val`` float32 ``[n, d]``, ``classes`` int64, the train labels."""

    key: str
    train: Vectors
    classes: Ids
    val: Vectors

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return int(self.train.shape[1])


@dataclass(frozen=True)
class Reduction:
    """A PCA: ``(x - mean) @ axes``, scaled to unit length; ``mean`` float32 ``[d]``, ``axes`` float32 ``[d, dim]``."""

    mean: Vectors
    axes: Vectors

    def __call__(self, vectors: Vectors) -> Vectors:
        """Return unit vectors of fewer dimensions."""
        return unit((vectors - self.mean) @ self.axes)


@dataclass(frozen=True)
class VectorSet:
    """A gallery in a file, float32 ``[n, dim]``, and real queries."""

    name: str
    path: Path
    queries: Vectors

    @property
    def gallery(self) -> Vectors:
        """The vectors, mapped from the file."""
        return mapped(self.path)

    def truth(self) -> Ids:
        """Return the places of the ``K`` nearest of each query by an exact scan, computed once."""
        path = self.path.with_name(f"{self.name}.truth.npy")
        if not path.exists():
            save(path, nearest(self.queries, np.ascontiguousarray(self.gallery), K)[0])
        return np.asarray(np.load(path, allow_pickle=False), dtype=np.int64)


def unit(vectors: npt.NDArray[np.floating]) -> Vectors:
    """Scale rows to unit length."""
    scaled: Vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return scaled


def mapped(path: Path) -> Vectors:
    """Map an array from its file."""
    vectors: Vectors = np.load(path, mmap_mode="r", allow_pickle=False)
    return vectors


def save(path: Path, array: npt.NDArray[np.generic]) -> None:
    """Write an array so that its name never stands for half of it."""
    prepared = path.with_suffix(".tmp")
    with prepared.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    prepared.replace(path)


def real_vectors(model: str, data: str, cache: Path) -> Real:
    """Embed a data set once, and read it from the cache from then on."""
    dataset, file = open_dataset(data), find_model(model)
    key = f"{file_sha256(file)[:12]}-{dataset.fingerprint[:12]}"
    path = cache / f"real-{key}.npz"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        embedder = Embedder(file)
        train, val = embed_split(dataset.train, embedder), embed_split(dataset.val, embedder)
        classes = np.unique(train.labels, return_inverse=True)[1]
        prepared = path.with_suffix(".tmp")
        with prepared.open("wb") as target:
            np.savez(target, train=train.vectors, val=val.vectors, classes=classes)
        prepared.replace(path)
    with np.load(path, allow_pickle=False) as content:
        return Real(key, content["train"], content["classes"], content["val"])


def reduction(real: Real, dim: int) -> Reduction:
    """Return the PCA of the train vectors that keeps ``dim`` axes; all of them: the identity."""
    if dim == real.dim:
        return Reduction(np.zeros(dim, dtype=np.float32), np.eye(dim, dtype=np.float32))
    mean = real.train.mean(axis=0, dtype=np.float64)
    centred = real.train - mean
    axes = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :dim]
    return Reduction(mean.astype(np.float32), axes.astype(np.float32))


def vector_set(real: Real, cache: Path, count: int, dim: int) -> VectorSet:
    """Return a gallery of ``count`` vectors of ``dim`` numbers, made once, and its queries."""
    reduce = reduction(real, dim)
    name = f"{real.key}-{count}x{dim}"
    path = cache / f"{name}.npy"
    if not path.exists():
        _write(path, count, dim, _gallery(reduce(real.train), real.classes, count))
    chosen = np.random.default_rng(1).permutation(len(real.val))[:QUERIES]
    return VectorSet(name, path, reduce(real.val)[np.sort(chosen)])


def made(vectors: Vectors, classes: Ids, count: int, seed: int = 2) -> Iterator[Vectors]:
    """Yield ``count`` vectors that resemble real ones, in chunks: each a real one plus noise, of unit length."""
    factor = _within_class_factor(vectors, classes) * NOISE
    for number, start in enumerate(range(0, count, _ROWS_AT_A_TIME)):
        random = np.random.default_rng([seed, number])
        rows = min(_ROWS_AT_A_TIME, count - start)
        base = vectors[np.resize(random.permutation(len(vectors)), rows)]
        noise = random.standard_normal((rows, vectors.shape[1]), dtype=np.float32) @ factor
        yield unit(base + noise)


def _within_class_factor(vectors: Vectors, classes: Ids) -> Vectors:
    """Return F float32 ``[d, d]`` with FᵀF the covariance of real vectors about the mean of their class."""
    counts = np.bincount(classes)
    means = np.zeros((len(counts), vectors.shape[1]))
    np.add.at(means, classes, vectors)
    differences = vectors - (means / counts[:, None])[classes]
    covariance = differences.T @ differences / (len(vectors) - len(counts))
    values, axes = np.linalg.eigh(covariance)
    factor: Vectors = (np.sqrt(np.maximum(values, 0))[:, None] * axes.T).astype(np.float32)
    return factor


def _gallery(vectors: Vectors, classes: Ids, count: int) -> Iterator[Vectors]:
    yield vectors[np.random.default_rng(0).permutation(len(vectors))[:count]]
    yield from made(vectors, classes, count - len(vectors))


def _write(path: Path, count: int, dim: int, chunks: Iterator[Vectors]) -> None:
    prepared = path.with_suffix(".tmp")
    target = np.lib.format.open_memmap(prepared, mode="w+", dtype=np.float32, shape=(count, dim))
    start = 0
    for chunk in chunks:
        target[start : start + len(chunk)] = chunk
        start += len(chunk)
    target.flush()
    prepared.replace(path)


def describe(gallery: Vectors, queries: Vectors, ef: int) -> tuple[float, float, float]:
    """Return medians of the squared distances of the 1st and the 30th neighbour, and recall@30 of a graph at ``ef``."""
    import hnswlib

    truth, distances = nearest(queries, gallery, K)
    graph = hnswlib.Index("l2", gallery.shape[1])
    graph.init_index(len(gallery), ef_construction=200, M=16)
    graph.add_items(gallery)
    graph.set_ef(ef)
    return (
        float(np.median(distances[:, 0])),
        float(np.median(distances[:, -1])),
        recall(graph.knn_query(queries, K)[0], truth),
    )


def recall(found: npt.NDArray[np.integer], truth: Ids) -> float:
    """Return the share of the true neighbours that were found, over all queries."""
    hits = [len(np.intersect1d(row, true)) for row, true in zip(found, truth, strict=True)]
    return sum(hits) / truth.size


def check(real: Real, dim: int, ef: int = 128) -> None:
    """Print what shows whether made vectors are like as many real ones."""
    reduce = reduction(real, dim)
    vectors, queries = reduce(real.train), reduce(real.val)[:QUERIES]
    fresh = np.concatenate(list(made(vectors, real.classes, len(vectors))))
    print(f"| {len(vectors):,} x {dim} | distance of the 1st | of the {K}th | recall@{K} at ef {ef} |")
    print("|---|---|---|---|")
    for what, gallery in (("real", vectors), ("made", fresh)):
        first, last, found = describe(gallery, queries, ef)
        print(f"| {what} | {first:.4f} | {last:.4f} | {found:.4f} |", flush=True)


def add_options(parser: argparse.ArgumentParser, sizes: str) -> None:
    """Add what says which vectors a benchmark runs on."""
    parser.add_argument("--model", default="pretrained", help="embeds the pictures; default: the one that ships")
    parser.add_argument("--data", required=True, help="train pictures are the gallery, val pictures the queries")
    parser.add_argument("--cache", type=Path, required=True, help="a folder that keeps what takes long to make")
    parser.add_argument("--dim", type=int, default=128, help="by PCA, where the model has more")
    parser.add_argument("--sizes", type=_numbers, default=_numbers(sizes), help="of the galleries")


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def usable_dim(real: Real, asked: int) -> int:
    """Return the dimension to use: what was asked for, or all that the model has."""
    if asked > real.dim:
        print(f"(The model has {real.dim} dimensions, not {asked}.)", flush=True)
    return min(asked, real.dim)


def main() -> None:
    """Make the files, and show what they are like."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser, "10000,100000,1000000")
    parser.add_argument("--check", action="store_true", help="compare made vectors with real ones")
    arguments = parser.parse_args()
    real = real_vectors(arguments.model, arguments.data, arguments.cache)
    dim = usable_dim(real, arguments.dim)
    for count in arguments.sizes:
        print(vector_set(real, arguments.cache, count, dim).path, flush=True)
    if arguments.check:
        check(real, dim)


if __name__ == "__main__":
    main()
