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

__all__ = ["DEFAULT_K", "EvaluateOptions", "check_beside_triplets", "check_models", "check_pictures"]

DEFAULT_K = 30


@dataclass(frozen=True)
class EvaluateOptions:
    """The options, as their help describes them. ``files`` are those of ``models``."""

    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="With --models: the models, the first to compare with.")
    ] = None
    models: Annotated[
        bool, typer.Option("--models", help="Compare the model files that are named, in ranking and in speed.")
    ] = False
    model: ModelOption = None
    data: Annotated[
        str | None,
        typer.Option(
            "--data",
            metavar="DATA",
            help="Folder or zip of class folders, or of train, val and test folders with class folders in them; CSV of "
            "path,label[,split]; or the word digits.",
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
            help="In the place of --data: a data set, all of whose pictures are the queries,",
        ),
    ] = None
    gallery: Annotated[
        str | None,
        typer.Option("--gallery", metavar="DATA", help="and another one, all of whose pictures are the gallery."),
    ] = None
    reference: Annotated[
        Path | None,
        typer.Option(
            "--reference",
            help="The run (needs PyTorch) or its *.reference.npz (does not) to compare with; pretrained: what ships.",
        ),
    ] = None
    triplets: Annotated[
        Path | None,
        typer.Option(
            "--triplets",
            metavar="CSV",
            help="Rated triplets, query,positive,negative[,label]: paths in DATA, else below the CSV's folder. "
            "Score-at-top-k needs --data: its gallery, or what is of the triplet's label there, is what is ranked.",
        ),
    ] = None
    k: Annotated[
        int | None,
        typer.Option(
            "-k",
            "--k",
            metavar="K",
            min=1,
            help=f"Neighbours of each query. Default: {DEFAULT_K}, or the whole gallery where that is smaller.",
        ),
    ] = None
    save_embeddings: Annotated[
        Path | None, typer.Option("--save-embeddings", metavar="DIR", help="Keep vectors, labels and paths as npz.")
    ] = None
    demo: Annotated[
        int, typer.Option("--demo", min=0, metavar="N", help="Draw the nearest and farthest of N queries as sheets.")
    ] = 0
    demo_k: Annotated[int, typer.Option("--demo-k", metavar="K", min=1, help="Hits on each sheet of --demo.")] = 10
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where --demo writes its sheets.")] = Path("sheets")
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
        raise EvaluationError(f"{given} is given without {missing}; name both, or a data set with splits by --data.")
    if options.queries is not None and options.data is not None:
        raise EvaluationError("--data and --queries both name pictures to query with; leave one of the two out.")
    if options.queries is not None and options.split is not None:
        raise EvaluationError("--split chooses a split of --data, and --queries takes all pictures; leave it out.")
    if options.split is not None and split_of(options.split) not in ("val", "test"):
        raise EvaluationError(f"--split {printable(options.split)!r}; expected val or test.")


def check_models(options: EvaluateOptions) -> None:
    """Refuse files without --models, --models without files, and what looks at one model."""
    if not options.models:
        if options.files:
            raise EvaluationError(
                f"{display_path(options.files[0])} is named, and --models is not; to compare model files, write: "
                "deeprank-eval --models FILE... --data DATA. One alone is named with --model."
            )
        return
    if not options.files:
        raise EvaluationError(
            "--models compares the files that are named, and there are none; expected --models FILE..."
        )
    given = {
        "--model": options.model,
        "--triplets": options.triplets,
        "--demo": options.demo or None,
        "--save-embeddings": options.save_embeddings,
    }
    for option in (name for name, value in given.items() if value is not None):
        raise EvaluationError(f"{option} is for one model, and --models compares several; leave one of the two out.")


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
        raise EvaluationError(f"{option} looks at a data set, and --triplets was given without one; add --data DATA.")
    if reference is not None and reference.is_file():
        raise EvaluationError(
            f"--triplets ranks the whole gallery, and --reference {display_path(reference)} leaves only its sample of "
            "it; ask for one at a time."
        )
