"""What all commands share: one-sentence errors, remarks and progress on stderr, ``--version``, ``-v``.

Results go to stdout, everything else to stderr. Exit status 0: done; 1: failed, with one sentence; 2: wrong usage;
130: interrupted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Annotated, Any, NoReturn, ParamSpec, Protocol

import typer

from .errors import DeepRankError
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
]

P = ParamSpec("P")


class AdvanceWithDetail(Protocol):
    """An :class:`~.progress.Advance` that can show a few words beside the count."""

    def __call__(self, count: int = 1, /, detail: str = "") -> None:
        """Say that ``count`` more are done."""


# Without a terminal a line appears this often, in seconds.
_LINE_INTERVAL = 10.0


def application(help_text: str, examples: list[str]) -> typer.Typer:
    """Return a Typer application set up as all of ours are; ``examples`` end its help."""
    # The variables speak of a width that Typer would otherwise guess from a missing terminal.
    return typer.Typer(
        help=help_text,
        epilog="\n\n".join(["Examples:", *examples]),
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn errors into one sentence on stderr and the exit status; ``-v`` shows the traceback as well."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        verbose = bool(kwargs.get("verbose"))
        # Pillow warns of damaged EXIF and of sizes that we accept on purpose; what costs a picture is an error of ours.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except DeepRankError as error:
            fail(str(error), verbose=verbose)
        except KeyboardInterrupt:
            fail("interrupted.", verbose=verbose, status=130)
        except BrokenPipeError:
            # Whoever read our output has gone (as `| head` does); nothing more can be said to them.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(1) from None
        except OSError as error:
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}; nothing was left half-written.", verbose=verbose)
        except MemoryError:
            fail("out of memory; lower --batch-size, --threads or --max-pixels.", verbose=verbose)

    return run


def fail(message: str, *, verbose: bool = False, status: int = 1) -> NoReturn:
    """Say one sentence on stderr and exit."""
    if verbose:
        traceback.print_exc()
    print(f"error: {_lines(message)}", file=sys.stderr)
    raise typer.Exit(status) from None


def note(message: str) -> None:
    """Say something on stderr that is no result: a remark, a choice that was made."""
    print(_lines(message), file=sys.stderr, flush=True)


def emit_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout; names that are not UTF-8 keep their bytes as escapes (PEP 383)."""
    print(json.dumps(document, ensure_ascii=True, indent=2))


def _lines(message: str) -> str:
    return "\n".join(printable(line) for line in message.splitlines())


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
    typer.Option("--threads", min=1, help="CPU threads of the network. Default: the usable cores, at most 4."),
]
MaxPixelsOption = Annotated[
    int,
    typer.Option("--max-pixels", min=1, help="Refuse pictures of more pixels than this, before decoding."),
]
