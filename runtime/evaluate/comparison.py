"""Compare models on the same pictures: their ranking, and their difference from the first."""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..datasets import DataSet
from ..embedder import Embedder
from ..errors import EvaluationError, ModelFileError
from ..images import DEFAULT_MAX_PIXELS, Picture
from ..metrics import label_codes, neighbour_overlap, possible_precision
from ..model.pretrained import find_model
from ..modelfile import ModelInfo
from ..progress import StartProgress, start_nothing
from ..text import printable
from .embeddings import EmbeddedSplit, Embeds, embed_split
from .evaluation import Evaluation, evaluate
from .parity import Reference, VectorDifference
from .reference import ReferenceSample
from .speed import Speed

__all__ = [
    "REFERENCE_NAME",
    "ComparedModel",
    "Comparison",
    "Contender",
    "FromFirst",
    "Network",
    "compare_models",
    "distinct_names",
    "open_contenders",
    "slower_int8",
]


REFERENCE_NAME = "PyTorch reference"

# Other formats of deeprank-export; both need torch.
_OTHER_FORMS = frozenset({".pt", ".pt2"})

SCHEMA = 1
Splits = tuple[EmbeddedSplit, EmbeddedSplit]


class Network(Embeds, Protocol):
    """A network with its metadata: an Embedder, or the PyTorch reference."""

    @property
    def info(self) -> ModelInfo:
        """The model's metadata."""

    def embed_batch(self, pictures: Picture) -> npt.NDArray[np.float32]:
        """Embed uint8 ``[n, S, S, 3]``: float32 ``[n, d]``, unit rows."""


@dataclass(frozen=True)
class Contender:
    """One of the compared models; ``path`` and ``size`` (bytes) are None without a single file."""

    name: str
    network: Network
    path: Path | None = None
    size: int | None = None


def open_contenders(files: Sequence[Path], open_file: Callable[[Path], Embedder]) -> list[Contender]:
    """Open every file, in the given order; the word ``pretrained`` means the bundled model.

    Raises:
        ModelFileError, DeviceError: of the first unusable file.

    """
    return [_open(name, find_model(file), open_file) for name, file in zip(distinct_names(files), files, strict=True)]


def _open(name: str, path: Path, open_file: Callable[[Path], Embedder]) -> Contender:
    try:
        return Contender(name, open_file(path), path, path.stat().st_size)
    except ModelFileError as error:
        if path.suffix.lower() in _OTHER_FORMS and path.is_file():
            raise ModelFileError(
                f"{error} TorchScript and .pt2 files are compared by deeprank-export --format all."
            ) from None
        raise


def distinct_names(files: Sequence[Path]) -> list[str]:
    """Return a name for each file: its file name, with folders if needed to be distinct."""
    alone = len({file.name for file in files}) == len(set(files))
    return list(_numbered(file.name if alone and file.name else str(file) for file in files))


def _numbered(names: Iterator[str]) -> Iterator[str]:
    """Append a number to a name that looks like an earlier one."""
    taken = {REFERENCE_NAME}
    for name in names:
        choices = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
        chosen = next(choice for choice in choices if printable(choice) not in taken)
        taken.add(printable(chosen))
        yield chosen


@dataclass(frozen=True)
class FromFirst:
    """Difference of a model from the first one.

    ``precision_at_k``: the change, by exact search. ``neighbour_overlap``: share of the first
    model's k nearest that this one finds too. ``vectors``: None if the two networks' vectors are
    not comparable.
    """

    precision_at_k: float
    neighbour_overlap: float
    vectors: VectorDifference | None

    def to_dict(self) -> dict[str, float | None]:
        """Return the figures for JSON."""
        return {
            "precision_at_k": self.precision_at_k,
            "neighbour_overlap": self.neighbour_overlap,
            "mean_cosine": None if self.vectors is None else self.vectors.mean_cosine,
            "min_cosine": None if self.vectors is None else self.vectors.min_cosine,
        }


@dataclass(frozen=True)
class ComparedModel:
    """A row of the comparison.

    ``info``, ``path`` and ``size`` (bytes) are None if there is no file, ``from_first`` for the
    first row. ``speed_ratio``: pictures per second relative to the first measured row.
    """

    name: str
    dim: int
    evaluation: Evaluation
    from_first: FromFirst | None
    info: ModelInfo | None = None
    path: Path | None = None
    size: int | None = None
    speed: Speed | None = None
    speed_ratio: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return {
            "name": self.name,
            "file": None if self.path is None else os.fspath(self.path),
            "bytes": self.size,
            "model": None if self.info is None else self.info.name,
            "precision": None if self.info is None else self.info.precision,
            "dim": self.dim,
            "picture_size": None if self.info is None else self.info.picture.size,
            "precision_at_k": {"exact": self.evaluation.runtime_exact, "hnsw": _known(self.evaluation.runtime_hnsw)},
            "recall_at_1": self.evaluation.recall_at_1,
            "map_at_r": _known(self.evaluation.map_at_r),
            "from_first": None if self.from_first is None else self.from_first.to_dict(),
            "speed": None if self.speed is None else {**self.speed.to_dict(), "ratio": self.speed_ratio},
        }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value


@dataclass(frozen=True)
class Comparison:
    """The output of ``deeprank-eval --models --json``.

    All models rank the same queries and gallery pictures.
    """

    k: int
    queries: int
    gallery: int
    models: tuple[ComparedModel, ...]

    def with_speeds(self, speeds: Mapping[str, Speed]) -> Comparison:
        """Return the comparison with the speeds of the measured models, by name."""
        first = next((speeds[model.name].pictures_per_second for model in self.models if model.name in speeds), 1.0)
        measured = [
            replace(model, speed=speed, speed_ratio=speed.pictures_per_second / first)
            if (speed := speeds.get(model.name))
            else model
            for model in self.models
        ]
        return replace(self, models=tuple(measured))

    def to_dict(self) -> dict[str, Any]:
        """Return the documented JSON document."""
        return {
            "schema": SCHEMA,
            "k": self.k,
            "queries": self.queries,
            "gallery": self.gallery,
            "models": [model.to_dict() for model in self.models],
        }


def compare_models(
    contenders: Sequence[Contender],
    dataset: DataSet,
    k: int,
    *,
    sample: ReferenceSample | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    start: StartProgress = start_nothing,
    say: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Embed the pictures with each model, measure its ranking, and compare it with the first.

    Args:
        contenders: at least one, with distinct names.
        dataset: its val pictures are the queries, its train pictures the gallery.
        k: neighbours of each query.
        sample: PyTorch's vectors of these pictures (:meth:`ReferenceSample.limit_to` or
            :meth:`ReferenceSample.dataset`), as the first row.
        max_pixels: larger pictures are refused before decoding.
        start: receives the progress of embedding.
        say: receives the current step, and each unreadable picture once.

    Raises:
        EvaluationError: no picture can be read, ``k`` is out of range, or pictures change
            meanwhile.
        ModelFileError: see :meth:`~..embedder.Embedder.embed_batch`.

    """
    rows: list[ComparedModel] = []
    reference: Reference | None = None
    for contender, (queries, gallery) in _embedded(contenders, dataset, max_pixels, start, say):
        if sample is not None and reference is None:
            reference = sample.reference(queries, gallery, k)
            rows.append(_reference_row(reference, queries, gallery, k, say))
        row = _ranked(contender, (queries, gallery), k, say)
        if reference is None:
            reference = Reference(queries.vectors, gallery.vectors, row.evaluation.ranking)
        else:
            row = replace(row, from_first=_from_first(row, (queries, gallery), rows[0], reference))
        rows.append(row)
    return Comparison(k, rows[0].evaluation.queries, rows[0].evaluation.gallery, tuple(rows))


def slower_int8(comparison: Comparison) -> Iterator[tuple[ComparedModel, ComparedModel, float]]:
    """Yield each int8 model slower than the fastest fp32 file of its kind.

    Yields:
        the int8 model, the fp32 model, and the ratio of their speeds, below 1.

    """
    files = [(model, model.info, model.speed) for model in comparison.models if model.path is not None]
    measured = [(model, info, speed.pictures_per_second) for model, info, speed in files if info and speed]
    for model, info, rate in measured:
        alike = [
            (other_rate, other)
            for other, other_info, other_rate in measured
            if other_info.precision == "fp32" and _kind(other_info) == _kind(info)
        ]
        other_rate, other = max(alike, key=lambda pair: pair[0], default=(0.0, model))
        if info.precision == "int8" and rate < other_rate:
            yield model, other, rate / other_rate


def _kind(info: ModelInfo) -> tuple[str, int]:
    """Return the key that two precisions of one model share."""
    return info.backbone, info.picture.size


def _embedded(
    contenders: Sequence[Contender],
    dataset: DataSet,
    max_pixels: int,
    start: StartProgress,
    say: Callable[[str], None],
) -> Iterator[tuple[Contender, Splits]]:
    """Yield each model's vectors once embedded, all of the same pictures."""

    def embed(contender: Contender, dataset: DataSet) -> Splits:
        queries, gallery = (
            embed_split(samples, contender.network, max_pixels=max_pixels, advance=start(what, len(samples)))
            for what, samples in (
                (f"{contender.name}: queries", dataset.val),
                (f"{contender.name}: gallery", dataset.train),
            )
        )
        return queries, gallery

    queries, gallery = embed(contenders[0], dataset)
    for error in (*queries.unreadable, *gallery.unreadable):
        say(f"left out: {error}")
    yield contenders[0], (queries, gallery)
    readable = replace(dataset, val=queries.samples, train=gallery.samples)
    for contender in contenders[1:]:
        splits = embed(contender, readable)
        if [split.hashes for split in splits] != [queries.hashes, gallery.hashes]:
            raise EvaluationError("Pictures of the data set have changed while it was being read; compare again.")
        yield contender, splits


def _reference_row(
    reference: Reference, queries: EmbeddedSplit, gallery: EmbeddedSplit, k: int, say: Callable[[str], None]
) -> ComparedModel:
    """Return the row of PyTorch; its graph and MAP@R are NaN without vectors of the gallery."""
    dim = reference.queries.shape[1]
    if reference.gallery is not None:
        splits = replace(queries, vectors=reference.queries), replace(gallery, vectors=reference.gallery)
        return ComparedModel(REFERENCE_NAME, dim, _measured(REFERENCE_NAME, splits, k, say), from_first=None)
    query_codes, gallery_codes = label_codes(queries.labels, gallery.labels)
    evaluation = Evaluation(
        k=k,
        queries=len(queries),
        gallery=len(gallery),
        reference=None,
        runtime_exact=reference.ranking.precision_at_k,
        runtime_hnsw=math.nan,
        recall_at_1=reference.ranking.recall_at_1,
        map_at_r=math.nan,
        hnsw_recall_at_k=math.nan,
        difference=None,
        change=None,
        ranking=reference.ranking,
        possible=possible_precision(query_codes, gallery_codes, k),
    )
    return ComparedModel(REFERENCE_NAME, dim, evaluation, from_first=None)


def _measured(name: str, splits: Splits, k: int, say: Callable[[str], None]) -> Evaluation:
    return evaluate(*splits, k, say=lambda doing: say(f"{name}: {doing}"))


def _ranked(contender: Contender, splits: Splits, k: int, say: Callable[[str], None]) -> ComparedModel:
    return ComparedModel(
        contender.name,
        splits[1].vectors.shape[1],
        _measured(contender.name, splits, k, say),
        from_first=None,
        info=contender.network.info,
        path=contender.path,
        size=contender.size,
    )


def _from_first(row: ComparedModel, splits: Splits, first: ComparedModel, reference: Reference) -> FromFirst:
    same = _same_space(first, row)
    return FromFirst(
        precision_at_k=row.evaluation.runtime_exact - first.evaluation.runtime_exact,
        neighbour_overlap=neighbour_overlap(row.evaluation.ranking.neighbours, reference.ranking.neighbours),
        vectors=reference.difference(splits[0].vectors, splits[1].vectors) if same else None,
    )


def _same_space(first: ComparedModel, row: ComparedModel) -> bool:
    """Return whether cosines are meaningful: one network by its metadata, or a trusted sample."""
    if first.info is None or row.info is None:
        return first.dim == row.dim
    mine, other = ((info.embedding_dim, info.backbone, info.name) for info in (first.info, row.info))
    return mine == other
