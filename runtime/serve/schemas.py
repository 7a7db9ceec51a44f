"""The API's parameters and responses as pydantic models, and parts of its OpenAPI document.

Responses name files and folders, but not the folders above them on this machine.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, Self, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, create_model

from ..images import Size
from ..index.search.items import IndexedImage
from ..index.search.listing import ItemPage, ListRequest, Order
from ..index.search.request import SearchRequest
from ..index.search.searchable import Supported
from ..index.uploads import Added
from .errors import plain
from .settings import MAX_HITS, ServeSettings
from .upload_form import MAX_IDS

if TYPE_CHECKING:
    from .engine import Embedding, Overview
    from .session import SearchResult

__all__ = [
    "SCHEMA",
    "AddedDocument",
    "EmbedParameters",
    "EmbeddingDocument",
    "InfoDocument",
    "Item",
    "ItemDocument",
    "ItemsDocument",
    "ListParameters",
    "Problem",
    "RemovedDocument",
    "SearchDocument",
    "SearchParameters",
    "form",
    "problems",
]

SCHEMA = 1
_MAX_ID = 2**63 - 1
# Labels that the response lists: a longer list would not help the page.
_MAX_LABELS = 10_000
_BOX = (
    "Only this part of the image, or of the picture with one id: left, top, right and bottom edge in fractions of the "
    "upright picture, such as 0.25,0,0.75,0.5."
)
_PROBLEMS = {
    400: "The request is incomplete, or not HTTP (then the answer is plain text).",
    401: "No token, or a wrong one.",
    403: "The request is for another host name, or from another site's page.",
    404: "The index has no such picture.",
    408: "The request took too long to arrive.",
    409: "The vector was made by another model than the index's, or the index was replaced since the page before.",
    410: "The file of the picture is gone or has changed.",
    413: "The upload is too large.",
    422: "No readable picture, or an invalid value.",
    503: "The server is overloaded, or the index cannot be read; Retry-After says when to try again.",
}


class Problem(BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="A message that states the problem, the expected input and the remedy.")


# The options of a search request that the API has.
_SERVED = {option.name: option for option in fields(SearchRequest) if "schema" in option.metadata}


def _field(name: str, **limits: Any) -> Any:
    option = _SERVED[name]
    schema: dict[str, Any] = {"default": option.default, **option.metadata["schema"], **limits}
    return Field(**schema)


_FIELDS: dict[str, Any] = {name: (get_type_hints(SearchRequest)[name], _field(name)) for name in _SERVED}
_Options: Any = create_model("_Options", **_FIELDS)


class SearchParameters(_Options):  # type: ignore[misc] # its fields are those of a search request
    """The options of a search; some have limits here that keep a request small."""

    model_config = ConfigDict(extra="forbid")

    k: int = _field("k", le=MAX_HITS)
    label: list[Annotated[str, Field(max_length=4096)]] | None = _field("label", max_length=1000)
    exact: bool = Field(False, description="Scan all vectors instead of searching the graph.")
    id: list[Annotated[int, Field(ge=1, le=_MAX_ID)]] | None = Field(
        None,
        max_length=MAX_IDS,
        description="Search with this picture of the index, or with the mean of several; needs no body.",
    )
    box: str | None = Field(None, max_length=200, description=_BOX)
    sizes: bool = Field(False, description="Add the width and height of each hit.")
    hashes: bool = Field(False, description="Add the sha256 of each hit, and of a query that is in the index.")

    def request(self) -> SearchRequest:
        """Return the search request."""
        options = {name: getattr(self, name) for name in _SERVED}
        label = tuple(self.label) if self.label else None
        return SearchRequest(**options | {"label": label, "method": "exact" if self.exact else "auto"})


class EmbedParameters(BaseModel):
    """The picture of an embedding, unless the form holds it."""

    model_config = ConfigDict(extra="forbid")

    id: int | None = Field(None, ge=1, le=_MAX_ID, description="A picture of the index; needs no body.")
    box: str | None = Field(None, max_length=200, description=_BOX)


class HitDocument(BaseModel):
    """A picture of the index that answers a query."""

    rank: int
    path: str = Field(description="Path below the synced folder.")
    root: str = Field(description="Name of the synced folder.")
    relative: str = Field(description="The same as path; the command's path is absolute.")
    label: str | None
    distance: float = Field(description="Squared Euclidean, 0 to 4.")
    similarity: float = Field(
        description="The cosine of the two vectors, 1 - distance / 2: 1 for the same picture, -1 for the opposite."
    )
    id: int
    sha256: str | None = Field(None, description="With hashes: of the file, hex.")
    near_duplicates: int | None = Field(None, description="With unique: the number of near-duplicates that it hides.")
    width: int | None = Field(
        None, description="With sizes: in pixels, of the upright picture; null if it is not known in time."
    )
    height: int | None = Field(None, description="With sizes.")


class ResultDocument(BaseModel):
    """A query and its hits."""

    query: str = Field(description="The name of the file that was sent, or the path of the item.")
    id: int | None = Field(None, description="Id of the requested item.")
    sha256: str | None = Field(None, description="With hashes: of the requested item's file, hex.")
    ids: list[int] | None = Field(None, description="Ids of the requested items, if there are several.")
    hits: list[HitDocument]


class SearchDocument(BaseModel):
    """The answer to a search: what ``deeprank-query --json`` prints, without the places of files on the server."""

    schema_: int = Field(alias="schema")
    index: str
    k: int
    unrelated_distance: float | None = Field(
        None, description="If the model states one: hits farther than this are not similar any more."
    )
    results: list[ResultDocument]

    @classmethod
    def of(
        cls,
        index: str,
        request: SearchRequest,
        query: str,
        result: SearchResult,
        sizes: Mapping[bytes, Size | None] | None = None,
        *,
        hashes: bool = False,
    ) -> Self:
        """Return the document of a search.

        Args:
            index: its name.
            request: the options.
            query: the client's name for its picture.
            result: the hits.
            sizes: width and height of the hits, by sha256; None: the document does not have them.
            hashes: whether the document has the sha256 of the hits and of the query.

        """
        unique = request.unique is not None
        hits = [hit.document(rank, unique=unique) | _identity(hit) for rank, hit in enumerate(result.hits, 1)]
        if sizes is not None:
            hits = [hit | _sides(sizes.get(of.sha256)) for hit, of in zip(hits, result.hits, strict=True)]
        head = _head(query, result.items)
        if hashes:
            hits = [hit | {"sha256": of.sha256.hex()} for hit, of in zip(hits, result.hits, strict=True)]
            head |= {"sha256": result.items[0].sha256.hex()} if len(result.items) == 1 else {}
        # Validated at once, which takes half as long as one model after another.
        answered = [{**head, "hits": hits}]
        line = {} if result.unrelated_distance is None else {"unrelated_distance": result.unrelated_distance}
        return cls.model_validate({"schema": SCHEMA, "index": index, "k": request.k, **line, "results": answered})


class ModelDocument(BaseModel):
    """The model that the vectors come from."""

    name: str
    sha256: str


class EmbeddingDocument(BaseModel):
    """A picture's vector."""

    schema_: int = Field(alias="schema")
    model: ModelDocument
    dim: int
    embedding: list[float] = Field(description="The vector, of unit length.")
    base64: str = Field(description="The vector as little-endian float32, for the field 'vector' of a search.")

    @classmethod
    def of(cls, embedding: Embedding) -> Self:
        """Return the document of a vector."""
        return cls(
            schema=SCHEMA,
            model=ModelDocument(name=embedding.model.name, sha256=embedding.model_sha256),
            dim=len(embedding.vector),
            embedding=embedding.vector.tolist(),
            base64=base64.b64encode(embedding.vector.astype("<f4").tobytes()).decode("ascii"),
        )


class Item(BaseModel):
    """A picture of the index, in a list."""

    id: int
    path: str = Field(description="Path below the synced folder.")
    root: str = Field(description="Name of the synced folder.")
    relative: str = Field(description="The same as path.")
    label: str | None
    bytes: int = Field(description="Size of the file.")
    modified: str | None = Field(description="The file's mtime (RFC 3339, UTC); null if no calendar has it.")
    width: int | None = Field(description="In pixels, of the upright picture; null if it is not known in time.")
    height: int | None

    @staticmethod
    def values(image: IndexedImage, size: Size | None) -> dict[str, Any]:
        """Return the fields of a picture of the index; ``size``: its width and height, if they are known."""
        return {
            "id": image.id,
            **_identity(image),
            "bytes": image.size,
            "modified": _modified(image.mtime_ns),
            **_sides(size),
        }


class _Headed(BaseModel):
    schema_: int = Field(alias="schema")
    index: str


class ItemDocument(Item, _Headed):
    """A picture of the index."""

    sha256: str

    @classmethod
    def of(cls, index: str, image: IndexedImage, size: Size | None) -> Self:
        """Return the document of a picture of the index."""
        return cls(schema=SCHEMA, index=index, sha256=image.sha256.hex(), **Item.values(image, size))


class ItemsDocument(_Headed):
    """A page of the pictures of the index."""

    total: int = Field(description="Number of pictures on all pages.")
    items: list[Item]
    next: str | None = Field(description="The cursor of the next page; null: this is the last.")

    @classmethod
    def of(cls, index: str, page: ItemPage, sizes: Mapping[bytes, Size | None]) -> Self:
        """Return the document of a page; ``sizes``: width and height of pictures, by sha256."""
        items = [Item.values(image, sizes.get(image.sha256)) for image in page.items]
        return cls.model_validate(
            {"schema": SCHEMA, "index": index, "total": page.total, "items": items, "next": page.cursor}
        )


class ListParameters(BaseModel):
    """What is listed."""

    model_config = ConfigDict(extra="forbid")

    order: Order | None = Field(
        None,
        description="folder: by path; newest: by mtime, latest first; shuffle: by chance; id: as they were added. "
        "Default: the first of supports.orders of /v1/info.",
    )
    seed: int = Field(0, ge=0, le=2**53, description="Of shuffle: the same seed gives the same order.")
    label: list[Annotated[str, Field(max_length=4096)]] | None = Field(
        None, max_length=1000, description="Only pictures with one of these labels."
    )
    folder: str | None = Field(
        None, max_length=4096, description="Only pictures below this folder, as it begins their paths."
    )
    limit: int = Field(100, ge=1, le=500, description="Pictures of a page.")
    cursor: str | None = Field(None, max_length=8192, description="The field next of the page before.")

    def request(self, orders: Sequence[Order]) -> ListRequest:
        """Return the request of a list; ``orders``: that the index has, the usual one first."""
        folder = (self.folder or "").strip("/")
        return ListRequest(
            order=orders[0] if self.order is None else self.order,
            seed=self.seed,
            label=tuple(self.label) if self.label else None,
            folder=(folder,) if folder else None,
            limit=self.limit,
        )


class RootDocument(BaseModel):
    """A folder that was synced."""

    name: str
    items: int


class ServedModelDocument(ModelDocument):
    """The model of the index."""

    backbone: str
    precision: str
    dim: int
    picture_size: int
    license: str | None = Field(description="An SPDX identifier or a short text; null if the model states none.")
    unrelated_distance: float | None = Field(
        description="Squared distance beyond which pictures are not similar any more; null if the model states none."
    )


class GraphDocument(BaseModel):
    """The graph of the index."""

    items: int
    recall: float | None = Field(
        description="Share of the k nearest pictures that the graph finds, measured when it was built."
    )
    k: int | None

    @classmethod
    def of(cls, graph: Mapping[str, Any]) -> Self:
        """Return the document of a graph with its measured figures."""
        measured = graph.get("measured") or {}
        return cls(items=graph["items"], recall=measured.get("recall"), k=measured.get("k"))


class LimitsDocument(BaseModel):
    """What is accepted."""

    max_upload_bytes: int
    max_pixels: int
    max_k: int


class SupportedDocument(BaseModel):
    """Options that the kind of index has; a search with another one is answered with 422."""

    farthest: bool
    exact: bool
    uploads: bool = Field(description="Whether pictures can be added at all; 'writes' says whether this server does.")
    near_duplicates: bool = Field(description="Whether /v1/near-duplicates searches the whole index.")
    ratings: bool = Field(description="Whether there are ratings at all; 'writes' says whether this server takes them.")
    orders: list[Order] = Field(description="Of /v1/items, the usual one first.")

    @classmethod
    def of(cls, supported: Supported) -> Self:
        """Return the document of what an index supports."""
        return cls(
            farthest=supported.farthest,
            exact=supported.methods,
            uploads=supported.writes,
            near_duplicates=supported.near_duplicates,
            ratings=supported.ratings,
            orders=list(supported.orders),
        )


class InfoDocument(BaseModel):
    """What the server serves."""

    schema_: int = Field(alias="schema")
    index: str
    version: str
    items: int
    labels: dict[str, int] = Field(
        description="Number of pictures with each label; only the most frequent labels if there are many."
    )
    labels_total: int | None = Field(description="Number of labels; null if the index is in a store and has very many.")
    unlabelled: int
    roots: list[RootDocument]
    model: ServedModelDocument
    graph: GraphDocument | None
    store: str | None = Field(description="Kind of vector index in the store, such as HNSW; null for an index folder.")
    supports: SupportedDocument
    writes: bool
    originals: bool = Field(description="Whether the files themselves can be downloaded.")
    limits: LimitsDocument

    @classmethod
    def of(cls, index: str, overview: Overview, settings: ServeSettings, version: str) -> Self:
        """Return the document of an index and its server."""
        summary, model = overview.index, overview.model
        return cls(
            schema=SCHEMA,
            index=index,
            version=version,
            items=summary.items,
            labels=_most_frequent(summary.labels or {}),
            labels_total=None if summary.labels is None else len(summary.labels),
            unlabelled=summary.unlabelled,
            roots=[RootDocument(name=_folder(root), items=count) for root, count in summary.roots.items()],
            model=ServedModelDocument(
                name=model.name,
                sha256=overview.model_sha256,
                backbone=model.backbone,
                precision=model.precision,
                dim=model.embedding_dim,
                picture_size=model.picture.size,
                license=model.license or None,
                unrelated_distance=model.unrelated_distance,
            ),
            graph=None if summary.graph is None else GraphDocument.of(summary.graph),
            store=summary.store,
            supports=SupportedDocument.of(overview.supported),
            writes=settings.allow_writes,
            originals=settings.originals,
            limits=LimitsDocument(max_upload_bytes=settings.max_upload, max_pixels=settings.max_pixels, max_k=MAX_HITS),
        )


class AddedDocument(BaseModel):
    """A picture that was added."""

    schema_: int = Field(alias="schema")
    id: int
    path: str
    label: str | None
    created: bool = Field(description="False: the index had the same upload already.")

    @classmethod
    def of(cls, added: Added) -> Self:
        """Return the document of an upload."""
        label = None if added.label is None else plain(added.label)
        return cls(schema=SCHEMA, id=added.id, path=plain(added.relative), label=label, created=added.created)


class RemovedDocument(BaseModel):
    """A picture that was removed."""

    schema_: int = Field(alias="schema")
    id: int
    file_deleted: bool = Field(
        description="An upload's file is deleted. A file in a synced folder stays, and its next sync adds it again."
    )


def form(*fields: str, required: bool = True, several: bool = False) -> dict[str, Any]:
    """Return the OpenAPI description of a form with a picture and other fields; ``several``: of these, ids."""
    one: dict[str, Any] = {"type": "string", "pattern": "^[0-9]{1,18}$"}
    known: dict[str, Any] = {
        "image": {
            "type": "string",
            "format": "binary",
            "description": "A picture: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, or HEIC if the server can read it.",
        },
        "id": {
            **({"type": "array", "items": one, "maxItems": MAX_IDS} if several else one),
            "description": f"Instead: id of a picture in the index{', or of several' if several else ''}.",
        },
        "box": {"type": "string", "description": _BOX},
        "vector": {
            "type": "string",
            "description": "Instead: base64 of little-endian float32, as /v1/embed returns it.",
        },
        "model": {
            "type": "string",
            "pattern": "^[0-9a-f]{12,64}$",
            "description": "With vector: the first digits of the sha256 of the model that made it.",
        },
    }
    # Else Swagger's "Try it out" fills in an example beside the picture.
    for name in ("id", "vector", "model", "box"):
        known[name]["example"] = [] if name == "id" and several else ""
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: known[name] for name in ("image", *fields)},
        "additionalProperties": False,
    }
    if required:
        schema["required"] = ["image"]
    return {"requestBody": {"required": required, "content": {"multipart/form-data": {"schema": schema}}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the OpenAPI description of error responses."""
    responses: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": _PROBLEMS[status]} for status in statuses
    }
    if 400 in responses:
        responses[400]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return responses


def _identity(image: IndexedImage) -> dict[str, Any]:
    """Return the fields that identify a picture, encodable, without the folders above its root."""
    relative = plain(image.relative)
    label = None if image.label is None else plain(image.label)
    return {"path": relative, "root": _folder(image.root), "relative": relative, "label": label}


def _sides(size: Size | None) -> dict[str, int | None]:
    """Return the fields of a picture's width and height."""
    return {"width": None, "height": None} if size is None else {"width": size[0], "height": size[1]}


def _modified(mtime_ns: int) -> str | None:
    # An index may hold a nanosecond less than the file's mtime.
    try:
        moment = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=(mtime_ns + 1) // 1000)
    except OverflowError:
        return None
    return moment.isoformat().replace("+00:00", "Z")


def _head(query: str, items: Sequence[IndexedImage]) -> dict[str, Any]:
    """Return the fields of a query: a picture of the client, or pictures of the index."""
    if not items:
        return {"query": plain(query)}
    if len(items) == 1:
        return {"query": plain(items[0].relative), "id": items[0].id}
    return {"query": f"mean of {len(items)} pictures", "ids": [item.id for item in items]}


def _folder(root: str) -> str:
    return plain(os.path.basename(root.rstrip("/")) or "/")  # noqa: PTH119 - text that need not be a path


def _most_frequent(labels: Mapping[str, int]) -> dict[str, int]:
    counts = labels.items()
    if len(labels) > _MAX_LABELS:
        most = sorted(counts, key=lambda entry: -entry[1])[:_MAX_LABELS]
        counts = dict(sorted(most)).items()
    return {plain(label): count for label, count in counts}
