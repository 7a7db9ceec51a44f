"""``Index``: an open index folder that answers searches."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ...devices import Device
from ...errors import IndexReplacedError, IndexStateError, QueryError
from ...files import FileId
from ...images import DEFAULT_MAX_PIXELS
from ...text import display_path
from ..ann.costs import MANY, Choice
from ..ann.graph import GraphUnusableError
from ..database.store import Ids, Store, Vectors
from ..layout import MODEL, database_id
from .filters import Filters
from .gallery import Distances, Gallery, NodeSearch, open_gallery
from .items import EmbeddedImage, Hit
from .listing import ItemPage, ListRequest, read_cursor
from .pictures import LOCAL
from .queries import checked_queries, content_digest
from .request import Method, SearchRequest, names
from .searchable import Searchable, Supported

if TYPE_CHECKING:
    from ...embedder import Embedder
    from ..database.records import Meta
    from .catalogue import Catalogue, Catalogues
    from .near_duplicates import Chosen
    from .summary import IndexSummary

__all__ = ["Hit", "Index", "Method", "SearchRequest"]

T = TypeVar("T")


class Index(Searchable):
    """An open index; threads may share it.

    ``remarks`` collects notices about the searches for the user (a damaged graph, a ``k`` beyond
    the index), each once. ``graph_problem`` is the reason why the current graph is not used, else
    None.
    """

    supported = Supported()
    pictures = LOCAL

    def __init__(self, store: Store, identity: FileId | None, open_embedder: Callable[[], Embedder]) -> None:
        self.path = store.folder
        self.remarks: list[str] = []
        self.graph_problem: str | None = None
        self._store = store
        self._open_embedder = open_embedder
        self._lock = threading.RLock()
        self._embedder_lock = threading.Lock()
        self._identity = identity
        meta = store.meta()
        self._model_sha256, self._dim = meta.model_sha256, meta.dim
        self._version: int | None = None
        self._gallery: Gallery | None = None
        self._known_filters: Filters | None = None
        self._catalogues: Catalogues | None = None
        self._embedder: Embedder | None = None
        self._choice = Choice()

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
            path: an index folder, made by ``deeprank-index sync``.
            device: the device that embeds queries.
            threads: CPU threads of the network.
            max_pixels: larger query pictures are refused.

        Raises:
            IndexStateError: it is missing, unreadable, or of a newer schema.
            IndexDamagedError: its database is damaged.

        """
        store, identity = _open_store(Path(path))

        def open_embedder() -> Embedder:
            from ...embedder import Embedder

            return Embedder(store.folder / MODEL, device=device, threads=threads, max_pixels=max_pixels)

        try:
            return cls(store, identity, open_embedder)
        except BaseException:
            store.close()
            raise

    def close(self) -> None:
        """Close the index."""
        self._store.close()

    def __len__(self) -> int:
        """Return the number of pictures in the index."""
        return self._store.meta().items

    @property
    def model_sha256(self) -> str:
        """Hex sha256 of the index's model."""
        return self._model_sha256

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def embedder(self) -> Embedder:
        """The index's own model, opened at first use.

        Raises:
            ModelFileError, DeviceError: it cannot be opened.
            IndexStateError: the vectors come from another model.
            IndexReplacedError: the index was replaced, with its model.

        """
        with self._embedder_lock:
            if self._embedder is None:
                embedder = self._open_embedder()
                self._check_model(embedder.sha256)
                self._embedder = embedder
            return self._embedder

    @property
    def unrelated_distance(self) -> float | None:
        """The squared distance beyond which the model calls pictures not similar any more, if it states one.

        The model is not opened for it. None, too, if its file cannot be read, which no search needs.
        """
        if self._embedder is not None:
            return self._embedder.info.unrelated_distance
        from ...model.unrelated_distance import read_unrelated_distance

        return read_unrelated_distance(self.path / MODEL)

    def hits(
        self, vectors: Vectors, request: SearchRequest, contents: Sequence[Collection[bytes | str]] | None = None
    ) -> list[list[Hit]]:
        """Return the hits of several queries with the same request.

        Args:
            vectors: query vectors, float32 ``[q, d]``.
            request: the options.
            contents: contents that ``leave_out_query`` leaves out, for each query (sha256: 32
                bytes, or hex).

        Raises:
            QueryError, IndexDamagedError: as for :meth:`search`.

        """
        request.check()
        with self._reading():
            if not request.chooses:
                ids, distances = self._ids_and_distances(vectors, request)
                self._remark(request.too_few(ids.shape[1]))
                return self._hits([(*row, None) for row in zip(ids, distances, strict=True)], request)
            chosen = self._choose(vectors, request, contents)
            return self._hits([(each.ids, each.distances, each.hidden) for each in chosen], request)

    def item(self, which: int | str | Path) -> EmbeddedImage:
        """Return a picture of the index with its vector, as a query; its file is not read.

        Args:
            which: its id, or its path: absolute, from the current folder, or from a synced folder.

        Raises:
            QueryError: no picture matches, or several do.
            IndexDamagedError: the picture's row is damaged.

        """
        from .items import find_picture

        with self._reading():
            return find_picture(self._store, which)

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Answer everything inside the block from one state of the index.

        Other threads wait meanwhile, and writers may wait too: be quick.
        """
        with self._reading():
            yield

    def search_vectors(
        self,
        vectors: Vectors,
        k: int = 10,
        *,
        farthest: bool = False,
        label: str | Sequence[str] | None = None,
        path: str | Sequence[str] | None = None,
        method: Method = "auto",
    ) -> tuple[Ids, Distances]:
        """Return ids and distances alone.

        Args:
            vectors: float32 ``[q, d]``, finite.
            k: number of neighbours.
            farthest: return the farthest first instead.
            label: only pictures with one of these labels.
            path: only pictures whose path matches one of these patterns.
            method: as for :meth:`search`.

        Returns:
            ids int64 and squared distances float64, both ``[q, min(k, n)]``, ordered by (distance, id).

        Raises:
            QueryError, IndexDamagedError: as for :meth:`search`.

        """
        request = SearchRequest(k=k, farthest=farthest, label=names(label), path=names(path), method=method)
        request.check()
        ids, distances = self._ids_and_distances(vectors, request)
        self._remark(request.too_few(ids.shape[1]))
        return ids, distances

    def _ids_and_distances(self, vectors: Vectors, request: SearchRequest) -> tuple[Ids, Distances]:
        queries = checked_queries(vectors, self._dim)
        with self._reading() if request.filtered else self._unchanged() as gallery:
            return self._searched(gallery, len(queries), request).items(queries, request.k)

    def prepare(self) -> None:
        """Read the vectors before the first search, say while another thread opens the model."""
        with self._reading():
            pass

    def load_graph(self) -> None:
        """Load the graph before the first search, and the catalogue before the first list, for many requests."""
        self._open_catalogues().begin()
        with self._reading() as gallery:
            if gallery.costs is not None and gallery.costs.gained_by_graph(MANY) > 0:
                self._through_graph(gallery.load_graph, lambda: None)

    def labels(self) -> list[str]:
        """Return the labels of the index, sorted."""
        with self._reading():
            return list(self._filters().labels.names)

    def summary(self) -> IndexSummary:
        """Return the index's contents; reads all rows once per state, while searches continue.

        While that takes more than a moment, the contents of an earlier state are returned.
        """
        from .summary import summarize

        catalogue = self._catalogue()
        with self._reading() as gallery:
            return summarize(catalogue, self._store.roots(), gallery.file)

    def page(self, request: ListRequest, cursor: str | None = None) -> ItemPage:
        """See :meth:`~.searchable.Searchable.page`."""
        from .item_pages import needs_catalogue, read_page

        request.check(self.supported.orders)
        index = repr(self._identity)
        after = None if cursor is None else read_cursor(cursor, request, index)
        catalogue = self._catalogue() if needs_catalogue(request) else None
        with self._reading():
            return read_page(self._store, catalogue, request, after, index)

    def ids(self) -> Ids:
        """Return the ids of all pictures, int64 ``[n]``, ascending."""
        with self._reading() as gallery:
            return gallery.item_ids()

    def copies(self) -> dict[int, int]:
        """Return the smallest id of the same content, by the ids of all other pictures of that content."""
        with self._reading():
            return self._store.copies()

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return the vectors of pictures of the index, float32 ``[n, d]``, by their ids, int64 ``[n]``.

        Raises:
            IndexDamagedError: a vector is damaged or missing.

        """
        with self._reading():
            return self._store.vectors_of(ids.tolist())

    def roots(self) -> list[str]:
        """Return the synced folders, in the order of their first sync."""
        with self._reading():
            return [os.fsdecode(path) for path in self._store.synced_roots().values()]

    def _searched(self, gallery: Gallery, queries: int, request: SearchRequest) -> NodeSearch:
        """Return the search for this number of queries: a scan, or one through the graph."""
        method = request.method
        if request.farthest or request.filtered:
            if method == "hnsw":
                self._remark("The farthest pictures and those of a label or path are always found by an exact scan.")
            allowed = self._filters().allowed(request.label, request.path)
            return gallery.by_scan(farthest=request.farthest, allowed=allowed)
        if method == "auto":
            scans = not self._choice.is_graph(gallery.costs, queries, loaded=gallery.graph_loaded)
            method = "exact" if scans else "hnsw"
        return gallery.by_scan() if method == "exact" else self._through_graph(gallery.by_graph, gallery.by_scan)

    def _choose(
        self, vectors: Vectors, request: SearchRequest, contents: Sequence[Collection[bytes | str]] | None
    ) -> list[Chosen]:
        """Choose the ids that answer each query; see :func:`~.near_duplicates.choose`."""
        from .near_duplicates import choose

        with self._reading() as gallery:
            queries = checked_queries(vectors, self._dim)
            excluded = contents if request.leave_out_query and contents is not None else [()] * len(queries)
            if len(excluded) != len(queries):
                raise QueryError(f"Contents to leave out are given for {len(excluded)} of {len(queries)} queries.")
            chosen = choose(
                self._searched(gallery, len(queries), request),
                queries,
                request,
                left_out=[self._ids_of_contents(each) for each in excluded],
                vectors_of=lambda ids: self._store.vectors_of(ids.tolist()),
            )
        fewest = min((len(each.ids) for each in chosen if not each.complete), default=request.k)
        self._remark(request.too_few(fewest))
        return chosen

    def _hits(self, rows: Sequence[tuple[Ids, Distances, Any]], request: SearchRequest) -> list[list[Hit]]:
        """Look up the hits of each query by ids, distances and near-duplicate counts (None: 0)."""
        items = self._store.items(sorted({item for ids, _, _ in rows for item in ids.tolist()}))
        roots = self._store.roots()
        missing = {item.root for item in items.values()} - set(roots)
        if missing:
            raise self._store.damage(f"root {min(missing)} is missing")
        return [
            [
                Hit.of(items[i], roots[items[i].root], distance=distance, near_duplicates=left_out)
                for i, distance, left_out in zip(
                    ids.tolist(), distances.tolist(), [0] * len(ids) if hidden is None else hidden.tolist(), strict=True
                )
                if distance <= request.distance_limit
            ]
            for ids, distances, hidden in rows
        ]

    def _ids_of_contents(self, contents: Collection[bytes | str]) -> frozenset[int]:
        return frozenset(item for content in contents for item in self._store.ids_of_content(content_digest(content)))

    def _through_graph(self, graph: Callable[[], T], otherwise: Callable[[], T]) -> T:
        try:
            return graph()
        except GraphUnusableError as error:
            self._note_graph(str(error))
            return otherwise()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Gallery]:
        """Yield the vectors of one state of the database, read again if it has changed."""
        with self._lock:
            if database_id(self.path) != self._identity:
                raise self._replaced()
            with self._store.snapshot():
                if self._gallery is None or self._store.version() != self._version:
                    self._known_filters = None
                    self._gallery = open_gallery(self._store, self._gallery)
                    self._version = self._store.version()
                    self.graph_problem = None
                    if self._gallery.graph_problem is not None:
                        self._note_graph(self._gallery.graph_problem)
                yield self._gallery

    @contextlib.contextmanager
    def _unchanged(self) -> Iterator[Gallery]:
        """Yield the vectors for a search that reads no rows: without a snapshot if unchanged."""
        with self._lock:
            gallery = self._gallery
            same = database_id(self.path) == self._identity
            if gallery is not None and same and self._store.version() == self._version:
                yield gallery
                return
            with self._reading() as gallery:
                yield gallery

    def _catalogue(self) -> Catalogue:
        def state() -> Meta:
            with self._reading():
                return self._store.meta()

        return self._open_catalogues().current(state)

    def _open_catalogues(self) -> Catalogues:
        from .catalogue import Catalogues

        with self._lock:
            if self._catalogues is None:
                self._catalogues = Catalogues(self.path)
            return self._catalogues

    def _filters(self) -> Filters:
        """Return the filters of the state that is being read."""
        if self._known_filters is None:
            self._known_filters = Filters(self._store)
        return self._known_filters

    def check_current(self) -> None:
        """Make sure that the index is still the one that was opened, with its model; nothing is read.

        Raises:
            IndexReplacedError: it was replaced.

        """
        if database_id(self.path) != self._identity:
            raise self._replaced()

    def _check_model(self, sha256: str) -> None:
        expected = self._model_sha256
        if sha256 != expected:
            self.check_current()
            raise IndexStateError(
                f"{display_path(self.path / MODEL)} is not the model that the vectors were made with (sha256 "
                f"{sha256[:12]}…, expected {expected[:12]}…); put that one back, or embed again with: "
                "deeprank-index sync --reembed --model MODEL."
            )

    def _replaced(self) -> IndexReplacedError:
        return IndexReplacedError(
            f"{display_path(self.path)} was replaced while it was open (--reembed, --repair, deeprank-teach); open it "
            "again."
        )

    def _note_graph(self, reason: str) -> None:
        self.graph_problem = _scanned_instead(reason)
        self._remark(self.graph_problem)

    def _remark(self, remark: str | None) -> None:
        if remark is not None and remark not in self.remarks:
            self.remarks.append(remark)


def _open_store(folder: Path) -> tuple[Store, FileId | None]:
    """Open the database and return its file id: another file may take its name meanwhile."""
    while True:
        before = database_id(folder)
        store = Store.open(folder)
        if database_id(folder) == before:
            return store, before
        store.close()


def _scanned_instead(reason: str) -> str:
    return (
        f"The graph cannot be used: {reason}. The vectors were scanned instead, which gives the exact result; "
        "the next deeprank-index sync builds the graph again."
    )
