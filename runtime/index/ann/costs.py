"""The cost model of searches: scan or graph, with the cost of loading the graph."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["MANY", "Choice", "Costs"]

_MAX_MS = 1e12
# Queries at once from which a scan is a matrix product, and a graph search uses all cores.
MANY = 16


@dataclass(frozen=True)
class Costs:
    """Milliseconds, measured when the graph was built.

    Attributes:
        scan: exact search for one query.
        scan_each: the same per query of a large batch.
        graph: search through the loaded graph for one query.
        graph_each: the same per query of a large batch.
        load: loading the graph.

    """

    scan: float
    scan_each: float
    graph: float
    graph_each: float
    load: float

    @classmethod
    def from_json(cls, document: Any) -> Costs | None:
        """Return the recorded costs; None if they are missing or make no sense."""
        names = [field.name for field in fields(cls)]
        if not isinstance(document, Mapping) or set(document) != set(names):
            return None
        values = [document[name] for name in names]
        if not all(isinstance(value, int | float) and 0 <= value <= _MAX_MS for value in values):
            return None
        return cls(*map(float, values))

    @classmethod
    def guessed(cls, items: int, dim: int) -> Costs:
        """Return estimated costs for a graph of an earlier version, which did not measure."""
        million_numbers = items * dim / 1e6
        return cls(
            scan=0.16 * million_numbers,
            scan_each=0.11 * million_numbers,
            graph=0.25,
            graph_each=0.1,
            load=9 * million_numbers,
        )

    def to_json(self) -> dict[str, float]:
        """Return the costs as JSON values, to four digits."""
        return {name: float(f"{value:.4g}") for name, value in asdict(self).items()}

    def gained_by_graph(self, queries: int) -> float:
        """Return the time that a loaded graph saves for this number of queries at once."""
        return queries * (self.scan_each - self.graph_each if queries >= MANY else self.scan - self.graph)


class Choice:
    """Chooses between scan and graph for each request, without knowing how many will come.

    While the graph is not loaded, it sums the time that the graph would have saved, this request
    included. Once the sum exceeds the loading time, the graph is loaded. So total time is at most
    twice that of an oracle that knows the number of queries.
    """

    def __init__(self) -> None:
        self._missed = 0.0
        self._lock = threading.Lock()

    def is_graph(self, costs: Costs | None, queries: int, *, loaded: bool) -> bool:
        """Tell whether this number of queries at once should use the graph.

        Args:
            costs: of the current index; None: unknown, or so small that a scan is always faster.
            queries: number of queries at once.
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
