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
from .pictures import Pictures
from .request import Method, SearchRequest

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

    """

    farthest: bool = True
    methods: bool = True
    patterns: bool = True
    writes: bool = True


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
        """Return the index."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the index."""

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
        """Return the ``k`` nearest pictures, nearest first; see :meth:`.index.Index.search`."""

    def hits(
        self, vectors: Vectors, request: SearchRequest, contents: Sequence[Collection[bytes | str]] | None = None
    ) -> list[list[Hit]]:
        """Return the hits of several queries with the same request; see :meth:`.index.Index.hits`."""

    def item(self, which: int | str | Path) -> EmbeddedImage:
        """Return a picture of the index by id or path; see :meth:`.index.Index.item`."""

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
