"""What a reader says of a file that it cannot read; the caller puts the file's name before it."""

from __future__ import annotations

import errno
import mmap
from collections.abc import Iterator

from ..errors import PictureError

__all__ = ["MissingEnd", "damaged", "fault_of_machine", "is_memory_free", "missing_decoder", "unsupported"]

# The system's answers to a place where no file reaches: the content of the file named that place.
_FAULTS_OF_CONTENT = (errno.EINVAL, errno.EOVERFLOW)
# Pillow's words for a decoder that got no memory, with libtiff and without.
_NO_MEMORY = ("out of memory", "decoder error -9")


class MissingEnd(OSError):  # noqa: N818  not always an error
    """A file ends without the mark of its end; its pixels may all be there."""


def unsupported(image_format: str, what: str, advice: str = "save it as JPEG or PNG") -> PictureError:
    """Return the error of a sound file of a kind that is not supported: ``what`` it holds ("12 bits a sample")."""
    return PictureError(
        f"is a {image_format} file with {what}, which is not supported; {advice}.",
        kind="unsupported",
        short=f"{image_format} with {what}: not supported",
    )


def missing_decoder(image_format: str, package: str) -> PictureError:
    """Return the error of a file whose decoder is not installed; ``package``, as pip takes it, brings one."""
    from ..shell import pip

    install = pip("install", package)
    return PictureError(
        f"is a {image_format} file, and no decoder of these is installed here; install one with: {install}",
        kind="unsupported",
        short=f"{image_format} without its decoder; install it with: {install}",
    )


def damaged(image_format: str | None, error: Exception) -> PictureError:
    """Return the error of a file that its decoder could not make a whole picture of."""
    kind = f"damaged {image_format} file" if image_format else "damaged file"
    return PictureError(
        f"is a {kind} ({str(error) or type(error).__name__}); replace it or leave it out.", kind="damaged", short=kind
    )


def fault_of_machine(error: BaseException) -> str | None:
    """Return what memory, a disk or the network did while a picture was read; None: its content is at fault."""
    for cause in _causes(error):
        if isinstance(cause, MemoryError):
            return "not enough memory"
        if not isinstance(cause, OSError) or cause.errno in _FAULTS_OF_CONTENT:
            continue
        if cause.errno is not None:
            return cause.strerror or str(cause)
        if str(cause).startswith(_NO_MEMORY):
            return "not enough memory"
    return None


def is_memory_free(size: int) -> bool:
    """Tell whether the system would give ``size`` bytes; none of them is touched."""
    try:
        mmap.mmap(-1, max(1, size)).close()
    except (OSError, MemoryError, ValueError, OverflowError):
        return False
    return True


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Return an error and those that it was raised from."""
    while error is not None:
        yield error
        error = error.__cause__
