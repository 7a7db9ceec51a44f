"""A static page written to its file, and shown in the browser."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import QueryError
from ..files import write_result
from ..text import display_path

__all__ = ["check_place", "open_in_browser", "write_page"]


def check_place(target: Path) -> None:
    """Check before the work that a page can be written to ``target``.

    Raises:
        QueryError: its parent is missing or not a folder, or it is a folder itself.

    """
    if target.is_dir():
        raise QueryError(f"{display_path(target)} is a folder; expected the name of a file to write.")
    if not target.parent.is_dir():
        raise QueryError(f"{display_path(target.parent)} is not a folder; expected a name in an existing folder.")


def write_page(content: bytes, target: Path | None, command: str) -> Path:
    """Write a page atomically to ``target``, else to a new private file named after ``command``; return its path.

    Raises:
        QueryError: it cannot be written.

    """
    if target is None:
        return _write_privately(content, command)
    write_result(content, target, QueryError)
    return target


def open_in_browser(file: Path) -> bool:
    """Show a file in $BROWSER or the system's browser; return False if none starts."""
    import webbrowser

    with _stdout_to_stderr():
        try:
            return webbrowser.open(file.absolute().as_uri())
        except webbrowser.Error:
            return False


def _write_privately(content: bytes, command: str) -> Path:
    try:
        descriptor, name = tempfile.mkstemp(prefix=f"{command}-", suffix=".html")  # a new file, private
    except OSError as error:
        raise QueryError(
            f"No temporary file can be made ({error.strerror}); name one to write instead (--html FILE)."
        ) from None
    file = Path(name)
    written = False
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(content)
        written = True
    except OSError as error:
        raise QueryError(f"{display_path(file)} cannot be written ({error.strerror}).") from None
    finally:
        if not written:
            file.unlink(missing_ok=True)
    return file


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Redirect stdout of child processes: a reader of it would wait until the browser is closed."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
