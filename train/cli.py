"""``deeprank-train``: start or resume a run, alone or under torchrun; print progress and result."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, cast

from ..models.allocator import keep_freed_memory
from ..runtime.cli import application, data_or_tiny_imagenet, fail, guarded, note, progress_in_stages
from ..runtime.columns import Columns
from ..runtime.console import emit_fact, file_line, from_here, next_step, note_in_lines, terminal_width, to_paste
from ..runtime.datasets import MADE
from ..runtime.devices import Device
from ..runtime.errors import MissingExtraError, TrainingError
from ..runtime.progress import Advance, StartProgress, start_nothing
from ..runtime.text import duration
from .options.flags import OTHER_NAMES, typed_options, with_flags
from .options.recipes import load_config
from .ratings.options import RatingsOptions

__all__ = ["TerminalMonitor", "app", "main"]

_NEEDED = ("torch", "torchvision", "timm", "safetensors", "sklearn", "matplotlib")
_LATEST = "runs/latest"
_HELP = (
    "Teach a network what 'similar' means on labelled pictures. Every option's default comes from the default recipe; "
    "--config names another recipe or a TOML file, and options on the command line win. --help-all shows all options."
)
_EXAMPLES = [
    "deeprank-train scenes                       about a minute, offline",
    "deeprank-train photos --epochs 20           a folder of class folders",
    "deeprank-train photos --no-freeze-backbone  all layers, not only the head",
    "deeprank-train photos.csv --val new.csv     evaluated on other pictures",
    "deeprank-train --resume                     resume the newest run",
    "deeprank-train --index my.index             learn from its ratings",
    "deeprank-train photos --ratings rated.csv   learn from rated triplets",
    "torchrun --nproc-per-node 2 -m deeprank.train photos    two processes",
]


app = application(_HELP, _EXAMPLES, OTHER_NAMES)


def _train(
    data: str | None,
    config: str | None,
    val: str | None,
    labels: str | None,
    ratings: Path | None,
    index: Path | None,
    model: str | None,
    with_labels: bool,
    force: bool,
    out: Path | None,
    resume: Path | None,
    cache: Path,
    device: str,
    threads: int | None,
    yes: bool,
    verbose: bool,
    version: bool,
    help_all: bool,
    **typed: Any,
) -> None:
    del verbose, version, help_all
    if any(importlib.util.find_spec(package) is None for package in _NEEDED):
        raise MissingExtraError("deeprank-train", "train")
    if ratings is not None or index is not None:
        _refuse_others({"config": config, "val": val, "resume": resume, **typed})
        taught = (data, ratings, index, model, with_labels, labels, force, out)
        _teach(RatingsOptions(*taught, typed["seed"] or 0, cast(Device, device), threads))
        return
    if model is not None or with_labels or force:
        raise TrainingError(
            "--model, --with-labels and --force belong to learning from ratings; add --ratings or --index. The network "
            "to train is named with --backbone."
        )
    _train_network(data, config, val, labels, out, resume, cache, device, threads, yes, typed)


def _train_network(
    data: str | None,
    config: str | None,
    val: str | None,
    labels: str | None,
    out: Path | None,
    resume: Path | None,
    cache: Path,
    device: str,
    threads: int | None,
    yes: bool,
    typed: Mapping[str, Any],
) -> None:
    began = time.monotonic()
    with _resumable(resume), _with_others(device) as others:
        overrides = typed_options(typed)
        if resume is not None and (config is not None or out is not None):
            raise TrainingError("--resume continues a run with its own options; leave out --config and --out.")
        recipe = config or (data if data is not None and data in MADE else "default")
        merged = load_config(recipe, overrides)  # refuses wrong options before the slow import of torch
        if resume is None:  # likewise: ask about the download before that import
            data = _data(data, yes, others)
        keep_freed_memory()
        from .loop.distributed import ALONE
        from .loop.job import Surroundings
        from .loop.run import resume_run, start_run

        ranks = others or ALONE
        surroundings = Surroundings(device, threads, cache, ranks)
        monitor = TerminalMonitor(speaks=ranks.first)
        with monitor.watching():
            if resume is not None:
                overridden = {name: getattr(merged, name) for name in overrides}
                result = resume_run(resume, overridden, surroundings, monitor, data=data, val=val, labels=labels)
            else:
                result = start_run(str(data), merged, recipe, surroundings, monitor, val=val, labels=labels, out=out)
    if ranks.first:
        _print_result(result.run, result.figures, time.monotonic() - began if result.trained else None)
        next_step("deeprank-export", _from_here(result.run))


def _refuse_others(typed: Mapping[str, Any]) -> None:
    """Refuse options of a whole training beside ratings."""
    for name, value in typed.items():
        if value is not None and name != "seed":
            raise TrainingError(
                f"--{name.replace('_', '-')} belongs to the training of a network; leave it out to learn from ratings."
            )


def _teach(options: RatingsOptions) -> None:
    """Learn from ratings, print the figures, and refuse a head that is not better."""
    from .ratings.command import learn_from_ratings

    began = time.monotonic()
    monitor = TerminalMonitor()
    with monitor.progressing():
        result = learn_from_ratings(options, monitor)
    lesson = result.lesson
    for name, value in lesson.facts(result.source.left_out):
        emit_fact(name, value)
    emit_fact("time", duration(time.monotonic() - began))
    refusal = lesson.refusal()
    if result.run is None:
        fail(f"{refusal} Nothing was written; --force writes it all the same.")
    if refusal is not None:
        note(refusal)
    emit_fact("run", file_line(result.run))
    next_step("deeprank-export", _from_here(result.run))


def _data(data: str | None, yes: bool, others: Any) -> str:
    """Return DATA, or the default data set, which one process of each machine downloads."""

    def data_folder() -> str:
        return data_or_tiny_imagenet(data, yes=yes)

    return str(data_folder() if others is None else others.in_turn(data_folder))


@contextlib.contextmanager
def _with_others(device: str) -> Iterator[Any]:
    """Join the other processes of torchrun; one of them reports the error that ends them all.

    Yields:
        their :class:`~.loop.distributed.Ranks`; None without torchrun, where torch is not imported yet.

    """
    if "LOCAL_RANK" not in os.environ:
        yield None
        return
    from ..runtime.errors import TrainingInterrupted
    from .loop.distributed import connected

    with connected() as ranks:
        try:
            ranks.start(device)
            yield ranks
        except (Exception, KeyboardInterrupt) as error:
            if ranks.has_the_word():
                raise
            sys.exit(130 if isinstance(error, TrainingInterrupted | KeyboardInterrupt) else 1)


@contextlib.contextmanager
def _resumable(resume: Path | None) -> Iterator[None]:
    """On an interrupt, print how to resume the run and exit with status 130."""
    try:
        yield
    except TrainingError as error:
        from ..runtime.errors import TrainingInterrupted
        from .run.folder import LATEST

        if not isinstance(error, TrainingInterrupted):
            raise
        run = _from_here(resume if resume is not None else LATEST)
        fail(f"{error} Resume with: {to_paste('deeprank-train', '--resume', run)}", status=130)


def _from_here(run: Path) -> Path:
    """Return the folder that a run or a link names, as a path to type here."""
    return from_here(run.resolve() if run.is_dir() else run)


def _print_result(run: Path, figures: Any, seconds: float | None) -> None:
    """Print the final figures, what they took, the files, and what training brought."""
    from .report.effect import Effect

    for name, value in _figures(figures):
        emit_fact(name, value)
    if seconds is not None:
        emit_fact("time", f"{duration(seconds)} in all; epoch {figures['epoch']} is kept")
    emit_fact("run", file_line(run))
    for name, file in (("network", "best.pt"), ("report", "report.html")):
        if (run / file).is_file():
            emit_fact(name, file_line(run / file, size=(run / file).stat().st_size))
    effect = Effect.of(figures)
    if effect is not None:
        learned, held_out = effect.findings()
        emit_fact("learned", learned.line)
        emit_fact("never learned", held_out.line)


def _figures(figures: Any) -> Iterator[tuple[str, str]]:
    """Yield the names and values of the final figures."""
    from .metrics import precision_text

    if "precision_at_k" in figures:
        against = f"{figures['queries']:,} val queries against {figures['gallery']:,} train pictures"
        cached = ", from cached features" if figures["cached"] else ""
        yield f"precision@{figures['k']}", f"{precision_text(figures)}  ({against}{cached})"
        yield "recall@1", f"{figures['recall_at_1']:.4f}"
        yield "MAP@R", f"{figures['map_at_r']:.4f}"
        same, others = _number(figures["positive_distance"]), _number(figures["negative_distance"])
        yield "distance", f"{same:.3f} same class, {others:.3f} others"
    for name, what in (("unseen", "gallery not trained on"), ("untrained", "the starting backbone, same gallery")):
        if name in figures:
            row = figures[name]
            yield f"precision@{row['k']}", f"{precision_text(row)}  ({what}: {row['gallery']:,} pictures)"


def _number(figure: float | None) -> float:
    """Return the figure; null, which is how JSON stores NaN, becomes NaN again."""
    return math.nan if figure is None else figure


def _with_named_resume(arguments: Sequence[str]) -> list[str]:
    """Expand ``--resume`` without a value to ``--resume runs/latest``."""
    named: list[str] = []
    for place, argument in enumerate(arguments):
        named.append(argument)
        following = arguments[place + 1] if place + 1 < len(arguments) else "-"
        if argument == "--resume" and following.startswith("-"):
            named.append(_LATEST)
    return named


def main() -> None:
    """Run ``deeprank-train``."""
    app(_with_named_resume(sys.argv[1:]))


class TerminalMonitor:
    """Shows remarks and progress on stderr; stops on the first Ctrl-C or SIGTERM at the next safe point.

    It implements :class:`~..runtime.progress.Monitor`.
    """

    def __init__(self, speaks: bool = True) -> None:
        self._speaks = speaks
        self._start: StartProgress = start_nothing
        self._stopping = False
        self._table: Columns | None = None

    def __call__(self, what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
        """Show the progress of a stage."""
        return self._start(what, total, unit, done)

    def remark(self, text: str) -> None:
        """Show a line."""
        if self._speaks:
            note_in_lines(text)

    def row(self, table: Columns, cells: Sequence[str], line: str) -> None:
        """Show a row of a table, below its titles; without a terminal, the line."""
        width = terminal_width(sys.stderr)
        if not self._speaks or width is None:
            return self.remark(line)
        if table != self._table:
            note(table.header(width))
            self._table = table
        return note(table.row(cells, width).rstrip())

    def stopping(self) -> bool:
        """Return True after the first signal."""
        return self._stopping

    @contextlib.contextmanager
    def progressing(self) -> Iterator[None]:
        """Show progress."""
        with progress_in_stages() as start:
            self._start = start if self._speaks else start_nothing
            yield

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Show progress, and catch the first signal; the second Ctrl-C ends the process at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            if self._stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self._stopping:
                self.remark("Stopping at the next safe point; Ctrl-C again ends at once, without saving.")
            self._stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with self.progressing():
                yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


# With one command, Typer shows the help of the command instead of that of the application.
app.command(help=app.info.help, epilog=app.info.epilog)(guarded(with_flags(_train)))
