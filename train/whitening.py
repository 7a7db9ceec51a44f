"""Learned whitening: a linear map that equalises variation within classes in every direction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ..runtime.errors import TrainingError

__all__ = ["LinearMap", "learned_whitening"]

# Added to every variance within classes, as a share of their mean. It keeps directions in which few
# pictures of a class happen to differ from growing too large. Unseen classes rank equally well for
# 0.1 to 1.
_SHRINKAGE = 0.3


@dataclass(frozen=True)
class LinearMap:
    """``x -> weight @ x + bias``: weight float32 ``[d, F]``, bias float32 ``[d]``."""

    weight: npt.NDArray[np.float32]
    bias: npt.NDArray[np.float32]


def learned_whitening(
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    dim: int,
    shrinkage: float = _SHRINKAGE,
    *,
    classifier: npt.NDArray[np.float32] | None = None,
    share: float = 0.0,
) -> LinearMap:
    """Fit the discriminative whitening L_w of image retrieval.

    See Mikolajczyk and Matas 2007, and Radenovic et al. 2018, 3.3. Centre; divide by the square
    root of the covariance within classes; keep the ``dim`` directions of the largest remaining
    variance, in which classes differ. Scaled to a mean row length of 1.

    These directions fit the given classes. With ``share``, that share of the variance is the one
    between the classes of ``classifier``. The rows of a linear classifier are Σ⁻¹(μ_c − μ) for
    Gaussian classes with one covariance Σ. Whitened, they are the means of its classes, so none of
    their pictures is needed.

    Args:
        features: float32 ``[n, F]``, of any length.
        labels: int64 ``[n]``, their classes.
        dim: d, at most F.
        shrinkage: added to the variance within classes in every direction, times its mean.
        classifier: float32 ``[C, F]``, a classifier of (about) these features; needed with
            ``share``.
        share: weight of the classifier's classes in the choice of directions, 0 to 1.

    Raises:
        TrainingError: no class has pictures that differ.

    """
    wide = features.astype(np.float64)
    centred = wide - wide.mean(axis=0)
    within = _covariance(centred - _class_means(centred, labels))
    variances, directions = np.linalg.eigh(within)
    floor = shrinkage * variances.mean()
    if not floor > 0.0:
        raise TrainingError(
            "--whiten measures how pictures of one class differ, and found none that do; expected classes of several "
            "different pictures. Add pictures, or leave it out."
        )
    deviations = np.sqrt(np.maximum(variances, 0.0) + floor)
    spread = _of_trace_one(_covariance(centred @ (directions / deviations)))
    if classifier is not None and share:
        # x = directions · deviations · z, so that a row w scores z by (directions · deviations)ᵀ w.
        means = classifier.astype(np.float64) @ (directions * deviations)
        spread = (1.0 - share) * spread + share * _of_trace_one(_covariance(means - means.mean(axis=0)))
    _, principal = np.linalg.eigh(spread)
    weight = (directions / deviations @ principal[:, ::-1][:, :dim]).T
    weight /= np.linalg.norm(centred @ weight.T, axis=1).mean()
    return LinearMap(weight.astype(np.float32), (-weight @ wide.mean(axis=0)).astype(np.float32))


def _of_trace_one(covariance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Scale to a trace of 1, so that two of different units can be added."""
    scaled: npt.NDArray[np.float64] = covariance / np.trace(covariance)
    return scaled


def _class_means(rows: npt.NDArray[np.float64], labels: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Return the mean of each row's class, float64 ``[n, F]``."""
    _, numbers = np.unique(labels, return_inverse=True)
    sums = np.zeros((int(numbers.max()) + 1, rows.shape[1]))
    np.add.at(sums, numbers, rows)
    means: npt.NDArray[np.float64] = (sums / np.bincount(numbers)[:, None])[numbers]
    return means


def _covariance(rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    covariance: npt.NDArray[np.float64] = rows.T @ rows / len(rows)
    return covariance
