"""What the Typer commands share: how they are set up, common options, progress on stderr; see also :mod:`.console`."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Annotated, Any, Protocol

import typer

from .console import emit_json, fail, guarded, note
from .progress import Advance, StartProgress
from .text import printable

__all__ = [
    "DeviceOption",
    "MaxPixelsOption",
    "ThreadsOption",
    "VerboseOption",
    "VersionOption",
    "application",
    "data_or_tiny_imagenet",
    "emit_json",
    "fail",
    "guarded",
    "note",
    "progress",
    "progress_in_stages",
]


class AdvanceWithDetail(Protocol):
    """An :class:`~.progress.Advance` that can show a few words beside the count."""

    def __call__(self, count: int = 1, /, detail: str = "") -> None:
        """Say that ``count`` more are done."""


# Without a terminal a line appears this often, in seconds.
_LINE_INTERVAL = 10.0


class _Application(typer.Typer):
    """A Typer application whose every command ends its help with the application's examples."""

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """Register a command. Typer itself shows the application's epilog only where there are several."""
        return super().command(name, **{"epilog": self.info.epilog, **settings})


def application(help_text: str, examples: list[str]) -> typer.Typer:
    """Return a Typer application set up as all of ours are; ``examples`` end its help."""
    # The variables speak of a width that Typer would otherwise guess from a missing terminal.
    return _Application(
        help=help_text,
        epilog="\n\n".join(["Examples:", *examples]),
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


@contextlib.contextmanager
def progress(what: str, total: int | None, unit: str = "pictures") -> Iterator[AdvanceWithDetail]:
    """Show progress on stderr: a bar on a terminal, a plain line now and then elsewhere.

    Yields:
        ``advance(count=1, detail="")``: call it as the work goes on.

    """
    if sys.stderr.isatty():
        with _bar(what, total, unit) as advance:
            yield advance
    else:
        yield _PlainProgress(what, total, unit)


@contextlib.contextmanager
def progress_in_stages(unit: str = "pictures") -> Iterator[StartProgress]:
    """Show one :func:`progress` after the other."""
    with contextlib.ExitStack() as shown:

        def start(what: str, total: int, /) -> Advance:
            shown.close()
            return shown.enter_context(progress(what, total, unit))

        yield start


@contextlib.contextmanager
def _bar(what: str, total: int | None, unit: str) -> Iterator[AdvanceWithDetail]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}", markup=False),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeRemainingColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    started = time.monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, rate="", detail="")
        done = 0

        def advance(count: int = 1, /, detail: str = "") -> None:
            nonlocal done
            done += count
            rate = done / max(1e-9, time.monotonic() - started)
            bar.update(task, advance=count, rate=f"{rate:.3g}/s", detail=printable(detail))

        yield advance


class _PlainProgress:
    """Lines instead of a bar, for logs and pipes."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._started = self._said = time.monotonic()

    def __call__(self, count: int = 1, /, detail: str = "") -> None:
        self._done += count
        now = time.monotonic()
        if now - self._said < _LINE_INTERVAL:
            return
        self._said = now
        rate = self._done / (now - self._started)
        line = f"{self._what}: {self._done:,}"
        if self._total is not None:
            line += f" of {self._total:,}"
        line += f" {self._unit}, {rate:.3g}/s"
        if self._total is not None and rate > 0:
            line += f", {_duration((self._total - self._done) / rate)} left"
        note(f"{line}{', ' + detail if detail else ''}")


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def data_or_tiny_imagenet(data: str | None) -> str:
    """Return DATA, or the default folder, fetched once where it is missing (size and terms are said first)."""
    from .download import DEFAULT_DATA, TINY_IMAGENET, ensure_tiny_imagenet

    if data is not None:
        return data
    if not DEFAULT_DATA.is_dir():
        note(
            f"No data set was named and {DEFAULT_DATA} does not exist: fetching {TINY_IMAGENET.url} "
            f"({TINY_IMAGENET.size / 1e6:.0f} MB) once.\n{TINY_IMAGENET.terms}"
        )
        with progress("download", TINY_IMAGENET.size, "bytes") as advance:
            ensure_tiny_imagenet(DEFAULT_DATA, advance)
    return str(DEFAULT_DATA)


def _show_version(asked: bool) -> None:
    if asked:
        from . import __version__

        print(f"deeprank {__version__}")
        raise typer.Exit


VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks of errors.")]
DeviceOption = Annotated[
    str,
    typer.Option("--device", help="auto, cpu or cuda. auto takes a GPU where one works.", metavar="DEVICE"),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="CPU threads that embed. Default: the usable cores, at most 16."),
]
MaxPixelsOption = Annotated[
    int,
    typer.Option("--max-pixels", min=1, help="Refuse pictures of more pixels than this, before decoding."),
]
