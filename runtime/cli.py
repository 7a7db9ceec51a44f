"""What the Typer commands share: how they are set up, common options, progress on stderr; see also :mod:`.console`."""

from __future__ import annotations

import contextlib
import inspect
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NoReturn, Protocol

import typer
import typer.core

from .console import emit_json, fail, guarded, note, refuse_usage, standard_streams, unknown_option
from .helptext import command_help, usage_line
from .progress import Advance, StartProgress
from .text import printable

__all__ = [
    "Application",
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


# Commands; or those of each subcommand, by its name.
Examples = Sequence[str] | Mapping[str, Sequence[str]]


class AdvanceWithDetail(Protocol):
    """An :class:`~.progress.Advance` that can show a few words beside the count."""

    def __call__(self, count: int = 1, /, detail: str = "") -> None:
        """Say that ``count`` more are done."""


# Without a terminal a line appears this often, in seconds.
_LINE_INTERVAL = 10.0


class Application(typer.Typer):
    """A Typer application whose help is plain text, and whose wrong usage is one sentence."""

    def __init__(self, help_text: str, examples: Examples, other_names: Mapping[str, str]) -> None:
        self.examples, self.other_names = examples, other_names
        super().__init__(
            help=help_text,
            epilog="\n".join(examples if not isinstance(examples, Mapping) else _first_of_each(examples)),
            cls=_Group,
            add_completion=False,
            rich_markup_mode=None,
            pretty_exceptions_enable=False,
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def command(self, name: str | None = None, **settings: Any) -> Any:
        """Register a command, whose help ends with its own examples; one without a name is the whole application."""
        examples = self.examples.get(name or "", ()) if isinstance(self.examples, Mapping) else self.examples
        register = super().command(name, **{"cls": _Command, "epilog": "\n".join(examples), **settings})

        def registered(function: Callable[..., Any]) -> Any:
            if name is None and "help" not in settings:
                function.__doc__ = _joined(str(self.info.help), inspect.getdoc(function) or "")
            return register(function)

        return registered

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the application as a command of its own, and exit."""
        with standard_streams():
            try:
                status = super().__call__(*args, **kwargs, standalone_mode=False)
            except Exception as error:
                if type(error).__name__ == "Abort":  # "no" was the answer to a question
                    fail("nothing was done.")
                context = getattr(error, "ctx", None)
                if context is None or not hasattr(error, "format_message"):
                    raise
                refuse_usage(_mistake(error, context, self.other_names), usage_line(context))
            sys.exit(status if isinstance(status, int) else 0)


def application(help_text: str, examples: Examples, other_names: Mapping[str, str] | None = None) -> Application:
    """Return a Typer application set up as all of ours are.

    Args:
        help_text: what it does.
        examples: commands that end its help; by subcommand where there are several, of which it shows the first each.
        other_names: what options are called elsewhere, and here; see :func:`~.console.unknown_option`.

    """
    return Application(help_text, examples, other_names or {})


class _Command(typer.core.TyperCommand):
    """A command with help of our own layout."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write(command_help(self, ctx))


class _Group(typer.core.TyperGroup):
    """A group of commands with help of our own layout, which it shows where no command is named."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write(command_help(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take no arguments for a wish to see what there is."""
        return super().parse_args(ctx, args or ["--help"])


def _mistake(error: Any, context: Any, other_names: Mapping[str, str]) -> str:
    """Return what is wrong with a command line."""
    option = getattr(error, "option_name", None)
    if option is None or type(error).__name__ != "NoSuchOption":
        return str(error.format_message())
    options = [each for each in context.command.get_params(context) if each.param_type_name == "option"]
    known = [name for each in options for name in (*each.opts, *each.secondary_opts)]
    return unknown_option(option, known, other_names)


def _first_of_each(examples: Mapping[str, Sequence[str]]) -> list[str]:
    return [lines[0] for lines in examples.values()]


def _joined(first: str, second: str) -> str:
    """Return what an application and its only command say of themselves, once where it is the same."""
    if second.startswith(first.rstrip(".")):
        return second
    return first if first.startswith(second.rstrip(".")) else f"{first}\n\n{second}"


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
    typer.Option(
        "--threads", min=1, metavar="N", help="CPU threads that embed. Default: the usable cores, at most 16."
    ),
]
MaxPixelsOption = Annotated[
    int,
    typer.Option("--max-pixels", min=1, metavar="N", help="Refuse pictures of more pixels than this, before decoding."),
]
