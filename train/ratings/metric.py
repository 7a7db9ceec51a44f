"""A metric that rated triplets teach: the paper's hinge, held near the start's own metric.

The learned distance is D(x, y) = (x - y)^T M (x - y) with a symmetric M. It is linear in M, and so are the margins
D(q, p-) - D(q, p+). With a convex loss there is one best M, which no draw and no number of steps decides. It is I plus
a sum of the triplets' own matrices (q - p-)(q - p-)^T - (q - p+)(q - p+)^T, each with a coefficient. So a fit searches
as many numbers as there are triplets, and needs no more of the pictures than the products of those matrices.
Schultz and Joachims, Learning a Distance Metric from Relative Comparisons, 2003.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit

__all__ = ["TripletMetric"]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# The paper's g.
_GAP = 0.2
# The hinge is rounded at its corner, log(1 + exp(b h)) / b, so that the best metric is unique.
_SHARPNESS = 5.0
_STEPS = 200
_TOLERANCE = 1e-9


class TripletMetric:
    """Metrics that some of the triplets teach.

    Args:
        query: points, float64 ``[t, m]``.
        positive: more similar to the query, float64 ``[t, m]``.
        negative: less similar, float64 ``[t, m]``.
        start: margins of the start, float64 ``[t]``.

    """

    def __init__(self, query: Floats, positive: Floats, negative: Floats, start: Floats) -> None:
        self._positive, self._negative = query - positive, query - negative
        self._start = start
        self._plain = np.square(self._negative).sum(1) - np.square(self._positive).sum(1)
        self._products = np.square(self._positive @ self._positive.T)
        self._products += np.square(self._negative @ self._negative.T)
        crossed = np.square(self._negative @ self._positive.T)
        self._products -= crossed
        self._products -= crossed.T

    def _unlearned(self, rows: Rows, strength: float) -> Floats:
        """Return the margins by the metric I."""
        margins: Floats = (1 - strength) * self._start[rows] + strength * self._plain[rows]
        return margins

    def fit(self, rows: Rows, weights: Floats, strength: float, decay: float) -> Floats:
        """Return the coefficients of the triplets in the best metric, float64 ``[r]``.

        It minimises the sum of the weighted hinges max(0, g - margin), plus ``decay`` |M - I|^2.

        Args:
            rows: the triplets to learn from, at least one.
            weights: of their losses, float64 ``[r]``, with the sum 1.
            strength: the share of the metric in the distances; the start has the rest.
            decay: above 0.

        """
        products = self._products[np.ix_(rows, rows)]
        unlearned = self._unlearned(rows, strength)

        def loss(factors: Floats) -> tuple[float, Floats]:
            change = products @ factors
            lacking = _SHARPNESS * (_GAP - unlearned - strength * change)
            value = weights @ np.logaddexp(0, lacking) / _SHARPNESS + decay * (factors @ change)
            return float(value), products @ (2 * decay * factors - strength * weights * expit(lacking))

        options = {"maxiter": _STEPS, "ftol": _TOLERANCE}
        search = minimize(loss, np.zeros(len(rows)), jac=True, method="L-BFGS-B", options=options)
        factors: Floats = search.x
        return factors

    def square_root(self, rows: Rows, factors: Floats) -> Floats:
        """Return W with W^T W = M, float64 ``[m, m]``.

        Directions along which M would make a squared distance negative are left out.
        """
        change = (self._negative[rows].T * factors) @ self._negative[rows]
        change -= (self._positive[rows].T * factors) @ self._positive[rows]
        values, directions = np.linalg.eigh(np.eye(len(change)) + change)
        root: Floats = np.sqrt(np.maximum(values, 0))[:, None] * directions.T
        return root
