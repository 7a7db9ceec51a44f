"""Forms in request bodies: multipart parsing, and their picture, item numbers, vector or box."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from ..images import Box
from ..scan import are_unit
from ..text import printable
from .errors import RefusedError

__all__ = ["MAX_IDS", "Form", "Sent", "box_of", "number", "read_form", "vector_of"]

_MULTIPART = b"multipart/form-data"
# Bytes of a Content-Type: parsing thousands of parameters takes long.
_MAX_TYPE_BYTES = 1024
_MAX_BOUNDARY_BYTES = 256
# Pictures of the index that a query may be the mean of.
MAX_IDS = 100
# Parts of a form: the picture, and text fields.
MAX_PARTS = MAX_IDS + 9
# Bytes of a part's headers, and of a text field.
_MAX_HEAD_BYTES = 8192
_MAX_FIELD_BYTES = 1 << 17
_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True)
class Sent:
    """A file of a form: the client's name for it, and its bytes."""

    name: str
    content: bytes


@dataclass(frozen=True)
class Form:
    """The fields of a form; of its text fields, ``id`` may be repeated."""

    image: Sent | None
    texts: dict[str, str]
    ids: tuple[str, ...] = ()


class _UnreadableError(Exception):
    """A body is not a valid form; the message is its fault."""


async def read_form(request: Request, texts: tuple[str, ...] = ()) -> Form:
    """Read a form with a file ``image`` and text fields; an empty body is a form without fields.

    Text is always decoded as UTF-8 (RFC 7578, section 5.1.2): some encodings that a form may
    declare take seconds. Reading takes milliseconds per megabyte for any content.

    Raises:
        RefusedError: the body is not a form, or has other fields (422).

    """
    # request.body() would keep a copy until garbage collection, as requests are in cycles.
    body = b"".join([chunk async for chunk in request.stream() if chunk])
    if not body:
        return Form(None, {})
    kind = request.headers.get("content-type", "").encode("latin-1")
    if kind.partition(b";")[0].strip().lower() != _MULTIPART:
        raise _refused("The request's body is not multipart/form-data")
    try:
        return _form(_parts(body, _boundary(kind)), texts)
    except _UnreadableError as error:
        raise _refused(f"The request's form cannot be read ({error})") from None


def _boundary(kind: bytes) -> bytes:
    if len(kind) > _MAX_TYPE_BYTES:
        raise _UnreadableError(f"its Content-Type has {len(kind):,} bytes, expected at most {_MAX_TYPE_BYTES:,}")
    boundary = parse_options_header(kind)[1].get(b"boundary", b"")
    if not 0 < len(boundary) <= _MAX_BOUNDARY_BYTES:
        raise _UnreadableError(
            f"the boundary in its Content-Type has {len(boundary)} bytes, expected 1 to {_MAX_BOUNDARY_BYTES}"
        )
    return boundary


def _parts(body: bytes, boundary: bytes) -> Iterator[tuple[Mapping[bytes, bytes], bytes]]:
    """Yield each part's parameters (``name``, ``filename``) and content (RFC 2046, section 5.1.1)."""
    delimiter = b"\r\n--" + boundary
    first = -2 if body.startswith(delimiter[2:]) else body.find(delimiter)
    begin = first + len(delimiter) if first != -1 else -1
    for number in range(MAX_PARTS + 1):
        if begin < 0:
            raise _UnreadableError("it does not end, so it holds no picture" if number else "its boundary is not in it")
        if body.startswith(b"--", begin):
            return
        if number == MAX_PARTS:
            raise _UnreadableError(f"it has more than {MAX_PARTS} parts")
        end_of_head = body.find(b"\r\n\r\n", begin, begin + _MAX_HEAD_BYTES)
        end = body.find(delimiter, max(begin, end_of_head + 2))
        if end_of_head < 0 and end >= 0:
            raise _UnreadableError(f"the head of a part does not end, expected at most {_MAX_HEAD_BYTES:,} bytes of it")
        if end >= 0:
            yield _disposition(body[begin:end_of_head]), body[end_of_head + 4 : end]
        begin = end + len(delimiter) if end >= 0 else -1


def _disposition(head: bytes) -> Mapping[bytes, bytes]:
    """Return the parameters of a part's Content-Disposition; its first line ends the boundary."""
    rest, *lines = head.split(b"\r\n")
    if rest.strip(b" \t"):
        raise _UnreadableError("something follows its boundary within a line")
    for line in lines:
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-disposition":
            return parse_options_header(value.strip())[1]
    return {}


def _form(parts: Iterator[tuple[Mapping[bytes, bytes], bytes]], expected: tuple[str, ...]) -> Form:
    image: Sent | None = None
    texts: dict[str, str] = {}
    ids: list[str] = []
    for parameters, content in parts:
        if b"name" not in parameters:
            raise _UnreadableError("a part has no Content-Disposition with a name")
        name = _text(parameters[b"name"])
        is_file = b"filename" in parameters
        if is_file and image is not None:
            raise _UnreadableError("Too many files, expected one")
        if not is_file and len(content) > _MAX_FIELD_BYTES:
            raise _UnreadableError(f"a field has {len(content):,} bytes, expected at most {_MAX_FIELD_BYTES:,}")
        if name == "image" and is_file:
            image = Sent(_text(parameters[b"filename"]) or "image", content)
        elif name == "id" in expected and not is_file:
            ids.append(_text(content))
        elif name in expected and not is_file and name not in texts:
            texts[name] = _text(content)
        else:
            known = ", ".join(["a file 'image'", *(f"{text!r}" for text in expected)])
            raise _refused(f"The form has an unexpected or a repeated field; expected {known}")
    # Browsers, and Swagger's "Try it out", send empty fields.
    filled = {name: text for name, text in texts.items() if text}
    filled_ids = tuple(filter(None, ids))
    if filled or filled_ids or image is not None:
        return Form(image, filled, filled_ids)
    return Form(image, texts, tuple(ids))


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


def number(text: str) -> int:
    """Return the number that a field holds.

    Raises:
        RefusedError: it holds something else.

    """
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and int(text) <= _MAX_NUMBER):
        raise RefusedError(
            422, "The id is not a number; expected the id of a picture in the index, as a search returns it."
        )
    return int(text)


def box_of(text: str) -> Box | None:
    """Return the box that a field holds; None: it is the whole picture.

    Raises:
        RefusedError: it holds something else.

    """
    edges = text.split(",")
    try:
        left, top, right, bottom = map(float, edges)
    except ValueError:
        left = right = top = bottom = math.nan
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise RefusedError(
            422,
            f"The box is {printable(text[:80])!r}; expected its left, top, right and bottom edge as fractions of the "
            "upright picture, such as 0.25,0,0.75,0.5.",
        )
    return None if (left, top, right, bottom) == (0, 0, 1, 1) else (left, top, right, bottom)


def vector_of(text: str, dim: int) -> npt.NDArray[np.float32]:
    """Return the vector in a field, in the form of ``/v1/embed``: float32 ``[dim]``.

    Raises:
        RefusedError: it holds something else.

    """
    expected = f"expected base64 of {dim} little-endian float32, as /v1/embed returns it"
    try:
        content = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise RefusedError(422, f"The vector is not base64; {expected}.") from None
    if len(content) != 4 * dim:
        raise RefusedError(422, f"The vector has {len(content)} bytes; {expected}.")
    vector = np.frombuffer(content, dtype="<f4").astype(np.float32)
    if not are_unit(vector[None]).all():
        raise RefusedError(422, f"The vector is not of unit length; {expected}.")
    return vector


def _refused(what: str) -> RefusedError:
    return RefusedError(422, f"{what}; send the picture as a file called 'image' in a multipart/form-data form.")
