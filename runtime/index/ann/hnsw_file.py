"""The layout of hnswlib's file, and checks that hnswlib can read it: it trusts every number.

A header is followed by a record for each element (its links at level 0, the float32 vector, the
id), and these by the upper lists: for each element their size in bytes, and a list of links for
each of its levels above 0. A list is its length, and room for the maximum of links; a link is the
place of another element.

hnswlib 0.8 follows links, levels and lengths unchecked. Links of an element to itself and repeated
links stay within its memory, so they are not checked. So do vectors with NaN, but their distances
are not numbers: such a file is not opened, not even for scanning.
"""

from __future__ import annotations

import math
import mmap
import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

import numpy as np
import numpy.typing as npt

from ...scan import are_unit
from ..layout import GRAPH
from .backend import GraphUnusableError, Ids, Vectors

__all__ = ["Layout", "check", "map_file", "read_layout", "release"]

Words = npt.NDArray[np.uint32]
Levels = npt.NDArray[np.uint8]

# Six size_t (offset of level 0, capacity, count, record size, offsets of id and vector), two 32-bit
# numbers (highest level, entry point), three size_t (links at an upper level, at level 0, M), a
# double, a size_t.
_HEADER = struct.Struct("<6QiI3QdQ")
_WORD = 4
_NOBODY = 2**32 - 1
# hnswlib caps M; places of elements have 31 bits.
_MAX_LINKS = 10_000
_MAX_ELEMENTS = 2**31 - 1
# The highest level from its 62-bit random numbers, with the smallest working M, 2.
_HIGHEST_LEVEL = 62
_MAX_DIM = 2**20
# Bytes of the file that are checked before their memory is released, and words copied at a time.
_BYTES_AT_A_TIME = 64 << 20
_WORDS_AT_A_TIME = 1 << 20
# hnswlib keeps ids in a hash table with about one bucket per id; ids can be chosen so that all fall
# into one. This many comparisons take little time, and smaller ids cannot need more.
_MAX_COMPARISONS = 2**28
_SPARSEST_IDS = 64


@dataclass(frozen=True)
class Layout:
    """A consistent header of a file.

    Attributes:
        count: number of elements.
        dim: length of a vector.
        links: M, the most links at an upper level; at level 0 twice as many.
        highest: the highest level of an element.
        entry_point: the place of the element where searches begin.
        ef_construction: ef for adding elements.

    """

    count: int
    dim: int
    links: int
    highest: int
    entry_point: int
    ef_construction: int

    @property
    def list_words(self) -> int:
        """The length of an upper list in words of 32 bits."""
        return self.links + 1

    @property
    def vector_offset(self) -> int:
        """Offset of the vector in a record, after the links at level 0."""
        return _WORD * (2 * self.links + 1)

    @property
    def record(self) -> int:
        """Bytes of a record."""
        return self.vector_offset + _WORD * self.dim + 8

    @property
    def upper_offset(self) -> int:
        """Offset of the upper lists."""
        return _HEADER.size + self.count * self.record

    def ids(self, content: mmap.mmap) -> Ids:
        """Return the ids of a file, int64 ``[n]``; all vectors must have unit length.

        Raises:
            GraphUnusableError: one has not; distances from it would not be numbers.

        """
        ids, mapped, vectors = np.empty(self.count, dtype=np.int64), self.mapped_ids(content), self.vectors(content)
        for some in self.slices():
            ids[some] = mapped[some].astype(np.int64)
            if not are_unit(vectors[some]).all():  # here, where their pages are mapped anyway
                raise GraphUnusableError(f"{GRAPH} holds vectors that are not of unit length")
            release(content)
        return ids

    def mapped_ids(self, content: mmap.mmap) -> npt.NDArray[np.uint64]:
        """Return the ids as stored by hnswlib, uint64 ``[n]``, mapped."""
        start = _HEADER.size + self.record - 8
        return np.ndarray((self.count,), "<u8", content, start, strides=(self.record,))

    def slices(self) -> Iterator[slice]:
        """Yield slices that cover all elements, each of little memory."""
        step = max(1, _BYTES_AT_A_TIME // self.record)
        return (slice(start, start + step) for start in range(0, self.count, step))

    def vectors(self, content: mmap.mmap) -> Vectors:
        """Return the vectors of a file, float32 ``[n, d]``, mapped."""
        start, strides = _HEADER.size + self.vector_offset, (self.record, _WORD)
        return np.ndarray((self.count, self.dim), "<f4", content, start, strides=strides)

    def records(self, content: mmap.mmap) -> Words:
        """Return the records of a file as words, uint32 ``[n, w]``, mapped."""
        return np.ndarray((self.count, self.record // _WORD), "<u4", content, _HEADER.size)

    def upper(self, content: mmap.mmap) -> Words:
        """Return everything after the records as words, uint32 ``[w]``, mapped."""
        return np.ndarray(((len(content) - self.upper_offset) // _WORD,), "<u4", content, self.upper_offset)


def read_layout(file: IO[bytes], dim: int) -> Layout:
    """Read the header of a file of vectors of ``dim`` numbers.

    Raises:
        GraphUnusableError: hnswlib writes no such header, or it contradicts the size of the file.

    """
    file.seek(0)
    header = file.read(_HEADER.size)
    if len(header) < _HEADER.size:
        raise GraphUnusableError(f"{GRAPH} is too short")
    level0, capacity, count, record, id_offset, vector_offset, highest, entry, *links = _HEADER.unpack(header)
    upper_links, links0, m, mult, ef_construction = links
    layout = Layout(count, dim, m, highest, entry, ef_construction)
    offsets = (layout.record, layout.record - 8, layout.vector_offset)
    if (
        (upper_links, links0) != (m, 2 * m)
        or not 2 <= m <= _MAX_LINKS
        or not 1 <= dim <= _MAX_DIM
        or (level0, (record, id_offset, vector_offset)) != (0, offsets)
    ):
        raise GraphUnusableError(f"{GRAPH} has a layout that this version does not know")
    if not count <= min(capacity, _MAX_ELEMENTS) or ef_construction < m or not _is_level_factor(mult, m):
        raise GraphUnusableError(f"{GRAPH} has a header that hnswlib does not write")
    size = os.fstat(file.fileno()).st_size
    if layout.upper_offset + _WORD * count > size or size % _WORD != _HEADER.size % _WORD:
        raise GraphUnusableError(f"{GRAPH} has {size:,} bytes, which do not fit {count:,} elements")
    begins = (highest, entry) == (-1, _NOBODY) if count == 0 else 0 <= highest <= _HIGHEST_LEVEL and entry < count
    if not begins:
        raise GraphUnusableError(f"{GRAPH} has no entry point for searches")
    return layout


def _is_level_factor(mult: float, m: int) -> bool:
    """Tell whether this is hnswlib's factor for drawing the levels of new elements."""
    return math.isclose(mult, 1 / math.log(m), rel_tol=1e-9)


def map_file(file: IO[bytes]) -> mmap.mmap:
    """Map a file for reading."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def release(content: mmap.mmap) -> None:
    """Drop the used pages of a mapped file from this process's memory."""
    if hasattr(mmap, "MADV_DONTNEED"):
        content.madvise(mmap.MADV_DONTNEED)


def check(file: IO[bytes], layout: Layout) -> None:
    """Check everything that hnswlib follows: list lengths, links, levels, file end, ids.

    Takes about a twentieth of the loading time, and at most 200 MB plus a byte for each element.

    Args:
        file: the file.
        layout: its header.

    Raises:
        GraphUnusableError: hnswlib must not read it.

    """
    content = map_file(file)
    _check_records(content, layout)
    words = layout.upper(content)
    levels = _levels(content, words, layout)
    if layout.count and not levels.max() == levels[layout.entry_point] == layout.highest:
        raise GraphUnusableError(f"{GRAPH} has an entry point that is not on the highest level")
    _check_upper(content, words, layout, levels)


def _check_records(content: mmap.mmap, layout: Layout) -> None:
    """Check the lists of level 0, and the spread of the ids.

    Unused room in a list holds zeros, or earlier links.
    """
    records, ids, room, last = layout.records(content), layout.mapped_ids(content), 2 * layout.links, 0
    for some in layout.slices():
        # The upper half of a length marks removed elements; an index has those in its database.
        longest, farthest = records[some, 0].max(), records[some, 1 : room + 1].max()
        _check_lists(int(longest), room, int(farthest), layout.count)
        last = max(last, int(ids[some].max()))
        release(content)
    if layout.count**2 > _MAX_COMPARISONS and last > max(_MAX_COMPARISONS, _SPARSEST_IDS * layout.count):
        raise GraphUnusableError(f"{GRAPH} has ids up to {last:,}, too far apart for a table of {layout.count:,}")


def _check_lists(longest: int, room: int, last: int, count: int) -> None:
    if longest > room:
        raise GraphUnusableError(f"{GRAPH} has a list of {longest:,} links; at most {room:,} fit")
    if last >= count:
        raise GraphUnusableError(f"{GRAPH} has a link to element {last:,} of {count:,}")


def _levels(content: mmap.mmap, words: Words, layout: Layout) -> Levels:
    """Return each element's highest level; each upper list's size locates the next list."""
    levels = np.zeros(layout.count, dtype=np.uint8)
    start = element = 0
    while start < len(words):
        window = words[start : start + _WORDS_AT_A_TIME]
        places, sizes = _sizes(window)
        high = sizes // (_WORD * layout.list_words)
        if (high * (_WORD * layout.list_words) != sizes).any() or high.max(initial=0) > layout.highest:
            raise GraphUnusableError(f"{GRAPH} has upper lists of an impossible size")
        used, stop = high * layout.list_words, len(window)
        if len(places) and places[-1] + 1 + used[-1] > stop:
            if start + stop == len(words):
                raise GraphUnusableError(f"{GRAPH} ends within a list")
            places, high, used, stop = places[:-1], high[:-1], used[:-1], int(places[-1])
        elements = element + places - np.cumsum(used) + used
        element += stop - int(used.sum())
        if element > layout.count:
            break
        levels[elements] = high
        start += stop
        release(content)
    if element != layout.count:
        raise GraphUnusableError(f"{GRAPH} has upper lists for another number of elements than {layout.count:,}")
    return levels


def _sizes(window: Words) -> tuple[Ids, Ids]:
    """Return places and values of all nonzero sizes, int64 ``[s]``; ``window`` begins with a size.

    A size is followed by that many bytes, and then by the next size. So each word has a successor,
    as if it were a size; following them from the first word gives the sizes.
    """
    is_filled = window != 0
    filled = np.flatnonzero(is_filled)
    filled_before = np.zeros(len(window) + 1, dtype=np.int64)
    np.cumsum(is_filled, out=filled_before[1:])
    ends = filled + 1 + window[filled] // _WORD
    following = memoryview(filled_before[np.minimum(ends, len(window))])
    chain, at = [], 0
    while at < len(filled):
        chain.append(at)
        at = following[at]
    places = filled[chain] if chain else filled[:0]
    return places, window[places].astype(np.int64)


def _check_upper(content: mmap.mmap, words: Words, layout: Layout, levels: Levels) -> None:
    """Check the upper lists: each linked element has a list at the same level."""
    step, before = _WORDS_AT_A_TIME, 0
    for start in range(0, layout.count, step):
        some = levels[start : start + step]
        tall = np.flatnonzero(some)
        high = some[tall].astype(np.int64)
        earlier = np.cumsum(high) - high
        level = np.arange(high.sum()) - np.repeat(earlier, high)
        place = np.repeat(start + tall + 1 + (before + earlier) * layout.list_words, high) + level * layout.list_words
        for first in range(0, len(place), max(1, step // layout.list_words)):
            lists = slice(first, first + max(1, step // layout.list_words))
            _check_upper_lists(words, place[lists], level[lists] + 1, layout, levels)
            release(content)
        before += int(high.sum())


def _check_upper_lists(words: Words, places: Ids, level: Ids, layout: Layout, levels: Levels) -> None:
    """Check the lists at these words, of these levels, int64 ``[l]``."""
    lists = np.lib.stride_tricks.sliding_window_view(words, layout.list_words)[places]
    lengths, links = lists[:, 0], lists[:, 1:]
    _check_lists(int(lengths.max()), layout.links, 0, layout.count)
    used = links[np.arange(layout.links) < lengths[:, None]]
    _check_lists(0, layout.links, int(used.max(initial=0)), layout.count)
    if (levels[used] < np.repeat(level, lengths)).any():
        raise GraphUnusableError(f"{GRAPH} has a link at a level that the other element does not have")
