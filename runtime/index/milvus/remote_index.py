"""``RemoteIndex``: a collection of a Milvus server that answers searches as an index folder does.

The store finds candidates. Their distances are computed again here, from the vectors that it
returns, and ordered by (distance, id), by the code that searches index folders. So the hits of both
agree to the last digit wherever the store finds the same pictures.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

from ...devices import Device
from ...errors import IndexReplacedError, IndexStateError, QueryError, StoreError
from ...files import file_sha256
from ...images import DEFAULT_MAX_PIXELS
from ...text import display_path
from ..database.store import Ids, Vectors
from ..search.filters import no_such_label, none_of_both
from ..search.gallery import NodeSearch
from ..search.graph_search import Distances, Sharing, without_cut_ties
from ..search.items import EmbeddedImage, Hit, IndexedImage, is_number, item_by_path, no_such_id
from ..search.listing import ItemPage, ListRequest, Place, no_such_folder, read_cursor, write_cursor
from ..search.near_duplicates import choose
from ..search.paths import no_such_path
from ..search.queries import checked_queries, content_digest
from ..search.request import SearchRequest
from ..search.searchable import Searchable, Supported
from ..search.summary import IndexSummary
from .address import parse_address
from .collection import Collection as StoredCollection
from .collection import read_collection
from .connection import Connection, MissingInStoreError
from .expressions import both, folder_of, in_folder, one_of, quoted
from .options import StoreOptions
from .pictures import StoredPictures
from .rows import COLUMNS, Row, read_rows
from .searches import MOST, CollectionSearch, count, most_hits, read

if TYPE_CHECKING:
    from ...embedder import Embedder

__all__ = ["RemoteIndex"]

T = TypeVar("T")

# Seconds until a search asks again which collection the address leads to.
_FRESH_S = 1.0


@dataclass
class _Held:
    """The collection that a snapshot answers from, and whether it has answered something."""

    collection: StoredCollection
    answered: bool = False


class RemoteIndex(Searchable):
    """An open collection of a Milvus server; threads may share it.

    Each call, and all calls of a :meth:`snapshot`, answer from one collection. A load that ended
    before the collection was opened is seen whole, a later one within five seconds.
    """

    supported = Supported(
        farthest=False,
        methods=False,
        patterns=False,
        writes=False,
        near_duplicates=False,
        ratings=False,
        orders=("id",),
    )

    def __init__(
        self, connection: Connection, options: StoreOptions, open_embedder: Callable[[Path], Embedder]
    ) -> None:
        self.remarks: list[str] = []
        self.graph_problem: str | None = None
        self._pictures = StoredPictures(None if options.pictures is None else os.fspath(options.pictures))
        self._connection = connection
        self._options = options
        self._open_embedder = open_embedder
        self._lock = threading.Lock()
        self._embedder_lock = threading.Lock()
        self._embedder: Embedder | None = None
        self._thread = threading.local()
        self._looked_at = -math.inf
        self._collection = self._described()
        description = self._collection.description
        self._model_sha256, self._dim = description.model_sha256, description.dim
        self._prepare(self._collection)

    @classmethod
    def open(
        cls,
        address: str,
        *,
        device: Device = "auto",
        threads: int | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        options: StoreOptions | None = None,
    ) -> Self:
        """Open a collection.

        Args:
            address: ``milvus://[USER@]HOST:PORT/NAME``, or ``milvus+tls://…``.
            device: the device that embeds queries.
            threads: CPU threads of the network.
            max_pixels: larger query pictures are refused.
            options: the model, the token, and where the pictures are.

        Raises:
            StoreError: the address is invalid, or there is no such collection of ours.
            StoreUnavailableError: the server does not answer.
            MissingExtraError: pymilvus is not installed.

        """
        options = StoreOptions() if options is None else options

        def open_embedder(model: Path) -> Embedder:
            from ...embedder import Embedder

            return Embedder(model, device=device, threads=threads, max_pixels=max_pixels)

        connection = Connection(
            parse_address(address), None if options.token_file is None else Path(options.token_file)
        )
        try:
            return cls(connection, options, open_embedder)
        except BaseException:
            connection.close()
            raise

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def __len__(self) -> int:
        """Return the number of pictures in the collection."""
        return self._in_one(lambda: self._count())

    @property
    def pictures(self) -> StoredPictures:
        """The files of the pictures, where they are here or in object storage."""
        return self._pictures

    @property
    def model_sha256(self) -> str:
        """Hex sha256 of the collection's model."""
        return self._model_sha256

    @property
    def dim(self) -> int:
        """Length of a vector."""
        return self._dim

    @property
    def embedder(self) -> Embedder:
        """The collection's model, opened at first use.

        Raises:
            ModelFileError, DeviceError: it cannot be opened.
            IndexStateError: it is not here, or the named one is another.

        """
        with self._embedder_lock:
            if self._embedder is None:
                embedder = self._open_embedder(self._model())
                if embedder.sha256 != self._model_sha256:
                    raise self._other_model(self._model(), embedder.sha256)
                self._embedder = embedder
            return self._embedder

    @property
    def unrelated_distance(self) -> float | None:
        """The distance that the model states; None, too, if the model is not here, which no item needs."""
        from ...model.unrelated_distance import read_unrelated_distance

        try:
            model = self._model()
            same = file_sha256(model) == self._model_sha256
        except (IndexStateError, OSError):
            return None
        return read_unrelated_distance(model) if same else None

    def hits(
        self, vectors: Vectors, request: SearchRequest, contents: Sequence[Collection[bytes | str]] | None = None
    ) -> list[list[Hit]]:
        """See :meth:`~..search.searchable.Searchable.hits`.

        Raises:
            QueryError: as there; or the request is for the farthest, a method, or another pattern
                than ``FOLDER/*``.
            IndexDamagedError: the store returned a damaged row.
            IndexReplacedError: the address leads to a collection of another model by now.
            StoreUnavailableError: the store does not answer, or returned too few pictures.

        """
        request.check()
        _check_supported(request)
        queries = checked_queries(vectors, self._dim)
        return self._in_one(lambda: self._hits(queries, request, contents))

    def item(self, which: int | str | Path) -> EmbeddedImage:
        """See :meth:`~..search.searchable.Searchable.item`."""
        return self._in_one(lambda: self._item(which))

    def page(self, request: ListRequest, cursor: str | None = None) -> ItemPage:
        """See :meth:`~..search.searchable.Searchable.page`; a store sorts its rows by their ids alone."""
        request.check(self.supported.orders)
        return self._in_one(lambda: self._page(request, cursor))

    @contextlib.contextmanager
    def snapshot(self) -> Iterator[None]:
        """Answer everything that this thread asks inside the block from one collection.

        A load that is under way may show more of its pictures in each call.

        Raises:
            IndexReplacedError: the address leads to a collection of another model by now, or this
                one was dropped inside the block.

        """
        if self._held is not None:
            yield
            return
        self._thread.held = _Held(self._current())
        try:
            yield
        finally:
            self._thread.held = None

    def prepare(self) -> None:
        """Look at the collection."""
        with self.snapshot():
            pass

    def load_graph(self) -> None:
        """Do nothing more: the store has loaded the collection."""

    def labels(self) -> list[str]:
        """Return the labels at the end of the last load, sorted; none if there are too many to list."""
        with self.snapshot():
            return list(self._searched.description.labels or ())

    def summary(self) -> IndexSummary:
        """Return the collection's contents; its labels are those at the end of the last load."""
        return self._in_one(self._summary)

    def roots(self) -> list[str]:
        """Return the folders or URIs that the pictures were embedded from."""
        with self.snapshot():
            return list(self._searched.description.roots.values())

    def _described(self) -> StoredCollection:
        """Return the collection that the address leads to."""
        address = self._connection.address
        try:
            stored = read_collection(self._connection, address.name)
        except MissingInStoreError:
            raise StoreError(
                f"The store at {address.server} has no collection {address.name}; expected one that was loaded with: "
                f"deeprank-index load FROM --to {address}"
            ) from None
        if stored.name == address.name:
            raise StoreError(
                f"{address.name} is itself a collection of the store at {address.server}, and may be incomplete; "
                "expected the name that deeprank-index load was given, which leads to the complete one."
            )
        return stored

    def _prepare(self, stored: StoredCollection) -> None:
        """Have a collection loaded, and wait for all writes that the store has accepted.

        Later calls, which do not wait, see at least these.
        """
        count(self._connection, stored, consistency_level="Strong")
        self._looked_at = time.monotonic()
        if self._options.pictures is not None and len(stored.description.roots) > 1:
            raise QueryError(
                f"--pictures names one place, but the pictures of {self._connection.address} come from "
                f"{len(stored.description.roots)} folders; expected no --pictures."
            )

    def _current(self) -> StoredCollection:
        """Return the collection that the address leads to now, or did a moment ago.

        Raises:
            IndexReplacedError: it has another model.

        """
        # While another thread asks, which a store that hangs may delay, the last answer still holds.
        if not self._lock.acquire(blocking=self._looked_at == -math.inf):
            return self._collection
        try:
            if time.monotonic() - self._looked_at < _FRESH_S:
                return self._collection
            stored = self._described()
            description = stored.description
            if (description.model_sha256, description.dim) != (self._model_sha256, self._dim):
                raise IndexReplacedError(
                    f"{self._connection.address} leads to a collection of another model by now (sha256 "
                    f"{description.model_sha256[:12]}…); open it again with that model."
                )
            if stored.name != self._collection.name:
                self._prepare(stored)
            self._collection = stored
            self._looked_at = time.monotonic()
            return stored
        finally:
            self._lock.release()

    def _in_one(self, use: Callable[[], T]) -> T:
        """Call ``use`` in a snapshot.

        A load drops the collection that it replaces. Unless something was answered from it already,
        the call is repeated with the one that took its place.
        """
        with self.snapshot():
            held = self._held
            assert held is not None
            try:
                result = use()
            except MissingInStoreError:
                self._looked_at = -math.inf
                if held.answered:
                    raise IndexReplacedError(
                        f"The collection of {self._connection.address} was replaced while it was searched; search "
                        "again."
                    ) from None
                held.collection = self._current()
                result = use()
            held.answered = True
            return result

    @property
    def _held(self) -> _Held | None:
        """What the snapshot of this thread holds; None outside."""
        held: _Held | None = getattr(self._thread, "held", None)
        return held

    @property
    def _searched(self) -> StoredCollection:
        """The collection of the current snapshot."""
        return self._collection if self._held is None else self._held.collection

    def _count(self, expression: str = "", **options: str) -> int:
        return count(self._connection, self._searched, expression, **options)

    def _rows(self, expression: str, limit: int = MOST) -> list[Row]:
        entities = read(
            self._connection, self._searched, "query", filter=expression, limit=limit, output_fields=COLUMNS
        )
        description = self._searched.description
        return read_rows(entities, collection=self._searched.name, dim=description.dim, roots=description.roots)

    def _summary(self) -> IndexSummary:
        description = self._searched.description
        items, labels = self._count(), description.labels
        several = len(description.roots) > 1
        return IndexSummary(
            items=items,
            labels=labels,
            unlabelled=self._count(one_of("label", [""])),
            roots={
                root: self._count(f"root == {number}") if several else items
                for number, root in description.roots.items()
            },
            graph=None,
            store=description.index_type,
        )

    def _item(self, which: int | str | Path) -> EmbeddedImage:
        if is_number(which):
            rows = self._rows(f"id == {int(str(which))}") if 0 < int(str(which)) < 2**63 else []
            if not rows:
                raise no_such_id(int(str(which)))
            row = rows[0]
        else:
            row = item_by_path(self._row_at, self._roots(), which)
        return EmbeddedImage.of(row.item, self._roots()[row.item.root], vector=row.vector)

    def _page(self, request: ListRequest, cursor: str | None) -> ItemPage:
        collection = self._searched.name
        after = None if cursor is None else read_cursor(cursor, request, collection)
        labels = one_of("label", request.label) if request.label is not None else ""
        folders = " or ".join(map(in_folder, filter(_is_text, request.folder or ())))
        expression = both([labels, folders])
        total = self._count(expression)
        if not total and after is None and request.filtered:
            raise self._nothing_listed(request, labels)
        last = -1 if after is None else after.id
        # Of the rows that pass, a store returns those with the lowest ids.
        found = self._rows(both([f"id > {last}", expression]), request.limit + 1)
        rows = sorted((row for row in found if row.id > last), key=lambda row: row.id)
        shown, roots = rows[: request.limit], self._roots()
        more = write_cursor(Place(shown[-1].id), request, collection) if len(rows) > request.limit else None
        return ItemPage([IndexedImage.of(row.item, roots[row.item.root]) for row in shown], total, more)

    def _nothing_listed(self, request: ListRequest, labels: str) -> QueryError:
        """Return why no picture is listed."""
        if request.label is not None and not self._count(labels):
            return no_such_label(request.label[0], self.labels())
        return none_of_both() if request.label is not None else no_such_folder(request.folder or ())

    def _row_at(self, root: int, path: bytes) -> Row | None:
        try:
            expression = both([f"root == {root}", f"path == {quoted(path.decode())}"])
        except (UnicodeDecodeError, QueryError):
            return None
        return next(iter(self._rows(expression, 1)), None)

    def _roots(self) -> dict[int, bytes]:
        return {number: os.fsencode(root) for number, root in self._searched.description.roots.items()}

    def _hits(
        self, queries: Vectors, request: SearchRequest, contents: Sequence[Collection[bytes | str]] | None
    ) -> list[list[Hit]]:
        expression, matching = self._filter(request)
        search = CollectionSearch(self._connection, self._searched, expression, matching)
        if request.k > most_hits(self._dim) < (self._count() if matching is None else matching):
            raise QueryError(
                f"k is {request.k}; a store returns at most {most_hits(self._dim):,} pictures of vectors with "
                f"{self._dim} numbers: expected that or less."
            )
        if not request.chooses:
            ids, distances = without_cut_ties(search.nearest, queries, request.k)
            self._remark(request.too_few(ids.shape[1]))
            return [self._shown(search, *row, None, request) for row in zip(ids, distances, strict=True)]
        excluded = contents if request.leave_out_query and contents is not None else [()] * len(queries)
        if len(excluded) != len(queries):
            raise QueryError(f"Contents to leave out are given for {len(excluded)} of {len(queries)} queries.")
        chosen = choose(
            NodeSearch(search.nearest, Sharing.of([])),
            queries,
            request,
            left_out=self._ids_of_contents(excluded),
            vectors_of=search.vectors_of,
        )
        fewest = min((len(each.ids) for each in chosen if not each.complete), default=request.k)
        if fewest < request.k and request.max_distance is None:
            search.check_complete()
        self._remark(request.too_few(fewest))
        return [self._shown(search, each.ids, each.distances, each.hidden, request) for each in chosen]

    def _shown(
        self, search: CollectionSearch, ids: Ids, distances: Distances, hidden: Ids | None, request: SearchRequest
    ) -> list[Hit]:
        roots = self._roots()
        items = [search.rows[number].item for number in ids.tolist()]
        counts = [0] * len(items) if hidden is None else hidden.tolist()
        return [
            Hit.of(item, roots[item.root], distance=distance, near_duplicates=left_out)
            for item, distance, left_out in zip(items, distances.tolist(), counts, strict=True)
            if distance <= request.distance_limit
        ]

    def _filter(self, request: SearchRequest) -> tuple[str, int | None]:
        """Return the filter of a request and the number of rows that pass; without a filter, "" and None.

        Raises:
            QueryError: no row passes it, has one of the labels, or matches one of the patterns.

        """
        if not request.filtered:
            return "", None
        labels, patterns = dict.fromkeys(request.label or ()), dict.fromkeys(request.path or ())
        folders = {pattern: in_folder(folder_of(pattern)) for pattern in patterns}
        expression = both([one_of("label", labels) if labels else "", " or ".join(folders.values())])
        matching = self._count(expression)
        # One of them may match nothing; rows without a label have "" there.
        if len(labels) > 1 or "" in labels or not matching:
            for label in labels:
                if not label or not self._count(one_of("label", [label])):
                    raise no_such_label(label, self.labels())
        if len(folders) > 1 or not matching:
            for pattern, folder in folders.items():
                if not self._count(folder):
                    example = next((row.item.path.decode() for row in self._rows("", 1)), None)
                    raise no_such_path(pattern, example, absolute=False)
        if not matching:
            raise none_of_both()
        return expression, matching

    def _ids_of_contents(self, contents: Sequence[Collection[bytes | str]]) -> list[frozenset[int]]:
        """Return for each query the ids of the pictures with one of its contents."""
        digests = [{content_digest(content).hex() for content in each} for each in contents]
        every = sorted(set().union(*digests))
        if not every:
            return [frozenset()] * len(contents)
        entities = read(
            self._connection,
            self._searched,
            "query",
            filter=one_of("sha256", every),
            limit=MOST,
            output_fields=["id", "sha256"],
        )
        if len(entities) >= MOST:
            raise QueryError(
                f"The store has more than {MOST - 1:,} exact copies of these queries; expected a search without "
                "leaving out the query."
            )
        return [frozenset(row["id"] for row in entities if row["sha256"] in each) for each in digests]

    def _model(self) -> Path:
        """Return the file of the collection's model.

        Raises:
            IndexStateError: it is not here.

        """
        if self._options.model is not None:
            return Path(self._options.model)
        from ...model.pretrained import find_matching_model

        model = find_matching_model(self._model_sha256)
        if model is None:
            roots = ", ".join(map(display_path, list(self._collection.description.roots.values())[:1]))
            raise IndexStateError(
                f"The vectors of {self._connection.address} were made by the model with the sha256 "
                f"{self._model_sha256}, which is neither ./model.onnx nor bundled; name its file with --model. "
                f"deeprank-embed keeps it as model.onnx beside the vectors that it made of {roots}, an index folder "
                "as its model.onnx."
            )
        return model

    def _other_model(self, model: Path, sha256: str) -> IndexStateError:
        return IndexStateError(
            f"{display_path(model)} is not the model that the vectors of {self._connection.address} were made with "
            f"(sha256 {sha256[:12]}…, expected {self._model_sha256[:12]}…); name that one with --model."
        )

    def _remark(self, remark: str | None) -> None:
        if remark is not None and remark not in self.remarks:
            self.remarks.append(remark)


def _is_text(folder: str) -> bool:
    """Tell whether a store can hold a name; of the names of a folder that clients may mean, one can be no text."""
    try:
        folder.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in folder


def _check_supported(request: SearchRequest) -> None:
    if request.farthest:
        raise QueryError("A store cannot search for the farthest pictures; expected a search for the nearest.")
    if request.method != "auto":
        raise QueryError("A store chooses by itself how it searches; expected neither an exact search nor the graph.")
