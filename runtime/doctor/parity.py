"""Check that a model gives PyTorch's vectors on this machine, by its reference sample."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import EvaluationError
from ..progress import StartProgress
from ..shell import shell_word
from ..text import display_path
from .finding import Finding, ok, problem, skipped

if TYPE_CHECKING:
    from ..datasets import Sample
    from ..embedder import Embedder
    from ..evaluate.embeddings import EmbeddedSplit
    from ..evaluate.parity import Reference, VectorDifference
    from ..evaluate.reference import ReferenceSample
    from ..modelfile import OpenModel

__all__ = ["find_samples", "no_data_finding", "no_sample_finding", "parity_finding", "sample_finding"]

_K = 30


def find_samples(named: Path | None, opened: OpenModel) -> list[tuple[Path, ReferenceSample]]:
    """Return the reference sample of a model: the named one, the one beside it, or the bundled one.

    Args:
        named: a file, or the word ``pretrained``.
        opened: the model.

    Returns:
        one path and its sample, or an empty list if none is named or exists.

    Raises:
        EvaluationError: it is missing, damaged or of another model; or it is a run, which needs
            PyTorch.

    """
    from ..evaluate.reference import load_reference

    path = _path_of(named, opened.path)
    if path is None:
        return []
    if path.is_dir():
        raise EvaluationError(
            f"{display_path(path)} is a folder; expected a *.reference.npz. deeprank-eval compares with a run "
            "(it needs PyTorch)."
        )
    return [(path, load_reference(path, opened.info.embedding_dim))]


def _path_of(named: Path | None, model: Path) -> Path | None:
    from ..model.pretrained import find_reference, pretrained_model, pretrained_reference

    if named is not None:
        return find_reference(named)
    for beside in _beside(model):
        if beside.is_file():
            return beside
    return pretrained_reference() if model in (pretrained_model("fp32"), pretrained_model("int8")) else None


def _beside(model: Path) -> Iterator[Path]:
    yield model.with_suffix(".reference.npz")
    if model.with_name(f"{model.name}.parity.json").is_file():  # of deeprank-export --format all
        yield model.with_name("model.reference.npz")


def sample_finding(path: Path, sample: ReferenceSample) -> Finding:
    """Return the content of a sample, as a finding."""
    count, dim = sample.vectors.shape
    held = f"PyTorch's vectors of {count:,} pictures"
    if sample.neighbours is not None:
        held = (
            f"{len(sample.pictures):,} pictures, PyTorch's {sample.neighbours.shape[1]} nearest of {count:,} queries, "
            "and their vectors"
        )
    return ok("reference sample", f"{display_path(path)}, {held}, {dim} numbers each")


def no_sample_finding(data: str | None) -> Finding:
    """Return that there is no sample; a problem if a data set was named for it."""
    if data is None:
        return skipped("parity", "there is no *.reference.npz beside the model; deeprank-export writes one")
    return problem(
        "parity",
        "a data set was named, but there is no *.reference.npz beside the model to compare with",
        f"deeprank-doctor --reference FILE.npz --data {shell_word(data)}",
    )


def no_data_finding(sample: Path) -> Finding:
    """Return the command that measures parity."""
    return skipped(
        "parity",
        "no data set was named to take the sample's pictures from",
        f"deeprank-doctor --reference {shell_word(sample)} --data DATA",
    )


def parity_finding(
    opened: OpenModel, sample: ReferenceSample, data: str | None, *, through_graph: bool, start: StartProgress
) -> Finding:
    """Embed the pictures of a sample and compare with PyTorch's vectors.

    ``deeprank-eval --reference`` does the same.

    Args:
        opened: the model.
        sample: PyTorch's vectors.
        data: the data set with the pictures. None: the sample carries them.
        through_graph: whether hnswlib works, so that a graph can be searched too.
        start: receives progress.

    Raises:
        DataError, EvaluationError: the data set cannot be read, or contains none of the pictures;
            or the sample carries its pictures, and one cannot be read, or a data set is named.

    """
    from ..datasets import open_dataset
    from ..embedder import Embedder

    dataset = sample.dataset() if data is None else sample.limit_to(open_dataset(data))
    embedder = Embedder(opened)
    queries = _embed("parity: queries", dataset.val, embedder, start)
    gallery = _embed("parity: gallery", dataset.train, embedder, start)
    reference = sample.reference(queries, gallery, min(_K, len(gallery)))
    failures, summary = _compared(reference, queries, gallery, opened.info.precision)
    summary = f"{len(queries) + len(gallery):,} of {len(sample.splits):,} pictures, {summary}"
    if through_graph:
        summary += f", {_through_graph(queries, gallery):.4f} through the graph"
    if failures:
        return problem(
            "parity",
            f"the model does not rank like its PyTorch reference here: {'; '.join(failures)} ({summary})",
            "name the *.reference.npz that was written with this model, try --device cpu, or export the model again",
        )
    return ok("parity", summary)


def _embed(what: str, samples: Sequence[Sample], embedder: Embedder, start: StartProgress) -> EmbeddedSplit:
    from ..evaluate.embeddings import embed_split

    return embed_split(samples, embedder, advance=start(what, len(samples)))


def _compared(
    reference: Reference, queries: EmbeddedSplit, gallery: EmbeddedSplit, precision: str
) -> tuple[list[str], str]:
    """Return a phrase for each figure out of tolerance, and all figures as text."""
    from ..evaluate.evaluation import rank_split
    from ..evaluate.parity import TOLERANCES

    theirs, k = reference.ranking, reference.ranking.neighbours.shape[1]
    ours = rank_split(queries, gallery, k)
    difference = reference.difference(queries.vectors, gallery.vectors)
    change = reference.change(queries.vectors, gallery.vectors, ours)
    tolerance = TOLERANCES[precision]
    return tolerance.ranking_failures(change) + difference.failures(tolerance), (
        f"{_apart(difference)}, {change.overlap:.2%} of the {k} nearest shared, precision@{k} "
        f"{theirs.precision_at_k:.4f} with PyTorch, {ours.precision_at_k:.4f} here"
    )


def _through_graph(queries: EmbeddedSplit, gallery: EmbeddedSplit) -> float:
    from ..evaluate.evaluation import evaluate

    return evaluate(queries, gallery, min(_K, len(gallery))).runtime_hnsw


def _apart(difference: VectorDifference) -> str:
    return f"largest difference {difference.max_abs_difference:.1e}, smallest cosine {difference.min_cosine:.7f}"
