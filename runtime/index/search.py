"""``Index``: an index folder, open to be searched."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np

from ..devices import Device
from ..errors import IndexStateError, QueryError
from ..images import DEFAULT_MAX_PIXELS, PictureSource
from ..text import display_path, printable
from .files import MODEL
from .gallery import Distances, Gallery, open_gallery
from .graph import GraphUnusableError
from .hit import Hit, hit_of
from .labels import Labels
from .store import Ids, Store, Vectors

if TYPE_CHECKING:
    from ..embedder import Embedder

__all__ = ["Hit", "Index", "Method"]

T = TypeVar("T")
Method = Literal["auto", "exact", "hnsw"]

# Loading a graph takes about as long as this many single scans of the same vectors (0.06 s against 1 ms at 50,000 x
# 128), so a process that asks fewer queries is done sooner by scanning.
_SCANS_PER_LOAD = 64
# A scan of fewer vectors than this is at least as fast as the graph.
_SMALLEST_FOR_GRAPH = 10_000


class Index:
    """An index, open to be searched; threads may share it.

    ``remarks`` collects what a user should know of how the queries were answered (a damaged graph, a ``k`` beyond the
    index), each once.
    """

    def __init__(self, store: Store, open_embedder: Callable[[], Embedder]) -> None:
        self.path = store.folder
        self.remarks: list[str] = []
        self._store = store
        self._open_embedder = open_embedder
        self._lock = threading.RLock()
        self._embedder_lock = threading.Lock()
        self._identity = _identity(store.database)
        self._model_sha256 = store.meta().model_sha256
        self._version: int | None = None
        self._gallery: Gallery | None = None
        self._labels: Labels | None = None
        self._embedder: Embedder | None = None
        self._queries = 0

    @classmethod
    def open(
        cls,
        path: str | Path,
        *,
        device: Device = "auto",
        threads: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
    ) -> Index:
        """Open an index folder.

        Args:
            path: made by ``deeprank-index sync``.
            device: where the network runs that embeds queries.
            threads: of the network, on the CPU.
            max_pixels: query pictures of more pixels are refused.

        Raises:
            IndexStateError: it is missing, may not be read, or is of a newer schema.
            IndexDamagedError: its database is damaged.

        """
        store = Store.open(Path(path))

        def open_embedder() -> Embedder:
            from ..embedder import Embedder

            return Embedder(store.folder / MODEL, device=device, threads=threads, max_pixels=max_pixels)

        try:
            return cls(store, open_embedder)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Close the index."""
        self._store.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        """Return the number of pictures in the index."""
        return self._store.meta().items

    @property
    def embedder(self) -> Embedder:
        """The index's own model, opened at first use.

        Raises:
            ModelFileError, DeviceError: it cannot be opened.
            IndexStateError: it is not the model that the vectors were made with.

        """
        with self._embedder_lock:
            if self._embedder is None:
                embedder = self._open_embedder()
                self._check_model(embedder.sha256)
                self._embedder = embedder
            return self._embedder

    def search(
        self,
        query: PictureSource | np.ndarray[Any, Any],
        k: int = 10,
        *,
        farthest: bool = False,
        label: str | Sequence[str] | None = None,
        max_distance: float | None = None,
        method: Method = "auto",
    ) -> list[Hit]:
        """Return the ``k`` nearest pictures, nearest first.

        Args:
            query: a picture (path or binary file), or its vector, float32 ``[d]``.
            k: at least 1; where fewer pictures are there, all are returned, with a remark.
            farthest: the farthest first instead.
            label: only pictures with this label, or with one of these.
            max_distance: only pictures at most this far (squared Euclidean).
            method: ``exact`` scans, ``hnsw`` uses the graph, ``auto`` does what is done sooner.

        Raises:
            PictureError: the query cannot be read.
            QueryError: ``k``, the vector, the label or the combination makes no sense.
            IndexDamagedError: what would be answered is damaged.

        """
        vector = query if isinstance(query, np.ndarray) else self.embedder.embed([query])[0]
        return self.hits(vector[None], k, farthest=farthest, label=label, max_distance=max_distance, method=method)[0]

    def hits(
        self,
        vectors: Vectors,
        k: int = 10,
        *,
        farthest: bool = False,
        label: str | Sequence[str] | None = None,
        max_distance: float | None = None,
        method: Method = "auto",
    ) -> list[list[Hit]]:
        """Return the hits of several queries at once, float32 ``[q, d]``; otherwise as :meth:`search`."""
        if max_distance is not None and farthest:
            raise QueryError("The farthest pictures were asked for with a largest distance; expected one or the other.")
        with self._reading():
            ids, distances = self.search_vectors(vectors, k, farthest=farthest, label=label, method=method)
            items = self._store.items(sorted(set(ids.ravel().tolist())))
            roots = self._store.roots()
        missing = {item.root for item in items.values()} - set(roots)
        if missing:
            raise self._store.damage(f"root {min(missing)} is missing")
        largest = np.inf if max_distance is None else max_distance
        return [
            [
                hit_of(items[i], roots[items[i].root], distance)
                for i, distance in zip(row_ids.tolist(), row_distances.tolist(), strict=True)
                if distance <= largest
            ]
            for row_ids, row_distances in zip(ids, distances, strict=True)
        ]

    def search_vectors(
        self,
        vectors: Vectors,
        k: int = 10,
        *,
        farthest: bool = False,
        label: str | Sequence[str] | None = None,
        method: Method = "auto",
    ) -> tuple[Ids, Distances]:
        """Return ids and distances alone.

        Args:
            vectors: float32 ``[q, d]``, finite.
            k: neighbours wanted.
            farthest: the farthest first instead.
            label: only pictures with one of these labels.
            method: as for :meth:`search`.

        Returns:
            ids int64 and squared distances float64, both ``[q, min(k, n)]``, ordered by (distance, id).

        Raises:
            QueryError, IndexDamagedError: as for :meth:`search`.

        """
        with self._reading() as gallery:
            queries = self._checked(vectors, k, method)
            allowed = None if label is None else self._label_table().ids_with(label)
            ids, distances = self._nearest(gallery, queries, k, farthest, allowed, method)
        if ids.shape[1] < k:
            self._remark(
                f"{k} pictures were asked for, {ids.shape[1]} are there"
                f"{' with such a label' if allowed is not None else ''}: all of them are returned."
            )
        return ids, distances

    def prepare(self) -> None:
        """Read the vectors now rather than at the first search; in a thread, while the model is being opened, say."""
        with self._reading():
            pass

    def load_graph(self) -> None:
        """Load the graph now, as a process does that is going to answer many queries."""
        with self._reading() as gallery:
            self._queries += _SCANS_PER_LOAD + 1
            if self._graph_pays(gallery):
                self._through_graph(gallery.load_graph, lambda: None)

    def labels(self) -> list[str]:
        """Return the labels of the index, sorted."""
        with self._reading():
            return list(self._label_table().names)

    def _nearest(
        self, gallery: Gallery, queries: Vectors, k: int, farthest: bool, allowed: Ids | None, method: Method
    ) -> tuple[Ids, Distances]:
        def scan() -> tuple[Ids, Distances]:
            return gallery.scan(queries, k, farthest=farthest, allowed=allowed)

        self._queries += len(queries)
        if farthest or allowed is not None:
            if method == "hnsw":
                self._remark("The farthest pictures and those of a label are always found by an exact scan.")
            return scan()
        if method == "exact" or (method == "auto" and not self._graph_pays(gallery)):
            return scan()
        return self._through_graph(lambda: gallery.search_graph(queries, k), scan)

    def _through_graph(self, graph: Callable[[], T], otherwise: Callable[[], T]) -> T:
        try:
            return graph()
        except GraphUnusableError as error:
            self._remark(_scanned_instead(str(error)))
            return otherwise()

    def _graph_pays(self, gallery: Gallery) -> bool:
        if gallery.graph_loaded:
            return True
        return gallery.file is not None and gallery.size >= _SMALLEST_FOR_GRAPH and self._queries > _SCANS_PER_LOAD

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Gallery]:
        """Hold one state of the database, and give its vectors; what another process changed is read again."""
        with self._lock:
            if _identity(self._store.database) != self._identity:
                raise IndexStateError(
                    f"{display_path(self.path)} was replaced while it was open (--reembed, --repair); open it again."
                )
            with self._store.snapshot():
                if self._gallery is None or self._store.version() != self._version:
                    self._labels = None
                    self._gallery = open_gallery(self._store)
                    self._version = self._store.version()
                    if self._gallery.graph_problem is not None:
                        self._remark(_scanned_instead(self._gallery.graph_problem))
                yield self._gallery

    def _checked(self, vectors: Vectors, k: int, method: str) -> Vectors:
        dim = self._store.meta().dim
        if k < 1:
            raise QueryError(f"k is {k}; expected at least 1.")
        if method not in ("auto", "exact", "hnsw"):
            raise QueryError(f"The method {printable(str(method))!r} is unknown; expected auto, exact or hnsw.")
        queries = np.asarray(vectors)
        if queries.ndim != 2 or queries.shape[1] != dim or queries.dtype.kind != "f":
            raise QueryError(
                f"The query is {queries.dtype} {list(queries.shape)}; this index holds vectors of {dim} numbers, "
                f"so float32 [n, {dim}] is expected."
            )
        if not np.isfinite(queries).all():
            raise QueryError("A query vector holds NaN or infinite numbers; expected a vector of the index's model.")
        return queries.astype(np.float32, copy=False)

    def _label_table(self) -> Labels:
        if self._labels is None:
            self._labels = Labels(self._store)
        return self._labels

    def _check_model(self, sha256: str) -> None:
        expected = self._model_sha256
        if sha256 != expected:
            raise IndexStateError(
                f"{display_path(self.path / MODEL)} is not the model that the vectors were made with (sha256 "
                f"{sha256[:12]}…, expected {expected[:12]}…); put that one back, or embed again with: "
                "deeprank-index sync --reembed --model MODEL."
            )

    def _remark(self, remark: str) -> None:
        if remark not in self.remarks:
            self.remarks.append(remark)


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _scanned_instead(reason: str) -> str:
    return (
        f"The graph cannot be used: {reason}. The vectors were scanned instead, which gives the exact result; "
        "the next deeprank-index sync builds the graph again."
    )
