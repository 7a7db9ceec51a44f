"""A collection of deeprank in Milvus: its fields, its description, and the alias under which it is read.

====================  ===================  =======================================================
field                 type                 content
====================  ===================  =======================================================
``id``                INT64, primary key   permanent number of the vector, as in an index
``root``              INT64                number of its folder in the description's ``roots``
``path``              VARCHAR              relative to its root, parts separated by ``/``
``label``             VARCHAR              "": none
``sha256``            VARCHAR              of the bytes of the picture file, 64 hex digits
``size``              INT64                of the picture file, in bytes
``mtime_ns``          INT64                mtime of the picture file, in nanoseconds
``vector``            FLOAT_VECTOR         the embedding, of unit length; metric L2, squared as ours
====================  ===================  =======================================================

The collection is called NAME_ and the first digits of its model's sha256, and a number if there is
more than one for that model. The alias NAME leads to the complete one; readers use the alias alone.
The property ``deeprank`` holds the description as JSON. Servers up to 2.3 forget a change of it when
they restart: so what a reader depends on is in it from the beginning. A server is not trusted:
whatever comes from it is checked.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ...errors import StoreError
from ...text import printable
from .connection import Connection
from .index_type import INDEX_TYPES, IndexType, build_parameters

__all__ = [
    "FIELDS",
    "MAX_DIM",
    "MAX_TEXT",
    "SCHEMA",
    "VECTOR",
    "Collection",
    "Description",
    "create",
    "describe",
    "keeps_changes",
    "read_collection",
]

SCHEMA = 1
VECTOR = "vector"
# All fields but the vector, in the order of the table above.
FIELDS = ("id", "root", "path", "label", "sha256", "size", "mtime_ns")
# Bytes of a path or a label.
MAX_TEXT = 4096

_PROPERTY = "deeprank"
_KIND = "deeprank-collection"
# Characters of a description; etcd, which holds it, takes at most 1.5 MB.
_MAX_DESCRIPTION = 1_000_000
_MAX_ROOTS = 1000
_MAX_LABELS = 2000
# Characters of all labels together; as JSON, each takes up to twelve.
_MAX_LABEL_TEXT = 60_000
MAX_DIM = 32_768
_MAX_ID = 2**62
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LENGTHS = {"path": MAX_TEXT, "label": MAX_TEXT, "sha256": 64}
# Seconds; a new index is empty.
_TO_CREATE = 60.0
_UP_TO_2_3 = re.compile(r"v?2\.[0-3]\.")


@dataclass(frozen=True)
class Description:
    """What a collection holds.

    Attributes:
        model_sha256: of the model file that made the vectors, 64 hex digits.
        dim: length of a vector.
        index_type: kind of its vector index.
        roots: folders or URIs of the pictures, by number, as they were where the vectors were made.
        rows: number of pictures at the end of the last load; 0 until then.
        labels: number of pictures with each label then, sorted; None: they are not known, or too many.

    """

    model_sha256: str
    dim: int
    index_type: IndexType
    roots: Mapping[int, str]
    rows: int = 0
    labels: Mapping[str, int] | None = None

    def to_json(self) -> str:
        """Return it as the JSON of the property."""
        labels = self.labels
        if labels is not None and (len(labels) > _MAX_LABELS or sum(map(len, labels)) > _MAX_LABEL_TEXT):
            labels = None
        values = {"kind": _KIND, "schema": SCHEMA, **dataclasses.asdict(dataclasses.replace(self, labels=labels))}
        return json.dumps(values, ensure_ascii=True)

    @classmethod
    def from_json(cls, text: object) -> Description:
        """Return the description in a property.

        Raises:
            ValueError: it is none of ours; the message is the predicate of a sentence about the collection.

        """
        values = _parsed(text)
        if values is None or values.get("kind") != _KIND:
            raise ValueError("was not made by deeprank")
        schema = values.get("schema")
        if type(schema) is not int or schema < 1:
            raise ValueError("has no schema number")
        if schema > SCHEMA:
            raise ValueError(f"has schema {schema}, newer than this version reads (up to {SCHEMA})")
        sha256, dim, rows = (values.get(name) for name in ("model_sha256", "dim", "rows"))
        sound = (
            isinstance(sha256, str)
            and _SHA256.fullmatch(sha256) is not None
            and _is_number(dim, 1, MAX_DIM)
            and _is_number(rows, 0, _MAX_ID)
            and values.get("index_type") in INDEX_TYPES
        )
        roots, labels = _roots(values.get("roots")), _labels(values.get("labels"))
        if not sound or roots is None or (labels is None and values.get("labels") is not None):
            raise ValueError("has a damaged description")
        return cls(
            cast(str, sha256),
            cast(int, dim),
            cast(IndexType, values["index_type"]),
            roots,
            cast(int, rows),
            labels,
        )


def _parsed(text: object) -> dict[str, Any] | None:
    if not isinstance(text, str) or len(text) > _MAX_DESCRIPTION:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return values if isinstance(values, dict) else None


def _is_number(value: object, least: int, most: int) -> bool:
    return type(value) is int and least <= value <= most


def _roots(values: object) -> dict[int, str] | None:
    if not isinstance(values, dict) or not 0 < len(values) <= _MAX_ROOTS:
        return None
    numbers = {key: int(key) for key in values if re.fullmatch(r"[1-9][0-9]{0,17}", key, re.ASCII)}
    if len(numbers) != len(values) or not all(isinstance(root, str) and root for root in values.values()):
        return None
    return {numbers[key]: root for key, root in values.items()}


def _labels(values: object) -> dict[str, int] | None:
    if not isinstance(values, dict) or len(values) > _MAX_LABELS:
        return None
    if not all(label and _is_number(count, 1, _MAX_ID) for label, count in values.items()):
        return None
    return dict(sorted(values.items()))


@dataclass(frozen=True)
class Collection:
    """A collection as it was described at one moment: its own name, not the alias."""

    name: str
    description: Description


def read_collection(connection: Connection, name: str) -> Collection:
    """Return what an alias leads to, or a collection; checked.

    Raises:
        MissingInStoreError: there is none.
        StoreError: it is not one of ours, or of a newer version.
        StoreUnavailableError: the store does not answer.

    """
    stored = connection.call("describe_collection", name)
    actual = str(stored.get("collection_name", name))
    try:
        description = Description.from_json((stored.get("properties") or {}).get(_PROPERTY))
        _check_fields(stored, description)
    except ValueError as error:
        shown = printable(name) if actual == name else f"{printable(name)} ({printable(actual[:300])})"
        raise StoreError(
            f"The collection {shown} of the store at {connection.address.server} {error}; expected one that "
            "deeprank-index load of this version has filled."
        ) from None
    return Collection(actual, description)


def _check_fields(stored: Mapping[str, Any], description: Description) -> None:
    from pymilvus import DataType

    fields = {field.get("name"): field for field in stored.get("fields", ())}
    expected = {name: DataType.VARCHAR if name in _LENGTHS else DataType.INT64 for name in FIELDS}
    expected[VECTOR] = DataType.FLOAT_VECTOR
    if {name: field.get("type") for name, field in fields.items()} != expected or not fields["id"].get("is_primary"):
        raise ValueError("has other fields than its description says")
    if str(fields[VECTOR].get("params", {}).get("dim")) != str(description.dim):
        raise ValueError("holds vectors of another length than its description says")


def create(connection: Connection, name: str, description: Description) -> None:
    """Create a collection with its indexes and load it; each step is left out where an earlier, killed load made it.

    Raises:
        StoreError, StoreUnavailableError: see :meth:`Connection.call`.

    """
    if not connection.call("has_collection", name):
        try:
            connection.call(
                "create_collection", name, schema=_schema(description.dim), properties=_property(description)
            )
        except StoreError:
            if not connection.call("has_collection", name):  # else another load has just made it
                raise
    present = set(connection.call("list_indexes", name))
    for field, kind, parameters in (
        (VECTOR, description.index_type, build_parameters(description.index_type)),
        ("label", _text_index(connection), {}),
        ("sha256", _text_index(connection), {}),
    ):
        if field not in present:
            _create_index(connection, name, field, kind, parameters)
    connection.load(name, timeout=_TO_CREATE)


def _create_index(connection: Connection, name: str, field: str, kind: str, parameters: Mapping[str, int]) -> None:
    from pymilvus.milvus_client.index import IndexParams

    metric = {"metric_type": "L2", "params": parameters} if field == VECTOR else {}
    indexes = IndexParams()
    indexes.add_index(field, index_type=kind, index_name=field, **metric)
    try:
        connection.call("create_index", name, indexes, timeout=_TO_CREATE)
    except StoreError:
        if field not in connection.call("list_indexes", name):
            raise


def _text_index(connection: Connection) -> str:
    return "Trie" if _is_up_to_2_3(connection) else "INVERTED"


def keeps_changes(connection: Connection) -> bool:
    """Tell whether the server keeps a changed description when it restarts."""
    return not _is_up_to_2_3(connection)


def _is_up_to_2_3(connection: Connection) -> bool:
    return _UP_TO_2_3.match(str(connection.call("get_server_version"))) is not None


def _schema(dim: int) -> Any:
    from pymilvus import DataType, MilvusClient

    schema = MilvusClient.create_schema(auto_id=False, enable_dynamic_field=False)
    for name in FIELDS:
        if name in _LENGTHS:
            schema.add_field(name, DataType.VARCHAR, max_length=_LENGTHS[name])
        else:
            schema.add_field(name, DataType.INT64, is_primary=name == "id")
    schema.add_field(VECTOR, DataType.FLOAT_VECTOR, dim=dim)
    return schema


def _property(description: Description) -> dict[str, str]:
    return {_PROPERTY: description.to_json()}


def describe(connection: Connection, name: str, description: Description) -> None:
    """Replace the description of a collection."""
    # Milvus 2.3 stores what was there before: after a restart, the last change would be undone.
    for _ in range(2):
        connection.call("alter_collection_properties", name, _property(description))
