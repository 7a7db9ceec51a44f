"""What goes out: JSON, and errors as a status with one sentence."""

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
    ModelFileError,
    PictureError,
    QueryError,
)
from .errors import RefusedError

__all__ = ["answer", "plain", "problem", "problem_of"]


def answer(
    document: BaseModel | Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    """Return a JSON document; of a model, the fields that were set."""
    if isinstance(document, BaseModel):
        document = document.model_dump(by_alias=True, exclude_unset=True)
    content = json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
    return Response(content, status, headers, "application/json")


def problem(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """Return an error."""
    return answer({"error": sentence}, status, headers)


def problem_of(error: DeepRankError) -> Response:
    """Return what a client is told of an error; what concerns the machine it is not told."""
    if isinstance(error, RefusedError):
        return problem(error.status, str(error), error.headers)
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
    if isinstance(error, IndexStateError | ModelFileError):
        return problem(503, "The index cannot be read at the moment; the server's log says why.", later)
    return problem(500, "The request failed; the server's log says why.")


def plain(name: str) -> str:
    r"""Return a name as text that can be encoded; bytes of it that are not UTF-8 are shown as ``\xNN``."""
    if name.isascii():
        return name
    return os.fsencode(name).decode("utf-8", "backslashreplace")
