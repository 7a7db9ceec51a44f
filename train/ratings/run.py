"""The run folder of a head: ``head.safetensors``, the model it belongs to, its figures and a page of them."""

from __future__ import annotations

from pathlib import Path

from ...runtime.errors import TrainingError
from ...runtime.files import file_sha256, open_regular
from ...runtime.text import display_path, printable
from ..run.folder import RunFolder, create_run, write_atomically, write_json
from .head import Head
from .lesson import Lesson
from .page import render
from .sources import RatedSource

__all__ = ["HEAD", "KIND", "METRICS", "START", "read_head", "write_run"]

# In config.json; the runs of a whole training have no kind.
KIND = "ratings"
HEAD, START, METRICS = "head.safetensors", "start.onnx", "metrics.json"
_BLOCK = 1 << 20


def write_run(out: Path | None, source: RatedSource, lesson: Lesson, *, seed: int) -> Path:
    """Write a run folder, by default ``runs/<time>-ratings``, and point ``runs/latest`` to it.

    ``config.json`` comes last, so that an unfinished folder is no run.

    Args:
        out: another folder.
        source: the ratings and the model.
        lesson: the head and its figures.
        seed: of its draws.

    Returns:
        the folder.

    Raises:
        TrainingError: it holds a run already, or cannot be written; or the model has changed.

    """
    run = create_run(out, KIND)
    _copy(source, run.path / START)
    lesson.learned.head.save(run.path / HEAD)
    write_json(run.path / METRICS, {"schema": 1, **lesson.to_dict()})
    page = render(run.path.name, source.data, lesson)
    write_atomically(run.report_path, lambda file: file.write(page))
    run.write_config(
        {
            "kind": KIND,
            "data": {"path": source.data},
            "model": {"sha256": source.model_sha256},
            "ratings": len(source.rated.triplets),
            "left_out": dict(source.left_out),
            "with_labels": source.rated.labels is not None,
            "seed": seed,
        }
    )
    return run.path


def read_head(run: RunFolder) -> Head | None:
    """Return the head of a run on ratings; None for other runs.

    Raises:
        TrainingError: ``config.json`` is damaged.
        ModelFileError: the head is missing or damaged.

    """
    kind = run.read_config().get("kind")
    if kind is None:
        return None
    if kind != KIND:
        raise TrainingError(
            f"{display_path(run.config_path)} is of the kind {printable(repr(kind)[:60])}; expected {KIND!r}. "
            "Upgrade deep-ranking."
        )
    return Head.load(run.path / HEAD)


def _copy(source: RatedSource, target: Path) -> None:
    try:
        with open_regular(source.model, follow_links=True) as model:
            write_atomically(target, lambda file: file.writelines(iter(lambda: model.read(_BLOCK), b"")))
    except OSError as error:
        raise TrainingError(f"{display_path(source.model)} cannot be read ({error.strerror or error}).") from None
    if file_sha256(target) != source.model_sha256:
        target.unlink()
        raise TrainingError(f"{display_path(source.model)} changed while it was copied; run the command again.")
