"""The routes of near-duplicates: a page starts a search, and reads its groups."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Self

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ...images import Size
from ...index.search.duplicate_groups import DuplicateGroup
from ...index.search.request import MAX_DISTANCE, NEAR_DUPLICATE
from ..errors import answer
from ..schemas import SCHEMA, Item, problems
from .search import Found

if TYPE_CHECKING:
    from ..engine import Engine

__all__ = ["add_near_duplicates"]

_DEFAULT_GROUPS, _MAX_GROUPS = 50, 200

Sizes = Mapping[bytes, Size | None]


class SearchedParameters(BaseModel):
    """Which search is meant."""

    model_config = ConfigDict(extra="forbid")

    max_distance: float = Field(
        NEAR_DUPLICATE,
        ge=0,
        le=MAX_DISTANCE,
        allow_inf_nan=False,
        description="Largest distance of a picture to the one that is kept.",
    )


class GroupsParameters(SearchedParameters):
    """Which groups of a search are meant."""

    cursor: str | None = Field(
        None, max_length=100, pattern=r"^[0-9a-f]+\.[0-9]+$", description="From 'next' of an answer."
    )
    limit: int = Field(_DEFAULT_GROUPS, ge=1, le=_MAX_GROUPS, description="Most groups.")


class OtherDocument(Item):
    """A near-duplicate of the kept picture."""

    distance: float = Field(description="Squared Euclidean, to the kept picture.")
    identical: bool = Field(description="Whether its file has the same content as the kept one.")


class GroupDocument(BaseModel):
    """The largest file of a group, and its near-duplicates, nearest first."""

    kept: Item
    others: list[OtherDocument]


class NearDuplicatesDocument(BaseModel):
    """A search for near-duplicates, and some of its groups once it has ended."""

    schema_: int = Field(alias="schema")
    index: str
    max_distance: float
    state: str = Field(description="'running' or 'done'.", json_schema_extra={"enum": ["running", "done"]})
    done: int = Field(description="Pictures that are compared.")
    total: int = Field(description="Pictures to compare.")
    outdated: bool = Field(description="Whether the index has changed since the search; a new one finds the change.")
    groups_total: int | None = Field(description="Number of groups; null while it runs, as the next two.")
    pictures: int | None = Field(description="Number of pictures beside the kept ones.")
    bytes: int | None = Field(description="Size of their files together.")
    groups: list[GroupDocument] = Field(description="The groups that save most bytes come first.")
    next: str | None = Field(description="The cursor of the next groups; null after the last.")

    @classmethod
    def of(cls, index: str, found: Found, sizes: Sizes) -> Self:
        """Return the document of a search; ``sizes``: width and height of pictures, by sha256."""
        search, page = found.search, found.page
        table = None if page is None else search.table  # it may have ended since it was found
        return cls(
            schema=SCHEMA,
            index=index,
            max_distance=search.max_distance,
            state="running" if page is None else "done",
            done=search.done,
            total=search.total,
            outdated=found.outdated,
            groups_total=None if table is None else len(table),
            pictures=None if table is None else table.pictures,
            bytes=None if table is None else table.bytes,
            groups=[] if page is None else [_group(group, sizes) for group in page.groups],
            next=None if page is None else page.next,
        )


def add_near_duplicates(router: APIRouter, engine: Engine, index: str) -> None:
    """Add the routes."""

    @router.post(
        "/near-duplicates",
        tags=["near-duplicates"],
        status_code=202,
        response_model=NearDuplicatesDocument,
        responses=problems(422),
    )
    async def start(parameters: Annotated[SearchedParameters, Query()]) -> Response:
        """Search for near-duplicates in the index as it is; a search of the same state and distance is joined."""
        search = await engine.search_near_duplicates(parameters.max_distance)
        return answer(NearDuplicatesDocument.of(index, Found(search, None, outdated=False), {}), 202)

    @router.get(
        "/near-duplicates",
        tags=["near-duplicates"],
        response_model=NearDuplicatesDocument,
        responses={
            **problems(404, 409, 422),
            404: {**problems(404)[404], "description": "No such search was started."},
            409: {**problems(409)[409], "description": "The cursor belongs to another search."},
        },
    )
    async def groups(parameters: Annotated[GroupsParameters, Query()]) -> Response:
        """Return the progress of a search, and some groups once it has ended; a search that nobody asks for ends."""
        found = await engine.near_duplicates(parameters.max_distance, parameters.cursor, parameters.limit)
        shown = found.page.groups if found.page is not None else []
        sizes = await engine.sizes([file for group in shown for file in (group.kept, *group.others)])
        return answer(NearDuplicatesDocument.of(index, found, sizes))


def _group(group: DuplicateGroup, sizes: Sizes) -> GroupDocument:
    others = [
        OtherDocument(
            **Item.values(file, sizes.get(file.sha256)),
            distance=file.distance,
            identical=file.sha256 == group.kept.sha256,
        )
        for file in group.others
    ]
    return GroupDocument(kept=Item(**Item.values(group.kept, sizes.get(group.kept.sha256))), others=others)
