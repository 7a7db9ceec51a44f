"""Check combinations of the options of ``deeprank-eval``."""

from __future__ import annotations

from pathlib import Path

from ..data.labels import split_of
from ..errors import EvaluationError
from ..text import display_path, printable
from .options import EvaluateOptions

__all__ = ["check_beside_triplets", "check_models", "check_pictures"]


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
