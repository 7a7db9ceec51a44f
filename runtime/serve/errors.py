"""The server's errors and JSON responses."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from ..errors import (
    DecodersBusyError,
    DecodersFailedError,
    DeepRankError,
    IndexLockedError,
    IndexStateError,
    ListReplacedError,
    ModelFileError,
    PictureError,
    QueryError,
    StoreError,
)

__all__ = [
    "BusyError",
    "GoneError",
    "NotFoundError",
    "OtherModelError",
    "RefusedError",
    "UnwritableError",
    "answer",
    "plain",
    "private",
    "problem",
    "problem_of",
]


class RefusedError(DeepRankError):
    """A refused request: the status, and a sentence with the expected input."""

    def __init__(self, status: int, sentence: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.headers = headers or {}


class NotFoundError(RefusedError):
    """The index has no such picture."""

    def __init__(self, number: int) -> None:
        super().__init__(404, f"The index has no picture with the id {number}; expected one that a search returned.")


class GoneError(RefusedError):
    """The file of a picture of the index is missing or has changed."""

    def __init__(self, what: str) -> None:
        super().__init__(
            410,
            f"The file of this picture {what}; sync its folder again, or send the upload again.",
        )


class OtherModelError(RefusedError):
    """A vector comes from another model than the index's."""

    def __init__(self) -> None:
        super().__init__(
            409, "The vector was made by another model than the index's; embed the picture again with /v1/embed."
        )


class UnwritableError(RefusedError):
    """The index is readable, but not writable."""

    def __init__(self) -> None:
        super().__init__(
            503, "The index cannot be written to at the moment; the server's log says why.", {"Retry-After": "60"}
        )


class BusyError(RefusedError):
    """The server is overloaded; the client should retry."""

    def __init__(self, what: str = "Too many requests are in progress", seconds: int = 1) -> None:
        super().__init__(503, f"{what}; try again in a moment.", {"Retry-After": str(seconds)})


def answer(
    document: BaseModel | Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON response; of a pydantic model, only the fields that were set."""
    if isinstance(document, BaseModel):
        document = document.model_dump(by_alias=True, exclude_unset=True)
    content = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return Response(content, status, headers, "application/json")


def problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error response."""
    return answer({"error": sentence}, status, headers)


def private(tag: str) -> dict[str, str]:
    """Return the headers of a picture, which only this client's browser may keep."""
    # After a reembed, a number may mean another picture: so browsers revalidate each time.
    return {"ETag": f'"{tag}"', "Cache-Control": "private, no-cache", "Vary": "Authorization, Cookie"}


def problem_of(error: DeepRankError) -> Response:
    """Return the response to an error, without details of the server's machine."""
    if isinstance(error, RefusedError):
        return problem(error.status, str(error), error.headers)
    if isinstance(error, ListReplacedError):
        return problem(409, str(error))
    if isinstance(error, PictureError | QueryError):
        sentence = str(error)
        return problem(422, sentence[:1].upper() + sentence[1:])
    later = {"Retry-After": "5"}
    if isinstance(error, DecodersBusyError):
        return problem(503, str(error), later)
    if isinstance(error, DecodersFailedError):
        return problem(503, "No picture can be decoded at the moment; the server's log says why.", later)
    if isinstance(error, IndexLockedError):
        return problem(503, "The index is being written to by another process; try again when it has finished.", later)
    if isinstance(error, IndexStateError | ModelFileError | StoreError):
        return problem(503, "The index cannot be read at the moment; the server's log says why.", later)
    return problem(500, "The request failed; the server's log says why.")


def plain(name: str) -> str:
    r"""Return a name as encodable text; bytes that are not UTF-8 become ``\xNN``."""
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")
