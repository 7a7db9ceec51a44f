"""Format the metrics as lines of text."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..text import markdown_table

if TYPE_CHECKING:
    from .comparison import ComparedModel, Comparison
    from .evaluation import Evaluation
    from .triplets import TripletReport

__all__ = ["comparison_lines", "evaluation_lines", "of_at_most", "triplet_lines"]

_WIDTH = 34
# For a missing or meaningless value.
_NONE = "–"
# With four decimals, it shows as 1.
_ALL = 0.99995


def evaluation_lines(result: Evaluation) -> list[str]:
    """Return the metrics of one model."""
    k = result.k
    rows = [
        (f"precision@{k}, exact search", result.runtime_exact),
        (f"precision@{k}, HNSW", result.runtime_hnsw),
        ("recall@1", result.recall_at_1),
        ("MAP@R", result.map_at_r),
        (f"HNSW recall@{k} against exact", result.hnsw_recall_at_k),
    ]
    if result.reference is not None:
        rows.insert(0, (f"precision@{k}, PyTorch reference", result.reference))
    lines = [f"{result.queries:,} queries, {result.gallery:,} gallery pictures"]
    possible = of_at_most(result.possible)
    lines += [_line(name, f"{value:.4f}{possible * name.startswith('precision')}") for name, value in rows]
    if result.difference is not None:
        lines.append(_line("largest difference from PyTorch", f"{result.difference.max_abs_difference:.1e}"))
        lines.append(_line("smallest cosine with PyTorch", f"{result.difference.min_cosine:.7f}"))
    return lines


def of_at_most(possible: float) -> str:
    """Return the upper limit of a precision, if classes are too small for 1."""
    return f" of at most {possible:.4f}" if possible < _ALL else ""


def triplet_lines(judged: TripletReport) -> list[str]:
    """Return the results on rated triplets."""
    lines = [f"{judged.count:,} triplets", _line("similarity precision", f"{judged.similarity_precision:.4f}")]
    top = judged.score_at_top_k
    if top is not None:
        reach = f"of {top.counted:,} triplets that reach the {top.k} nearest"
        lines.append(_line(f"score-at-top-{top.k}", f"{top.score}  ({reach})"))
    return lines


def _line(name: str, value: str) -> str:
    return f"  {name:<{_WIDTH}} {value}"


def comparison_lines(comparison: Comparison) -> list[str]:
    """Return several models as a Markdown table."""
    k = comparison.k
    possible = min((model.evaluation.possible for model in comparison.models), default=1.0)
    at_most = f" At most {possible:.4f} is possible as precision@{k}." if possible < _ALL else ""
    header = (
        *("model", "precision", "MB", "dim", "picture", f"precision@{k}", "HNSW", "recall@1", "MAP@R", "change"),
        *("mean cosine", "min cosine", f"overlap@{k}", "ms", "pictures/s", "ratio"),
    )
    rows = [(*_what(model), *_ranking(model), *_from_first(model), *_speed(model)) for model in comparison.models]
    return [
        f"{comparison.queries:,} queries, {comparison.gallery:,} gallery pictures. Change, cosines and overlap are "
        "relative to the first row; speed is that of the network only: one picture (ms), batches of 32 (pictures/s)."
        + at_most,
        "",
        *markdown_table(header, rows, right_aligned=range(2, len(header))),
    ]


def _what(model: ComparedModel) -> tuple[str, ...]:
    size = _NONE if model.size is None else f"{model.size / 1e6:.3g}"
    if model.info is None:
        return model.name, _NONE, size, str(model.dim), _NONE
    return model.name, model.info.precision, size, str(model.dim), str(model.info.picture.size)


def _ranking(model: ComparedModel) -> tuple[str, ...]:
    result = model.evaluation
    return tuple(
        _NONE if math.isnan(value) else f"{value:.4f}"
        for value in (result.runtime_exact, result.runtime_hnsw, result.recall_at_1, result.map_at_r)
    )


def _from_first(model: ComparedModel) -> tuple[str, ...]:
    difference = model.from_first
    if difference is None:
        return (_NONE,) * 4
    cosines = (_NONE, _NONE)
    if difference.vectors is not None:
        cosines = (f"{difference.vectors.mean_cosine:.6f}", f"{difference.vectors.min_cosine:.6f}")
    return f"{difference.precision_at_k:+.4f}", *cosines, f"{difference.neighbour_overlap:.4f}"


def _speed(model: ComparedModel) -> tuple[str, ...]:
    if model.speed is None:
        return (_NONE,) * 3
    return f"{model.speed.latency_ms:.2f}", f"{model.speed.pictures_per_second:,.0f}", f"x{model.speed_ratio:.2f}"
