"""``deeprank-eval``: precision@k of a model on labelled pictures, beside its PyTorch reference."""

from __future__ import annotations

import functools
import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from ..cli import (
    VerboseOption,
    VersionOption,
    application,
    data_or_tiny_imagenet,
    emit_json,
    guarded,
    note,
    progress,
    progress_in_stages,
    with_options,
)
from ..console import note_file
from ..errors import EvaluationError, MissingExtraError
from ..model.pretrained import describe_model, find_model, find_reference
from ..text import duration, printable
from .options import (
    DEFAULT_K,
    EvaluateOptions,
    check_beside_triplets,
    check_carried_pictures,
    check_models,
    check_pictures,
)

if TYPE_CHECKING:
    from ..datasets import DataSet
    from ..embedder import Embedder
    from .comparison import Comparison, Contender, Network
    from .embeddings import EmbeddedSplit, Embeds
    from .evaluation import Evaluation
    from .parity import Reference
    from .reference import ReferenceSample
    from .speed import Speed
    from .triplets import RatedTriplets, TripletReport

app = application(
    "Measure how well a model ranks: DATA's val pictures are the queries, its train pictures the gallery.",
    [
        "deeprank-eval --data photos/",
        "deeprank-eval --model model.onnx --data photos/ --split test",
        "deeprank-eval --model model.onnx --queries new/ --gallery catalogue/",
        "deeprank-eval --model model.onnx --data photos/ --reference runs/latest",
        "deeprank-eval --data photos/ --reference model.reference.npz --json",
        "deeprank-eval --model pretrained --reference pretrained",
        "deeprank-eval --model model.onnx --data photos/ --demo 5 --out sheets/",
        "deeprank-eval --model model.onnx --data photos/ --triplets rated.csv",
        "deeprank-eval --models model.onnx small.onnx --data photos/",
    ],
    {
        **dict.fromkeys(("-n", "--top", "--topk", "--top-k"), "--k"),
        **dict.fromkeys(("--dataset", "--dir", "--val", "-d"), "--data"),
        **dict.fromkeys(("--checkpoint", "--weights", "-m"), "--model"),
        **dict.fromkeys(("--compare",), "--models"),
        **dict.fromkeys(("--save", "--embeddings"), "--save-embeddings"),
        **dict.fromkeys(("-j", "--jobs", "--workers", "--num-workers", "--num-threads"), "--threads"),
        **dict.fromkeys(("--gpu", "--cuda"), "--device cuda"),
        "--cpu": "--device cpu",
    },
)


@app.command(no_args_is_help=True)
@guarded
@with_options
def evaluate_command(
    options: EvaluateOptions,
    verbose: VerboseOption = False,
    version: VersionOption = False,
) -> None:
    """Measure how well a model ranks: DATA's val pictures are the queries, its train pictures the gallery."""
    check_models(options)
    check_pictures(options)
    if options.models:
        _compare(options)
    else:
        _measure(options)


def _compare(options: EvaluateOptions) -> None:
    from ..embedder import Embedder
    from .comparison import REFERENCE_NAME, Contender, compare_models, open_contenders, slower_int8

    open_file = functools.partial(
        Embedder, device=options.device, threads=options.threads, max_pixels=options.max_pixels
    )
    contenders = open_contenders(options.files or (), open_file)
    reference = None if options.reference is None else find_reference(options.reference)
    sample, pytorch = _reference_sample(reference, None), _pytorch(reference, options.device)
    dataset = _open(options, pytorch, sample)
    if pytorch is not None:
        contenders.insert(0, Contender(REFERENCE_NAME, pytorch))
    with progress_in_stages() as start:
        comparison = compare_models(
            contenders,
            dataset,
            _depth(options.k, dataset, sample),
            sample=sample,
            max_pixels=options.max_pixels,
            start=start,
            say=note,
        )
    comparison = comparison.with_speeds(_speeds(contenders))
    _print_comparison(comparison, options.as_json)
    for slow, fast, ratio in slower_int8(comparison):
        note(
            f"int8 is slower than fp32 on this processor (x{ratio:.2f}): use {printable(fast.name)} here, "
            f"not {printable(slow.name)}."
        )


def _speeds(contenders: Sequence[Contender]) -> dict[str, Speed]:
    from .speed import measure_speeds

    runners = {contender.name: contender.network.embed_batch for contender in contenders}
    sides = {contender.name: contender.network.rule.size for contender in contenders}
    note("measuring speed")
    with progress("speed", None, "batches") as advance:
        return measure_speeds(runners, sides, advance=advance)


def _print_comparison(comparison: Comparison, as_json: bool) -> None:
    from .tables import comparison_lines

    if as_json:
        emit_json(comparison.to_dict())
    else:
        print("\n".join(comparison_lines(comparison)))


def _measure(options: EvaluateOptions) -> None:
    from ..embedder import Embedder

    chosen = find_model(options.model)
    reference = None if options.reference is None else find_reference(options.reference)
    if options.triplets is not None:
        check_beside_triplets(options, reference)
    embedder = Embedder(chosen, device=options.device, threads=options.threads, max_pixels=options.max_pixels)
    if options.model is None:
        note(f"measuring {describe_model(chosen, embedder.info)}")
    if options.triplets is not None and not options.names_pictures:
        _show(None, _triplets_alone(options.triplets, embedder), options.as_json)
    else:
        _measure_on_data(options, embedder, reference)


def _measure_on_data(options: EvaluateOptions, embedder: Embedder, reference: Path | None) -> None:
    from .evaluation import evaluate
    from .triplets import load_triplets

    began = time.monotonic()
    sample, pytorch = _reference_sample(reference, embedder.dim), _pytorch(reference, options.device)
    dataset = _open(options, pytorch, sample)
    rated = None if options.triplets is None else load_triplets(options.triplets, dataset)
    k = _depth(options.k, dataset, sample)
    queries, gallery = _embed(dataset, embedder, "", options.max_pixels)
    reference_side = _reference_side(sample, pytorch, queries, gallery, k, options.max_pixels)
    result = evaluate(queries, gallery, k, reference=reference_side, say=note)
    judged = None if rated is None else _judge(rated, embedder, queries, gallery, k=k)
    if options.save_embeddings is not None:
        _save(options.save_embeddings, queries, gallery)
    if options.demo:
        _draw(dataset, queries, gallery, options.demo, options.demo_k, options.out)
    _show(result, judged, options.as_json)
    if not options.as_json:
        note(f"Took {duration(time.monotonic() - began)}: {len(queries) + len(gallery):,} pictures embedded.")
    _require_parity(result, embedder)


def _depth(k: int | None, dataset: DataSet, sample: ReferenceSample | None) -> int:
    """Return the k of the metrics: the requested one, else 30, or the gallery's size if smaller.

    Checked before any picture is embedded.

    Raises:
        EvaluationError: the gallery has fewer pictures than requested, or the sample fewer neighbours.

    """
    from .evaluation import check_k

    shared = not {sample.path for sample in dataset.val}.isdisjoint(sample.path for sample in dataset.train)
    most = len(dataset.train) - shared  # a query in the gallery is not its own result
    if k is None and 1 <= most < DEFAULT_K:
        note(f"measured as precision@{most}: the gallery has no more pictures for a query")
        return most
    depth = check_k(DEFAULT_K if k is None else k, most)
    if sample is not None:
        sample.check_k(depth)
    return depth


def _open(options: EvaluateOptions, pytorch: Network | None, sample: ReferenceSample | None) -> DataSet:
    """Return the queries as val and the gallery as train; with a sample, its pictures alone."""
    if sample is not None and sample.pictures:
        check_carried_pictures(options)
        note(f"measuring on the {len(sample.pictures):,} pictures that the reference sample carries")
        return sample.dataset()
    dataset = _named(options, pytorch)
    if sample is not None:
        dataset = sample.limit_to(dataset)
        present, total = len(dataset.val) + len(dataset.train), len(sample.splits)
        note(f"comparing on the {present} of {total} pictures of the reference sample that are here")
    return dataset


def _named(options: EvaluateOptions, pytorch: Network | None) -> DataSet:
    """Return the pictures that the options name; where a run is named, as it has read them."""
    from .embeddings import open_queries_and_gallery, open_split

    if options.queries is not None and options.gallery is not None:
        return open_queries_and_gallery(options.queries, options.gallery, options.labels, note)
    data, labels = data_or_tiny_imagenet(options.data, yes=options.yes), options.labels
    if pytorch is None:
        return open_split(data, options.split, labels, note)
    run = cast("_Run", pytorch)
    return open_split(data, options.split, labels or run.labels_of(data), note, rule=run.rule_of_holdout)


def _triplets_alone(path: Path, embedder: Embedder) -> TripletReport:
    from .triplets import load_triplets

    note("score-at-top-k ranks a gallery, but none was given; name one with --data DATA")
    return _judge(load_triplets(path), embedder)


def _judge(rated: RatedTriplets, embedder: Embedder, *splits: EmbeddedSplit, k: int = 30) -> TripletReport:
    """Embed the triplets' pictures that are in no split, and measure.

    The last split is the gallery.
    """
    from .embeddings import embed_readable
    from .triplets import evaluate_triplets

    with progress("triplets", len(rated.beside)) as advance:
        beside = embed_readable(rated.beside, embedder, max_pixels=embedder.max_pixels, advance=advance)
    for error in beside.unreadable:
        note(f"left out: {error}")
    report = evaluate_triplets(rated, (*splits, beside), splits[-1] if splits else None, k)
    if report.left_out:
        note(f"{report.left_out:,} of {len(rated):,} triplets are left out: one of their pictures cannot be read")
    return report


def _embed(dataset: DataSet, embeds: Embeds, who: str, max_pixels: int) -> tuple[EmbeddedSplit, EmbeddedSplit]:
    from .embeddings import embed_split

    splits = []
    for what, samples in ((f"{who}queries", dataset.val), (f"{who}gallery", dataset.train)):
        with progress(what, len(samples)) as advance:
            split = embed_split(samples, embeds, max_pixels=max_pixels, advance=advance)
        for error in split.unreadable:
            note(f"left out: {error}")
        splits.append(split)
    return splits[0], splits[1]


def _reference_sample(reference: Path | None, dim: int | None) -> ReferenceSample | None:
    if reference is None or reference.is_dir():
        return None
    from .reference import load_reference

    return load_reference(reference, dim)


def _reference_side(
    sample: ReferenceSample | None,
    pytorch: Network | None,
    queries: EmbeddedSplit,
    gallery: EmbeddedSplit,
    k: int,
    max_pixels: int,
) -> Reference | None:
    """Return PyTorch's side of the embedded pictures, or None without a reference."""
    if sample is not None:
        return sample.reference(queries, gallery, k)
    if pytorch is None:
        return None
    from ..datasets import DataSet
    from .evaluation import reference_of

    same = DataSet("reference", train=gallery.samples, val=queries.samples)
    return reference_of(*_embed(same, pytorch, "PyTorch reference: ", max_pixels), k)


class _Run(Protocol):
    """A run's PyTorch reference, with the source of its labels and its holdout rule."""

    def labels_of(self, data: str) -> str | None:
        """Return the run's source of labels for a data set."""

    @property
    def rule_of_holdout(self) -> int:
        """The version of the run's holdout rule."""


def _pytorch(run: Path | None, device: str) -> Network | None:
    """Return the network of a run; None for a reference sample, or without a reference."""
    if run is None or not run.is_dir():
        return None
    try:
        # The one upward import of the runtime: only here, and only for a run.
        module = importlib.import_module("deeprank.train.reference")
    except ImportError:
        raise MissingExtraError("--reference with a run", "train") from None
    return cast("Network", module.Reference(run, device="cpu" if device == "auto" else device))


def _save(folder: Path, queries: EmbeddedSplit, gallery: EmbeddedSplit) -> None:
    from .embeddings import save_split

    folder.mkdir(parents=True, exist_ok=True)
    for name, split in (("queries.npz", queries), ("gallery.npz", gallery)):
        save_split(split, folder / name)
        note_file("wrote", folder / name, f": {len(split):,} vectors")


def _draw(dataset: DataSet, queries: EmbeddedSplit, gallery: EmbeddedSplit, count: int, hits: int, out: Path) -> None:
    from .demo import draw_demo

    for path in draw_demo(dataset, queries, gallery, count, hits, out):
        note_file("wrote", path)


def _show(result: Evaluation | None, judged: TripletReport | None, as_json: bool) -> None:
    if as_json:
        from .evaluation import SCHEMA

        document = {"schema": SCHEMA} if result is None else result.to_dict()
        emit_json(document | ({} if judged is None else {"triplets": judged.to_dict()}))
        return
    from .tables import evaluation_lines, triplet_lines

    lines = [] if result is None else evaluation_lines(result)
    print("\n".join(lines + ([] if judged is None else triplet_lines(judged))))


def _require_parity(result: Evaluation, embedder: Embedder) -> None:
    from .parity import TOLERANCES

    if result.difference is None or result.change is None:
        return
    tolerance = TOLERANCES[embedder.info.precision]
    failures = tolerance.ranking_failures(result.change) + result.difference.failures(tolerance)
    if failures:
        raise EvaluationError(
            f"The model {printable(embedder.info.name)!r} does not rank like its PyTorch reference here: "
            f"{'; '.join(failures)}. Export it again, or compare with the run it came from."
        )


def main() -> None:
    """Run the command."""
    app()
