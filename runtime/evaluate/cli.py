"""``deeprank-eval``: precision@k of a model on labelled pictures, beside its PyTorch reference."""

from __future__ import annotations

import importlib
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer

from ..cli import (
    DeviceOption,
    MaxPixelsOption,
    ThreadsOption,
    VerboseOption,
    VersionOption,
    application,
    data_or_tiny_imagenet,
    emit_json,
    guarded,
    note,
    progress,
)
from ..errors import EvaluationError, MissingExtraError
from ..images import DEFAULT_MAX_PIXELS
from ..pretrained import describe_model, find_model, find_reference
from ..text import display_path, printable

if TYPE_CHECKING:
    from ..datasets import DataSet
    from ..embedder import Embedder
    from .embedded import EmbeddedSplit, Embeds
    from .evaluation import Evaluation
    from .reference import ReferenceSample
    from .tripletfile import RatedTriplets
    from .triplets import TripletReport

app = application(
    "Measure how well a model ranks: DATA's val pictures are the queries, its train pictures the gallery.",
    [
        "deeprank-eval --data tiny-imagenet-200.zip",
        "deeprank-eval --model model.onnx --data photos/ --reference runs/latest",
        "deeprank-eval --model model.onnx --data photos/ --reference model.reference.npz --json",
        "deeprank-eval --model pretrained --data tiny-imagenet-200.zip --reference pretrained",
        "deeprank-eval --model model.onnx --data photos/ --demo 5 --out sheets/",
        "deeprank-eval --model model.onnx --data photos/ --triplets rated.csv",
    ],
)


@app.command()
@guarded
def evaluate_command(
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            help="The exported model. Default: ./model.onnx, else the one that ships (the word pretrained).",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option("--data", help="Folder of class folders, Tiny ImageNet folder or zip, CSV, or the word digits."),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="The run (needs PyTorch) or its *.reference.npz (does not) to compare with; pretrained: what ships.",
        ),
    ] = None,
    triplets: Annotated[
        Path | None,
        typer.Option(
            "--triplets",
            metavar="CSV",
            help="Rated triplets, query,positive,negative[,label]: paths in DATA, else below the CSV's folder. "
            "Score-at-top-k needs --data: its gallery, or what is of the triplet's label there, is what is ranked.",
        ),
    ] = None,
    k: Annotated[int, typer.Option("--k", min=1, help="Neighbours of each query.")] = 30,
    save_embeddings: Annotated[
        Path | None, typer.Option("--save-embeddings", metavar="DIR", help="Keep vectors, labels and paths as npz.")
    ] = None,
    demo: Annotated[
        int, typer.Option("--demo", min=0, metavar="N", help="Draw the nearest and farthest of N queries as sheets.")
    ] = 0,
    demo_k: Annotated[int, typer.Option("--demo-k", min=1, help="Hits on each sheet of --demo.")] = 10,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where --demo writes its sheets.")] = Path("sheets"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
    max_pixels: MaxPixelsOption = DEFAULT_MAX_PIXELS,
    verbose: VerboseOption = False,
    version: VersionOption = False,
) -> None:
    """Measure how well a model ranks: DATA's val pictures are the queries, its train pictures the gallery."""
    from ..datasets import open_dataset
    from ..devices import Device
    from ..embedder import Embedder
    from .tripletfile import load_triplets

    chosen = find_model(model)
    reference = find_reference(reference) if reference is not None else None
    if triplets is not None:
        _check_beside_triplets(data, reference, demo, save_embeddings)
    embedder = Embedder(chosen, device=cast(Device, device), threads=threads, max_pixels=max_pixels)
    if model is None:
        note(f"measuring {describe_model(chosen, embedder.info)}")
    if triplets is not None and data is None:
        _show(None, _triplets_alone(triplets, embedder), as_json)
        return
    dataset = open_dataset(data_or_tiny_imagenet(data))
    rated = None if triplets is None else load_triplets(triplets, dataset)
    sample = _reference_sample(reference, embedder.dim)
    dataset = _measured(dataset, sample)
    queries, gallery = _embed(dataset, embedder, "", max_pixels)
    compared = _reference_splits(reference, sample, queries, gallery, device, max_pixels)
    from .evaluation import evaluate

    result = evaluate(queries, gallery, k, reference=compared, say=note)
    judged = None if rated is None else _judge(rated, embedder, queries, gallery, k=k)
    if save_embeddings is not None:
        _save(save_embeddings, queries, gallery)
    if demo:
        _draw(dataset, queries, gallery, demo, demo_k, out)
    _show(result, judged, as_json)
    _require_parity(result, embedder)


def _check_beside_triplets(data: str | None, reference: Path | None, demo: int, save_embeddings: Path | None) -> None:
    """Refuse what would be ignored without DATA, or would rank the triplets' queries among a sample alone."""
    given = {"--reference": reference is not None, "--demo": demo, "--save-embeddings": save_embeddings is not None}
    for option in (name for name, value in given.items() if value and data is None):
        raise EvaluationError(f"{option} looks at a data set, and --triplets was given without one; add --data DATA.")
    if reference is not None and reference.is_file():
        raise EvaluationError(
            f"--triplets ranks the whole gallery, and --reference {display_path(reference)} leaves only its sample of "
            "it; ask for one at a time."
        )


def _triplets_alone(path: Path, embedder: Embedder) -> TripletReport:
    from .tripletfile import load_triplets

    note("score-at-top-k ranks a gallery, and there is none here; name one with --data DATA")
    return _judge(load_triplets(path), embedder)


def _judge(rated: RatedTriplets, embedder: Embedder, *splits: EmbeddedSplit, k: int = 30) -> TripletReport:
    """Embed the triplets' pictures that are in no split, and measure; the last split is the gallery."""
    from .embedded import embed_readable
    from .triplets import evaluate_triplets

    with progress("triplets", len(rated.beside)) as advance:
        beside = embed_readable(rated.beside, embedder, max_pixels=embedder.max_pixels, advance=advance)
    for error in beside.unreadable:
        note(f"left out: {error}")
    report = evaluate_triplets(rated, (*splits, beside), splits[-1] if splits else None, k)
    if report.left_out:
        note(f"{report.left_out:,} of {len(rated):,} triplets are left out: a picture of theirs cannot be read")
    return report


def _embed(dataset: DataSet, embeds: Embeds, who: str, max_pixels: int) -> tuple[EmbeddedSplit, EmbeddedSplit]:
    from .embedded import embed_split

    splits = []
    for what, samples in ((f"{who}queries", dataset.val), (f"{who}gallery", dataset.train)):
        with progress(what, len(samples)) as advance:
            split = embed_split(samples, embeds, max_pixels=max_pixels, advance=advance)
        for error in split.unreadable:
            note(f"left out: {error}")
        splits.append(split)
    return splits[0], splits[1]


def _reference_sample(reference: Path | None, dim: int) -> ReferenceSample | None:
    if reference is None or reference.is_dir():
        return None
    from .reference import load_reference

    return load_reference(reference, dim)


def _measured(dataset: DataSet, sample: ReferenceSample | None) -> DataSet:
    """Return the pictures that are measured on."""
    if sample is not None:
        dataset = sample.found_in(dataset)
        found, total = len(dataset.val) + len(dataset.train), len(sample.splits)
        note(f"comparing on the {found} of {total} pictures of the reference sample that are here")
    if not dataset.val:
        raise EvaluationError("There are no val pictures to query with; expected at least one class of two pictures.")
    return dataset


def _reference_splits(
    reference: Path | None,
    sample: ReferenceSample | None,
    queries: EmbeddedSplit,
    gallery: EmbeddedSplit,
    device: str,
    max_pixels: int,
) -> tuple[EmbeddedSplit, EmbeddedSplit] | None:
    """Return what PyTorch makes of the pictures that were embedded."""
    if reference is None:
        return None
    if sample is not None:
        from .reference import GALLERY, QUERY

        return (
            replace(queries, vectors=sample.vectors_of(QUERY, queries.hashes)),
            replace(gallery, vectors=sample.vectors_of(GALLERY, gallery.hashes)),
        )
    from ..datasets import DataSet

    same = DataSet("reference", train=gallery.samples, val=queries.samples)
    return _embed(same, _pytorch(reference, device), "PyTorch reference: ", max_pixels)


def _pytorch(run: Path, device: str) -> Embeds:
    try:
        # The one place where the runtime reaches up: only here, and only when a run is named.
        module = importlib.import_module("deeprank.train.reference")
    except ImportError:
        raise MissingExtraError("--reference with a run", "train") from None
    return cast("Embeds", module.Reference(run, device="cpu" if device == "auto" else device))


def _save(folder: Path, queries: EmbeddedSplit, gallery: EmbeddedSplit) -> None:
    from .embedded import save_split

    folder.mkdir(parents=True, exist_ok=True)
    for name, split in (("queries.npz", queries), ("gallery.npz", gallery)):
        save_split(split, folder / name)
        note(f"wrote {display_path(folder / name)}: {len(split)} vectors")


def _draw(dataset: DataSet, queries: EmbeddedSplit, gallery: EmbeddedSplit, count: int, hits: int, out: Path) -> None:
    from .demo import draw_demo

    for path in draw_demo(dataset, queries, gallery, count, hits, out):
        note(f"wrote {display_path(path)}")


def _show(result: Evaluation | None, judged: TripletReport | None, as_json: bool) -> None:
    if as_json:
        from .evaluation import SCHEMA

        document = {"schema": SCHEMA} if result is None else result.to_dict()
        emit_json(document | ({} if judged is None else {"triplets": judged.to_dict()}))
        return
    if result is not None:
        _print_evaluation(result)
    if judged is not None:
        _print_triplets(judged)


def _print_triplets(judged: TripletReport) -> None:
    print(f"{judged.count:,} triplets")
    print(f"  {'similarity precision':<34} {judged.similarity_precision:.4f}")
    top = judged.score_at_top_k
    if top is not None:
        print(
            f"  {f'score-at-top-{top.k}':<34} {top.score}  (of {top.counted:,} triplets that reach the {top.k} nearest)"
        )


def _print_evaluation(result: Evaluation) -> None:
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
    print(f"{result.queries:,} queries, {result.gallery:,} gallery pictures")
    for name, value in rows:
        print(f"  {name:<34} {value:.4f}")
    if result.difference is not None:
        print(f"  {'largest difference from PyTorch':<34} {result.difference.max_abs_difference:.1e}")
        print(f"  {'smallest cosine with PyTorch':<34} {result.difference.min_cosine:.7f}")


def _require_parity(result: Evaluation, embedder: Embedder) -> None:
    from .parity import TOLERANCES

    if result.difference is None:
        return
    failures = result.difference.failures(TOLERANCES[embedder.info.precision])
    if failures:
        raise EvaluationError(
            f"The model {printable(embedder.info.name)!r} does not rank like its PyTorch reference here: "
            f"{'; '.join(failures)}. Export it again, or compare with the run it came from."
        )


def main() -> None:
    """Run the command."""
    app()
