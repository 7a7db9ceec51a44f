"""Searches for near-duplicates while a page asks for them: one at a time, and the latest results."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from ...errors import DeepRankError, IndexReplacedError, QueryError
from ...files import FileId
from ...index.database.records import Meta
from ...index.database.store import Store
from ...index.layout import database_id
from ...index.search.duplicate_groups import find_near_duplicates
from ...progress import Advance
from ..errors import BusyError, RefusedError
from ..settings import LOG
from .groups import GroupPage, GroupTable

__all__ = ["Found", "NearDuplicateSearches", "Search"]

# Results that are kept; each takes 16 bytes for a picture in a group.
_KEPT = 4
# Searches that wait for the one that runs.
_WAITING = 4
# Seconds without a question about a search, after which it ends: longer than a hidden page pauses,
# and shorter where another search waits for it.
_PATIENCE_S = 90.0
_PATIENCE_WITH_OTHERS_S = 5.0

State = tuple[FileId | None, Meta]


class _GivenUpError(Exception):
    """Ends a search that nobody asks for any more."""


class Search:
    """A search in one state of an index; its figures are read while it runs.

    Attributes:
        max_distance: squared Euclidean.
        state: of the index at its start.
        done: pictures that are compared.
        total: pictures to compare.
        table: the groups, at the end.
        error: why it ended without them.

    """

    def __init__(self, max_distance: float, state: State) -> None:
        self.max_distance = max_distance
        self.state = state
        self.done, self.total = 0, state[1].items
        self.table: GroupTable | None = None
        self.error: DeepRankError | None = None
        self.given_up = False
        self._asked = time.monotonic()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.table is None and self.error is None and not self.given_up

    def ask(self) -> None:
        """Note that somebody waits for it."""
        self._asked = time.monotonic()

    def idle_s(self) -> float:
        """Return for how many seconds nobody has asked for it."""
        return time.monotonic() - self._asked


class Found:
    """What is known of a search: its groups on one page, and whether the index has changed since."""

    def __init__(self, search: Search, page: GroupPage | None, *, outdated: bool) -> None:
        self.search, self.page, self.outdated = search, page, outdated


class NearDuplicateSearches:
    """The searches of a server; methods block, and threads may share them."""

    def __init__(self, index: Path | None) -> None:
        """Take an index folder; None: the index is in a store, which has no such search."""
        self._index = index
        self._lock = threading.Lock()
        self._searches: OrderedDict[float, Search] = OrderedDict()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="near-duplicates")

    def start(self, max_distance: float) -> Search:
        """Start a search, or join the one of the same state and distance.

        Raises:
            QueryError: the index is in a store.
            BusyError: too many searches wait.
            IndexStateError: the index cannot be read.

        """
        state = _state(self._folder())
        with self._lock:
            known = self._searches.get(max_distance)
            if known is not None and known.state == state and (known.runs or known.table is not None):
                known.ask()
                return known
            if known is not None:
                known.given_up = True
            if sum(search.runs for search in self._searches.values()) > _WAITING:
                raise BusyError("Too many searches for near-duplicates are waiting", 5)
            search = self._searches[max_distance] = Search(max_distance, state)
            self._searches.move_to_end(max_distance)
            self._forget_old()
        self._pool.submit(self._run, search)
        return search

    def find(self, max_distance: float, cursor: str | None, limit: int) -> Found:
        """Return what is known of a search, with some of its groups if it has ended.

        Raises:
            RefusedError: there is none (404), or the cursor is not its own (409).
            DeepRankError: the search failed.

        """
        index = self._folder()
        with self._lock:
            search = self._searches.get(max_distance)
            if search is None or search.given_up:
                raise _unknown()
            search.ask()
            self._searches.move_to_end(max_distance)
            if search.error is not None:
                del self._searches[max_distance]
                raise search.error
        outdated = _state(index) != search.state
        if search.table is None:
            return Found(search, None, outdated=outdated)
        page = search.table.page(index, cursor, limit)
        if page is None:
            raise _unknown()
        return Found(search, page, outdated=outdated)

    def close(self) -> None:
        """End all searches."""
        with self._lock:
            for search in self._searches.values():
                search.given_up = True
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _folder(self) -> Path:
        if self._index is None:
            raise QueryError(
                "This index is in a store, which does not compare all pictures with each other; expected an index "
                "folder."
            )
        return self._index

    def _forget_old(self) -> None:
        ended = [distance for distance, search in self._searches.items() if not search.runs]
        for distance in ended[: max(0, len(ended) - _KEPT)]:
            del self._searches[distance]

    def _run(self, search: Search) -> None:
        try:
            if not search.given_up:
                self._compute(search)
        except _GivenUpError:
            search.given_up = True
        except DeepRankError as error:
            search.error = error
        except Exception:
            LOG.exception("a search for near-duplicates failed")
            search.error = RefusedError(500, "The search for near-duplicates failed; the server's log says why.")

    def _compute(self, search: Search) -> None:
        index, database = self._folder(), search.state[0]

        def start_progress(_: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
            search.total = total

            def advance(count: int = 1, /, detail: str = "") -> None:
                search.done += count
                if database_id(index) != database:
                    raise IndexReplacedError("The index was replaced during the search for near-duplicates.")
                if search.given_up or search.idle_s() > self._patience(search):
                    raise _GivenUpError

            return advance

        report = find_near_duplicates(index, max_distance=search.max_distance, progress=start_progress)
        search.table = GroupTable.of(report, database)

    def _patience(self, search: Search) -> float:
        with self._lock:
            others = any(other.runs for other in self._searches.values() if other is not search)
        return _PATIENCE_WITH_OTHERS_S if others else _PATIENCE_S


def _unknown() -> RefusedError:
    return RefusedError(
        404, "No search for near-duplicates at this distance is known; start one with POST /v1/near-duplicates."
    )


def _state(index: Path) -> State:
    """Return what differs once the index has other pictures."""
    database = database_id(index)
    with Store.open(index) as store:
        return database, store.meta()
