"""What a reader says of a file that it cannot read; the caller puts the file's name before it."""

from __future__ import annotations

from ..errors import PictureError

__all__ = ["MissingEnd", "damaged", "missing_decoder", "unsupported"]


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
