"""What the command line of ``deeprank-eval`` cannot ask for at once."""

from __future__ import annotations

from pathlib import Path

from ..errors import EvaluationError
from ..text import display_path
from .options import Asked

__all__ = ["check_beside_triplets", "check_models"]


def check_models(asked: Asked) -> None:
    """Refuse files without --models, --models without files, and what looks at one model."""
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
    """Refuse what would be ignored without DATA, or would rank the triplets' queries among a sample alone."""
    given = {"--reference": reference, "--demo": asked.demo or None, "--save-embeddings": asked.save_embeddings}
    for option in (name for name, value in given.items() if value is not None and asked.data is None):
        raise EvaluationError(f"{option} looks at a data set, and --triplets was given without one; add --data DATA.")
    if reference is not None and reference.is_file():
        raise EvaluationError(
            f"--triplets ranks the whole gallery, and --reference {display_path(reference)} leaves only its sample of "
            "it; ask for one at a time."
        )
