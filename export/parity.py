"""The proof (Contract 4): the exported file against the PyTorch reference, on real pictures."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..runtime.datasets import DataSet, Sample
from ..runtime.errors import ExportError
from ..runtime.evaluate.embedded import EmbeddedSplit, Embeds, embed_split
from ..runtime.evaluate.evaluation import Evaluation, evaluate, rank_split
from ..runtime.evaluate.parity import TOLERANCES, VectorDifference, compare_vectors
from ..runtime.images import Picture, load_picture
from ..runtime.metrics import neighbour_overlap
from ..runtime.progress import StartProgress, start_nothing

__all__ = ["GALLERY_SAMPLE", "QUERY_SAMPLE", "Exported", "ParityReport", "balanced_sample", "check_parity"]

SCHEMA = 1
QUERY_SAMPLE = 500
GALLERY_SAMPLE = 5_000
# Neighbours that are compared; as many as precision is measured over.
K = 30
_BATCH = 16
# precision@k may move by this much: a swap or two at ties, nothing that a user could see.
PRECISION_TOLERANCE = {"fp32": 0.0005}


class Exported(Embeds, Protocol):
    """A model file that has been opened."""

    def embed_batch(self, pictures: Picture) -> npt.NDArray[np.float32]:
        """Embed uint8 ``[n, S, S, 3]``."""


@dataclass(frozen=True)
class ParityReport:
    """What was compared and what came out; ``failures`` is empty when the file ranks like the original."""

    k: int
    difference: VectorDifference
    batch_difference: VectorDifference
    neighbour_overlap: float
    evaluation: Evaluation
    failures: tuple[str, ...]
    queries: EmbeddedSplit
    gallery: EmbeddedSplit

    def to_json(self, **about: Any) -> str:
        """Return the document that is kept beside the model, with ``about`` the file and the data."""
        document = {
            "schema": SCHEMA,
            **about,
            "k": self.k,
            "queries": len(self.queries),
            "gallery": len(self.gallery),
            **self.difference.to_dict(),
            "batch_1_against_n": self.batch_difference.to_dict(),
            "neighbour_overlap_at_k": self.neighbour_overlap,
            "precision_at_k": {
                "reference": self.evaluation.reference,
                "exported_exact": self.evaluation.runtime_exact,
                "exported_hnsw": self.evaluation.runtime_hnsw,
            },
            "hnsw_recall_at_k": self.evaluation.hnsw_recall_at_k,
            "failures": list(self.failures),
        }
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def balanced_sample(samples: Sequence[Sample], most: int) -> tuple[Sample, ...]:
    """Take at most ``most`` pictures, as evenly over the classes as they allow; the same ones each time.

    Within a class in the order of sha256(path), round after round over the classes.
    """
    by_class: dict[str, list[Sample]] = defaultdict(list)
    for sample in samples:
        by_class[sample.label].append(sample)
    ranked = [
        (rank, label, sample)
        for label, members in by_class.items()
        for rank, sample in enumerate(sorted(members, key=lambda s: _content_order(s.path)))
    ]
    ranked.sort(key=lambda entry: entry[:2])
    return tuple(sample for _, _, sample in ranked[:most])


def _content_order(path: str) -> bytes:
    return hashlib.sha256(path.encode("utf-8", "surrogateescape")).digest()


def check_parity(
    reference: Embeds,
    exported: Exported,
    dataset: DataSet,
    precision: str,
    *,
    full: bool = False,
    progress: StartProgress = start_nothing,
) -> ParityReport:
    """Compare an exported file with its PyTorch reference on val (queries) and train (gallery) pictures.

    Args:
        reference: PyTorch in float32, TF32 and autocast off.
        exported: the file.
        dataset: the pictures.
        precision: of the file; decides the tolerances.
        full: all pictures instead of a class-balanced sample of at most 500 queries and 5,000 gallery pictures.
        progress: called with a description and a number of pictures, gives the function to call as they are done.

    Raises:
        ExportError: there are no val pictures.

    """
    val, train = dataset.val, dataset.train
    if not full:
        val, train = balanced_sample(val, QUERY_SAMPLE), balanced_sample(train, GALLERY_SAMPLE)
    if not val:
        raise ExportError("The data set has no val pictures; expected at least one class of two pictures.")
    queries, gallery = _embedded(val, train, reference, "PyTorch", progress)
    ours = _embedded(val, train, exported, "exported file", progress)
    k = min(K, len(gallery))
    evaluation = evaluate(*ours, k, reference=(queries, gallery))
    assert evaluation.difference is not None
    batch_difference = _batch_difference(exported, ours[0])
    overlap = neighbour_overlap(rank_split(*ours, k).neighbours, rank_split(queries, gallery, k).neighbours)
    return ParityReport(
        k=k,
        difference=evaluation.difference,
        batch_difference=batch_difference,
        neighbour_overlap=overlap,
        evaluation=evaluation,
        failures=tuple(_failures(evaluation, evaluation.difference, batch_difference, precision)),
        queries=queries,
        gallery=gallery,
    )


def _embedded(
    val: Sequence[Sample], train: Sequence[Sample], embeds: Embeds, who: str, progress: StartProgress
) -> tuple[EmbeddedSplit, EmbeddedSplit]:
    queries = embed_split(val, embeds, advance=progress(f"parity: {who}, queries", len(val)))
    gallery = embed_split(train, embeds, advance=progress(f"parity: {who}, gallery", len(train)))
    return queries, gallery


def _batch_difference(exported: Exported, queries: EmbeddedSplit) -> VectorDifference:
    """Compare pictures embedded one by one with the same pictures in a batch."""
    pictures = []
    for sample in queries.samples[:_BATCH]:
        with sample.open() as file:
            pictures.append(load_picture(file, exported.rule))
    batch = np.stack(pictures)
    single = np.concatenate([exported.embed_batch(batch[row : row + 1]) for row in range(len(batch))])
    return compare_vectors(exported.embed_batch(batch), single)


def _failures(
    evaluation: Evaluation, difference: VectorDifference, batch_difference: VectorDifference, precision: str
) -> list[str]:
    tolerance = TOLERANCES[precision]
    found = difference.failures(tolerance)
    found += [f"batch 1 against batch n: {failure}" for failure in batch_difference.failures(tolerance)]
    assert evaluation.reference is not None
    change = evaluation.runtime_exact - evaluation.reference
    if not abs(change) <= PRECISION_TOLERANCE[precision]:
        found.append(
            f"precision@{evaluation.k} changes by {change:+.4f}, more than {PRECISION_TOLERANCE[precision]:.4f}"
        )
    return found
