"""The ratings of an index as the server reads and writes them, and the choice of questions."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np

from ...errors import IndexLockedError, IndexStateError, QueryError
from ...files import FileId
from ...index.database.store import Store
from ...index.layout import database_id
from ...index.ratings.questions import choose_questions
from ...index.ratings.records import NewComparison
from ...index.ratings.resolution import Agreement, resolved
from ...index.ratings.store import RatingStore
from ...index.ratings.writer import add_comparisons, remove_comparison, set_mark
from ...index.search.index import Index
from ...index.search.items import EmbeddedImage
from ...index.search.searchable import Searchable
from ...text import display_path
from ..errors import RefusedError, UnwritableError
from ..settings import LOG
from ..writer import patiently
from .rows import PictureRows

__all__ = ["Answers", "Asked", "Known", "Question", "Ratings", "State"]

R = TypeVar("R")

# Skipped questions that are not asked again.
_SKIPPED = 1000
# Requests whose repetition is recognised.
_KEYS = 1000


@dataclass(frozen=True)
class Question:
    """Which of two pictures is more similar to a third one?"""

    query: EmbeddedImage
    first: EmbeddedImage
    second: EmbeddedImage


@dataclass(frozen=True)
class Asked:
    """Some questions, and the number of ratings."""

    questions: list[Question]
    ratings: int


@dataclass(frozen=True)
class Answers:
    """What a rater says of some questions.

    Attributes:
        comparisons: the answers.
        skipped: sha256 of the query, the first and the second picture of questions without an answer.
        rater: name of the rater; None: not given.
        key: of the request, by which a repetition of it is recognised; None: it is not repeated.

    """

    comparisons: Sequence[NewComparison]
    skipped: Sequence[tuple[bytes, bytes, bytes]] = ()
    rater: str | None = None
    key: str | None = None


@dataclass(frozen=True)
class State:
    """The number of ratings, how much they agree, and the marks of a query by sha256."""

    ratings: int
    agreement: Agreement
    marks: Mapping[bytes, bool]


@dataclass(frozen=True)
class Known:
    """All ratings of a state.

    Attributes:
        state: what differs once ratings or pictures have changed.
        count: number of ratings.
        agreement: of their answers.
        rated: see :attr:`~...index.ratings.resolution.ResolvedRatings.answered`.

    """

    state: object
    count: int
    agreement: Agreement
    rated: tuple[tuple[int, int, int], ...]


class Ratings:
    """The ratings of an index folder; used from one event loop, works in two threads."""

    def __init__(self, index: Path) -> None:
        self._index = index
        self._reading = ThreadPoolExecutor(1, thread_name_prefix="ratings")
        self._writing = ThreadPoolExecutor(1, thread_name_prefix="rate")
        self._rng = np.random.default_rng()
        self._known: Known | None = None
        self._keys: OrderedDict[str, tuple[Answers, list[int]]] = OrderedDict()
        self._refused_at = 0.0
        self._lock = threading.Lock()
        self._skipped: deque[tuple[int, int, int]] = deque(maxlen=_SKIPPED)
        self._skipped_of: FileId | None = None

    async def known(self) -> Known:
        """Return all ratings, for :meth:`questions`.

        Raises:
            IndexStateError, IndexDamagedError: they cannot be read.

        """
        return await self._in_thread(self._reading, self._read_all)

    async def questions(self, index: Searchable, known: Known, count: int) -> Asked:
        """Choose questions about the pictures of the open index; fewer if there are not so many.

        Raises:
            QueryError: the index is in a store.
            IndexReplacedError, IndexDamagedError: see :class:`~...index.search.index.Index`.

        """
        return await self._in_thread(self._reading, lambda: self._choose(index, known, count))

    async def state(self, query: bytes | None, rater: str | None) -> State:
        """Return what is known of the ratings, and a rater's marks of a query (its sha256).

        Raises:
            IndexStateError, IndexDamagedError: as for :meth:`known`.

        """
        return await self._in_thread(self._reading, lambda: self._read(query, rater))

    async def add(self, answers: Answers) -> tuple[list[int], int]:
        """Add answers; they are durable on return.

        Returns:
            the ids of the ratings, and the number of all ratings.

        Raises:
            QueryError: a picture is not of the index, or the pictures are not three.
            RefusedError: an earlier request with this key had other answers.
            IndexLockedError: another process keeps writing.

        """
        return await self._write(lambda: self._add(answers))

    async def remove(self, number: int, contents: tuple[bytes, bytes, bytes] | None) -> int:
        """Remove a rating by its id, and return the number of ratings that are left.

        Args:
            number: the id.
            contents: sha256 of query, positive and negative; a rating of other pictures stays. None: any.

        Raises:
            RefusedError: there is none with this id.
            IndexLockedError: as for :meth:`add`.

        """

        def remove() -> int:
            if not _written(lambda: remove_comparison(self._index, number, contents)):
                raise RefusedError(404, f"The index has no rating with the id {number}; expected one of an answer.")
            return self._count()

        return await self._write(remove)

    async def mark(self, query: bytes, picture: bytes, more: bool | None, rater: str | None) -> int:
        """Mark a hit of a query as more or less similar; None takes the mark back. Return the number of ratings.

        Raises:
            QueryError, IndexLockedError: as for :meth:`add`.

        """

        def write() -> int:
            _written(lambda: set_mark(self._index, query, picture, more, rater=rater))
            return self._count()

        return await self._write(write)

    def close(self) -> None:
        """End the threads, after the writes that they have."""
        self._reading.shutdown(wait=False, cancel_futures=True)
        self._writing.shutdown(wait=True)

    def _choose(self, index: Searchable, known: Known, count: int) -> Asked:
        if not isinstance(index, Index):
            raise QueryError("Ratings are kept in an index folder; expected no store.")
        with index.snapshot():
            rows = PictureRows(index)
            asked = choose_questions(
                rows,
                rows.triplets(known.rated),
                count,
                rng=self._rng,
                skipped=list(map(tuple, rows.triplets(self._skipped_ids()).tolist())),
            )
            questions = [
                Question(*(index.item(int(rows.ids[row])) for row in (each.query, each.first, each.second)))
                for each in asked
            ]
        return Asked(questions, known.count)

    def _read(self, query: bytes | None, rater: str | None) -> State:
        known = self._read_all()
        with RatingStore.open(self._index) as store:
            marks = {} if query is None else {mark.picture: mark.more for mark in store.marks(query, rater)}
        return State(known.count, known.agreement, marks)

    def _read_all(self) -> Known:
        """Return all ratings, read again once they or the pictures have changed.

        Without a snapshot, since one would let writers wait: what comes meanwhile is of another state than this one,
        and is read with the next request.
        """
        with RatingStore.open(self._index) as store, Store.open(self._index) as pictures:
            state = (store.totals(), database_id(self._index), pictures.meta())
            if self._known is None or self._known.state != state:
                now = resolved(store, pictures)
                self._known = Known(state, now.comparisons + now.marks, now.agreement, now.answered)
            return self._known

    def _count(self) -> int:
        with RatingStore.open(self._index) as store:
            return store.count

    def _add(self, answers: Answers) -> tuple[list[int], int]:
        known = self._keys.get(answers.key) if answers.key is not None else None
        if known is not None:
            earlier, ids = known
            if earlier != answers:
                raise RefusedError(409, "An earlier request with this key had other answers; expected a new key.")
            return ids, self._count()
        ids = []
        if answers.comparisons:
            ids = _written(lambda: add_comparisons(self._index, answers.comparisons, rater=answers.rater))
        if answers.key is not None:
            self._keys[answers.key] = answers, ids
            if len(self._keys) > _KEYS:
                self._keys.popitem(last=False)
        self._skip(answers.skipped)
        return ids, self._count()

    def _skip(self, questions: Sequence[tuple[bytes, bytes, bytes]]) -> None:
        """Remember skipped questions by the ids of their pictures; of pictures that are gone, none."""
        if not questions:
            return
        with Store.open(self._index) as store, store.snapshot():
            database = database_id(self._index)
            ids = [tuple(next(iter(store.ids_of_content(each)), 0) for each in question) for question in questions]
        with self._lock:
            if database != self._skipped_of:
                self._skipped.clear()
                self._skipped_of = database
            self._skipped.extend((query, first, second) for query, first, second in ids if query and first and second)

    def _skipped_ids(self) -> list[tuple[int, int, int]]:
        with self._lock:
            return list(self._skipped) if self._skipped_of == database_id(self._index) else []

    async def _write(self, write: Callable[[], R]) -> R:
        """Write in the thread for it; what waits there when another process keeps writing fails with the first."""
        asked = time.monotonic()

        def unless_refused() -> R:
            if self._refused_at > asked:
                raise IndexLockedError(f"{display_path(self._index)} is being written to by another process.")
            try:
                return write()
            except IndexLockedError:
                self._refused_at = time.monotonic()
                raise

        return await self._in_thread(self._writing, unless_refused)

    async def _in_thread(self, pool: ThreadPoolExecutor, call: Callable[[], R]) -> R:
        return await asyncio.get_running_loop().run_in_executor(pool, call)


def _written(write: Callable[[], R]) -> R:
    """Write once no other process does.

    Raises:
        UnwritableError: the index cannot be written to; the log says why.

    """
    try:
        return patiently(write)
    except IndexLockedError:
        raise
    except IndexStateError as error:
        LOG.warning("a rating could not be kept: %s", error)
        raise UnwritableError from None
