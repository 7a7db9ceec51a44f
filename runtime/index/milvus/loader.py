"""Make a collection equal to an embedded folder or an index, and let its alias lead to it.

A load compares the rows of its source with those of the collection, upserts what is missing or
different, and deletes what the source no longer has: in this order, so that a reader never sees too
few. It may be killed at any moment; the next load of the same source does what is left. Two loads of
the same source at once do the same work twice, with the same end. A load ends with a check of all
ids, which fails if another load has brought other rows.
"""

from __future__ import annotations

import array
import hashlib
import re
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import StoreError
from ...progress import Advance, StartProgress, start_nothing
from ..database.store import Ids
from .address import parse_address
from .collection import (
    FIELDS,
    MAX_DIM,
    VECTOR,
    Collection,
    Description,
    create,
    describe,
    keeps_changes,
    read_collection,
)
from .connection import Connection, MissingInStoreError
from .index_type import DEFAULT_INDEX_TYPE, IndexType
from .source import Chunk, Source, open_source

__all__ = ["LoadReport", "load"]

# The most rows that Milvus returns at once.
_MOST_AT_ONCE = 16_384
# Rows that are compared at once; the store may hold as many others between them.
_COMPARED = _MOST_AT_ONCE // 2
# Bytes of one upsert; Milvus accepts 64 MB.
_MOST_BYTES = 16 * 2**20
_BYTES_BESIDE = 512
# Reads with Strong consistency wait a fifth of a second each; so many wait at the same time.
_READERS = 4
# Seconds until an upsert, a deletion or a count of many rows fails; and until the last rows are stored.
_PATIENCE = 120.0
_TO_FLUSH = 600.0
_PAUSE = 1.0
# Seconds without progress after which the building of an index has failed; one segment takes minutes.
_STALLED = 1800.0
_MAX_COLLECTIONS = 100


@dataclass(frozen=True)
class LoadReport:
    """What a load did, as ``--json`` prints it.

    Attributes:
        collection: the name that the alias leads to.
        index_type: kind of its vector index.
        rows: number of pictures.
        written: how many of them were missing or different.
        removed: rows that were deleted.
        replaced: the collection that the alias led to before; None if it was the same or there was none.
        kept: whether that one is still there.
        others: further collections for this alias, which killed loads or ``--keep-old`` have left.
        seconds: of the load, without waiting for the index.

    """

    collection: str
    index_type: IndexType
    rows: int
    written: int
    removed: int
    replaced: str | None
    kept: bool
    others: tuple[str, ...]
    seconds: float


def load(
    source: str,
    target: str,
    *,
    index_type: IndexType | None = None,
    keep_old: bool = False,
    token_file: Path | None = None,
    progress: StartProgress = start_nothing,
) -> LoadReport:
    """Load an embedded folder or an index into Milvus.

    The collection of the alias is brought up to date if it has the same model and kind of index. Otherwise another
    one is filled; once it is complete, the alias leads to it, and the earlier one is dropped.

    Args:
        source: a path, or the URI of an embedded folder.
        target: the address of the collection, see :mod:`.address`.
        index_type: kind of vector index; default: as before, or HNSW.
        keep_old: keep the earlier collection.
        token_file: see :meth:`~.address.StoreAddress.token`.
        progress: called as the work proceeds.

    Raises:
        StoreUnavailableError: the store does not answer; a later load continues.
        StoreError: the store refuses, holds something else under this name, or another load changes the rows.
        DeepRankError: the source is damaged, unfinished, or cannot be stored in Milvus.

    """
    address = parse_address(target)
    with open_source(source) as opened, Connection(address, token_file) as connection:
        start = time.monotonic()
        current = _current(connection, address.name)
        chosen = _choose(connection, address.name, current, opened, index_type)
        filling = _Filling(connection, chosen.name)
        filling.fill(opened, progress)
        filling.check(progress)
        seconds = time.monotonic() - start
        roots = opened.roots if keeps_changes(connection) else chosen.description.roots
        described = replace(chosen.description, roots=roots, rows=filling.rows, labels=filling.labels)
        describe(connection, chosen.name, described)
        _wait_for_index(connection, chosen.name, filling.rows, progress)
        replaced = _exchange(connection, address.name, chosen.name, current)
        if replaced is not None and not keep_old:
            connection.call("drop_collection", replaced)
        kept, others = replaced is not None and keep_old, _others(connection, address.name, chosen.name)
        changes = (filling.rows, filling.written, filling.removed)
        return LoadReport(chosen.name, described.index_type, *changes, replaced, kept, others, seconds)


def _current(connection: Connection, alias: str) -> Collection | None:
    """Return what the alias leads to; None: it does not exist yet."""
    try:
        stored = read_collection(connection, alias)
    except MissingInStoreError:
        return None
    if stored.name == alias:
        raise StoreError(
            f"{alias} is itself a collection of the store at {connection.address.server}; expected an alias, which "
            "deeprank-index load makes. Choose another name."
        )
    return stored


def _choose(
    connection: Connection, alias: str, current: Collection | None, source: Source, index_type: IndexType | None
) -> Collection:
    """Return the collection to fill, created if need be: the current one, one that a killed load left, or a new one."""
    if source.dim > MAX_DIM:
        raise StoreError(f"The vectors have {source.dim:,} numbers; Milvus holds at most {MAX_DIM:,}.")
    kind = index_type or (current.description.index_type if current else DEFAULT_INDEX_TYPE)
    expected = Description(source.model_sha256, source.dim, kind, source.roots)
    any_roots = keeps_changes(connection)
    if current is not None and _fits(current.description, expected, any_roots):
        create(connection, current.name, expected)
        return current
    stem = f"{alias}_{source.model_sha256[:12]}"
    for number in range(1, _MAX_COLLECTIONS):
        name = stem if number == 1 else f"{stem}_{number}"
        if not connection.call("has_collection", name):
            create(connection, name, expected)
        stored = read_collection(connection, name)
        if stored.name == name and _fits(stored.description, expected, any_roots):
            create(connection, name, expected)
            return stored
    raise StoreError(f"The store has {_MAX_COLLECTIONS} collections called {stem}…; drop those that are not needed.")


def _fits(known: Description, expected: Description, any_roots: bool) -> bool:
    """Tell whether a collection can hold the rows; ``any_roots``: its roots can be changed for good."""
    same = (known.model_sha256, known.dim, known.index_type) == (
        expected.model_sha256,
        expected.dim,
        expected.index_type,
    )
    return same and (any_roots or expected.roots.items() <= known.roots.items())


@dataclass(frozen=True)
class _Window:
    """The ids of a chunk: above the last one of the window before, up to ``last``."""

    last: int
    count: int
    digest: bytes


@dataclass
class _Filling:
    """Fills one collection, and remembers what it has to hold."""

    connection: Connection
    name: str
    rows: int = 0
    written: int = 0
    removed: int = 0
    _windows: list[_Window] = field(default_factory=list)
    _labels: Counter[str] = field(default_factory=Counter)
    _surplus: array.array[int] = field(default_factory=lambda: array.array("q"))

    @property
    def labels(self) -> dict[str, int]:
        """Number of pictures with each label."""
        return dict(sorted((label, count) for label, count in self._labels.items() if label))

    def fill(self, source: Source, progress: StartProgress) -> None:
        """Make the rows of the collection equal to those of the source."""
        is_empty = self._count() == 0
        advance = progress("loading", source.expected)
        batch = max(1, min(_COMPARED, _MOST_BYTES // (4 * source.dim + _BYTES_BESIDE)))
        crowded: list[tuple[int | None, int | None, Ids]] = []
        after: int | None = None
        for chunk in source.chunks(_COMPARED):
            ids = np.array([row.id for row in chunk.rows], dtype=np.int64)
            last = int(ids[-1])
            places = list(range(len(ids)))
            if not is_empty:
                stored = self._rows(_between(after, last), FIELDS)
                if len(stored) == _MOST_AT_ONCE:
                    crowded.append((after, last, ids))
                    stored = self._rows(f"id in {ids.tolist()}", FIELDS)
                places = self._missing(chunk, stored)
            self._write(chunk, places, batch, advance)
            advance(len(ids) - len(places))
            self.rows += len(ids)
            self._labels.update(row.label for row in chunk.rows)
            self._windows.append(_Window(last, len(ids), _digest(ids)))
            after = last
        crowded.append((after, None, np.empty(0, dtype=np.int64)))
        self._delete(self._surplus)
        for low, high, ids in crowded:
            self._empty(_between(low, high), ids)

    def _missing(self, chunk: Chunk, stored: Sequence[dict[str, Any]]) -> list[int]:
        """Return the places of the rows that the store lacks or holds otherwise, and note ids that it has too many."""
        expected = {row.id: row for row in chunk.rows}
        times = Counter(row["id"] for row in stored)
        equal = {
            row["id"]
            for row in stored
            if times[row["id"]] == 1 and expected.get(row["id"]) == tuple(row[name] for name in FIELDS)
        }
        self._surplus.extend(number for number in times if number not in expected)
        return [place for place, row in enumerate(chunk.rows) if row.id not in equal]

    def _write(self, chunk: Chunk, places: list[int], batch: int, advance: Advance) -> None:
        for start in range(0, len(places), batch):
            some = places[start : start + batch]
            rows = [
                {**chunk.rows[place]._asdict(), VECTOR: vector}
                for place, vector in zip(some, chunk.vectors(some), strict=True)
            ]
            self.connection.call("upsert", self.name, rows, timeout=_PATIENCE)
            self.written += len(rows)
            advance(len(rows))

    def _delete(self, ids: Sequence[int]) -> None:
        for start in range(0, len(ids), _COMPARED):
            some = list(ids[start : start + _COMPARED])
            self.connection.call("delete", self.name, ids=some, timeout=_PATIENCE)
            self.removed += len(some)

    def _empty(self, where: str, but: Ids) -> None:
        """Delete all rows of a range of ids but these, in turns: it may hold more than can be asked for at once."""
        while True:
            stored = [row["id"] for row in self._rows(where, ["id"])]
            self._delete(np.setdiff1d(stored, but).tolist())
            if len(stored) < _MOST_AT_ONCE:
                return

    def check(self, progress: StartProgress) -> None:
        """Make sure that the collection holds exactly the rows of the source.

        Raises:
            StoreError: it does not.

        """
        self.connection.call("flush", self.name, timeout=_TO_FLUSH)
        advance = progress("checking", self.rows)
        agree = self._count() == self.rows
        with ThreadPoolExecutor(_READERS) as pool:
            checks = [pool.submit(self._agrees, *group) for group in self._groups()] if agree else []
            try:
                for done in checks:
                    count, equal = done.result()
                    agree = agree and equal
                    advance(count)
            finally:
                pool.shutdown(cancel_futures=True)
        if not agree:
            raise StoreError(
                f"The collection {self.name} holds other rows than it should: another load or program has changed it "
                "meanwhile. Nothing was exchanged; run this load again when no other runs."
            )

    def _groups(self) -> Iterator[tuple[int | None, list[_Window]]]:
        """Yield windows that are read together, and the last id before them."""
        after: int | None = None
        group: list[_Window] = []
        for window in self._windows:
            if group and sum(each.count for each in group) + window.count >= _MOST_AT_ONCE:
                yield after, group
                after, group = group[-1].last, []
            group.append(window)
        if group:
            yield after, group

    def _agrees(self, after: int | None, windows: list[_Window]) -> tuple[int, bool]:
        """Return the number of ids of some windows, and whether they are those in the store."""
        stored = self._rows(_between(after, windows[-1].last), ["id"])
        ids = np.sort(np.array([row["id"] for row in stored], dtype=np.int64))
        bounds = np.searchsorted(ids, [window.last for window in windows], side="right")
        groups = np.split(ids, bounds[:-1])
        agree = all(
            len(some) == window.count and _digest(some) == window.digest
            for some, window in zip(groups, windows, strict=True)
        )
        return sum(window.count for window in windows), agree

    def _count(self) -> int:
        (row,) = self.connection.read(
            *("query", self.name), filter="", output_fields=["count(*)"], consistency_level="Strong", timeout=_PATIENCE
        )
        return int(row["count(*)"])

    def _rows(self, where: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        return list(
            self.connection.read(
                *("query", self.name),
                filter=where,
                output_fields=list(fields),
                limit=_MOST_AT_ONCE,
                consistency_level="Strong",
                timeout=_PATIENCE,
            )
        )


def _between(after: int | None, last: int | None) -> str:
    """Return the filter for ids above ``after``, up to ``last``; None: without this bound."""
    parts = [] if after is None else [f"id > {after}"]
    parts += [] if last is None else [f"id <= {last}"]
    return " and ".join(parts) or "id > 0 or id <= 0"


def _digest(ids: Ids) -> bytes:
    return hashlib.blake2b(ids.tobytes(), digest_size=8).digest()


def _wait_for_index(connection: Connection, name: str, rows: int, progress: StartProgress) -> None:
    """Wait until the vector index is built: until then, searches of the new rows scan.

    Raises:
        StoreError: nothing is built for a long time.

    """
    advance, shown = progress("indexing", rows), 0
    left, since = -1, time.monotonic()
    while pending := int(connection.call("describe_index", name, VECTOR).get("pending_index_rows", 0)):
        if pending != left:
            left, since = pending, time.monotonic()
        if time.monotonic() - since > _STALLED:
            raise StoreError(
                f"The store has built nothing of the index of {name} for {_STALLED / 60:.0f} minutes; {pending:,} rows "
                "are left. Its log says why: a server without DISKANN, for example, tries it for ever. The rows are "
                "loaded, but no query uses this collection yet; choose another --index-type, or run the load again."
            )
        done = max(shown, rows - pending)
        advance(done - shown)
        shown = done
        time.sleep(_PAUSE)


def _exchange(connection: Connection, alias: str, name: str, current: Collection | None) -> str | None:
    """Let the alias lead to a collection; return the one that it led to before, if that is another."""
    if current is None:
        try:
            connection.call("create_alias", name, alias)
        except StoreError:  # another load may have just made it
            current = _current(connection, alias)
            if current is None:
                raise
    if current is None or current.name == name:
        return None
    connection.call("alter_alias", name, alias)
    return current.name


def _others(connection: Connection, alias: str, name: str) -> tuple[str, ...]:
    pattern = re.compile(rf"{alias}_[0-9a-f]{{12}}(_[0-9]+)?")
    names = map(str, connection.call("list_collections"))
    return tuple(sorted(each for each in names if pattern.fullmatch(each) and each != name))
