"""Errors shown to users: each message states the problem, the expectation and the remedy."""

from __future__ import annotations

from typing import Literal

__all__ = [
    "BackboneError",
    "ClusterError",
    "DataError",
    "DecodersBusyError",
    "DecodersFailedError",
    "DeepRankError",
    "DeviceError",
    "EmbeddedFolderError",
    "EvaluationError",
    "ExportError",
    "IndexDamagedError",
    "IndexLockedError",
    "IndexReplacedError",
    "IndexStateError",
    "ListReplacedError",
    "MissingExtraError",
    "ModelFileError",
    "PictureError",
    "PictureProblem",
    "QueryError",
    "ServerError",
    "StorageError",
    "StoreError",
    "StoreUnavailableError",
    "TrainingError",
    "TrainingInterrupted",
]

PictureProblem = Literal["missing", "unreadable", "not a picture", "damaged", "too large", "unsupported"]


class DeepRankError(Exception):
    """Base of every error that deeprank raises on purpose."""


class PictureError(DeepRankError):
    """A picture is unreadable, too large, or of an unsupported kind.

    Attributes:
        kind: which of these; programs use it instead of the message.
        short: the fault without the file's name ("not a picture"), for lists that show the name.

    """

    def __init__(self, message: str, *, kind: PictureProblem = "damaged", short: str | None = None) -> None:
        super().__init__(message)
        self.kind: PictureProblem = kind
        self.short = kind if short is None else short


class DecodersBusyError(DeepRankError):
    """Too many slow pictures are being decoded to accept another one."""


class DecodersFailedError(DeepRankError):
    """No decoding process can be started."""


class DataError(DeepRankError):
    """A data set is missing, empty, damaged or not laid out as expected."""


class ModelFileError(DeepRankError):
    """A model file is missing, damaged, not ours, too new or of the wrong shape."""


class DeviceError(DeepRankError):
    """The requested device cannot be used."""


class IndexStateError(DeepRankError):
    """An index folder is missing, belongs to another model, or its state rules the request out."""


class IndexDamagedError(IndexStateError):
    """The database of an index is damaged; it answers no queries."""


class IndexLockedError(IndexStateError):
    """Another process is writing to the index."""


class IndexReplacedError(IndexStateError):
    """An open index was replaced by another one; reopen it."""


class ClusterError(DeepRankError):
    """A cluster cannot be reached, or cannot go on."""


class EmbeddedFolderError(DeepRankError):
    """A folder of embedded parts is missing, damaged, unfinished, or made with other settings."""


class StorageError(DeepRankError):
    """A disk or an object store cannot be reached, read or written."""


class QueryError(DeepRankError):
    """A query cannot be answered with these arguments."""


class ListReplacedError(QueryError):
    """A list of pictures cannot be continued, because its index was replaced."""


class ServerError(DeepRankError):
    """A server cannot start with these settings."""


class StoreError(DeepRankError):
    """A collection in Milvus is missing, is not ours, or belongs to another model; or the store refuses the request."""


class StoreUnavailableError(StoreError):
    """The store does not answer, or not yet: it is down, restarts, loads the collection, or is too slow. Try again."""


class EvaluationError(DeepRankError):
    """An evaluation is impossible with this input, or its result is out of tolerance."""


class TrainingError(DeepRankError):
    """Training cannot start, cannot continue, or has collapsed."""


class BackboneError(TrainingError):
    """There is no such backbone, or its weights cannot be had.

    Attributes:
        fault: the message without its advice, for callers that have other advice.

    """

    def __init__(self, fault: str, advice: str) -> None:
        super().__init__(f"{fault}; {advice}.")
        self.fault = fault


class TrainingInterrupted(TrainingError):  # noqa: N818 - a request to stop is no error
    """Stopped on request; everything needed to go on is on disk."""


class ExportError(DeepRankError):
    """An export failed, or ranks differently from the original."""


class MissingExtraError(DeepRankError):
    """A feature needs packages that are missing; the message ends with the command to install them.

    Args:
        what: the feature.
        extra: the extra in deeprank's metadata that lists the packages.

    """

    def __init__(self, what: str, extra: str) -> None:
        from .shell import install_extra

        super().__init__(
            f"{what} needs packages that are not installed here; install them with: {install_extra(extra)}"
        )
