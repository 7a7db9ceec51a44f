"""The content of a collection, described without searching it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .address import parse_address
from .collection import Description, read_collection
from .connection import Connection

__all__ = ["StoreInfo", "store_info"]


@dataclass(frozen=True)
class StoreInfo:
    """The content of a collection.

    Attributes:
        address: as it was typed.
        server: version of the server.
        collection: name that the alias leads to.
        description: of the last load.
        rows: number of pictures now.

    """

    address: str
    server: str
    collection: str
    description: Description
    rows: int


def store_info(address: str, token_file: Path | None = None) -> StoreInfo:
    """Describe a collection.

    Raises:
        StoreUnavailableError: the store does not answer.
        StoreError: there is no such collection of ours, or the store refuses.

    """
    where = parse_address(address)
    with Connection(where, token_file) as connection:
        stored = read_collection(connection, where.name)
        (row,) = connection.read(
            *("query", stored.name), filter="", output_fields=["count(*)"], consistency_level="Strong"
        )
        version = str(connection.call("get_server_version"))[:100]
        return StoreInfo(address, version, stored.name, stored.description, int(row["count(*)"]))
