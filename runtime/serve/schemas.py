"""What the API takes and gives, for its OpenAPI document; the answers themselves are made in :mod:`.documents`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from .settings import MOST_HITS

__all__ = [
    "AddedDocument",
    "EmbeddingDocument",
    "InfoDocument",
    "ItemDocument",
    "Problem",
    "RemovedDocument",
    "SearchDocument",
    "SearchParameters",
    "SessionDocument",
    "TokenDocument",
    "form",
    "problems",
]

_FARTHEST = 4.0
_LARGEST_ID = 2**63 - 1
_PROBLEMS = {
    400: "The request is not whole; or it is no HTTP, which is said as text.",
    401: "No token, or a wrong one.",
    403: "For another name, or from another site's page.",
    404: "The index has no such picture.",
    408: "The request took too long to arrive.",
    409: "The index has another model now.",
    410: "The file of the picture is gone, or is another now.",
    413: "The upload is too large.",
    422: "No picture that can be read, or something else that makes no sense.",
    503: "Too much is going on, or the index cannot be read; Retry-After says when to try again.",
}


class Problem(BaseModel):
    """Why a request was not answered."""

    error: str = Field(description="One sentence: what was found, what was expected, what to do.")


class SearchParameters(BaseModel):
    """What is to be returned."""

    model_config = ConfigDict(extra="forbid")

    k: int = Field(10, ge=1, le=MOST_HITS, description="How many pictures.")
    farthest: bool = Field(False, description="The least similar ones instead.")
    label: list[Annotated[str, Field(max_length=4096)]] | None = Field(
        None, max_length=1000, description="Only pictures with this label; may be given several times."
    )
    max_distance: float | None = Field(
        None,
        ge=0,
        le=_FARTHEST,
        allow_inf_nan=False,
        description="Only pictures at most this far, squared Euclidean between unit vectors.",
    )
    exact: bool = Field(False, description="Scan all vectors rather than search the graph.")
    unique: float | None = Field(
        None,
        ge=0,
        le=_FARTHEST,
        allow_inf_nan=False,
        description="Leave out near-duplicates: what is at most this far from a better hit (0.05, say).",
    )
    leave_out_query: bool = Field(False, description="Leave out the query's own file and its exact copies.")
    id: int | None = Field(
        None, ge=1, le=_LARGEST_ID, description="Search for this picture of the index; no body is needed then."
    )


class HitDocument(BaseModel):
    """A picture of the index that answers a query."""

    rank: int
    path: str = Field(description="Under the synced folder.")
    root: str = Field(description="Name of the synced folder.")
    relative: str = Field(description="The same as path; the command's path is absolute.")
    distance: float = Field(description="Squared Euclidean, 0 to 4.")
    label: str | None
    id: int
    near_duplicates: int | None = Field(None, description="With unique: how many it stands for.")


class ResultDocument(BaseModel):
    """A query and its hits."""

    query: str = Field(description="The name of the file that was sent, or the path of the item.")
    id: int | None = Field(None, description="Of the item that was asked for.")
    hits: list[HitDocument]


class SearchDocument(BaseModel):
    """The answer to a search: what ``deeprank-query --json`` prints, without the places of files on the server."""

    schema_: int = Field(alias="schema")
    index: str
    k: int
    results: list[ResultDocument]


class ModelDocument(BaseModel):
    """The model that the vectors come from."""

    name: str
    sha256: str


class EmbeddingDocument(BaseModel):
    """A picture's vector."""

    schema_: int = Field(alias="schema")
    model: ModelDocument
    dim: int
    embedding: list[float] = Field(description="Of unit length.")
    base64: str = Field(description="The same as little-endian float32, which a search takes as its field 'vector'.")


class ItemDocument(BaseModel):
    """A picture of the index."""

    schema_: int = Field(alias="schema")
    index: str
    id: int
    path: str
    root: str
    relative: str
    label: str | None
    bytes: int
    sha256: str


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


class GraphDocument(BaseModel):
    """The graph of the index."""

    items: int
    recall: float | None = Field(description="Share of the k nearest that it finds, measured when it was built.")
    k: int | None


class LimitsDocument(BaseModel):
    """What is accepted."""

    max_upload_bytes: int
    max_pixels: int
    max_k: int


class InfoDocument(BaseModel):
    """What the server serves."""

    schema_: int = Field(alias="schema")
    index: str
    version: str
    items: int
    labels: dict[str, int] = Field(description="Pictures with each label; the most frequent ones where there are many.")
    labels_total: int
    unlabelled: int
    roots: list[RootDocument]
    model: ServedModelDocument
    graph: GraphDocument | None
    writes: bool
    limits: LimitsDocument


class AddedDocument(BaseModel):
    """A picture that was added."""

    schema_: int = Field(alias="schema")
    id: int
    path: str
    label: str | None
    created: bool = Field(description="False: the index had the same upload already.")


class RemovedDocument(BaseModel):
    """A picture that was removed."""

    schema_: int = Field(alias="schema")
    id: int
    file_deleted: bool = Field(
        description="An upload's file is deleted; one of a synced folder stays, and its next sync adds it again."
    )


class SessionDocument(BaseModel):
    """Whether a token is needed, and whether this browser has given it."""

    token_required: bool
    authenticated: bool


class TokenDocument(BaseModel):
    """The token that a page was given."""

    model_config = ConfigDict(extra="forbid")

    token: str = Field(min_length=1, max_length=4096)


def form(*fields: str, required: bool = True) -> dict[str, Any]:
    """Return the part of the OpenAPI document that describes a form with a picture, and with other fields."""
    known: dict[str, Any] = {
        "image": {
            "type": "string",
            "format": "binary",
            "description": "A picture: JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, or HEIC where the server reads it.",
        },
        "id": {"type": "string", "pattern": "^[0-9]{1,18}$", "description": "Of a picture of the index, instead."},
        "vector": {"type": "string", "description": "Base64 of little-endian float32, as /v1/embed gives, instead."},
        "model": {
            "type": "string",
            "pattern": "^[0-9a-f]{12,64}$",
            "description": "With vector: how the sha256 of the model begins that made it.",
        },
    }
    for name in ("id", "vector", "model"):
        known[name]["example"] = ""  # else the manual's "Try it out" fills it with one of its own, beside the picture
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {name: known[name] for name in ("image", *fields)},
        "additionalProperties": False,
    }
    if required:
        schema["required"] = ["image"]
    return {"requestBody": {"required": required, "content": {"multipart/form-data": {"schema": schema}}}}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the part of the OpenAPI document that describes why a request is not answered."""
    found: dict[int | str, dict[str, Any]] = {
        status: {"model": Problem, "description": _PROBLEMS[status]} for status in statuses
    }
    if 400 in found:
        found[400]["content"] = {"text/plain": {"schema": {"type": "string"}}}
    return found
