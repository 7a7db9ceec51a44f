"""A search request: how many pictures it returns, in which order, and which pictures count."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from ...errors import QueryError
from ...text import printable

__all__ = ["MAX_DISTANCE", "NEAR_DUPLICATE", "Method", "SearchRequest", "names"]

Method = Literal["auto", "exact", "hnsw"]
# Squared distance of unit vectors that point in opposite directions.
MAX_DISTANCE = 4.0
# Squared distance up to which pictures are near-duplicates by default. Measured with the bundled
# model (benchmarks/near_duplicates.py, docs/results.md): it includes re-compressed and slightly
# brightened copies, and very few pairs of different pictures.
NEAR_DUPLICATE = 0.05
_DISTANCES = {"ge": 0, "le": MAX_DISTANCE, "allow_inf_nan": False}
# Metadata of an option that can exclude all pictures: a query without hits is repeated without it.
_RESTRICTS: dict[str, Any] = {"restricts": True}


def _served(description: str, **limits: float) -> dict[str, Any]:
    """Return the metadata of an option that the HTTP API has: its schema."""
    return {"schema": {"description": description, **limits}}


@dataclass(frozen=True)
class SearchRequest:
    """The options of a search; hashable, so that the server can batch equal requests.

    Attributes:
        k: number of pictures, at least 1.
        farthest: return the farthest first instead of the nearest.
        label: only pictures with one of these labels; None: all.
        path: only pictures whose path matches one of these patterns, see
            :meth:`~.index.Index.search`; None: all.
        max_distance: only pictures at most this far (squared Euclidean); None: all.
        method: ``exact`` scans, ``hnsw`` uses the graph, ``auto`` takes the faster one.
        unique: drop hits within this distance of a better hit; that hit counts them in
            ``near_duplicates``.
        leave_out_query: drop pictures whose file has the content of the query's file.

    """

    k: int = field(default=10, metadata=_served("Number of pictures.", ge=1))
    farthest: bool = field(default=False, metadata=_served("The least similar pictures instead."))
    label: tuple[str, ...] | None = field(
        default=None,
        metadata=_RESTRICTS | _served("Only pictures with this label; may be given several times."),
    )
    path: tuple[str, ...] | None = field(default=None, metadata=_RESTRICTS)
    max_distance: float | None = field(
        default=None,
        metadata=_RESTRICTS
        | _served("Only pictures within this distance, squared Euclidean between unit vectors.", **_DISTANCES),
    )
    method: Method = "auto"
    unique: float | None = field(
        default=None,
        metadata=_RESTRICTS
        | _served("Leave out near-duplicates: hits within this distance of a better hit (such as 0.05).", **_DISTANCES),
    )
    leave_out_query: bool = field(
        default=False,
        metadata=_RESTRICTS | _served("Leave out the query's own file and its exact copies."),
    )

    @property
    def distance_limit(self) -> float:
        """The largest distance of a hit; infinite without a limit."""
        return math.inf if self.max_distance is None else self.max_distance

    @property
    def chooses(self) -> bool:
        """Whether hits are chosen among the nearest one by one, so that others may be left out."""
        return self.unique is not None or self.leave_out_query

    @property
    def filtered(self) -> bool:
        """Whether labels or paths filter the pictures."""
        return self.label is not None or self.path is not None

    def check(self) -> None:
        """Check the options, independently of the index.

        Raises:
            QueryError: a value is out of range, or two options exclude each other.

        """
        if self.max_distance is not None and self.farthest:
            raise QueryError("The farthest pictures were requested with a largest distance; expected one or the other.")
        if self.max_distance is not None and not 0 <= self.max_distance < math.inf:
            raise QueryError(f"The largest distance is {self.max_distance}; expected a squared distance, such as 0.5.")
        if self.unique is not None and not self.unique >= 0:
            raise QueryError(
                f"The largest distance of near-duplicates is {self.unique}; expected 0 or more, such as 0.05."
            )
        if self.k < 1:
            raise QueryError(f"k is {self.k}; expected at least 1.")
        if self.method not in ("auto", "exact", "hnsw"):
            raise QueryError(f"The method {printable(str(self.method))!r} is unknown; expected auto, exact or hnsw.")

    def too_few(self, count: int) -> str | None:
        """Return the remark that only ``count`` pictures qualify; None if that is not to be remarked."""
        if count >= self.k or self.max_distance is not None:
            return None
        if self.chooses:
            return f"{self.k} pictures were requested; only {count} can be returned."
        kinds = [name for name, value in (("label", self.label), ("path", self.path)) if value is not None]
        such = f" with this {' and '.join(kinds)}" if kinds else ""
        return f"{self.k} pictures were requested, {count} exist{such}: all of them are returned."

    def loosened(self) -> dict[str, SearchRequest]:
        """Return the request without each of its restrictions, keyed by the command's option."""
        initial: dict[str, Any] = {
            option.name: option.default for option in fields(self) if "restricts" in option.metadata
        }
        return {
            f"--{name.replace('_', '-')}": replace(self, **{name: value})
            for name, value in initial.items()
            if getattr(self, name) != value
        }

    def conditions(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Yield the options for display: names and their values."""
        yield "k", (f"{self.k:,}",)
        if self.farthest:
            yield "order", ("farthest first",)
        if self.label:
            yield "label", self.label
        if self.path:
            yield "path", self.path
        if self.max_distance is not None:
            yield "distance", (f"at most {self.max_distance:g}",)
        if self.unique is not None:
            yield "near-duplicates", (f"at most {self.unique:g} apart are hidden",)
        if self.leave_out_query:
            yield "the query itself", ("left out",)
        if self.method != "auto":
            yield "search", (self.method,)


def names(value: str | Sequence[str] | None) -> tuple[str, ...] | None:
    """Return one name or several as a tuple."""
    return value if value is None else (value,) if isinstance(value, str) else tuple(value)
