"""Parity of two engines for one network: figures and tolerances, shared by export and runtime."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import EvaluationError

__all__ = ["TOLERANCES", "Tolerance", "VectorDifference", "compare_vectors"]

Vectors = npt.NDArray[np.float32]

# With few queries, this many neighbours may change class regardless of the share: a swap or two at
# ties.
_SWAPS = 2


@dataclass(frozen=True)
class Tolerance:
    """Limits within which two engines count as equal.

    ``max_abs_difference``: of a component. ``min_cosine``: of a picture. ``precision_change``: of
    precision@k. ``extreme_cosine``: of pictures without content, such as a black one. They are not
    searched for; the limit only catches overflow.
    """

    max_abs_difference: float
    min_cosine: float
    precision_change: float
    extreme_cosine: float

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
        return Tolerance(
            _tighter("largest difference", self.max_abs_difference, max_abs_difference),
            -_tighter("smallest cosine", -self.min_cosine, None if min_cosine is None else -min_cosine),
            _tighter("change of precision", self.precision_change, precision_change),
            self.extreme_cosine,
        )

    def ranking_failures(self, change: float, queries: int, k: int) -> list[str]:
        """Return a phrase if precision@k of so many queries changes by more than the tolerance."""
        allowed = max(self.precision_change, _SWAPS / (queries * k))
        if abs(change) <= allowed:  # false for NaN
            return []
        return [f"precision@{k} changes by {change:+.4f}, more than {allowed:.4f}"]


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
    # float32 with another order of additions; changes a ranking only by swaps of ties.
    "fp32": Tolerance(1e-4, 1 - 1e-6, 0.0005, 1 - 1e-6),
    # Eleven bits of each number: neighbours at nearly equal distances swap.
    "fp16": Tolerance(0.02, 0.999, 0.001, 0.99),
    # Eight bits: about three of the thirty nearest are replaced by others, nearly as near. Extreme
    # pictures leave the calibrated ranges: a network trained on handwritten digits alone gives 0.77
    # for a red picture.
    "int8": Tolerance(0.2, 0.95, 0.005, 0.6),
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
        # Written so that NaN fails too.
        if not self.max_abs_difference <= tolerance.max_abs_difference:
            failures.append(
                f"the largest difference of a component is {self.max_abs_difference:.2e}, "
                f"more than {tolerance.max_abs_difference:.0e}"
            )
        if not self.min_cosine >= tolerance.min_cosine:
            failures.append(f"the smallest cosine is {self.min_cosine:.7f}, less than {tolerance.min_cosine:.7f}")
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
