"""Lists of an index's pictures, page by page: what is listed, in which order, and where a page begins."""

from __future__ import annotations

import base64
import binascii
import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

from ...errors import ListReplacedError, QueryError
from ...text import printable
from .items import IndexedImage

__all__ = ["ORDERS", "ItemPage", "ListRequest", "Order", "Place", "no_such_folder", "read_cursor", "write_cursor"]

Order = Literal["folder", "newest", "shuffle", "id"]
ORDERS: tuple[Order, ...] = get_args(Order)

_MOST = 1000
_MAX_SEED = 2**53
# Characters of a cursor: a path has at most 4,096 bytes.
_MAX_CURSOR = 6000
_VERSION = 1
_CHECK = 8
_PLACE = struct.Struct(">qqqq")


@dataclass(frozen=True)
class ListRequest:
    """What is listed, and in which order.

    Attributes:
        order: ``folder`` by root and path, ``newest`` by mtime, the latest first, ``shuffle`` by chance, ``id`` in
            the order in which the pictures were added.
        seed: of ``shuffle``: the same seed gives the same order.
        label: only pictures with one of these labels.
        folder: only pictures below one of these folders, relative to the synced ones.
        limit: pictures of a page, at least 1.

    """

    order: Order = "folder"
    seed: int = 0
    label: tuple[str, ...] | None = None
    folder: tuple[str, ...] | None = None
    limit: int = 100

    def check(self, supported: Sequence[Order] = ORDERS) -> None:
        """Refuse values that no index, or not this kind of index, can list by.

        Raises:
            QueryError: a value is invalid.

        """
        if self.order not in supported:
            raise QueryError(f"the order is {printable(str(self.order))!r}; expected {' or '.join(supported)}.")
        if not 0 <= self.seed <= _MAX_SEED:
            raise QueryError(f"the seed is {self.seed}; expected a number from 0 to 2^53.")
        if not 1 <= self.limit <= _MOST:
            raise QueryError(f"the limit is {self.limit}; expected a number from 1 to {_MOST}.")

    @property
    def filtered(self) -> bool:
        """Whether only some pictures are listed."""
        return self.label is not None or self.folder is not None

    def digest(self) -> bytes:
        """Return a checksum of all but the limit, which may change from page to page."""
        same = replace(self, limit=1, label=self.label and tuple(sorted(set(self.label))))
        return hashlib.blake2b(repr(same).encode("utf-8", "surrogateescape"), digest_size=_CHECK).digest()


@dataclass(frozen=True)
class Place:
    """The picture that ends a page, by all that an order needs to continue behind it, even if it is gone.

    Attributes:
        id: of the picture.
        root: number of its root, for the order ``folder``.
        path: under its root, for the order ``folder``.
        mtime_ns: the time that it was listed by, for the order ``newest``.
        number: of the catalogue that the first page was made from, see :class:`~.catalogue.Catalogue`.

    """

    id: int
    root: int = 0
    path: bytes = b""
    mtime_ns: int = 0
    number: int = 0


@dataclass(frozen=True)
class ItemPage:
    """A page of a list.

    Attributes:
        items: the pictures.
        total: number of pictures of all pages.
        cursor: of the next page; None: this is the last.

    """

    items: list[IndexedImage]
    total: int
    cursor: str | None


def write_cursor(place: Place, request: ListRequest, index: str) -> str:
    """Return the text by which a client asks for the page behind a place.

    Args:
        place: the end of a page.
        request: what is listed.
        index: what the ids belong to: another value after they may have changed their meaning.

    """
    head = bytes([_VERSION]) + request.digest() + _digest_of(index)
    numbers = _PLACE.pack(place.id, place.root, place.mtime_ns, place.number)
    return base64.urlsafe_b64encode(head + numbers + place.path).rstrip(b"=").decode()


def read_cursor(cursor: str, request: ListRequest, index: str) -> Place:
    """Return the place of a cursor, see :func:`write_cursor`.

    Raises:
        QueryError: it is no cursor, or one of another list.
        ListReplacedError: it belongs to an index that was replaced.

    """
    content = _decoded(cursor)
    end = 1 + 2 * _CHECK + _PLACE.size
    if len(content) < end or content[0] != _VERSION:
        raise QueryError("the cursor is not one of this server; expected 'next' of the page before, or no cursor.")
    if content[1 : 1 + _CHECK] != request.digest():
        raise QueryError(
            "the cursor belongs to another list; expected the order, seed, label and folder of the page before, or "
            "no cursor."
        )
    if content[1 + _CHECK : 1 + 2 * _CHECK] != _digest_of(index):
        raise ListReplacedError("The index was replaced since the page before; list it again from the first page.")
    number, root, mtime_ns, catalogue = _PLACE.unpack(content[end - _PLACE.size : end])
    return Place(number, root, content[end:], mtime_ns, catalogue)


def _decoded(cursor: str) -> bytes:
    if len(cursor) > _MAX_CURSOR or not cursor.isascii():
        return b""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return b""


def _digest_of(index: str) -> bytes:
    return hashlib.blake2b(index.encode(), digest_size=_CHECK).digest()


def no_such_folder(folders: Sequence[str]) -> QueryError:
    """Return the error that no picture is below a folder."""
    return QueryError(
        f"no picture is in the folder {printable(folders[0])!r}; expected a folder of a picture's path, such as "
        "'a/b' of 'a/b/c.jpg'."
    )
