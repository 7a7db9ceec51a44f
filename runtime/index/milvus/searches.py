"""Searches in one collection: candidates of the store, ranked again here by exact distances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ... import scan
from ...errors import QueryError, StoreUnavailableError
from ..database.store import Ids, Vectors
from ..search.graph_search import Result, merged, nothing
from .collection import VECTOR, Collection
from .connection import Connection
from .expressions import both
from .index_type import search_parameters
from .rows import COLUMNS, Row, read_rows

__all__ = ["MOST", "CollectionSearch", "count", "most_hits", "read"]

# Rows of one answer, for each query; a limit of Milvus.
MOST = 16_384
# Candidates beyond those asked for: the best in float32 may not be the best in float64.
_SPARE = 4
# Bytes of vectors in one answer; the server sends 100 MB at most.
_ANSWER = 32 * 2**20
# So few rows that pass a filter are fetched and compared one by one, which is exact. It takes 30 ms; 1,000 take 100 ms,
# ten times as long as a search.
SCANNED = 200
# More rows than this are not fetched for one search.
_MOST_SCANNED = 1_000_000


def most_hits(dim: int) -> int:
    """Return how many hits a search of vectors with ``dim`` numbers can have."""
    return min(MOST, _ANSWER // (4 * dim))


def read(connection: Connection, collection: Collection, method: str, **options: Any) -> Any:
    """Call a method that reads a collection, as of a few seconds ago at most.

    Strong consistency would wait for 0.1 to 0.2 s in each call, for writes that are under way.
    """
    return connection.read(method, collection.name, **{"consistency_level": "Bounded", **options})


def count(connection: Connection, collection: Collection, expression: str = "", **options: Any) -> int:
    """Return the number of rows that pass a filter."""
    counted = read(connection, collection, "query", filter=expression, output_fields=["count(*)"], **options)
    return int(counted[0]["count(*)"])


@dataclass
class CollectionSearch:
    """A search among the rows of a collection that pass a filter.

    Attributes:
        connection: to the store.
        collection: searched.
        expression: the filter; "": all rows.
        matching: the number of rows that pass the filter, if it is known.
        rows: all rows that a search returned, by id.

    """

    connection: Connection
    collection: Collection
    expression: str = ""
    matching: int | None = None
    rows: dict[int, Row] = field(default_factory=dict)
    _truncated: bool = False

    def nearest(self, queries: Vectors, k: int) -> Result:
        """Return the ``k`` nearest rows of each query, or all that pass the filter.

        Args:
            queries: float32 ``[q, d]``, finite.
            k: at least 1.

        Returns:
            ids int64 and squared distances float64, ``[q, min(k, n)]``, ordered by (distance, id).

        Raises:
            StoreUnavailableError: the store returned fewer rows than it has.
            QueryError: it did, and has too many to compare them one by one.
            IndexDamagedError: it returned a damaged row.

        """
        if self.matching is not None and self.matching <= SCANNED:
            return self._scanned(queries, k)
        most = most_hits(self.collection.description.dim)
        limit = min(k + _SPARE, most)
        candidates = [rows for batch in self._batches(queries, limit) for rows in self._found(batch, limit)]
        fewest = min(map(len, candidates), default=0)
        if fewest < limit:
            if fewest < min(limit, self._count()):  # an index that searches a part of its lists may find too few
                return self._scanned(queries, k)
        elif limit < k:
            self._truncated = self._truncated or self._count() > limit
        width = min(k, fewest)
        ids, distances = np.empty((len(queries), width), dtype=np.int64), np.empty((len(queries), width))
        for place, (query, rows) in enumerate(zip(queries, candidates, strict=True)):
            ids[place], distances[place] = scan.rank(query, _ids(rows), _vectors(rows, query), width)
        return ids, distances

    def vectors_of(self, ids: Ids) -> Vectors:
        """Return the vectors of rows that were returned, float32 ``[n, d]``."""
        dim = self.collection.description.dim
        return np.array([self.rows[number].vector for number in ids.tolist()], dtype=np.float32).reshape(-1, dim)

    def check_complete(self) -> None:
        """Refuse a result that would need more rows than one answer of the store has.

        Raises:
            QueryError: that is the case.

        """
        if self._truncated:
            raise QueryError(
                f"The result needs more than the {most_hits(self.collection.description.dim):,} nearest pictures, and "
                "a store returns no more; expected a smaller k, or a smaller distance of near-duplicates."
            )

    def _batches(self, queries: Vectors, limit: int) -> Iterator[Vectors]:
        step = max(1, _ANSWER // (4 * queries.shape[1] * limit))
        return (queries[start : start + step] for start in range(0, len(queries), step))

    def _found(self, queries: Vectors, limit: int) -> list[list[Row]]:
        parameters = search_parameters(self.collection.description.index_type, limit, filtered=bool(self.expression))
        answers = read(
            self.connection,
            self.collection,
            "search",
            data=list(queries),
            anns_field=VECTOR,
            limit=limit,
            filter=self.expression,
            output_fields=COLUMNS,
            search_params={"metric_type": "L2", "params": parameters},
        )
        if len(answers) != len(queries):
            raise self._too_few(len(answers), len(queries), "answers")
        candidates = [self._read([hit["entity"] for hit in hits]) for hits in answers]
        self.rows.update((row.item.id, row) for rows in candidates for row in rows)
        return candidates

    def _scanned(self, queries: Vectors, k: int) -> Result:
        """Compare all rows that pass the filter, in batches."""
        best = nothing(len(queries))
        kept: dict[int, Row] = {}
        for rows in self._all_rows():
            ids, vectors = _ids(rows), _vectors(rows, queries[0])
            places, distances = scan.nearest(queries, vectors, k)
            best = merged(best, (ids[places], distances), k, False)
            kept.update((row.item.id, row) for row in rows)
            kept = {number: kept[number] for number in set(best[0].ravel().tolist())}
        self.rows.update(kept)
        return best

    def _all_rows(self) -> Iterator[list[Row]]:
        if self._count() > _MOST_SCANNED:
            raise QueryError(
                f"The store found too few of the {self._count():,} pictures, which are too many to compare one by one; "
                "expected a smaller label or folder, or an index of the type HNSW."
            )
        last, returned = -1, 0
        while True:
            answer = read(
                self.connection,
                self.collection,
                "query",
                filter=both([f"id > {last}", self.expression]),
                limit=most_hits(self.collection.description.dim),
                output_fields=COLUMNS,
            )
            rows = sorted(self._read(answer), key=lambda row: row.item.id)
            if not rows:
                break
            yield rows
            last, returned = rows[-1].item.id, returned + len(rows)
        # Pictures may be removed meanwhile.
        expected = (
            self._count() if returned >= self._count() else count(self.connection, self.collection, self.expression)
        )
        if returned < expected:
            raise self._too_few(returned, expected, "pictures")

    def _count(self) -> int:
        if self.matching is None:
            self.matching = count(self.connection, self.collection, self.expression)
        return self.matching

    def _read(self, entities: Sequence[Any]) -> list[Row]:
        description = self.collection.description
        return read_rows(entities, collection=self.collection.name, dim=description.dim, roots=description.roots)

    def _too_few(self, returned: int, expected: int, what: str) -> StoreUnavailableError:
        return StoreUnavailableError(
            f"The store at {self.connection.address.server} returned {returned:,} of {expected:,} {what}; try again."
        )


def _ids(rows: Sequence[Row]) -> Ids:
    return np.array([row.item.id for row in rows], dtype=np.int64)


def _vectors(rows: Sequence[Row], like: Vectors) -> Vectors:
    return np.array([row.vector for row in rows], dtype=np.float32).reshape(-1, like.shape[-1])
