"""Check combinations of the options of ``deeprank-eval``."""

from __future__ import annotations

from pathlib import Path

from ..errors import EvaluationError
from ..labels import split_of
from ..text import display_path, printable
from .options import Asked

__all__ = ["check_beside_triplets", "check_models", "check_pictures"]


def check_pictures(asked: Asked) -> None:
    """Refuse options that specify the pictures twice, or only half of them."""
    if (asked.queries is None) != (asked.gallery is None):
        given, missing = ("--queries", "--gallery") if asked.gallery is None else ("--gallery", "--queries")
        raise EvaluationError(f"{given} is given without {missing}; name both, or a data set with splits by --data.")
    if asked.queries is not None and asked.data is not None:
        raise EvaluationError("--data and --queries both name pictures to query with; leave one of the two out.")
    if asked.queries is not None and asked.split is not None:
        raise EvaluationError("--split chooses a split of --data, and --queries takes all pictures; leave it out.")
    if asked.split is not None and split_of(asked.split) not in ("val", "test"):
        raise EvaluationError(f"--split {printable(asked.split)!r}; expected val or test.")


def check_models(asked: Asked) -> None:
    """Refuse files without --models, --models without files, and options for one model only."""
    if not asked.models:
        if asked.files:
            raise EvaluationError(
                f"{display_path(asked.files[0])} is named, and --models is not; to compare model files, write: "
                "deeprank-eval --models FILE... --data DATA. One alone is named with --model."
            )
        return
    if not asked.files:
        raise EvaluationError(
            "--models compares the files that are named, and there are none; expected --models FILE..."
        )
    given = {
        "--model": asked.model,
        "--triplets": asked.triplets,
        "--demo": asked.demo or None,
        "--save-embeddings": asked.save_embeddings,
    }
    for option in (name for name, value in given.items() if value is not None):
        raise EvaluationError(f"{option} is for one model, and --models compares several; leave one of the two out.")


def check_beside_triplets(asked: Asked, reference: Path | None) -> None:
    """Refuse options that need DATA, or a sample as the gallery of the triplets' queries."""
    given = {
        "--reference": reference,
        "--demo": asked.demo or None,
        "--save-embeddings": asked.save_embeddings,
        "--split": asked.split,
        "--labels": asked.labels,
    }
    for option in (name for name, value in given.items() if value is not None and not asked.names_pictures):
        raise EvaluationError(f"{option} looks at a data set, and --triplets was given without one; add --data DATA.")
    if reference is not None and reference.is_file():
        raise EvaluationError(
            f"--triplets ranks the whole gallery, and --reference {display_path(reference)} leaves only its sample of "
            "it; ask for one at a time."
        )
