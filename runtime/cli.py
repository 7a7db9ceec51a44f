"""Shared by all Typer commands: setup, common options, progress on stderr. See :mod:`.console`."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn, TypeVar, cast, get_args, get_type_hints

import typer
import typer.core

from .console import INDEX_VARIABLE, emit_json, fail, guarded, note, refuse_usage, standard_streams, unknown_option
from .devices import Device
from .errors import DataError
from .helptext import command_help, usage_line
from .progress import Advance, StartProgress
from .text import duration, printable

__all__ = [
    "Application",
    "DeviceOption",
    "HelpAllOption",
    "IndexOption",
    "JsonOption",
    "LabelsOption",
    "MaxPixelsOption",
    "ModelOption",
    "ThreadsOption",
    "VerboseOption",
    "VersionOption",
    "YesOption",
    "application",
    "check_page",
    "data_or_tiny_imagenet",
    "emit_json",
    "fail",
    "guarded",
    "index_option",
    "interruptible",
    "kept_index",
    "note",
    "progress",
    "progress_in_stages",
    "termination_as_interrupt",
    "with_options",
]


Command = TypeVar("Command", bound=Callable[..., Any])
# Example commands, or a mapping from subcommand to its examples.
Examples = Sequence[str] | Mapping[str, Sequence[str]]


# Seconds between two lines where stderr is no terminal.
_LINE_INTERVAL = 10.0
# Units that finish within this time of the first one belong to the same batch.
_BATCH_SECONDS = 0.5
# The rate is shown after this many seconds of measurement.
_MEASURED_SECONDS = 3.0


class Application(typer.Typer):
    """A Typer application with plain-text help and one-sentence usage errors."""

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

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Command], Command]:
        """Register a command; its help ends with its examples. No name: it is the only command."""
        examples = self.examples.get(name or "", ()) if isinstance(self.examples, Mapping) else self.examples
        register = super().command(name, **{"cls": _Command, "epilog": "\n".join(examples), **settings})

        def registered(function: Command) -> Command:
            if name is None and "help" not in settings:
                function.__doc__ = _joined(str(self.info.help), inspect.getdoc(function) or "")
            return register(function)

        return registered

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Run the application as a program, and exit."""
        with standard_streams():
            try:
                status = super().__call__(*args, **kwargs, standalone_mode=False)
            except Exception as error:
                if type(error).__name__ == "Abort":  # the user answered no
                    note("nothing was done.")
                    sys.exit(1)
                context = getattr(error, "ctx", None)
                if context is None or not hasattr(error, "format_message"):
                    raise
                refuse_usage(_mistake(error, context, self.other_names), usage_line(context))
            if status == 130:  # Typer prints nothing if Ctrl-C arrives before the command starts
                fail("interrupted.", status=130)
            sys.exit(status if isinstance(status, int) else 0)


def application(help_text: str, examples: Examples, other_names: Mapping[str, str] | None = None) -> Application:
    """Return a Typer application with our common setup.

    Args:
        help_text: what it does.
        examples: commands shown at the end of the help; with subcommands, the first example of
            each.
        other_names: option names of other programs, and ours; see :func:`~.console.unknown_option`.

    """
    return Application(help_text, examples, other_names or {})


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Turn the first parameter of a command, a dataclass, into one command-line parameter for each of its fields.

    A field is declared as a parameter of a Typer command is: ``k: Annotated[int, typer.Option("--k")] = 10``.
    """
    first, *others = inspect.signature(command, eval_str=True).parameters.values()
    types = get_type_hints(first.annotation, include_extras=True)
    fields = [
        inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=each.default, annotation=types[each.name])
        for each in dataclasses.fields(first.annotation)
    ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        options = first.annotation(**{field.name: values.pop(field.name) for field in fields})
        command(options, **values)

    parameters = [*fields, *(each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in others)]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {each.name: each.annotation for each in parameters}
    return run


class _Command(typer.core.TyperCommand):
    """A command with our help layout; ``no_args_is_help`` shows it when there are no arguments."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write(command_help(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help if the command needs arguments and has none."""
        return super().parse_args(ctx, args or (["--help"] if self.no_args_is_help else []))


class _Group(typer.core.TyperGroup):
    """A command group with our help layout; without a subcommand it shows its help."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Write the help."""
        formatter.write(command_help(self, ctx))

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Show the help if there are no arguments."""
        return super().parse_args(ctx, args or ["--help"])


def _mistake(error: Any, context: Any, other_names: Mapping[str, str]) -> str:
    """Return the error message for a wrong command line."""
    option = getattr(error, "option_name", None)
    if option is None or type(error).__name__ != "NoSuchOption":
        return str(error.format_message())
    options = [each for each in context.command.get_params(context) if each.param_type_name == "option"]
    known = [name for each in options for name in (*each.opts, *each.secondary_opts)]
    return unknown_option(option, known, other_names)


def _first_of_each(examples: Mapping[str, Sequence[str]]) -> list[str]:
    return [lines[0] for lines in examples.values()]


def _joined(first: str, second: str) -> str:
    """Join the help of an application and of its only command, without repeating equal text."""
    if second.startswith(first.rstrip(".")):
        return second
    return first if first.startswith(second.rstrip(".")) else f"{first}\n\n{second}"


@contextlib.contextmanager
def progress(what: str, total: int | None, unit: str = "pictures") -> Iterator[Advance]:
    """Show progress on stderr: a bar on a terminal, otherwise a plain line now and then.

    Yields:
        ``advance(count=1, detail="")``, to be called as the work proceeds.

    """
    if sys.stderr.isatty():
        with _bar(what, total, unit) as advance:
            yield advance
    else:
        yield _PlainProgress(what, total, unit)


@contextlib.contextmanager
def progress_in_stages() -> Iterator[StartProgress]:
    """Show one :func:`progress` per stage, one after the other."""
    with contextlib.ExitStack() as shown:

        def start(what: str, total: int, unit: str = "pictures", done: int = 0, /) -> Advance:
            shown.close()
            title = f"{what} (after {done:,} from before)" if done else what
            shown_advance, left = shown.enter_context(progress(title, total - done, unit)), total - done

            def advance(count: int = 1, /, detail: str = "") -> None:
                nonlocal left
                shown_advance(count, detail)
                left -= count
                if left <= 0:
                    shown.close()  # work before the next stage does not count for it

            return advance

        yield start


@contextlib.contextmanager
def interruptible(kept: str | Callable[[], str]) -> Iterator[StartProgress]:
    """Show progress. On Ctrl-C, say what was ``kept``, and exit as an interrupted command does.

    Args:
        kept: the words, or a function that returns them when they are needed.

    """
    try:
        with progress_in_stages() as start:
            yield start
    except KeyboardInterrupt as interrupt:
        said = kept if isinstance(kept, str) else kept()
        fail(f"interrupted; {said}.", status=143 if isinstance(interrupt, _Terminated) else 130)


def kept_index(index: Path, new: str, former: str = "the index is unchanged") -> Callable[[], str]:
    """Return what :func:`interruptible` says of an index that is put in place in one step at the end.

    Args:
        index: the folder, before the work.
        new: the words once the new index is there.
        former: the words until then.

    """
    from .files import finish_exchange
    from .index.layout import database_id

    finish_exchange(index)  # else the former index would pass for a new one
    folder = Path(os.path.realpath(index))  # as a working directory, it would stay the former index
    before = database_id(folder)
    return lambda: former if database_id(folder) == before else new


def check_page(html: Path | None) -> None:
    """Refuse a name of a page to write, before the work.

    Raises:
        typer.BadParameter: it does not end in .html.
        QueryError: it cannot be written there.

    """
    if html is None:
        return
    if html.suffix.lower() not in (".html", ".htm"):  # browsers recognise a page by it
        raise typer.BadParameter(
            f"{os.fspath(html)!r} is given; expected a name that ends in .html", param_hint="--html"
        )
    from .webpage.browser import check_place

    check_place(html)


class _Terminated(KeyboardInterrupt):
    """The process got SIGTERM."""


@contextlib.contextmanager
def termination_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end the work inside like Ctrl-C; a second one ends the process at once."""

    def end(number: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, before)
        raise _Terminated

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _bar(what: str, total: int | None, unit: str) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(f"{unit}", markup=False),
        TextColumn("{task.fields[speed]}", markup=False),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, speed="", detail="")
        speed = _Speed(total)

        def advance(count: int = 1, /, detail: str = "") -> None:
            speed.add(count, time.monotonic())
            bar.update(task, advance=count, speed=", ".join(speed.words()), detail=printable(detail))

        yield advance


class _Speed:
    """The rate and the remaining time, once enough has been measured.

    Measuring starts after the first batch of units. Start-up (threads, opening files) is left out,
    and so is that batch: its first unit would seem to have taken all of the start-up time.
    """

    def __init__(self, total: int | None) -> None:
        self._total = total
        self._done = self._done_before = 0
        self._first: float | None = None
        self._since = self._now = 0.0

    def add(self, count: int, now: float) -> None:
        """Record that ``count`` more units are done at time ``now``, in seconds."""
        self._done += count
        self._now = now
        if self._first is None:
            self._first = now
        if now - self._first < _BATCH_SECONDS:
            self._since, self._done_before = now, self._done

    def words(self) -> list[str]:
        """Return ``12.5/s`` and ``3 min 20 s left``; an empty list while it is too early."""
        seconds, units = self._now - self._since, self._done - self._done_before
        if seconds < _MEASURED_SECONDS or units <= 0:
            return []
        rate = units / seconds
        if self._total is None:
            return [f"{rate:.3g}/s"]
        return [f"{rate:.3g}/s", f"{duration(max(0, self._total - self._done) / rate)} left"]


class _PlainProgress:
    """Progress as lines, for logs and pipes."""

    def __init__(self, what: str, total: int | None, unit: str) -> None:
        self._what, self._total, self._unit = what, total, unit
        self._done = 0
        self._speed = _Speed(total)
        self._said = time.monotonic()

    def __call__(self, count: int = 1, /, detail: str = "") -> None:
        self._done += count
        now = time.monotonic()
        self._speed.add(count, now)
        if now - self._said < _LINE_INTERVAL:
            return
        self._said = now
        of_total = "" if self._total is None else f" of {self._total:,}"
        done = f"{self._what}: {self._done:,}{of_total} {self._unit}"
        note(", ".join([done, *self._speed.words(), *([detail] if detail else [])]))


def data_or_tiny_imagenet(data: str | None, *, yes: bool = False) -> str:
    """Return DATA, or the default data set, downloaded once after its size and terms are shown.

    Args:
        data: the command-line argument, if given.
        yes: download without the question, which is asked only on a terminal.

    Raises:
        DataError: the download failed, or the user answered no.

    """
    from .data.download import DEFAULT_DATA, TINY_IMAGENET, ensure_tiny_imagenet, is_fetched

    if data is not None:
        return data
    if not is_fetched(DEFAULT_DATA):
        note(
            f"No data set was named and {DEFAULT_DATA} does not exist: fetching {TINY_IMAGENET.url} "
            f"({TINY_IMAGENET.megabytes}) once.\n{TINY_IMAGENET.terms}"
        )
        if not yes and not _confirmed(f"Download {TINY_IMAGENET.megabytes} now?"):
            raise DataError(
                "Nothing was downloaded. Name a data set of your own (a folder of class folders, a zip, a CSV), or the "
                "word digits or scenes, which need no network."
            )
        with progress("download", TINY_IMAGENET.size, "bytes") as advance:
            ensure_tiny_imagenet(DEFAULT_DATA, advance)
    return str(DEFAULT_DATA)


def _confirmed(question: str) -> bool:
    """Ask on a terminal; without a terminal the answer is yes."""
    if not (sys.stdin and sys.stdin.isatty() and sys.stderr and sys.stderr.isatty()):
        return True
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _show_version(requested: bool) -> None:
    if requested:
        from . import __version__

        print(f"deeprank {__version__}")
        raise typer.Exit


def _show_all(context: typer.Context, chosen: bool) -> None:
    """Show the help including the options that ``--help`` hides."""
    if chosen:
        for option in context.command.params:
            option.hidden = False  # type: ignore[attr-defined]
        print(context.get_help())
        raise typer.Exit


def _device(text: str) -> Device:
    if text not in get_args(Device):
        raise typer.BadParameter(f"{text!r} is unknown; expected auto, cpu or cuda.")
    return cast(Device, text)


def index_option(*, show_default: bool | str = True) -> Any:
    """Return the option ``--index``, the same for every command that takes folders alone."""
    return typer.Option(
        "--index",
        envvar=INDEX_VARIABLE,
        metavar="DIR",
        help="The index folder.",
        show_default=show_default,
        callback=_folder,
    )


def _folder(index: Path | None) -> Path | None:
    from .index.location import is_address

    if index is not None and is_address(str(index)):
        raise typer.BadParameter(
            "a store is given; expected an index folder. deeprank-query and deeprank-serve search a store."
        )
    return index


IndexOption = Annotated[Path, index_option()]
HelpAllOption = Annotated[
    bool,
    typer.Option(
        "--help-all", callback=_show_all, is_eager=True, help="Show all options and exit; --help shows the common ones."
    ),
]
VersionOption = Annotated[
    bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
]
YesOption = Annotated[bool, typer.Option("--yes", help="Without DATA, download the default data set without asking.")]
VerboseOption = Annotated[bool, typer.Option("-v", "--verbose", help="Show tracebacks of errors.")]
LabelsOption = Annotated[
    str | None,
    typer.Option(
        "--labels",
        metavar="RULE|CSV",
        help="Where labels come from: top (the first class folder), leaf (the innermost), path (all of them, joined by "
        "/), or a CSV of path,label[,split]. Default: top, or DATA's metadata.csv.",
        show_default=False,
    ),
]
DeviceOption = Annotated[
    Device,
    typer.Option("--device", parser=_device, metavar="DEVICE", help="auto, cpu or cuda. auto uses a GPU if one works."),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
ModelOption = Annotated[
    Path | None,
    typer.Option("--model", help="The model. Default: ./model.onnx, else the bundled one (the word pretrained)."),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, metavar="N", help="CPU threads for embedding. Default: the usable cores, at most 16."
    ),
]
MaxPixelsOption = Annotated[
    int,
    typer.Option(
        "--max-pixels", min=1, metavar="N", help="Refuse pictures with more pixels than this before decoding."
    ),
]
