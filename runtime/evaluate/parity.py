"""Do two ways of running one network give the same vectors? Figures and tolerances, for export and box alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["TOLERANCES", "Tolerance", "VectorDifference", "compare_vectors"]

Vectors = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Tolerance:
    """What still counts as the same: largest difference of a component, smallest cosine of a picture."""

    max_abs_difference: float
    min_cosine: float


# float32 in another order of additions; far below what can change a ranking.
TOLERANCES: Mapping[str, Tolerance] = {"fp32": Tolerance(max_abs_difference=1e-4, min_cosine=1 - 1e-6)}


@dataclass(frozen=True)
class VectorDifference:
    """How far two sets of unit vectors are apart, over all pictures."""

    max_abs_difference: float
    min_cosine: float
    mean_cosine: float

    def failures(self, tolerance: Tolerance) -> list[str]:
        """Return a phrase for each figure that is out of tolerance."""
        found = []
        # Written so that NaN fails too.
        if not self.max_abs_difference <= tolerance.max_abs_difference:
            found.append(
                f"the largest difference of a component is {self.max_abs_difference:.2e}, "
                f"more than {tolerance.max_abs_difference:.0e}"
            )
        if not self.min_cosine >= tolerance.min_cosine:
            found.append(f"the smallest cosine is {self.min_cosine:.7f}, less than {tolerance.min_cosine:.7f}")
        return found

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
