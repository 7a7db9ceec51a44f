"""How all commands print and exit; apart from :mod:`.cli`, so that a query does not load Typer.

Results go to stdout, everything else to stderr. Exit status 0: success; 1: failure, with one
sentence; 2: wrong usage; 130 and 143: interrupted, which is not an error.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TextIO

from .errors import DeepRankError
from .text import display_path, file_size, printable, wrapped

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "DEFAULT_INDEX",
    "INDEX_VARIABLE",
    "OTHER_NAMES_OF_INDEX",
    "as_typed",
    "as_typed_line",
    "default_index",
    "emit_fact",
    "emit_json",
    "emit_paths",
    "fail",
    "file_line",
    "from_here",
    "guarded",
    "next_step",
    "note",
    "note_dark_on_light",
    "note_file",
    "note_in_lines",
    "refuse_usage",
    "save_page",
    "show_page",
    "standard_streams",
    "terminal_width",
    "to_paste",
    "unknown_option",
]

P = ParamSpec("P")

# The option --index of every command: its default, the variable that sets another, and its names elsewhere.
DEFAULT_INDEX = Path("deeprank.index")
INDEX_VARIABLE = "DEEPRANK_INDEX"
OTHER_NAMES_OF_INDEX = dict.fromkeys(("--db", "--database", "--index-dir"), "--index")

_UMBRELLA = "deeprank "
_STDOUT = "standard output"
_INTERRUPTED = (130, 143)


def default_index() -> str:
    """Return the index of a command that names none: a folder, or the address of a store."""
    return os.environ.get(INDEX_VARIABLE) or str(DEFAULT_INDEX)


@contextlib.contextmanager
def standard_streams() -> Iterator[None]:
    """Run a command with usable standard streams; a failed write to stdout gives one sentence."""
    _open_closed_streams()
    _name_stdout()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        fail("interrupted.", status=130)
    except OSError as error:
        if error.filename != _STDOUT:
            raise
        _fail_for_stdout(error)


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn errors into one sentence on stderr and an exit status; ``-v`` adds the traceback."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        verbose = bool(kwargs.get("verbose"))
        # Must be set before torch is imported: its threads otherwise spin while they wait. On a
        # machine that does anything else meanwhile (such as decoding our pictures), training is
        # then up to eight times slower.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # Pillow warns of damaged EXIF and of sizes that we accept. We raise errors for the rest.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        try:
            command(*args, **kwargs)
            sys.stdout.flush()
        except (Exception, KeyboardInterrupt) as error:
            _end(error, verbose=verbose)

    return run


def _end(error: BaseException, *, verbose: bool) -> NoReturn:
    """Print why a command ended, and exit; normal exits and usage errors are re-raised."""
    if _is_interruption(error):
        fail("interrupted.", verbose=verbose, status=130)
    if isinstance(error, DeepRankError):
        fail(str(error), verbose=verbose)
    if isinstance(error, OSError):
        if error.filename == _STDOUT or isinstance(error, BrokenPipeError):
            _fail_for_stdout(error)
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        fail(f"{where}{error.strerror or error}; nothing was left half-written.", verbose=verbose)
    if isinstance(error, MemoryError):
        fail("out of memory; lower --threads, --max-pixels or the sizes of the batches.", verbose=verbose)
    if type(error).__module__.split(".")[0] in ("typer", "click"):
        raise error
    kind = type(error).__name__
    fail(f"internal error ({kind}: {error}); -v shows where. Please report it.", verbose=verbose)


def _is_interruption(error: BaseException | None) -> bool:
    """Tell whether Ctrl-C caused an error: prompts and C++ imports raise other types for it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def fail(message: str, *, verbose: bool = False, status: int = 1) -> NoReturn:
    """Print one sentence on stderr and exit; an interruption's status omits the word error."""
    if verbose:
        import traceback

        _say(traceback.format_exc().rstrip())
    interrupted = status in _INTERRUPTED
    below_what_was_typed = "\n" if interrupted and sys.stderr.isatty() else ""  # the terminal shows ^C
    _say(f"{below_what_was_typed}{'' if interrupted else 'error: '}{_lines(message)}")
    sys.exit(status)


def refuse_usage(message: str, usage: str) -> NoReturn:
    """Print a usage error on stderr and exit with 2.

    Args:
        message: the mistake.
        usage: the command and its arguments, on one line.

    """
    _say(f"error: {_lines(message)}\nusage: {usage}  (--help shows the options)")
    sys.exit(2)


def note(message: str) -> None:
    """Print a remark on stderr: something that is not a result."""
    _say(_lines(message))


def note_in_lines(message: str) -> None:
    """Print a remark on stderr; a terminal gets lines that end between words."""
    columns = terminal_width(sys.stderr)
    safe = _lines(message)
    if columns is not None:
        safe = "\n".join(part for line in safe.splitlines() for part in wrapped(line, columns))
    _say(safe)


def note_dark_on_light(lines: Sequence[str]) -> None:
    """Print a drawing of blocks on stderr, black on white on any terminal; nothing where that is not possible."""
    width = terminal_width(sys.stderr)
    plain = os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb"
    try:
        "\n".join(lines).encode(sys.stderr.encoding)
    except UnicodeEncodeError:
        return
    if width is not None and not plain and width >= max(map(len, lines)):
        _say("\n".join(f"\x1b[38;5;16;48;5;231m{line}\x1b[0m" for line in lines))


def note_file(verb: str, path: str | os.PathLike[str], rest: str = "") -> None:
    """Print on stderr that a file was written; on a terminal that shows links, its path is one."""
    _say(f"{verb} {file_line(path, stream=sys.stderr)}{printable(rest)}")


def save_page(content: bytes, target: Path | None, command: str) -> Path:
    """Write a page to ``target``, or to a private file of ``command``; print its path on stderr and return it.

    Raises:
        QueryError: it cannot be written.

    """
    from .webpage.browser import write_page

    page = write_page(content, target, command)
    note_file("wrote", page)
    return page


def show_page(page: Path) -> None:
    """Open a page in the browser, or print on stderr that none could be started."""
    from .webpage.browser import open_in_browser

    if not open_in_browser(page):
        note("No browser could be started here; open the file in a browser.")


def next_step(*words: str | os.PathLike[str]) -> None:
    """Print the next command to run on stderr, ready to paste."""
    note(f"Next: {to_paste(*words)}")


def to_paste(*words: str | os.PathLike[str]) -> str:
    """Return a command of ours :func:`as_typed`, shell-quoted; paths never pass for options."""
    from .shell import shell_command

    command, *arguments = words
    arguments = [
        f".{os.sep}{os.fsdecode(each)}" if isinstance(each, os.PathLike) and os.fsdecode(each).startswith("-") else each
        for each in arguments
    ]
    return f"{as_typed(os.fsdecode(command))} {shell_command(*arguments)}".rstrip()


def from_here(path: str | bytes | os.PathLike[str]) -> Path:
    """Return a path to type here: relative if it is below the working directory, else unchanged."""
    whole, here = Path(os.fsdecode(path)), Path.cwd()
    return whole.relative_to(here) if whole.is_relative_to(here) else whole


def as_typed(command: str) -> str:
    """Return a command as the user typed it: ``deeprank query``, or else ``deeprank-query``."""
    umbrella = os.path.basename(sys.argv[0]).startswith(_UMBRELLA)  # noqa: PTH119 - "deeprank query" is no path
    return command.replace("deeprank-", _UMBRELLA, 1) if umbrella else command


def as_typed_line(line: str) -> str:
    """Return an example line whose first word is :func:`as_typed`."""
    return as_typed(line) if line.startswith("deeprank-") else line


def unknown_option(option: str, known: Iterable[str], other_names: Mapping[str, str]) -> str:
    """Return the message for an unknown option; suggest one by meaning, else by spelling.

    Args:
        option: as typed.
        known: the options that exist.
        other_names: option names of other programs, each with our name or with a sentence of advice
            (it contains a blank and does not start with ``-``).

    """
    import difflib

    name, known = option.partition("=")[0], list(known)
    spelt = name.lower().replace("_", "-")
    names = {**other_names, **{each: each for each in known}}
    # Many options share a few letters; a typing error is closer than that.
    close = difflib.get_close_matches(spelt, names, 1, cutoff=0.8)
    here = names.get(name) or names.get(spelt) or names.get(close[0] if close else "", "")
    if close and here == close[0]:
        return f"there is no option {name}; did you mean {here}?"
    if here.split(" ")[0] in known:
        return f"there is no option {name}; here it is called {here}."
    if here and not here.startswith("-"):
        return f"there is no option {name}; {here}."
    bare = {each.lstrip("-"): each for each in known}
    close = difflib.get_close_matches(name.lstrip("-"), bare, 1)
    return f"there is no option {name}{f'; did you mean {bare[close[0]]}?' if close else '; see --help.'}"


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Return the terminal's width in columns; None if the stream, by default stdout, is a file or a pipe."""
    stream = sys.stdout if stream is None else stream
    if not stream.isatty():
        return None
    import shutil

    if stream is sys.stdout:
        return shutil.get_terminal_size().columns
    try:
        return os.get_terminal_size(stream.fileno()).columns or shutil.get_terminal_size().columns
    except (OSError, ValueError):
        return shutil.get_terminal_size().columns


def file_line(path: str | os.PathLike[str], *, size: int | None = None, stream: TextIO | None = None) -> str:
    """Return a written file's path and size; on a terminal that shows links, the path is one.

    Args:
        path: of the file.
        size: in bytes; None if it is left out.
        stream: where the line will be printed, by default stdout.

    """
    stream = sys.stdout if stream is None else stream
    shown = display_path(path)
    if stream.isatty():
        from .hyperlinks import file_link, shows_links

        shown = file_link(path) if shows_links(os.environ) else shown
    return shown if size is None else f"{shown} ({file_size(size)})"


def emit_fact(name: str, value: str, *, width: int = 14) -> None:
    """Print a name and its value on stdout, in two columns; a terminal gets lines that fit.

    Args:
        name: shorter than ``width``.
        value: printable text.
        width: of the first column.

    """
    columns = terminal_width()
    whole = f"{name:<{width}}{value}"
    print("\n".join([whole] if columns is None else wrapped(whole, columns, indent=width)))


def emit_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout; non-UTF-8 bytes of names stay as escapes (PEP 383)."""
    import json

    print(json.dumps(document, ensure_ascii=True, indent=2))


def emit_paths(paths: Iterable[str], end: bytes) -> None:
    """Print names on stdout as raw bytes; on a terminal, which obeys escapes, as safe text."""
    for path in paths:
        if sys.stdout.isatty():
            print(display_path(path))
        else:
            sys.stdout.buffer.write(os.fsencode(path) + end)


def _lines(message: str) -> str:
    return "\n".join(printable(line) for line in message.splitlines())


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:  # no output is possible any more; the work goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _fail_for_stdout(error: OSError) -> NoReturn:
    # The buffers would otherwise be written again when the process ends.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    if isinstance(error, BrokenPipeError):  # the reader has closed the pipe, like `| head`
        sys.exit(1)
    fail(f"{_STDOUT} cannot be written ({error.strerror}).")


def _open_closed_streams() -> None:
    """Open the null device for each closed standard stream.

    Python sets a closed stream to None, and the next opened file gets its number: messages would go
    into that file.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # takes the lowest free number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w" if number else "r", encoding="utf-8"))  # noqa: PTH123, SIM115


class _StandardOutput(io.FileIO):
    """Standard output whose errors name it."""

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            error.filename = _STDOUT
            raise


def _name_stdout() -> None:
    """Make errors name stdout, and escape characters that its encoding lacks."""
    plain = sys.stdout
    if plain is not sys.__stdout__ or not isinstance(plain, io.TextIOWrapper) or plain.fileno() != 1:
        return
    plain.flush()
    sys.stdout = io.TextIOWrapper(
        io.BufferedWriter(_StandardOutput(1, "wb", closefd=False)),
        encoding=plain.encoding,
        errors=plain.errors if plain.encoding == "utf-8" else "backslashreplace",
        line_buffering=plain.line_buffering or plain.write_through,
    )
