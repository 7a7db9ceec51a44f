"""The parity check (Contract 4): an exported file against its original, on real and extreme pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..runtime.datasets import DataSet, Sample, with_val
from ..runtime.errors import ExportError, ModelFileError
from ..runtime.evaluate.embeddings import EmbeddedSplit, Embeds, embed_split
from ..runtime.evaluate.evaluation import Evaluation, evaluate, reference_of
from ..runtime.evaluate.parity import RankingChange, Tolerance, VectorDifference, compare_vectors
from ..runtime.evaluate.speed import Speed
from ..runtime.images import Picture, load_picture
from ..runtime.progress import StartProgress, start_nothing
from ..runtime.scan import are_unit
from .sample import balanced_sample, extreme_pictures

__all__ = [
    "GALLERY_SAMPLE",
    "QUERY_SAMPLE",
    "Exported",
    "Original",
    "ParityReport",
    "ReferenceSide",
    "check_parity",
    "compared_pictures",
    "embed_reference",
]

SCHEMA = 1
QUERY_SAMPLE = 500
GALLERY_SAMPLE = 5_000
# Compared neighbours, as many as for precision.
K = 30
_BATCH = 16


class Exported(Embeds, Protocol):
    """A network or an opened model file."""

    def embed_batch(self, pictures: Picture) -> npt.NDArray[np.float32]:
        """Embed uint8 ``[n, S, S, 3]``."""


class Original(Exported, Protocol):
    """The network that a file is compared with: in PyTorch, or the ONNX file that was adopted."""

    @property
    def engine(self) -> str:
        """PyTorch, or original: a word before "network" in reports."""


@dataclass(frozen=True)
class ReferenceSide:
    """The original's vectors of the pictures for comparison.

    ``extremes``: its vectors of numeric extremes, float32 ``[e, d]``. ``engine``: its name.
    """

    queries: EmbeddedSplit
    gallery: EmbeddedSplit
    extremes: npt.NDArray[np.float32]
    engine: str


@dataclass(frozen=True)
class Speeds:
    """Speeds measured in one run: the original, this file and, for other precisions, the fp32 file."""

    threads: int
    processor: str
    reference: Speed
    exported: Speed
    fp32: Speed | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON, with ratios of speed; above 1, this file is faster."""
        document: dict[str, Any] = {
            "threads": self.threads,
            "processor": self.processor,
            "reference": self.reference.to_dict(),
            "exported": self.exported.to_dict(),
            "throughput_ratio": self.exported.pictures_per_second / self.reference.pictures_per_second,
            "latency_ratio": self.reference.latency_ms / self.exported.latency_ms,
        }
        if self.fp32 is not None:
            document["fp32"] = self.fp32.to_dict()
            document["throughput_ratio_to_fp32"] = self.ratio_to_fp32
        return document

    @property
    def ratio_to_fp32(self) -> float | None:
        """Pictures per second relative to the fp32 file."""
        if self.fp32 is None:
            return None
        return self.exported.pictures_per_second / self.fp32.pictures_per_second


@dataclass(frozen=True)
class ParityReport:
    """Result of a comparison; ``failures`` is empty if the file ranks like the original."""

    k: int
    difference: VectorDifference
    batch_difference: VectorDifference
    extremes: VectorDifference
    evaluation: Evaluation
    tolerance: Tolerance
    failures: tuple[str, ...]
    queries: EmbeddedSplit
    gallery: EmbeddedSplit
    engine: str
    speeds: Speeds | None = None

    @property
    def change(self) -> RankingChange:
        """The change of the ranking from the original to the file, both by exact search."""
        assert self.evaluation.change is not None
        return self.evaluation.change

    def with_speeds(self, speeds: Speeds) -> ParityReport:
        """Return the report with the speeds."""
        return replace(self, speeds=speeds)

    def to_json(self, **about: Any) -> str:
        """Return the JSON report to store beside the model; ``about`` describes file and data."""
        document = {
            "schema": SCHEMA,
            **about,
            "compared_with": self.engine,
            "k": self.k,
            "queries": len(self.queries),
            "gallery": len(self.gallery),
            **self.difference.to_dict(),
            "batch_1_against_n": self.batch_difference.to_dict(),
            "extremes": self.extremes.to_dict() | {"pictures": list(extreme_pictures(8))},
            **self.change.to_dict(),
            "least_neighbour_overlap_at_k": self.change.least_overlap(self.tolerance.neighbour_overlap),
            "precision_at_k": {
                "reference": self.evaluation.reference,
                "exported_exact": self.evaluation.runtime_exact,
                "exported_hnsw": self.evaluation.runtime_hnsw,
            },
            "hnsw_recall_at_k": self.evaluation.hnsw_recall_at_k,
            "speed": None if self.speeds is None else self.speeds.to_dict(),
            "tolerance": asdict(self.tolerance),
            "failures": list(self.failures),
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def compared_pictures(dataset: DataSet, *, full: bool = False) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Return the queries and the gallery of the check; see :func:`embed_reference`.

    Raises:
        ExportError: there are no val pictures.

    """
    dataset = with_val(dataset)
    if not dataset.val:
        raise ExportError("The data set has no val pictures; expected at least one class of two pictures.")
    if full:
        return dataset.val, dataset.train
    return balanced_sample(dataset.val, QUERY_SAMPLE), balanced_sample(dataset.train, GALLERY_SAMPLE)


def embed_reference(
    reference: Original, dataset: DataSet, *, full: bool = False, progress: StartProgress = start_nothing
) -> ReferenceSide:
    """Embed the pictures for comparison: val pictures are the queries, train pictures the gallery.

    Args:
        reference: the original; PyTorch in float32, TF32 and autocast off.
        dataset: the pictures.
        full: all of them instead of a class-balanced sample of at most 500 queries and 5,000
            gallery pictures.
        progress: receives progress.

    Raises:
        ExportError: there are no val pictures, or the network's vector of a picture without content
            has no direction.

    """
    val, train = compared_pictures(dataset, full=full)
    extremes = extreme_pictures(reference.rule.size)
    vectors = reference.embed_batch(np.stack(list(extremes.values())))
    for name, length, unit in zip(extremes, np.linalg.norm(vectors, axis=1), are_unit(vectors), strict=True):
        if not unit:
            raise ExportError(
                f"The network returns {'NaN' if np.isnan(length) else f'a vector of length {length:.3g}'} for a "
                f"picture that is {name}; expected a vector that can be scaled to unit length. Check its weights "
                "and its normalisation."
            )
    queries = _embedded(reference, val, f"{reference.engine}, queries", progress)
    gallery = _embedded(reference, train, f"{reference.engine}, gallery", progress)
    return ReferenceSide(queries, gallery, vectors, reference.engine)


def check_parity(
    side: ReferenceSide, exported: Exported, tolerance: Tolerance, *, progress: StartProgress = start_nothing
) -> ParityReport:
    """Compare an exported file with its original.

    Args:
        side: the original's vectors of the pictures.
        exported: the file.
        tolerance: the limits of differences.
        progress: receives progress.

    """
    ours = (
        _embedded(exported, side.queries.samples, "exported file, queries", progress),
        _embedded(exported, side.gallery.samples, "exported file, gallery", progress),
    )
    k = min(K, len(side.gallery))
    evaluation = evaluate(*ours, k, reference=reference_of(side.queries, side.gallery, k))
    assert evaluation.difference is not None
    report = ParityReport(
        k=k,
        difference=evaluation.difference,
        batch_difference=_batch_difference(exported, side.queries.samples),
        extremes=_extreme_difference(side, exported),
        evaluation=evaluation,
        tolerance=tolerance,
        failures=(),
        queries=side.queries,
        gallery=side.gallery,
        engine=side.engine,
    )
    return replace(report, failures=tuple(_failures(report)))


def _embedded(exported: Exported, samples: Sequence[Sample], what: str, progress: StartProgress) -> EmbeddedSplit:
    return embed_split(samples, exported, advance=progress(f"parity: {what}", len(samples)))


def _batch_difference(exported: Exported, samples: Sequence[Sample]) -> VectorDifference:
    """Compare pictures embedded one by one with the same pictures in a batch."""
    pictures = []
    for sample in samples[:_BATCH]:
        with sample.open() as file:
            pictures.append(load_picture(file, exported.rule))
    batch = np.stack(pictures)
    single = np.concatenate([exported.embed_batch(batch[row : row + 1]) for row in range(len(batch))])
    return compare_vectors(exported.embed_batch(batch), single)


def _extreme_difference(side: ReferenceSide, exported: Exported) -> VectorDifference:
    pictures = np.stack(list(extreme_pictures(exported.rule.size).values()))
    try:
        return compare_vectors(side.extremes, exported.embed_batch(pictures))
    except ModelFileError:  # the runtime refuses vectors that are not of unit length
        return VectorDifference(np.nan, np.nan, np.nan)


def _failures(report: ParityReport) -> list[str]:
    tolerance = report.tolerance
    failures = tolerance.ranking_failures(report.change) + report.difference.failures(tolerance)
    batches = report.batch_difference.failures(tolerance.for_one_engine())
    failures += [f"batch 1 against batch n: {failure}" for failure in batches]
    if not report.extremes.min_cosine >= tolerance.extreme_cosine:
        failures.append(
            f"the smallest cosine of numeric extremes (black, white, noise …) is {report.extremes.min_cosine:.7g}, "
            f"less than {tolerance.extreme_cosine:.7g}"
        )
    return failures
