"""What ``deeprank-query``, ``deeprank-serve`` and Python programs ask of an index, wherever it is."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np

from ...images import PictureSource
from .items import EmbeddedImage, Hit
from .listing import ORDERS, ItemPage, ListRequest, Order
from .pictures import Pictures
from .queries import query_vector
from .request import Method, SearchRequest, names

if TYPE_CHECKING:
    from ...embedder import Embedder
    from ..database.store import Vectors
    from .summary import IndexSummary

__all__ = ["Searchable", "Supported"]


@dataclass(frozen=True)
class Supported:
    """What not every kind of index can do; the rest of a :class:`~.request.SearchRequest` works in all.

    Attributes:
        farthest: searches for the farthest pictures.
        methods: a choice between a scan and the graph.
        patterns: path patterns beyond ``FOLDER/*``.
        writes: adding and removing pictures while it is served.
        near_duplicates: a search of all pictures for near-duplicates of each other.
        ratings: what people say is more similar, kept beside the pictures.
        orders: of lists, the usual one first.

    """

    farthest: bool = True
    methods: bool = True
    patterns: bool = True
    writes: bool = True
    near_duplicates: bool = True
    ratings: bool = True
    orders: tuple[Order, ...] = ORDERS


class Searchable(Protocol):
    """An open index; threads may share it.

    Two implementations exist: :class:`~.index.Index`, a folder on this machine, and
    :class:`~..milvus.remote_index.RemoteIndex`, a collection of a Milvus server. The same pictures
    have the same hits in both. ``remarks`` collects notices about the searches for the user, each
    once. All methods may raise IndexReplacedError (open it again) and IndexDamagedError; those of a
    remote index raise StoreUnavailableError, never returning a part of an answer.
    """

    remarks: list[str]
    graph_problem: str | None

    @property
    def supported(self) -> Supported:
        """What this kind of index can do; a request beyond it raises QueryError."""

    @property
    def model_sha256(self) -> str:
        """Hex sha256 of the index's model."""

    @property
    def dim(self) -> int:
        """Length of a vector."""

    @property
    def embedder(self) -> Embedder:
        """The index's model, opened at first use."""

    @property
    def unrelated_distance(self) -> float | None:
        """The squared distance beyond which pictures are not similar any more, if the model states one."""

    @property
    def pictures(self) -> Pictures:
        """The files of the pictures; usable after the index is closed."""

    def __len__(self) -> int:
        """Return the number of pictures in the index."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the index."""

    def search(
        self,
        query: PictureSource | EmbeddedImage | np.ndarray[Any, Any],
        k: int = 10,
        *,
        farthest: bool = False,
        label: str | Sequence[str] | None = None,
        path: str | Sequence[str] | None = None,
        max_distance: float | None = None,
        exclude_sha256: Collection[bytes | str] = (),
        unique: float | None = None,
        method: Method = "auto",
    ) -> list[Hit]:
        """Return the ``k`` nearest pictures, nearest first.

        Args:
            query: a picture (path or binary file), a picture of the index (see :meth:`item`), or a
                vector, float32 ``[d]``.
            k: at least 1; if fewer pictures qualify, all are returned, with a remark.
            farthest: return the farthest first instead.
            label: only pictures with one of these labels.
            path: only pictures whose path under the synced folder matches one of these patterns; a
                pattern that begins with ``/`` matches the absolute path.
            max_distance: only pictures at most this far (squared Euclidean).
            exclude_sha256: leave out pictures whose file has one of these contents (32 bytes, or
                hex), before ``k`` are chosen.
            unique: drop hits within this distance of a better hit; that hit counts them in
                ``near_duplicates``.
            method: ``exact`` scans, ``hnsw`` uses the graph, ``auto`` takes the faster one.

        Raises:
            PictureError: the query cannot be read.
            QueryError: ``k``, the vector, the label, the path or the combination is invalid, or not
                supported by this kind of index.
            IndexDamagedError: a result is damaged.
            StoreUnavailableError: a store does not answer.

        """
        request = SearchRequest(
            k=k,
            farthest=farthest,
            label=names(label),
            path=names(path),
            max_distance=max_distance,
            method=method,
            unique=unique,
            leave_out_query=bool(exclude_sha256),
        )
        return self.hits(query_vector(query, self)[None], request, [exclude_sha256])[0]

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
            QueryError, IndexDamagedError, StoreUnavailableError: as for :meth:`search`.

        """

    def item(self, which: int | str | Path) -> EmbeddedImage:
        """Return a picture of the index with its vector, as a query; its file is not read.

        Args:
            which: its id, or its path: absolute, from the current folder, or from a synced folder.

        Raises:
            QueryError: no picture matches, or several do.
            IndexDamagedError: the picture's row is damaged.
            StoreUnavailableError: a store does not answer.

        """

    def page(self, request: ListRequest, cursor: str | None = None) -> ItemPage:
        """Return a page of the index's pictures.

        The pictures that stay in the index are neither repeated nor skipped if it changes meanwhile.

        Args:
            request: what is listed, and how many pictures.
            cursor: of the page before; None: the first page.

        Raises:
            QueryError: the request or the cursor is invalid, or no picture passes the filters.
            ListReplacedError: the index was replaced since the page before.
            IndexDamagedError: a row is damaged.
            StoreUnavailableError: a store does not answer.

        """

    def snapshot(self) -> AbstractContextManager[None]:
        """Answer everything that this thread asks inside the block from one index: a folder's from
        one state, a server's from one collection.
        """

    def prepare(self) -> None:
        """Do before the first search what needs no query, say while another thread opens the model."""

    def load_graph(self) -> None:
        """Prepare for many queries."""

    def labels(self) -> list[str]:
        """Return the labels of the index, sorted."""

    def summary(self) -> IndexSummary:
        """Return the index's contents."""

    def roots(self) -> list[str]:
        """Return the folders that the pictures come from."""
