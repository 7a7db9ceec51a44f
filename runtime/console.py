"""How every command speaks and ends; apart from :mod:`.cli`, so that a query need not wait for Typer.

Results go to stdout, everything else to stderr. Exit status 0: done; 1: failed, with one sentence; 2: wrong usage;
130: interrupted.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NoReturn, ParamSpec

from .errors import DeepRankError
from .text import display_path, printable

__all__ = ["emit_json", "emit_paths", "fail", "guarded", "next_step", "note"]

P = ParamSpec("P")


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn errors into one sentence on stderr and the exit status; ``-v`` shows the traceback as well."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        verbose = bool(kwargs.get("verbose"))
        # Said before torch is imported: its threads otherwise wait by spinning, and on a machine that does anything
        # else at the same time (decoding our own pictures, say) training is then up to eight times as slow.
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
            sys.exit(1)
        except OSError as error:
            where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            fail(f"{where}{error.strerror or error}; nothing was left half-written.", verbose=verbose)
        except MemoryError:
            fail("out of memory; lower --threads, --max-pixels or the sizes of the batches.", verbose=verbose)
        except Exception as error:
            kind = type(error).__name__
            if type(error).__module__.split(".")[0] in ("typer", "click"):  # wrong usage, and an orderly end
                raise
            fail(f"internal error ({kind}: {error}); -v shows where. Please report it.", verbose=verbose)

    return run


def fail(message: str, *, verbose: bool = False, status: int = 1) -> NoReturn:
    """Say one sentence on stderr and exit."""
    if verbose:
        import traceback

        traceback.print_exc()
    print(f"error: {_lines(message)}", file=sys.stderr)
    sys.exit(status)


def note(message: str) -> None:
    """Say something on stderr that is no result: a remark, a choice that was made."""
    print(_lines(message), file=sys.stderr, flush=True)


def next_step(*words: str | os.PathLike[str]) -> None:
    """Name the command that comes next, on stderr, so that it can be pasted; paths are never taken for options."""
    import shlex

    named = [os.fsdecode(word) for word in words]
    safe = [
        f".{os.sep}{name}" if isinstance(word, os.PathLike) and name.startswith("-") else name
        for word, name in zip(words, named, strict=True)
    ]
    note("Next: " + " ".join(map(shlex.quote, safe)))


def emit_json(document: dict[str, Any]) -> None:
    """Print one JSON document on stdout; names that are not UTF-8 keep their bytes as escapes (PEP 383)."""
    import json

    print(json.dumps(document, ensure_ascii=True, indent=2))


def emit_paths(paths: Iterable[str], end: bytes) -> None:
    """Print names on stdout in their own bytes; on a terminal, which would obey escapes in them, as safe text."""
    for path in paths:
        if sys.stdout.isatty():
            print(display_path(path))
        else:
            sys.stdout.buffer.write(os.fsencode(path) + end)


def _lines(message: str) -> str:
    return "\n".join(printable(line) for line in message.splitlines())
