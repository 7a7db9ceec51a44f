"""Where an index is: in a folder on this machine, or in a collection of a Milvus server."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from ..devices import Device
from ..errors import QueryError
from .milvus.options import StoreOptions

if TYPE_CHECKING:
    from .search.searchable import Searchable

__all__ = ["Location", "StoreOptions", "is_address", "location_name", "misplaced_option", "open_index", "read_location"]

# An address stays text: a Path would take one of its slashes.
Location = Path | str

# An address, right or wrong, rather than a path.
_ADDRESS = re.compile(r"milvus(\+[a-z]*)?:/")


_DEFAULTS = StoreOptions()
_OPTIONS = {"model": "--model", "pictures": "--pictures", "token_file": "--store-token-file"}


def read_location(text: str) -> Location:
    """Return an address as it is, and any other text as the path of an index folder."""
    return text if is_address(text) else Path(text)


def is_address(where: Location) -> bool:
    """Tell whether this is the address of a collection, such as ``milvus://host:19530/photos``."""
    return isinstance(where, str) and _ADDRESS.match(where) is not None


def location_name(where: Location) -> str:
    """Return the name of the index for people: of its folder, or of the collection."""
    return str(where).rstrip("/").rpartition("/")[2] if is_address(where) else Path(where).resolve().name


def misplaced_option(where: Location, options: StoreOptions) -> str | None:
    """Return a sentence about an option that an index folder does not take; None: there is none."""
    if is_address(where):
        return None
    name = next((option.name for option in fields(options) if getattr(options, option.name) is not None), None)
    if name == "model":
        return "--model goes with a store (milvus://...); an index always uses the model that it was built with."
    return None if name is None else f"{_OPTIONS[name]} goes with a store; expected --index milvus://HOST:PORT/NAME."


def open_index(
    where: str | Path,
    *,
    device: Device = "auto",
    threads: int | None = None,
    max_pixels: int | None = None,
    store: StoreOptions = _DEFAULTS,
) -> Searchable:
    """Open an index folder, or a collection of a Milvus server.

    Args:
        where: the folder, or an address: ``milvus://[USER@]HOST:PORT/NAME``, or ``milvus+tls://…``.
        device: the device that embeds queries.
        threads: CPU threads of the network.
        max_pixels: larger query pictures are refused; None: more than 100 million.
        store: how a collection is opened.

    Raises:
        IndexStateError: there is no such index, or it is of a newer schema.
        IndexDamagedError: it is damaged.
        StoreUnavailableError: the server does not answer.
        MissingExtraError: an address needs packages that are not installed.
        QueryError: the address is invalid, or an option of a store is given with a folder.

    """
    from ..images import DEFAULT_MAX_PIXELS  # of a module with numpy, which --help and the doctor do without

    max_pixels = DEFAULT_MAX_PIXELS if max_pixels is None else max_pixels
    misplaced = misplaced_option(where, store)
    if misplaced is not None:
        raise QueryError(misplaced)
    if isinstance(where, str) and is_address(where):
        from .milvus.remote_index import RemoteIndex

        return RemoteIndex.open(where, device=device, threads=threads, max_pixels=max_pixels, options=store)
    from .search.index import Index

    return Index.open(where, device=device, threads=threads, max_pixels=max_pixels)
