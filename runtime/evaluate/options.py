"""The options of ``deeprank-eval``, and the refusal of contradictory ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ..cli import DeviceOption, JsonOption, LabelsOption, MaxPixelsOption, ModelOption, ThreadsOption, YesOption
from ..data.labels import split_of
from ..errors import EvaluationError
from ..images import DEFAULT_MAX_PIXELS
from ..text import display_path, printable

__all__ = [
    "DEFAULT_K",
    "EvaluateOptions",
    "check_beside_triplets",
    "check_carried_pictures",
    "check_models",
    "check_pictures",
]

DEFAULT_K = 30


@dataclass(frozen=True)
class EvaluateOptions:
    """The options, as their help describes them. ``files`` are those of ``models``."""

    files: Annotated[
        list[Path] | None,
        typer.Argument(metavar="FILE", help="With --models: the model files; the others are compared with the first."),
    ] = None
    models: Annotated[bool, typer.Option("--models", help="Compare the given model files in ranking and speed.")] = (
        False
    )
    model: ModelOption = None
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Folder or zip of class folders, or of train, val and test folders with class folders in them; CSV of "
            "path,label[,split]; or the word digits or scenes.",
        ),
    ] = None
    split: Annotated[
        str | None,
        typer.Option(
            "--split", metavar="val|test", help="The split of DATA whose pictures are the queries. Default: val."
        ),
    ] = None
    labels: LabelsOption = None
    queries: Annotated[
        str | None,
        typer.Option(
            "--queries",
            metavar="DATA",
            help="Instead of --data: a data set whose pictures are all queries. Needs --gallery.",
        ),
    ] = None
    gallery: Annotated[
        str | None,
        typer.Option("--gallery", metavar="DATA", help="With --queries: a data set whose pictures are all gallery."),
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="Compare with a run (needs PyTorch) or its *.reference.npz; pretrained: the bundled one. A file "
            "that carries its pictures needs no --data.",
        ),
    ] = None
    triplets: Annotated[
        Path | None,
        typer.Option(
            "--triplets",
            metavar="CSV",
            help="Rated triplets, query,positive,negative[,label]: paths in DATA, else below the CSV's folder. "
            "Score-at-top-k needs --data: it ranks that gallery, or only the pictures with the triplet's label.",
        ),
    ] = None
    k: Annotated[
        int | None,
        typer.Option(
            "-k",
            "--k",
            metavar="K",
            min=1,
            help=f"Neighbours of each query. Default: {DEFAULT_K}, or the whole gallery if that is smaller.",
        ),
    ] = None
    save_embeddings: Annotated[
        Path | None, typer.Option("--save-embeddings", metavar="DIR", help="Save vectors, labels and paths as npz.")
    ] = None
    demo: Annotated[
        int,
        typer.Option(
            "--demo", min=0, metavar="N", help="Draw contact sheets of the nearest and farthest pictures for N queries."
        ),
    ] = 0
    demo_k: Annotated[int, typer.Option("--demo-k", metavar="K", min=1, help="Hits on each sheet of --demo.")] = 10
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the sheets of --demo.")] = Path("sheets")
    as_json: JsonOption = False
    device: DeviceOption = "auto"
    threads: ThreadsOption = None
    max_pixels: MaxPixelsOption = DEFAULT_MAX_PIXELS
    yes: YesOption = False

    @property
    def names_pictures(self) -> bool:
        """Whether labelled pictures are given."""
        return self.data is not None or self.queries is not None


def check_pictures(options: EvaluateOptions) -> None:
    """Refuse what names the pictures twice, or by half."""
    if (options.queries is None) != (options.gallery is None):
        given, missing = ("--queries", "--gallery") if options.gallery is None else ("--gallery", "--queries")
        raise EvaluationError(f"{given} is given without {missing}; name both, or a data set with splits with --data.")
    if options.queries is not None and options.data is not None:
        raise EvaluationError("--data and --queries both name pictures to query with; leave one of the two out.")
    if options.queries is not None and options.split is not None:
        raise EvaluationError("--split chooses a split of --data, and --queries takes all pictures; leave it out.")
    if options.split is not None and split_of(options.split) not in ("val", "test"):
        raise EvaluationError(f"--split {printable(options.split)!r}; expected val or test.")


def check_carried_pictures(options: EvaluateOptions) -> None:
    """Refuse what would be ignored where the pictures are those of the reference sample."""
    given = {
        "--data": options.data,
        "--queries": options.queries,
        "--split": options.split,
        "--labels": options.labels,
    }
    for option in (name for name, value in given.items() if value is not None):
        also = " and --gallery" if option == "--queries" else ""
        raise EvaluationError(
            f"{option} was given, but the reference sample carries its own pictures and PyTorch's ranking of these; "
            f"leave {option}{also} out."
        )


def check_models(options: EvaluateOptions) -> None:
    """Refuse files without --models, --models without files, and what looks at one model."""
    if not options.models:
        if options.files:
            raise EvaluationError(
                f"{display_path(options.files[0])} was given without --models; to compare model files, write: "
                "deeprank-eval --models FILE... --data DATA. For a single model, use --model."
            )
        return
    if not options.files:
        raise EvaluationError("--models compares model files, but none was given; expected --models FILE...")
    given = {
        "--model": options.model,
        "--triplets": options.triplets,
        "--demo": options.demo or None,
        "--save-embeddings": options.save_embeddings,
    }
    for option in (name for name, value in given.items() if value is not None):
        raise EvaluationError(f"{option} is for one model, but --models compares several; leave one of the two out.")


def check_beside_triplets(options: EvaluateOptions, reference: Path | None) -> None:
    """Refuse what would be ignored without DATA, or would rank the triplets' queries among a sample alone."""
    given = {
        "--reference": reference,
        "--demo": options.demo or None,
        "--save-embeddings": options.save_embeddings,
        "--split": options.split,
        "--labels": options.labels,
    }
    for option in (name for name, value in given.items() if value is not None and not options.names_pictures):
        raise EvaluationError(f"{option} needs a data set, but --triplets was given without one; add --data DATA.")
    if reference is not None and reference.is_file():
        raise EvaluationError(
            f"--triplets ranks the whole gallery, but --reference {display_path(reference)} keeps only a sample of it; "
            "leave one of the two out."
        )
