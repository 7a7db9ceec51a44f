"""The errors a user can meet: each message says what was found, what was expected and what to do."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "DataError",
    "DecodersBusyError",
    "DecodersFailedError",
    "DeepRankError",
    "DeviceError",
    "EvaluationError",
    "ExportError",
    "IndexDamagedError",
    "IndexLockedError",
    "IndexReplacedError",
    "IndexStateError",
    "MissingExtraError",
    "ModelFileError",
    "PictureError",
    "PictureProblem",
    "QueryError",
    "ServerError",
    "TrainingError",
    "TrainingInterrupted",
]

PictureProblem = Literal["missing", "unreadable", "not a picture", "damaged", "too large", "unsupported"]


class DeepRankError(Exception):
    """Base of every error that deeprank raises on purpose."""


class PictureError(DeepRankError):
    """A picture cannot be read, is too large, or is of a kind that is not supported.

    Attributes:
        kind: which of these, for programs: no code reads the sentence.
        short: the fault without the name of the file, for lists that name it already ("not a picture").

    """

    def __init__(self, message: str, *, kind: PictureProblem = "damaged", short: str | None = None) -> None:
        super().__init__(message)
        self.kind: PictureProblem = kind
        self.short = kind if short is None else short


class DecodersBusyError(DeepRankError):
    """So many pictures that take long are being decoded that one more is not accepted now."""


class DecodersFailedError(DeepRankError):
    """No decoding process can be started."""


class DataError(DeepRankError):
    """A data set is missing, empty, damaged or not laid out as expected."""


class ModelFileError(DeepRankError):
    """A model file is missing, damaged, not ours, too new or of the wrong shape."""


class DeviceError(DeepRankError):
    """The device that was asked for cannot be used."""


class IndexStateError(DeepRankError):
    """An index folder is missing, of another model, or what was asked does not fit its state."""


class IndexDamagedError(IndexStateError):
    """The database of an index is damaged; nothing is answered from it."""


class IndexLockedError(IndexStateError):
    """Another process is writing to the index."""


class IndexReplacedError(IndexStateError):
    """An index that was open was exchanged for another one; opened again, it answers."""


class QueryError(DeepRankError):
    """A query cannot be answered as it was asked."""


class ServerError(DeepRankError):
    """A server cannot start as it was asked to."""


class EvaluationError(DeepRankError):
    """An evaluation cannot be made from what was given, or its result is out of tolerance."""


class TrainingError(DeepRankError):
    """Training cannot start, cannot go on, or has collapsed."""


class TrainingInterrupted(TrainingError):  # noqa: N818 - a request to stop is no error
    """Stopped on request; everything needed to go on is on disk."""


class ExportError(DeepRankError):
    """An export failed or did not rank like the original."""


class MissingExtraError(DeepRankError):
    """A part of deeprank needs packages that are not installed here; the message ends with the command to install them.

    Args:
        what: needs them.
        extra: names them in deeprank's metadata.

    """

    def __init__(self, what: str, extra: str) -> None:
        from .shell import install_extra

        super().__init__(
            f"{what} needs packages that are not installed here; install them with: {install_extra(extra)}"
        )
