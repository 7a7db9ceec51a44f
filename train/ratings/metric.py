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
import torch
from torch.nn import functional

__all__ = ["TripletMetric"]

Floats = npt.NDArray[np.float64]
Rows = npt.NDArray[np.int64]

# The paper's g.
_GAP = 0.2
# The hinge is rounded at its corner, log(1 + exp(b h)) / b, so that the best metric is unique.
_SHARPNESS = 5.0
_STEPS = 200
_TOLERANCE = 1e-7


class TripletMetric:
    """Metrics that some of the triplets teach, and their margins for others.

    Args:
        query: points, float64 ``[t, m]``.
        positive: more similar to the query, float64 ``[t, m]``.
        negative: less similar, float64 ``[t, m]``.
        start: margins of the start, float64 ``[t]``.

    """

    def __init__(self, query: Floats, positive: Floats, negative: Floats, start: Floats) -> None:
        self._positive = torch.from_numpy(query - positive)
        self._negative = torch.from_numpy(query - negative)
        self.start = torch.from_numpy(start)
        self._plain = self._negative.square().sum(1) - self._positive.square().sum(1)
        self._products = (self._positive @ self._positive.T).square_()
        self._products += (self._negative @ self._negative.T).square_()
        crossed = (self._negative @ self._positive.T).square_()
        self._products -= crossed
        self._products -= crossed.T

    def margins(
        self, rows: Rows, learned: Rows | None = None, factors: torch.Tensor | None = None, strength: float = 0.0
    ) -> torch.Tensor:
        """Return D(q, p-) - D(q, p+) of triplets, ``[r]``: above 0 where the order is right.

        Args:
            rows: the triplets.
            learned: those that a metric was learned from; None: the margins of the start.
            factors: see :meth:`fit`.
            strength: the share of the metric in the distances; the start has the rest.

        """
        if learned is None or factors is None:
            return self.start[rows]
        products = self._products[np.ix_(rows, learned)]
        return (1 - strength) * self.start[rows] + strength * (self._plain[rows] + products @ factors)

    def fit(
        self, rows: Rows, weights: Floats, strength: float, decay: float, first: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return the coefficients of the triplets in the best metric, float64 ``[r]``.

        It minimises the sum of the weighted hinges max(0, g - margin), plus ``decay`` |M - I|^2.

        Args:
            rows: the triplets to learn from, at least one.
            weights: of their losses, float64 ``[r]``, with the sum 1.
            strength: see :meth:`margins`.
            decay: above 0.
            first: where the search begins; it does not change the result.

        """
        products = self._products[np.ix_(rows, rows)]
        weight = torch.from_numpy(weights)
        plain = (1 - strength) * self.start[rows] + strength * self._plain[rows]
        factors = torch.zeros(len(rows), dtype=torch.float64) if first is None else first.clone()
        factors.requires_grad_()
        search = torch.optim.LBFGS(
            [factors], max_iter=_STEPS, tolerance_grad=0, tolerance_change=_TOLERANCE, line_search_fn="strong_wolfe"
        )

        def loss() -> torch.Tensor:
            search.zero_grad()
            change = products @ factors
            hinge = functional.softplus(_GAP - plain - strength * change, beta=_SHARPNESS)
            value = weight @ hinge + decay * (factors @ change)
            value.backward()  # type: ignore[no-untyped-call]
            return value

        search.step(loss)  # type: ignore[no-untyped-call]
        return factors.detach()

    def square_root(self, rows: Rows, factors: torch.Tensor) -> Floats:
        """Return W with W^T W = M, float64 ``[m, m]``.

        Directions along which M would make a squared distance negative are left out.
        """
        change = (self._negative[rows].T * factors) @ self._negative[rows]
        change -= (self._positive[rows].T * factors) @ self._positive[rows]
        values, directions = np.linalg.eigh(np.eye(len(change)) + change.numpy())
        root: Floats = np.sqrt(np.maximum(values, 0))[:, None] * directions.T
        return root
