"""What a request holds: a picture, the number of one of the index, or a vector."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from .errors import RefusedError

__all__ = ["Form", "Sent", "number", "read_form", "vector_of"]

_MULTIPART = "multipart/form-data"
_MOST_FIELDS = 8
_LONGEST_FIELD = 1 << 17
_LARGEST_NUMBER = 2**63 - 1
# A form of so many bytes takes milliseconds to read.
_LARGE = 1_000_000
# One for all: several would hold each other up, and everybody else, and hold a copy of a large body each.
_PARSING = ThreadPoolExecutor(1, thread_name_prefix="form")


@dataclass(frozen=True)
class Sent:
    """A file of a form: its name as the client says, and its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Form:
    """The fields of a form."""

    image: Sent | None
    texts: dict[str, str]


class _InMemory(MultiPartParser):
    """Keeps files in memory: their size is bounded already, and pictures of users do not go to a disk."""

    spool_max_size = 1 << 62


async def read_form(request: Request, texts: tuple[str, ...] = ()) -> Form:
    """Read a form with a file called ``image`` and some fields of text; no body at all is a form without fields.

    Raises:
        RefusedError: it is no form, or has other fields (422).

    """
    # request.body() would keep a copy for as long as the request is worked on, and beyond: requests are in cycles.
    body = b"".join([chunk async for chunk in request.stream() if chunk])
    if not body:
        return Form(None, {})
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _MULTIPART:
        raise _refused("The request's body is no multipart/form-data")
    if len(body) < _LARGE:
        form = await _parsed(request, body)
    else:  # which would keep everybody else waiting
        loop = asyncio.get_running_loop()
        form = await loop.run_in_executor(_PARSING, lambda: asyncio.run(_parsed(request, body)))
    return _fields(form, texts)


async def _parsed(request: Request, body: bytes) -> FormData:
    async def chunks() -> AsyncIterator[bytes]:
        yield body

    parser = _InMemory(
        request.headers,
        chunks(),  # type: ignore[arg-type,unused-ignore]
        max_files=1,
        max_fields=_MOST_FIELDS,
        max_part_size=_LONGEST_FIELD,
    )
    try:
        return await parser.parse()
    except MultiPartException as error:
        raise _refused(f"The request's form cannot be read ({error.message.rstrip('.')})") from None
    except Exception as error:  # a parser of other people's bytes raises what it likes
        raise _refused(f"The request's form cannot be read ({type(error).__name__})") from None


def _fields(form: FormData, expected: tuple[str, ...]) -> Form:
    image: Sent | None = None
    texts: dict[str, str] = {}
    for name, value in form.multi_items():
        if name == "image" and isinstance(value, UploadFile):
            image = Sent(_clean(value.filename) or "image", value.file.read())
        elif name in expected and isinstance(value, str) and name not in texts:
            texts[name] = value
        else:
            known = ", ".join(["a file 'image'", *(f"{text!r}" for text in expected)])
            raise _refused(f"The form has a field that is not expected here, or has it twice; expected {known}")
    # Browsers, and the manual's "Try it out", send fields that were left empty.
    filled = {name: text for name, text in texts.items() if text}
    return Form(image, filled if filled or image is not None else texts)


def _clean(name: str | None) -> str:
    """Return a name that can be encoded; the charset that a form claims may give halves of surrogate pairs."""
    return (name or "").encode("utf-8", "replace").decode()


def number(text: str) -> int:
    """Return the number that a field holds.

    Raises:
        RefusedError: it holds something else.

    """
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= _LARGEST_NUMBER):
        raise RefusedError(422, "The id is no number; expected that of a picture of the index, as a search returns it.")
    return int(text)


def vector_of(text: str, dim: int) -> npt.NDArray[np.float32]:
    """Return the vector that a field holds, as ``/v1/embed`` gives it: float32 ``[dim]``.

    Raises:
        RefusedError: it holds something else.

    """
    expected = f"expected base64 of {dim} little-endian float32, as /v1/embed gives it"
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(422, f"The vector is not base64; {expected}.") from None
    if len(content) != 4 * dim:
        raise RefusedError(422, f"The vector has {len(content)} bytes; {expected}.")
    vector = np.frombuffer(content, dtype="<f4").astype(np.float32)
    if not np.isfinite(vector).all() or abs(np.linalg.norm(vector.astype(np.float64)) - 1) > 5e-3:
        raise RefusedError(422, f"The vector is not of unit length; {expected}.")
    return vector


def _refused(what: str) -> RefusedError:
    return RefusedError(422, f"{what}; send the picture as a file called 'image' in a multipart/form-data form.")
