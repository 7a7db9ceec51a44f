"""Items with equal vectors, which share one node of a graph.

A node for each would break the graph. All links of such a node lead to others at distance 0, so a
search that reaches it finds nothing else. A search for ``k`` has to process all of them.
"""

from __future__ import annotations

import binascii
import hashlib
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .backend import GraphUnusableError, Ids, Vectors

__all__ = [
    "NO_IDS",
    "Bools",
    "Nodes",
    "VectorTable",
    "decode_copies",
    "elect",
    "encode_copies",
    "first_equal",
    "grouped",
]

Bools = npt.NDArray[np.bool_]
Digests = npt.NDArray[np.uint64]

_ROWS_AT_A_TIME = 4096
_DIGEST_BYTES = 16


@dataclass(frozen=True)
class Nodes:
    """The items of each of ``n`` distinct vectors.

    Attributes:
        ids: int64 ``[n]``, the lowest id of each in the index; any id for a vector without items.
        live: bool ``[n]``, whether the vector has an item; None: all have.
        places: int64 ``[m]``, the vectors of further items, ascending.
        more: int64 ``[m]``, the ids of these, ascending for each vector.

    """

    ids: Ids
    live: Bools | None
    places: Ids
    more: Ids

    @classmethod
    def single(cls, ids: Ids) -> Nodes:
        """Return nodes of one item each."""
        return cls(ids, None, NO_IDS, NO_IDS)

    @property
    def count(self) -> int:
        """The number of vectors with items."""
        return len(self.ids) if self.live is None else int(self.live.sum())

    @property
    def items(self) -> int:
        """The number of items."""
        return self.count + len(self.more)

    def item_ids(self) -> Ids:
        """Return the ids of all items, ascending."""
        own = self.ids if self.live is None else self.ids[self.live]
        return np.sort(np.concatenate([own, self.more]))

    def among(self, allowed: Ids) -> Nodes:
        """Return the nodes restricted to the ``allowed`` items."""
        own = np.isin(self.ids, allowed)
        return elect(self.ids, own if self.live is None else own & self.live, self.places, self.more, allowed=allowed)


NO_IDS: Ids = np.empty(0, dtype=np.int64)


def elect(own: Ids, own_live: Bools, places: Ids, more: Ids, *, allowed: Ids | None = None) -> Nodes:
    """Return the items of each vector, although the item it was added for may be gone.

    Args:
        own: int64 ``[n]``, the items that the vectors were added for: the lowest ids.
        own_live: bool ``[n]``, whether these count.
        places: int64 ``[m]``, the vectors of further items, ascending.
        more: int64 ``[m]``, the ids of these, ascending for each vector.
        allowed: the only further items that count.

    """
    if allowed is not None and len(more):
        counts = np.isin(more, allowed)
        places, more = places[counts], more[counts]
    ids, live = own, own_live
    if len(more):
        first = np.concatenate([[True], places[1:] != places[:-1]]) & ~own_live[places]
        ids, live = own.copy(), own_live.copy()
        ids[places[first]], live[places[first]] = more[first], True
        places, more = places[~first], more[~first]
    return Nodes(ids, None if live.all() else live, places, more)


def grouped(ids: Ids, vectors: Vectors) -> tuple[Nodes, Vectors]:
    """Group the items ``ids``, ascending, by vector; also return the distinct vectors.

    ``vectors`` and the result are float32 ``[n, d]``.
    """
    first = first_equal(vectors)
    own = first == np.arange(len(ids))
    if own.all():
        return Nodes.single(ids), vectors
    place = np.cumsum(own) - 1
    places, more = place[first[~own]], ids[~own]
    order = np.lexsort((more, places))
    return Nodes(ids[own], None, places[order], more[order]), vectors[own]


def first_equal(vectors: Vectors) -> Ids:
    """Return the first row equal to each row, int64 ``[n]``."""
    return _first(_digests(vectors))


class VectorTable:
    """Finds the node of a known vector.

    It holds digests of vectors instead of vectors. Of a graph file, it reads only vectors that
    begin like the given one.
    """

    def __init__(self, nodes: Ids = NO_IDS, vectors: Vectors | None = None) -> None:
        """Start with a graph file's nodes, int64 ``[n]``, and their vectors, float32 ``[n, d]``."""
        self._nodes, self._vectors = nodes, vectors
        beginnings = np.empty(0, dtype=np.float32) if vectors is None else vectors[:, 0]
        self._order = np.argsort(beginnings, kind="stable")
        self._beginnings = beginnings[self._order]
        self._unread = np.ones(len(nodes), dtype=np.bool_)
        # Sorted digests with their nodes; the first level is the largest.
        self._levels: list[tuple[Digests, Ids]] = []

    def nodes_of(self, ids: Ids, vectors: Vectors) -> Ids:
        """Return the node of each vector, int64 ``[n]``: known, or the first equal of ``ids``.

        Args:
            ids: int64 ``[n]``, of the items, none of them given before.
            vectors: float32 ``[n, d]``.

        """
        if self._vectors is not None:
            self._read_alike(self._vectors, vectors)
        digests = _digests(vectors)
        nodes = ids[_first(digests)]
        known = np.zeros(len(ids), dtype=np.bool_)
        for level, level_nodes in self._levels:
            places = np.minimum(np.searchsorted(level[:, 0], digests[:, 0]), len(level) - 1)
            here = (level[places] == digests).all(axis=1)
            nodes[here], known = level_nodes[places[here]], known | here
        new = ~known & (nodes == ids)
        self._put(digests[new], ids[new])
        return nodes

    def _read_alike(self, known: Vectors, vectors: Vectors) -> None:
        """Add the file's vectors that begin like one of these."""
        beginnings = np.unique(vectors[:, 0])
        starts = np.searchsorted(self._beginnings, beginnings, side="left")
        stops = np.searchsorted(self._beginnings, beginnings, side="right")
        some = stops > starts
        if not some.any():
            return
        ranges = zip(starts[some].tolist(), stops[some].tolist(), strict=True)
        places = np.concatenate([self._order[start:stop] for start, stop in ranges])
        places = np.sort(places[self._unread[places]])
        self._unread[places] = False
        self._put(_digests(known, places), self._nodes[places])

    def _put(self, digests: Digests, nodes: Ids) -> None:
        if len(nodes) == 0:
            return
        self._levels.append(_in_order(digests, nodes))
        while len(self._levels) > 1 and len(self._levels[-2][1]) <= 2 * len(self._levels[-1][1]):
            (one, some), (other, others) = self._levels.pop(), self._levels.pop()
            self._levels.append(_in_order(np.concatenate([other, one]), np.concatenate([others, some])))


def _in_order(digests: Digests, nodes: Ids) -> tuple[Digests, Ids]:
    order = np.argsort(digests[:, 0], kind="stable")
    return digests[order], nodes[order]


def _digests(vectors: Vectors, places: Ids | None = None) -> Digests:
    """Return 128-bit digests, uint64 ``[n, 2]``, of the rows or of those at ``places``."""
    count, width = len(vectors) if places is None else len(places), 4 * vectors.shape[1]
    parts: list[bytes] = []
    for start in range(0, count, _ROWS_AT_A_TIME):
        some = slice(start, start + _ROWS_AT_A_TIME)
        # Adding 0 turns -0 into 0, which is equal but has other bits.
        rows = (vectors[some if places is None else places[some]] + np.float32(0)).tobytes()
        parts += [
            hashlib.blake2b(rows[at : at + width], digest_size=_DIGEST_BYTES).digest()
            for at in range(0, len(rows), width)
        ]
    return np.frombuffer(b"".join(parts), dtype=np.uint64).reshape(-1, 2)


def encode_copies(ids: Ids, nodes: Ids) -> Mapping[str, Any]:
    """Return the items that share another's node, as JSON values.

    Args:
        ids: int64 ``[m]``, of the items.
        nodes: int64 ``[m]``, the id of the item that each one's node was made for.

    """
    order = np.argsort(ids)
    return {"count": len(ids), "ids": _packed(ids[order]), "nodes": _packed(nodes[order])}


def decode_copies(document: Any, nodes: Ids, covers: int, limit: int) -> tuple[Ids, Ids]:
    """Return the places of nodes, int64 ``[m]``, ascending, and each one's further items ``[m]``.

    Args:
        document: see :func:`encode_copies`; None: from an earlier version with a node for each
            item.
        nodes: int64 ``[n]``, the ids of the items that the nodes were made for.
        covers: the last id in the graph.
        limit: limit for items; a few bytes can unpack to any number of them.

    Raises:
        GraphUnusableError: not an output of :func:`encode_copies`, or about other nodes.

    """
    if document is None:
        return NO_IDS, NO_IDS
    try:
        count = document["count"]
        if not 0 <= count <= limit:
            raise ValueError(count)
        ids, of = _unpacked(document["ids"], count), _unpacked(document["nodes"], count)
    except (TypeError, KeyError, ValueError, OverflowError, zlib.error):
        raise GraphUnusableError("the record of equal vectors in the graph cannot be read") from None
    if count == 0:
        return NO_IDS, NO_IDS
    order = np.argsort(nodes, kind="stable")
    places = order[np.minimum(np.searchsorted(nodes, of, sorter=order), len(nodes) - 1)] if len(nodes) else NO_IDS
    ascending = bool((ids[1:] > ids[:-1]).all()) and ids[-1] <= covers
    if (
        not ascending
        or len(nodes) == 0
        or (nodes[places] != of).any()
        or (ids <= of).any()
        or np.isin(ids, nodes).any()
    ):
        raise GraphUnusableError("the record of equal vectors does not belong to the graph")
    by_place = np.lexsort((ids, places))
    return places[by_place], ids[by_place]


def _first(digests: Digests) -> Ids:
    """Return the first row with each row's digest."""
    _, first, group = np.unique(digests[:, 0], return_index=True, return_inverse=True)
    rows: Ids = first[group].astype(np.int64, copy=False)
    other = digests[rows, 1] != digests[:, 1]
    rows[other] = np.flatnonzero(other)
    return rows


def _packed(numbers: Ids) -> str:
    differences = np.diff(numbers, prepend=np.int64(0)).astype("<i8")
    return binascii.b2a_base64(zlib.compress(differences.tobytes()), newline=False).decode("ascii")


def _unpacked(text: str, count: int) -> Ids:
    """Undo :func:`_packed` for ``count`` numbers; ValueError if the text is invalid."""
    unpacking = zlib.decompressobj()
    content = unpacking.decompress(binascii.a2b_base64(text, strict_mode=True), 8 * count + 1)
    if len(content) != 8 * count or unpacking.unconsumed_tail or not unpacking.eof:
        raise ValueError(count)
    numbers: Ids = np.cumsum(np.frombuffer(content, dtype="<i8"), dtype=np.int64)
    return numbers
