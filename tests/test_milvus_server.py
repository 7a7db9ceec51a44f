"""The real Milvus server, in a network namespace: what Milvus Lite cannot show."""

import pytest

from deeprank.runtime.index.milvus.address import parse_address

pytest.importorskip("pymilvus")

from milvus_server import RealServer, real  # noqa: F401 - a fixture

from deeprank.runtime.index.milvus.collection import Description, create, describe, read_collection
from deeprank.runtime.index.milvus.connection import Connection, MissingInStoreError

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]

DESCRIPTION = Description("0f" * 32, 4, "HNSW", {1: "/photos"})


def connect(server: RealServer, name: str = "photos") -> Connection:
    return Connection(parse_address(server.address(name)))


def test_collections(real: RealServer) -> None:  # noqa: F811
    with connect(real) as connection:
        with pytest.raises(MissingInStoreError):
            connection.call("describe_collection", "nothing")
        with pytest.raises(MissingInStoreError):
            connection.call("alter_alias", "nothing", "nothing_either")
        for kind in ("HNSW", "IVF_SQ8", "DISKANN"):
            description = Description("0f" * 32, 4, kind, {1: "/photos"})  # type: ignore[arg-type]
            create(connection, f"kept_{kind}", description)
            create(connection, f"kept_{kind}", description)
            assert read_collection(connection, f"kept_{kind}").description == description
            assert set(connection.call("list_indexes", f"kept_{kind}")) == {"vector", "label", "sha256"}
        changed = Description("0f" * 32, 4, "HNSW", {1: "/photos", 7: "s3://ü/x"}, 3, {"ü'\"\\": 2, "b": 1}, True)
        describe(connection, "kept_HNSW", changed)
        assert read_collection(connection, "kept_HNSW").description == changed
