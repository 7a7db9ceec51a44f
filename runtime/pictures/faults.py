"""Faults of pictures: errors of the decoders sorted, and messages for unreadable or missing files."""

from __future__ import annotations

import errno
import mmap
import os
import re

from ..errors import PictureError

__all__ = [
    "MissingEnd",
    "damaged",
    "fault_of_machine",
    "folder_sentence",
    "is_memory_free",
    "is_out_of_memory",
    "is_truncated",
    "is_unknown_mode",
    "missing_decoder",
    "missing_sentence",
    "unsupported",
]

# The system's errors for an impossible file offset: the content of the file named it.
_FAULTS_OF_CONTENT = (errno.EINVAL, errno.EOVERFLOW)
# Pillow raises bare OSError and SyntaxError, so its words alone tell these cases apart; no other module reads them.
# A decoder that got no memory, with libtiff and without:
_NO_MEMORY = ("out of memory", "decoder error -9")
_TRUNCATED = "truncated"
_UNKNOWN_MODE = "pixel mode"

# pathlib removes one of the slashes.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):/+")
_MAX_SHOWN = 200


class MissingEnd(OSError):  # noqa: N818  not always an error
    """A file lacks its end marker; its pixels may be complete."""


def unsupported(image_format: str, what: str, advice: str = "save it as JPEG or PNG") -> PictureError:
    """Return the error of a valid but unsupported file: it holds ``what`` ("12 bits a sample")."""
    return PictureError(
        f"is a {image_format} file with {what}, which is not supported; {advice}.",
        kind="unsupported",
        short=f"{image_format} with {what}: not supported",
    )


def missing_decoder(image_format: str, package: str) -> PictureError:
    """Return the error for a missing decoder; pip installs one as ``package``."""
    from ..shell import pip

    install = pip("install", package)
    return PictureError(
        f"is a {image_format} file, and no decoder of these is installed here; install one with: {install}",
        kind="unsupported",
        short=f"{image_format} without its decoder; install it with: {install}",
    )


def damaged(image_format: str | None, error: Exception) -> PictureError:
    """Return the error of a file that its decoder could not read completely."""
    kind = f"damaged {image_format} file" if image_format else "damaged file"
    return PictureError(
        f"is a {kind} ({str(error) or type(error).__name__}); replace it or leave it out.", kind="damaged", short=kind
    )


def fault_of_machine(error: BaseException) -> str | None:
    """Return the failure of memory, disk or network behind an error; None: the file is at fault."""
    cause = _machine_error(error)
    if isinstance(cause, OSError) and cause.errno is not None:
        return cause.strerror or str(cause)
    return None if cause is None else "not enough memory"


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether a picture could not be read for lack of memory, not because of a disk or the network."""
    cause = _machine_error(error)
    return isinstance(cause, MemoryError) or (isinstance(cause, OSError) and cause.errno is None)


def is_truncated(error: OSError) -> bool:
    """Tell whether Pillow's decoder needed more data than the file has."""
    return error.errno is None and _TRUNCATED in str(error)


def is_unknown_mode(error: SyntaxError) -> bool:
    """Tell whether a TIFF holds pixels of a kind that Pillow does not know; else its header is damaged."""
    return _UNKNOWN_MODE in str(error)


def is_memory_free(size: int) -> bool:
    """Tell whether the system would allocate ``size`` bytes; none of them is touched."""
    try:
        mmap.mmap(-1, max(1, size)).close()
    except (OSError, MemoryError, ValueError, OverflowError):
        return False
    return True


def _machine_error(error: BaseException | None) -> MemoryError | OSError | None:
    """Return the error, or the first of its causes, that the machine is at fault for."""
    while error is not None:
        if isinstance(error, MemoryError):
            return error
        if isinstance(error, OSError) and error.errno not in _FAULTS_OF_CONTENT:  # noqa: SIM102
            if error.errno is not None or str(error).startswith(_NO_MEMORY):
                return error
        error = error.__cause__
    return None


def missing_sentence(name: str) -> str:
    """Return why there is no picture, and the remedy.

    Args:
        name: as given, made printable.

    """
    from ..console import to_paste
    from ..shell import shell_word

    shown = name if len(name) <= _MAX_SHOWN else f"{name[:_MAX_SHOWN]}..."
    address = _ADDRESS.match(name)
    if address is not None and address[1].lower() == "file":
        from urllib.parse import unquote

        path = shell_word(unquote("/" + name[address.end() :].removeprefix("localhost/")))
        return f"file:///{name[address.end() :]} is an address; expected the file itself: {path}"
    if address is not None:
        url = f"{address[1]}://{name[address.end() :]}"
        command = f"curl -s {shell_word(url)} | {to_paste('deeprank-query', '-')}"
        return f"{url} is an address; pictures are read from files. Try: {command}"
    if name.startswith("data:"):
        return f"{name[:20]}... is a data: address; expected a picture file."
    if name.startswith("~"):
        home = os.path.expanduser(shown)  # noqa: PTH111 - text that need not be a path
        return f"{shown} does not exist: the shell does not expand ~ in quotes; expected {home}"
    if any(character in name for character in "*?["):
        return f"{shown} does not exist: as a pattern, it matches no file here; expected a picture file."
    return f"{shown} does not exist; expected a picture file."


def folder_sentence(name: str) -> str:
    """Return the message for a folder, or for an empty name."""
    if not name:
        return "An empty name was given; expected a picture file."
    return f"{name} is a folder; expected a picture file."
