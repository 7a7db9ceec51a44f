"""``deeprank-train``: options, progress, and what is printed."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import os
import shlex
import signal
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from ..runtime.cli import (
    DeviceOption,
    ThreadsOption,
    VerboseOption,
    VersionOption,
    application,
    data_or_tiny_imagenet,
    fail,
    guarded,
    note,
    progress,
)
from ..runtime.datasets import DIGITS
from ..runtime.errors import MissingExtraError, TrainingError
from ..runtime.text import display_path, printable
from .config import Option, load_config, options

__all__ = ["app", "main"]

_NEEDED = ("torch", "torchvision", "timm", "safetensors", "sklearn", "matplotlib", "jinja2")
_LATEST = "runs/latest"

_HELP = (
    "Teach a network what 'similar' means on labelled pictures. Every option's default comes from the default recipe; "
    "--config names another recipe or a TOML file, and options on the command line win."
)
_EXAMPLES = [
    "deeprank-train digits                      about a minute, offline",
    "deeprank-train photos --epochs 20          a folder with one folder for each class",
    "deeprank-train photos.csv --val new.csv    evaluate on other pictures at the end",
    "deeprank-train --resume                    go on with the newest run",
    "torchrun --nproc-per-node 2 -m deeprank.train photos    two processes share each batch; on GPUs, one for each",
]

app = application(_HELP, _EXAMPLES)


class _TerminalMonitor:
    """Shows remarks and progress on stderr; stops on the first Ctrl-C or SIGTERM at the next safe point."""

    def __init__(self, speaks: bool = True) -> None:
        self._speaks = speaks
        self._work = contextlib.ExitStack()
        self._advance: Any = None
        self._stopping = False

    def remark(self, text: str) -> None:
        if self._speaks:
            note(text)

    def begin(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.end()
        if not self._speaks:
            return
        more = f" (after {done:,} from before)" if done else ""
        self._advance = self._work.enter_context(progress(title + more, total - done, unit))

    def advance(self, count: int, note: str = "") -> None:
        if self._speaks:
            self._advance(count, detail=note)

    def end(self) -> None:
        self._work.close()

    def stopping(self) -> bool:
        return self._stopping

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Catch the first signal; the second Ctrl-C ends the process at once."""

        def stop(number: int, frame: FrameType | None) -> None:
            del frame
            if self._stopping and number == signal.SIGINT:
                raise KeyboardInterrupt
            if not self._stopping:
                self.remark("Stopping at the next safe point; Ctrl-C again ends at once, without saving.")
            self._stopping = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            self.end()
            for number, handler in before.items():
                signal.signal(number, handler)


def _train(
    data: str | None,
    config: str | None,
    val: str | None,
    out: Path | None,
    resume: Path | None,
    cache: Path,
    device: str,
    threads: int | None,
    verbose: bool,
    version: bool,
    **typed: Any,
) -> None:
    del verbose, version
    if any(importlib.util.find_spec(package) is None for package in _NEEDED):
        raise MissingExtraError("deeprank-train", "train")
    with _resumable(resume), _with_others(device) as others:
        overrides = _overrides(typed)
        if resume is not None and (config is not None or out is not None):
            raise TrainingError("--resume goes on with a run as it is; leave out --config and --out.")
        recipe = config or (DIGITS if data == DIGITS else "default")
        merged = load_config(recipe, overrides)  # refused, if wrong, before torch is imported, which takes seconds
        from .distributed import ALONE
        from .training import Surroundings, resume_run, start_run

        ranks = others or ALONE
        if resume is None:
            data = ranks.in_turn(lambda: data_or_tiny_imagenet(data))
        surroundings = Surroundings(device, threads, cache, ranks)
        monitor = _TerminalMonitor(speaks=ranks.first)
        with monitor.signals():
            if resume is not None:
                asked = {name: getattr(merged, name) for name in overrides}
                result = resume_run(resume, asked, surroundings, monitor, data=data, val=val)
            else:
                result = start_run(str(data), merged, recipe, surroundings, monitor, val=val, out=out)
    if ranks.first:
        _print_result(result.run, result.figures)


@contextlib.contextmanager
def _with_others(device: str) -> Iterator[Any]:
    """Join the processes that torchrun has started beside this one; one of them says what has ended them all.

    Yields:
        their :class:`~.distributed.Ranks`; None without torchrun, where torch need not be imported yet.

    """
    if "LOCAL_RANK" not in os.environ:
        yield None
        return
    from .distributed import connected
    from .monitor import TrainingInterrupted

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
    """Say how an interrupted run is resumed, and exit as an interrupted command does."""
    try:
        yield
    except TrainingError as error:
        from .monitor import TrainingInterrupted
        from .runfolder import LATEST

        if not isinstance(error, TrainingInterrupted):
            raise
        run = resume if resume is not None else LATEST.resolve() if LATEST.is_symlink() else LATEST
        with contextlib.suppress(ValueError):
            run = run.resolve().relative_to(Path.cwd())
        fail(f"{error} Go on with: deeprank-train --resume {shlex.quote(display_path(run))}", status=130)


def _overrides(typed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that were typed, each in its own type."""
    overrides = {name: value for name, value in typed.items() if value is not None}
    if "hidden" in overrides:
        overrides["hidden"] = _widths(overrides["hidden"])
    if "arguments" in overrides:
        overrides["arguments"] = _table(overrides["arguments"])
    return overrides


def _widths(text: str) -> tuple[int, ...]:
    """Read ``--hidden 1024,512`` (or ``none``)."""
    if text.strip().lower() in ("", "none"):
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise TrainingError(f"--hidden {text}: expected widths such as 1024 or 1024,512, or none.") from None


def _table(text: str) -> dict[str, Any]:
    """Read ``--arguments alpha=2.0,base=0.5`` (or ``none``), values as TOML has them."""
    if text.strip().lower() in ("", "none"):
        return {}
    try:
        return dict(tomllib.loads(f"arguments = {{{text}}}")["arguments"])
    except tomllib.TOMLDecodeError:
        raise TrainingError(
            f"--arguments {printable(text)}: expected name=value pairs such as alpha=2.0,base=0.5, or none."
        ) from None


def _print_result(run: Path, figures: Any) -> None:
    if "precision_at_k" in figures:
        against = f"{figures['queries']:,} val queries against {figures['gallery']:,} train pictures"
        cached = ", from cached features" if figures["cached"] else ""
        print(f"precision@{figures['k']}  {figures['precision_at_k']:.4f}  ({against}{cached})")
        print(f"recall@1      {figures['recall_at_1']:.4f}")
        print(f"MAP@R         {figures['map_at_r']:.4f}")
        print(f"distance      {figures['positive_distance']:.3f} same class, {figures['negative_distance']:.3f} others")
    for name, what in (("unseen", "gallery never learned from"), ("untrained", "the untrained backbone there")):
        if name in figures:
            row = figures[name]
            print(f"precision@{row['k']}  {row['precision_at_k']:.4f}  ({what}: {row['gallery']:,} pictures)")
    print(f"run           {display_path(run)}")


# -- the command line, made from the table of options ------------------------------------------------------------------

_CommandOption = Annotated[
    str | None, typer.Option("--config", help="Recipe (default, digits, seed) or TOML file. Default: digits for the "
    "data set digits, else default.", metavar="RECIPE|FILE", show_default=False)
]  # fmt: skip

_FIXED: dict[str, Any] = {
    "data": (
        Annotated[
            str | None,
            typer.Argument(
                help="Folder of class folders, Tiny ImageNet folder or zip, CSV of path,label[,split], or the word "
                "digits. Default: data/tiny-imagenet-200, downloaded once.",
                metavar="[DATA]",
                show_default=False,
            ),
        ],
        None,
    ),
    "config": (_CommandOption, None),
    "val": (
        Annotated[
            str | None,
            typer.Option("--val", help="Evaluate on all pictures of this data set instead.", metavar="DATA"),
        ],
        None,
    ),
    "out": (
        Annotated[
            Path | None,
            typer.Option("--out", help="Run folder. Default: runs/<time>-<backbone>.", metavar="RUN"),
        ],
        None,
    ),
    "resume": (
        Annotated[
            Path | None,
            typer.Option("--resume", help="Go on with this run; alone: with runs/latest.", metavar="[RUN]"),
        ],
        None,
    ),
    "cache": (
        Annotated[Path, typer.Option("--cache", help="Where features of frozen backbones are kept.", metavar="DIR")],
        Path("runs/.cache"),
    ),
    "device": (DeviceOption, "auto"),
    "threads": (ThreadsOption, None),
    "verbose": (VerboseOption, False),
    "version": (VersionOption, False),
}

_PANELS = {"network": "Network", "picture": "Picture", "augmentation": "Augmentation", "batch": "Batches",
           "sampling": "Sampling", "loss": "Loss", "optimizer": "Optimisation", "data": "Data",
           "run": "Run"}  # fmt: skip


def _parameter(option: Option, default: Any) -> inspect.Parameter:
    flag = f"--{option.name.replace('_', '-')}"
    if option.kind is bool:
        flag = f"{flag}/--no-{option.name.replace('_', '-')}"
    help_text = option.help + (f" ({', '.join((*option.choices, *option.forms))})" if option.choices else "")
    typed: Any = str if option.kind in (tuple, dict) else option.kind
    flagged = typer.Option(flag, help=help_text, show_default=_shown(default), rich_help_panel=_PANELS[option.section])
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[typed | None, flagged]
    )


def _shown(default: Any) -> str:
    """Return a default as it would be typed."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    if isinstance(default, Mapping):
        return ",".join(f"{name}={value}" for name, value in default.items()) or "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


def _with_options() -> Any:
    """Give the command one flag for each option of the table, its default read from the default recipe."""
    defaults = load_config("default", {})
    parameters = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for name, (annotation, default) in _FIXED.items()
    ]
    parameters += [_parameter(option, getattr(defaults, option.name)) for option in options()]
    command: Any = _train
    command.__signature__ = inspect.Signature(parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return command


# With one command, Typer shows the help of the command and not that of the application.
app.command(help=app.info.help, epilog=app.info.epilog)(guarded(_with_options()))


def _with_named_resume(arguments: Sequence[str]) -> list[str]:
    """Let ``--resume`` stand alone, which then means the newest run."""
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
