"""The work of ``deeprank-train`` with ratings."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ...runtime.progress import Monitor
from .lesson import Lesson, learn_lesson
from .options import RatingsOptions
from .run import write_run
from .sources import RatedSource, rated_index, rated_pictures

__all__ = ["RatingsResult", "learn_from_ratings"]


@dataclass(frozen=True)
class RatingsResult:
    """A lesson, and its run folder; None if the head was refused, and so not written."""

    source: RatedSource
    lesson: Lesson
    run: Path | None


def learn_from_ratings(options: RatingsOptions, monitor: Monitor) -> RatingsResult:
    """Learn a head, and write its run folder if it is better than the start, or by force.

    Raises:
        TrainingError: the options contradict each other, or there are too few ratings to learn from.
        DeepRankError: others of :func:`~.sources.rated_index`, :func:`~.sources.rated_pictures` and
            :func:`~.run.write_run`.

    """
    options.check()
    source = _source(options, monitor)
    lesson = learn_lesson(source.rated, seed=options.seed, progress=monitor)
    run = None
    if options.force or lesson.refusal() is None:
        run = write_run(options.out, source, lesson, seed=options.seed)
    return RatingsResult(source, lesson, run)


def _source(options: RatingsOptions, monitor: Monitor) -> RatedSource:
    if options.index is not None:
        return rated_index(options.index, options.ratings, with_labels=options.with_labels)
    assert options.data is not None
    assert options.ratings is not None
    return rated_pictures(
        options.data,
        options.ratings,
        options.model,
        monitor,
        labels=options.labels,
        with_labels=options.with_labels,
        device=options.device,
        threads=options.threads,
    )
