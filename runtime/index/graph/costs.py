"""What a search costs by a scan and through the graph, and which of the two is done sooner, loading included."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["MANY", "Choice", "Costs"]

_LONGEST_MS = 1e12
# Queries at a time from which on a scan is a product of matrices, and the graph is searched by all cores.
MANY = 16


@dataclass(frozen=True)
class Costs:
    """Milliseconds, measured when the graph was built.

    Attributes:
        scan: of an exact search for one query.
        scan_each: of one among many at a time.
        graph: of a search through the loaded graph for one query.
        graph_each: of one among many at a time.
        load: of loading the graph.

    """

    scan: float
    scan_each: float
    graph: float
    graph_each: float
    load: float

    @classmethod
    def from_json(cls, found: Any) -> Costs | None:
        """Return the costs that were recorded, None where there are none that make sense."""
        names = [field.name for field in fields(cls)]
        if not isinstance(found, Mapping) or set(found) != set(names):
            return None
        values = [found[name] for name in names]
        if not all(isinstance(value, int | float) and 0 <= value <= _LONGEST_MS for value in values):
            return None
        return cls(*map(float, values))

    @classmethod
    def guessed(cls, items: int, dim: int) -> Costs:
        """Return what is to be expected of a graph that an earlier version built, which did not measure."""
        million_numbers = items * dim / 1e6
        return cls(
            scan=0.16 * million_numbers,
            scan_each=0.11 * million_numbers,
            graph=0.25,
            graph_each=0.1,
            load=9 * million_numbers,
        )

    def to_json(self) -> dict[str, float]:
        """Return them as JSON can hold them, to four digits."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}

    def gained_by_graph(self, queries: int) -> float:
        """Return how much sooner so many queries at a time are answered by a loaded graph than by a scan."""
        return queries * (self.scan_each - self.graph_each if queries >= MANY else self.scan - self.graph)


class Choice:
    """Chooses between scan and graph as queries come, not knowing how many there will be.

    While the graph is not loaded, it counts what the queries would have gained by it, this one included; once that is
    more than loading costs, it is loaded. So a process never takes more than twice the time of one that had known.
    """

    def __init__(self) -> None:
        self._missed = 0.0
        self._lock = threading.Lock()

    def is_graph(self, costs: Costs | None, queries: int, *, loaded: bool) -> bool:
        """Tell whether so many queries at a time are to go through the graph.

        Args:
            costs: of the index as it is; None: not known, or so small that a scan is always sooner.
            queries: that are asked at a time.
            loaded: whether the graph is in memory.

        """
        if costs is None:
            return False
        gain = costs.gained_by_graph(queries)
        if loaded or gain <= 0:
            return gain > 0
        with self._lock:
            self._missed += gain
            return self._missed > costs.load
