"""The order and the labels of all pictures of one state of an index, in compact arrays."""

from __future__ import annotations

import bisect
import threading
import time
from array import array
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..database.records import Meta
from ..database.store import Ids, Store
from .filters import no_such_label
from .listing import ListRequest, Order, Place

__all__ = ["Catalogue", "Catalogues"]

# Places of pictures in a catalogue.
Places = npt.NDArray[np.int32]
Mask = npt.NDArray[np.bool_]

# Orders that are kept, besides that of the paths: 4 bytes a picture each.
_MAX_SEQUENCES = 6
# Folders whose pictures are kept: a byte a picture each.
_MAX_FOLDERS = 4
# Touched pictures whose earlier mtimes are kept for lists that have begun.
_MAX_TOUCHED = 1_000_000
# Far beyond any clock, so that no sum overflows.
_MAX_MTIME = 2**62
# Seconds that a request waits for the newest state, if an earlier one is known.
_PATIENCE_S = 1.0


@dataclass(frozen=True)
class _Touched:
    """Pictures whose mtimes changed with a catalogue, and the earlier ones."""

    number: int
    ids: Ids
    mtimes: Ids


class Catalogue:
    """The pictures of one state of an index: 24 bytes for each, and at most 28 more for lists in use.

    A list that began with an earlier catalogue continues by the mtimes of that time, so that a touched picture is
    neither repeated nor skipped. One thread may use it at a time.

    Attributes:
        meta: the state.
        number: grows from one to the next, over restarts too.
        ids: int64 ``[n]``, ascending.
        counts: number of pictures with each label, by name, sorted.
        roots: number of pictures of each root, by number.

    """

    def __init__(self, store: Store, earlier: Catalogue | None = None) -> None:
        """Read the state of a store in a snapshot.

        Raises:
            IndexDamagedError: a row is damaged.

        """
        self.meta = store.meta()
        self.number = time.time_ns()
        ids, mtimes, codes = array("q"), array("q"), array("i")
        numbers: dict[str | None, int] = {None: 0}
        roots: Counter[int] = Counter()
        for item in store.all_items():
            ids.append(item.id)
            mtimes.append(max(-_MAX_MTIME, min(item.mtime_ns, _MAX_MTIME)))
            codes.append(numbers.setdefault(item.label, len(numbers)))
            roots[item.root] += 1
        self.ids: Ids = np.frombuffer(ids, dtype=np.int64)
        self._mtimes: Ids = np.frombuffer(mtimes, dtype=np.int64)
        self._codes: Places = np.frombuffer(codes, dtype=np.int32)
        self._numbers = numbers
        self._by_path = self._places(store, store.ids_by_path())
        counts = np.bincount(self._codes, minlength=len(numbers)).tolist()
        self.counts = {label: counts[numbers[label]] for label in sorted(name for name in numbers if name is not None)}
        self.roots = dict(roots)
        self._touched = self._touched_since(earlier)
        self._sequences: OrderedDict[tuple[Order, int], Places] = OrderedDict()
        self._folders: OrderedDict[tuple[str, ...], Mask] = OrderedDict()

    def __len__(self) -> int:
        """Return the number of pictures."""
        return len(self.ids)

    def mask(self, request: ListRequest, in_folder: Callable[[], Ids], *, lenient: bool) -> Mask | None:
        """Return which pictures a request lists, bool ``[n]``; None: all.

        Args:
            request: what is listed.
            in_folder: returns the ids below the request's folder.
            lenient: a label that no picture has any more lists none.

        Raises:
            QueryError: no picture has a label.

        """
        mask: Mask | None = None
        if request.label is not None:
            chosen = np.zeros(len(self._numbers), dtype=np.bool_)
            for label in request.label:
                if label in self._numbers:
                    chosen[self._numbers[label]] = True
                elif not lenient:
                    raise no_such_label(label, list(self.counts))
            mask = chosen[self._codes]
        if request.folder is not None:
            below = self._below(request.folder, in_folder)
            mask = below if mask is None else mask & below
        return mask

    def rest(self, request: ListRequest, after: Place | None, following: Callable[[Place], Iterable[int]]) -> Places:
        """Return the places of all pictures behind one, int32, in order.

        Args:
            request: the order.
            after: the picture; None: from the first one on.
            following: returns the ids of the pictures behind the path of one, in order.

        """
        sequence = self._sequence(request, self.number if after is None else after.number)
        if after is None or len(sequence) == 0:
            return sequence
        if request.order == "folder":
            known = (place for number in following(after) if (place := self._place_of(number)) is not None)
            first = next(known, None)
            return sequence[len(sequence) if first is None else int(np.flatnonzero(sequence == first)[0]) :]
        key, target = self._key(request, after)
        return sequence[bisect.bisect_right(sequence, target, key=key) :]

    def places_of(self, positions: Places, number: int) -> list[Place]:
        """Return the places of pictures, without their paths; ``number``: of the catalogue of the first page."""
        ids, mtimes = self.ids[positions].tolist(), self._mtimes_at(number)[positions].tolist()
        return [Place(item, mtime_ns=mtime_ns, number=number) for item, mtime_ns in zip(ids, mtimes, strict=True)]

    def _sequence(self, request: ListRequest, number: int) -> Places:
        if request.order == "folder":
            return self._by_path
        if request.order == "id":
            return np.arange(len(self), dtype=np.int32)
        kept = (request.order, request.seed if request.order == "shuffle" else len(self._newer(number)))
        if kept not in self._sequences:
            # In ascending order of the ids where mtimes are equal; hashes never are.
            keys = ~self._mtimes_at(number) if request.order == "newest" else _hashes(self.ids, request.seed)
            self._sequences[kept] = np.argsort(keys, kind="stable").astype(np.int32)
        self._sequences.move_to_end(kept)
        while len(self._sequences) > _MAX_SEQUENCES:
            self._sequences.popitem(last=False)
        return self._sequences[kept]

    def _key(self, request: ListRequest, after: Place) -> tuple[Callable[[np.int32], tuple[int, int]], tuple[int, int]]:
        """Return the function that an order sorts places by, and its value for a picture."""
        if request.order == "newest":
            mtimes = self._mtimes_at(after.number)
            return lambda at: (~int(mtimes[at]), int(self.ids[at])), (~after.mtime_ns, after.id)
        if request.order == "shuffle":
            target = int(_hashes(np.array([after.id]), request.seed)[0])
            return lambda at: (int(_hashes(self.ids[at : at + 1], request.seed)[0]), 0), (target, 0)
        return lambda at: (int(self.ids[at]), 0), (after.id, 0)

    def _place_of(self, number: int) -> int | None:
        place = int(np.searchsorted(self.ids, number))
        return place if place < len(self) and self.ids[place] == number else None

    def _places(self, store: Store, ids: Ids) -> Places:
        """Return the places of all ids, in another order."""
        places = np.searchsorted(self.ids, ids)
        if len(ids) != len(self) or not np.array_equal(np.sort(ids), self.ids):
            raise store.damage("the order of its paths")
        return places.astype(np.int32)

    def _below(self, folder: tuple[str, ...], in_folder: Callable[[], Ids]) -> Mask:
        if folder not in self._folders:
            self._folders[folder] = np.isin(self.ids, in_folder(), assume_unique=True)
        self._folders.move_to_end(folder)
        while len(self._folders) > _MAX_FOLDERS:
            self._folders.popitem(last=False)
        return self._folders[folder]

    def _newer(self, number: int) -> list[_Touched]:
        return [touched for touched in self._touched if touched.number > number]

    def _mtimes_at(self, number: int) -> Ids:
        """Return the mtimes at the time of an earlier catalogue; later pictures have theirs."""
        newer = self._newer(number)
        if not newer:
            return self._mtimes
        mtimes = self._mtimes.copy()
        for touched in reversed(newer):
            here = np.isin(touched.ids, self.ids, assume_unique=True)
            mtimes[np.searchsorted(self.ids, touched.ids[here])] = touched.mtimes[here]
        return mtimes

    def _touched_since(self, earlier: Catalogue | None) -> list[_Touched]:
        if earlier is None:
            return []
        _, ours, theirs = np.intersect1d(self.ids, earlier.ids, assume_unique=True, return_indices=True)
        changed = self._mtimes[ours] != earlier._mtimes[theirs]
        touched = list(earlier._touched)
        if changed.any():
            touched.append(_Touched(self.number, self.ids[ours[changed]], earlier._mtimes[theirs[changed]]))
        while sum(len(each.ids) for each in touched) > _MAX_TOUCHED:
            del touched[0]
        return touched


def _hashes(ids: Ids, seed: int) -> npt.NDArray[np.uint64]:
    """Return a hash of each id and the seed, the finalizer of splitmix64: different for different ids."""
    start = (seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64
    mixed = ids.astype(np.uint64) + np.uint64(start)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


class Catalogues:
    """Keeps the catalogue of the newest state that was read; threads may share it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: Catalogue | None = None
        self._making: Future[Catalogue] | None = None

    def begin(self) -> None:
        """Read the current state in a thread, for lists to come."""
        with self._lock:
            if self._known is None and self._making is None:
                self._start()

    def current(self, state: Callable[[], Meta]) -> Catalogue:
        """Return the catalogue of the current state; an earlier one if a million rows are still being read.

        Args:
            state: returns the current state.

        Raises:
            IndexStateError, IndexDamagedError: the index cannot be read.

        """
        until = time.monotonic() + _PATIENCE_S
        while True:
            meta = state()
            with self._lock:
                known = self._known
                if known is not None and known.meta == meta:
                    return known
                making = self._making or self._start()
            if known is None:
                making.result()
                continue
            try:
                making.result(max(0.0, until - time.monotonic()))
            except TimeoutError:
                return known

    def _start(self) -> Future[Catalogue]:
        self._making = making = Future[Catalogue]()
        threading.Thread(target=self._make, args=(making, self._known), name="catalogue", daemon=True).start()
        return making

    def _make(self, making: Future[Catalogue], earlier: Catalogue | None) -> None:
        try:
            with Store.open(self._folder) as store, store.snapshot():
                made = Catalogue(store, earlier)
        except BaseException as error:
            with self._lock:
                self._making = None
            making.set_exception(error)
        else:
            with self._lock:
                self._known, self._making = made, None
            making.set_result(made)
