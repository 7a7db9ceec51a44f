"""Parity of two engines for one network: figures and tolerances, shared by export and runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError
from ..metrics import Judged, Ranking, neighbour_overlap
from ..scan import squared_distances

__all__ = [
    "TOLERANCES",
    "RankingChange",
    "Reference",
    "Tolerance",
    "VectorDifference",
    "compare_rankings",
    "compare_vectors",
]

Vectors = npt.NDArray[np.float32]

# With few queries, this many neighbours may change class regardless of the share: a swap or two at
# ties.
_SWAPS = 2


# The limit of the overlap was measured with this k; the nearest few differ more (0.70 for k = 1).
_OVERLAP_K = 30
# A loss counts if it exceeds the limit by this many standard errors (one-sided 95 %) …
_STANDARD_ERRORS = 1.645
# … or if it is this many times the limit: a small proof has large errors.
_LARGEST_LOSS = 4


@dataclass(frozen=True)
class RankingChange:
    """How another engine ranks the pictures that a reference ranked.

    ``precision``: the mean change of the queries' precision@k, negative for a loss; ``error``: its
    standard error, paired by query, 0 for a single query. ``overlap``: share of the reference's k
    nearest that the other engine finds too. ``chance``: the overlap of a random ranking.
    ``farther``: how much farther than the k-th nearest a neighbour of the reference lies by the
    other engine's vectors, at most, in squared distance; 0 where vectors of the gallery are known.
    """

    k: int
    queries: int
    precision: float
    error: float
    overlap: float
    chance: float
    farther: float = 0.0

    def least_overlap(self, share: float) -> float:
        """Return the overlap that is ``share`` of the way from chance to 1."""
        return self.chance + share * (1 - self.chance)

    def to_dict(self) -> dict[str, float]:
        """Return the figures for JSON."""
        return {
            "precision_change_at_k": self.precision,
            "precision_change_error": self.error,
            "neighbour_overlap_at_k": self.overlap,
            "chance_overlap_at_k": self.chance,
        }


@dataclass(frozen=True)
class Tolerance:
    """Limits within which two engines count as equal.

    ``max_abs_difference``: of a component. ``min_cosine``: of a picture. ``mean_cosine``: of all
    pictures. ``precision_change``: of precision@k. ``by_chance``: only a loss counts, and only if
    it exceeds the limit beyond its error, or four times the limit; otherwise any change counts.
    ``neighbour_overlap``: of the k nearest, above chance, for a k of at least 30.
    ``extreme_cosine``: of pictures without content, such as a black one. They are not searched for;
    the limit only catches overflow. ``farther``: of :class:`RankingChange`; None: the overlap
    decides.
    """

    max_abs_difference: float
    min_cosine: float
    mean_cosine: float
    precision_change: float
    by_chance: bool
    neighbour_overlap: float
    extreme_cosine: float
    farther: float | None

    def tightened(
        self,
        max_abs_difference: float | None = None,
        min_cosine: float | None = None,
        precision_change: float | None = None,
    ) -> Tolerance:
        """Return a tolerance that is no looser in any figure; None leaves a figure unchanged.

        Raises:
            EvaluationError: a figure would be looser.

        """
        return replace(
            self,
            max_abs_difference=_tighter("largest difference", self.max_abs_difference, max_abs_difference),
            min_cosine=-_tighter("smallest cosine", -self.min_cosine, None if min_cosine is None else -min_cosine),
            precision_change=_tighter("change of precision", self.precision_change, precision_change),
        )

    def for_one_engine(self) -> Tolerance:
        """Return the tolerance for one engine's vectors of the same pictures in other batches.

        Each picture has to meet the limit of the mean: batches change roundings alone.
        """
        return replace(self, min_cosine=max(self.min_cosine, self.mean_cosine))

    def ranking_failures(self, change: RankingChange) -> list[str]:
        """Return a phrase for each figure of a ranking out of tolerance."""
        failures = []
        # Written so that NaN fails too.
        if not self._allows(change):
            failures.append(self._precision_failure(change))
        least = change.least_overlap(self.neighbour_overlap)
        if change.k >= _OVERLAP_K and not change.overlap >= least:
            failures.append(
                f"the overlap of the {change.k} nearest with PyTorch's is {change.overlap:.4f}, less than {least:.4f}"
            )
        if self.farther is not None and not change.farther <= self.farther:
            failures.append(
                f"a picture of PyTorch's {change.k} nearest lies {change.farther:.1e} farther than the {change.k} "
                f"nearest here, more than {self.farther:.0e}"
            )
        return failures

    def _allows(self, change: RankingChange) -> bool:
        allowed = self._allowed_change(change)
        if not self.by_chance:
            return abs(change.precision) <= allowed
        loss = -change.precision
        most = max(_LARGEST_LOSS * self.precision_change, allowed)
        return loss - _STANDARD_ERRORS * change.error <= allowed and loss <= most

    def _allowed_change(self, change: RankingChange) -> float:
        return max(self.precision_change, _SWAPS / (change.queries * change.k))

    def _precision_failure(self, change: RankingChange) -> str:
        error = f" (standard error {change.error:.4f})" if self.by_chance else ""
        return (
            f"precision@{change.k} changes by {change.precision:+.4f}{error}, more than "
            f"{self._allowed_change(change):.4f}"
        )


def _tighter(what: str, documented: float, requested: float | None) -> float:
    if requested is None:
        return documented
    if not requested <= documented:
        raise EvaluationError(
            f"A {what} of {abs(requested):g} is looser than the documented {abs(documented):g}; tolerances can be "
            "tightened only."
        )
    return requested


TOLERANCES: Mapping[str, Tolerance] = {
    # float32 with another order of additions; changes a ranking only by swaps of ties. Pictures
    # that are equal make ties of any number, so the overlap has no limit.
    "fp32": Tolerance(1e-4, 1 - 1e-6, 1 - 1e-6, 0.0005, False, 0.0, 1 - 1e-6, 1e-3),
    # Eleven bits of each number: neighbours at nearly equal distances swap.
    "fp16": Tolerance(0.02, 0.999, 0.999, 0.001, False, 0.0, 0.99, 0.05),
    # Eight bits: about three of the thirty nearest are replaced by others, nearly as near. A single
    # picture may move: a cosine of 0.954 was measured where the ranking loses nothing. Extreme
    # pictures leave the calibrated ranges: a network trained on handwritten digits alone gives 0.77
    # for a red picture.
    "int8": Tolerance(0.6, 0.8, 0.97, 0.005, True, 0.8, 0.6, None),
}


@dataclass(frozen=True)
class VectorDifference:
    """Difference of two sets of unit vectors, over all pictures."""

    max_abs_difference: float
    min_cosine: float
    mean_cosine: float

    def failures(self, tolerance: Tolerance) -> list[str]:
        """Return a phrase for each figure out of tolerance."""
        failures = []
        if not self.max_abs_difference <= tolerance.max_abs_difference:
            failures.append(
                f"the largest difference of a component is {self.max_abs_difference:.2e}, "
                f"more than {tolerance.max_abs_difference:.0e}"
            )
        if not self.min_cosine >= tolerance.min_cosine:
            failures.append(f"the smallest cosine is {self.min_cosine:.7f}, less than {tolerance.min_cosine:.7f}")
        elif not self.mean_cosine >= tolerance.mean_cosine:
            failures.append(f"the mean cosine is {self.mean_cosine:.7f}, less than {tolerance.mean_cosine:.7f}")
        return failures

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        return asdict(self)


def compare_vectors(reference: Vectors, other: Vectors) -> VectorDifference:
    """Compare float32 ``[n, d]`` unit rows, row by row, in float64."""
    a, b = reference.astype(np.float64), other.astype(np.float64)
    products = np.einsum("nd,nd->n", a, b)
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosines = products / lengths
    return VectorDifference(
        max_abs_difference=float(np.abs(a - b).max()),
        min_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
    )


def compare_rankings(reference: Judged, other: Judged, gallery: int) -> RankingChange:
    """Compare two rankings of the same queries among the same ``gallery`` pictures."""
    changes = other.precisions - reference.precisions
    queries, k = reference.neighbours.shape
    error = float(changes.std(ddof=1) / np.sqrt(queries)) if queries > 1 else 0.0
    return RankingChange(
        k=k,
        queries=queries,
        precision=other.precision_at_k - reference.precision_at_k,
        error=error,
        overlap=neighbour_overlap(other.neighbours, reference.neighbours),
        chance=k / gallery,
    )


@dataclass(frozen=True)
class Reference:
    """PyTorch's side of a comparison of the same pictures in the same order.

    ``queries``: its vectors, float32 ``[q, d]``; ``gallery``: likewise ``[n, d]``, None where only
    its ranking is known; ``ranking``: its k nearest of each query.
    """

    queries: Vectors
    gallery: Vectors | None
    ranking: Judged

    def difference(self, queries: Vectors, gallery: Vectors) -> VectorDifference:
        """Compare with another engine's vectors: of queries and gallery, or of the queries alone."""
        if self.gallery is None:
            return compare_vectors(self.queries, queries)
        return compare_vectors(np.concatenate([self.queries, self.gallery]), np.concatenate([queries, gallery]))

    def change(self, queries: Vectors, gallery: Vectors, ranking: Ranking) -> RankingChange:
        """Compare with another engine's ranking, which its vectors gave."""
        change = compare_rankings(self.ranking, ranking, len(gallery))
        if self.gallery is not None:
            return change
        return replace(change, farther=self._farther(queries, gallery, ranking.distances[:, -1]))

    def _farther(self, queries: Vectors, gallery: Vectors, last: npt.NDArray[np.float64]) -> float:
        """Return how much farther than ``last``, float64 ``[q]``, the reference's neighbours lie."""
        farthest = [
            squared_distances(query, gallery[rows]).max()
            for query, rows in zip(queries, self.ranking.neighbours, strict=True)
        ]
        return float((np.array(farthest) - last).max())
