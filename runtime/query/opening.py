"""Where a page of results is written, and the browser that shows it."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import QueryError
from ..files import replace_durably
from ..text import display_path

__all__ = ["check_place", "open_in_browser", "write_page"]


def check_place(target: Path) -> None:
    """Make sure that a page can be written to ``target``, as far as that shows before the work.

    Raises:
        QueryError: its folder is missing or none, or it is a folder itself.

    """
    if target.is_dir():
        raise QueryError(f"{display_path(target)} is a folder; expected the name of a file to write.")
    if not target.parent.is_dir():
        raise QueryError(f"{display_path(target.parent)} is no folder; expected a name in a folder that exists.")


def write_page(content: bytes, target: Path | None) -> Path:
    """Write a page and return where it is: ``target``, whole or as it was before, or a new private file of the user's.

    Raises:
        QueryError: it cannot be written.

    """
    return _write_privately(content) if target is None else _replace(content, target)


def open_in_browser(file: Path) -> bool:
    """Show a file in the user's browser ($BROWSER, else the system's); False: there is none, or it does not start."""
    import webbrowser

    with _stdout_to_stderr():
        try:
            return webbrowser.open(file.absolute().as_uri())
        except webbrowser.Error:
            return False


def _write_privately(content: bytes) -> Path:
    try:
        descriptor, name = tempfile.mkstemp(prefix="deeprank-query-", suffix=".html")  # only the user may read it
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


def _replace(content: bytes, target: Path) -> Path:
    # Not made of the target's name, which may be as long as names can be.
    prepared = target.parent / f".deeprank.{os.getpid()}.tmp"
    try:
        with prepared.open("xb") as file:
            file.write(content)
        replace_durably(prepared, target)
    except OSError as error:
        raise QueryError(f"{display_path(target)} cannot be written ({error.strerror}).") from None
    finally:
        with contextlib.suppress(OSError):
            prepared.unlink(missing_ok=True)
    return target


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Keep what is started here off our stdout: whoever reads the results would wait until the browser is closed."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
