"""``deeprank-train``: options, progress, and what is printed."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
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
from ..runtime.text import display_path
from .config import Option, load_config, options

__all__ = ["app", "main"]

_NEEDED = ("torch", "torchvision", "timm", "safetensors", "matplotlib")
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
]

app = application(_HELP, _EXAMPLES)


class _TerminalMonitor:
    """Shows remarks and progress on stderr; stops on the first Ctrl-C or SIGTERM at the next safe point."""

    def __init__(self) -> None:
        self._work = contextlib.ExitStack()
        self._advance: Any = None
        self._stopping = False

    def remark(self, text: str) -> None:
        note(text)

    def begin(self, title: str, total: int, unit: str, done: int = 0) -> None:
        self.end()
        more = f" (after {done:,} from before)" if done else ""
        self._advance = self._work.enter_context(progress(title + more, total - done, unit))

    def advance(self, count: int, note: str = "") -> None:
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
            self._stopping = True
            note("Stopping at the next safe point; Ctrl-C again ends at once, without saving.")

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
    overrides = {name: value for name, value in typed.items() if value is not None}
    if "hidden" in overrides:
        overrides["hidden"] = _widths(overrides["hidden"])
    if resume is not None and (config is not None or out is not None):
        raise TrainingError("--resume goes on with a run as it is; leave out --config and --out.")
    if any(importlib.util.find_spec(package) is None for package in _NEEDED):
        raise MissingExtraError("deeprank-train", "train")
    recipe = config or (DIGITS if data == DIGITS else "default")
    merged = load_config(recipe, overrides)  # wrong options are refused before torch is imported, which takes seconds
    if resume is None:
        data = data_or_tiny_imagenet(data)
    from .training import Surroundings, resume_run, start_run

    surroundings = Surroundings(device, threads, cache)
    monitor = _TerminalMonitor()
    with monitor.signals(), _resumable(resume):
        if resume is not None:
            asked = {name: getattr(merged, name) for name in overrides}
            result = resume_run(resume, asked, surroundings, monitor, data=data, val=val)
        else:
            result = start_run(str(data), merged, recipe, surroundings, monitor, val=val, out=out)
    _print_result(result.run, result.figures)


@contextlib.contextmanager
def _resumable(resume: Path | None) -> Iterator[None]:
    """Say how an interrupted run is resumed, and exit as an interrupted command does."""
    from .monitor import TrainingInterrupted
    from .runfolder import LATEST

    try:
        yield
    except TrainingInterrupted as error:
        run = resume if resume is not None else LATEST.resolve() if LATEST.is_symlink() else LATEST
        with contextlib.suppress(ValueError):
            run = run.resolve().relative_to(Path.cwd())
        fail(f"{error} Go on with: deeprank-train --resume {shlex.quote(display_path(run))}", status=130)


def _widths(text: str) -> tuple[int, ...]:
    """Read ``--hidden 1024,512`` (or ``none``)."""
    if text.strip().lower() in ("", "none"):
        return ()
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise TrainingError(f"--hidden {text}: expected widths such as 1024 or 1024,512, or none.") from None


def _print_result(run: Path, figures: Any) -> None:
    if "precision_at_k" in figures:
        against = f"{figures['queries']:,} val queries against {figures['gallery']:,} train pictures"
        cached = ", from cached features" if figures["cached"] else ""
        print(f"precision@{figures['k']}  {figures['precision_at_k']:.4f}  ({against}{cached})")
        print(f"recall@1      {figures['recall_at_1']:.4f}")
        print(f"MAP@R         {figures['map_at_r']:.4f}")
        print(f"distance      {figures['positive_distance']:.3f} same class, {figures['negative_distance']:.3f} others")
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
           "loss": "Loss", "optimizer": "Optimisation", "run": "Run"}  # fmt: skip


def _parameter(option: Option, default: Any) -> inspect.Parameter:
    flag = f"--{option.name.replace('_', '-')}"
    if option.kind is bool:
        flag = f"{flag}/--no-{option.name.replace('_', '-')}"
    help_text = option.help + (f" ({', '.join(option.choices)})" if option.choices else "")
    typed: Any = str if option.kind is tuple else option.kind
    flagged = typer.Option(flag, help=help_text, show_default=_shown(default), rich_help_panel=_PANELS[option.section])
    return inspect.Parameter(
        option.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[typed | None, flagged]
    )


def _shown(default: Any) -> str:
    """Return a default as it would be typed."""
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
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
