"""The routes of ratings: a page asks for questions, gives answers, and marks hits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Self

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.convertors import StringConvertor, register_url_convertor
from starlette.responses import Response

from ...errors import QueryError
from ...images import Size
from ...index.ratings.records import NewComparison
from ...index.ratings.resolution import Share
from ...index.search.items import IndexedImage
from ..errors import answer
from ..schemas import SCHEMA, Item, problems
from .ratings import Answers, Asked, State

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..engine import Engine

__all__ = ["add_rating_writes", "add_ratings"]


class _Digits(StringConvertor):
    """A number that ``int`` reads: Starlette's own fails on thousands of digits."""

    regex = "[0-9]{1,19}"


register_url_convertor("digits", _Digits())

_DEFAULT_QUESTIONS, _MAX_QUESTIONS = 10, 50
# Together they stay below the limit of a body.
_MAX_ANSWERS = 16

Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$", description="sha256 of a picture's file, hex.")]
Rater = Annotated[str | None, Field(max_length=100, description="Name of the rater; those without one count as one.")]
RatingNumber = Annotated[int, Path(alias="id", ge=1, le=2**63 - 1, description="Id of a rating.")]


class RemovedParameters(BaseModel):
    """Which rating an id must mean, so that one of another index stays."""

    model_config = ConfigDict(extra="forbid")

    query: Sha256 | None = None
    positive: Sha256 | None = None
    negative: Sha256 | None = None

    def contents(self) -> tuple[bytes, bytes, bytes] | None:
        """Return the three pictures.

        Raises:
            QueryError: only some are given.

        """
        given = self.query, self.positive, self.negative
        query, positive, negative = (each and bytes.fromhex(each) for each in given)
        if query and positive and negative:
            return query, positive, negative
        if any(given):
            raise QueryError("Some pictures of the rating are given; expected query, positive and negative, or none.")
        return None


class QuestionsParameters(BaseModel):
    """How many questions are meant."""

    model_config = ConfigDict(extra="forbid")

    count: int = Field(_DEFAULT_QUESTIONS, ge=1, le=_MAX_QUESTIONS, description="Most questions.")


class RatingsParameters(BaseModel):
    """Whose marks are meant."""

    model_config = ConfigDict(extra="forbid")

    query: Sha256 | None = Field(None, description="The query whose marks are returned; none: no marks.")
    rater: Rater = None


class ComparisonDocument(BaseModel):
    """An answer: pictures by the sha256 of their files, since an id may mean another picture by now."""

    model_config = ConfigDict(extra="forbid")

    query: Sha256
    positive: Sha256 = Field(description="The picture that is more similar to the query.")
    negative: Sha256


class SkippedDocument(BaseModel):
    """A question without an answer."""

    model_config = ConfigDict(extra="forbid")

    query: Sha256
    first: Sha256
    second: Sha256


class AnswersDocument(BaseModel):
    """What a rater says of some questions."""

    model_config = ConfigDict(extra="forbid")

    comparisons: list[ComparisonDocument] = Field([], max_length=_MAX_ANSWERS)
    skipped: list[SkippedDocument] = Field([], max_length=_MAX_ANSWERS, description="Not asked again for a while.")
    rater: Rater = None
    key: str | None = Field(
        None,
        min_length=8,
        max_length=64,
        description="Chosen by the client: a request that is sent again with it adds nothing.",
    )

    def answers(self) -> Answers:
        """Return the answers."""
        return Answers(
            [NewComparison(*map(bytes.fromhex, (c.query, c.positive, c.negative))) for c in self.comparisons],
            [(bytes.fromhex(s.query), bytes.fromhex(s.first), bytes.fromhex(s.second)) for s in self.skipped],
            self.rater,
            self.key,
        )


class MarkDocument(BaseModel):
    """A mark of a hit."""

    model_config = ConfigDict(extra="forbid")

    query: Sha256
    picture: Sha256
    more: bool | None = Field(description="More like this, or less; null takes the mark back.")
    rater: Rater = None


class _Counted(BaseModel):
    schema_: int = Field(alias="schema")
    index: str
    ratings: int = Field(description="Number of ratings: comparisons and marks.")


class AskedPictureDocument(Item):
    """A picture of a question."""

    sha256: str


class QuestionDocument(BaseModel):
    """Which of two pictures is more similar to the query?"""

    query: AskedPictureDocument
    first: AskedPictureDocument
    second: AskedPictureDocument


class QuestionsDocument(_Counted):
    """Some questions."""

    questions: list[QuestionDocument]

    @classmethod
    def of(cls, index: str, asked: Asked, sizes: Mapping[bytes, Size | None]) -> Self:
        """Return the document of questions; ``sizes``: width and height of pictures, by sha256."""

        def picture(image: IndexedImage) -> dict[str, Any]:
            return {**Item.values(image, sizes.get(image.sha256)), "sha256": image.sha256.hex()}

        questions = [
            {"query": picture(each.query), "first": picture(each.first), "second": picture(each.second)}
            for each in asked.questions
        ]
        return cls.model_validate({"schema": SCHEMA, "index": index, "ratings": asked.ratings, "questions": questions})


class ShareDocument(BaseModel):
    """How many answers agree, of how many."""

    agreeing: int
    count: int

    @classmethod
    def of(cls, share: Share) -> Self:
        """Return the document of a share."""
        return cls(agreeing=share.agreeing, count=share.count)


class AgreementDocument(BaseModel):
    """How far answers to the same question agree."""

    own: ShareDocument = Field(description="A rater's earlier answers, with the same rater's newest.")
    between: ShareDocument = Field(description="Pairs of raters, by their newest answers.")


class SetMarkDocument(BaseModel):
    """A mark of the query."""

    sha256: str
    more: bool


class RatingsDocument(_Counted):
    """What is known of the ratings."""

    agreement: AgreementDocument
    marks: list[SetMarkDocument] = Field(description="Of the query, by the rater.")

    @classmethod
    def of(cls, index: str, state: State) -> Self:
        """Return the document of the ratings."""
        own, between = ShareDocument.of(state.agreement.own), ShareDocument.of(state.agreement.between)
        return cls(
            schema=SCHEMA,
            index=index,
            ratings=state.ratings,
            agreement=AgreementDocument(own=own, between=between),
            marks=[SetMarkDocument(sha256=picture.hex(), more=more) for picture, more in state.marks.items()],
        )


class CountedDocument(_Counted):
    """The number of ratings after a change."""


class RatedDocument(_Counted):
    """Ratings that were added."""

    ids: list[int] = Field(description="Of the comparisons, in their order.")


def add_ratings(router: APIRouter, engine: Engine, index: str) -> None:
    """Add the routes that read."""

    @router.get("/ratings/questions", tags=["ratings"], response_model=QuestionsDocument, responses=problems(422))
    async def questions(parameters: Annotated[QuestionsParameters, Query()]) -> Response:
        """Choose questions whose answers teach most: which of two pictures is more similar to a third one?"""
        asked = await engine.questions(parameters.count)
        shown = [picture for each in asked.questions for picture in (each.query, each.first, each.second)]
        return answer(QuestionsDocument.of(index, asked, await engine.sizes(shown)))

    @router.get("/ratings", tags=["ratings"], response_model=RatingsDocument, responses=problems(422))
    async def ratings(parameters: Annotated[RatingsParameters, Query()]) -> Response:
        """Return the number of ratings, how much they agree, and the marks of a query."""
        query = None if parameters.query is None else bytes.fromhex(parameters.query)
        return answer(RatingsDocument.of(index, await engine.ratings.state(query, parameters.rater)))


def add_rating_writes(router: APIRouter, engine: Engine, index: str) -> None:
    """Add the routes that write."""

    @router.post(
        "/ratings", tags=["ratings"], status_code=201, response_model=RatedDocument, responses=problems(409, 422)
    )
    async def add(given: AnswersDocument) -> Response:
        """Add answers to questions; they are durable once answered."""
        ids, count = await engine.ratings.add(given.answers())
        return answer(RatedDocument(schema=SCHEMA, index=index, ratings=count, ids=ids), 201)

    # Digits alone: "marks" and "questions" have other methods.
    @router.delete(
        "/ratings/{id:digits}", tags=["ratings"], response_model=CountedDocument, responses=problems(404, 422)
    )
    async def remove(number: RatingNumber, parameters: Annotated[RemovedParameters, Query()]) -> Response:
        """Remove a rating, if it is of these pictures."""
        count = await engine.ratings.remove(number, parameters.contents())
        return answer(CountedDocument(schema=SCHEMA, index=index, ratings=count))

    @router.put("/ratings/marks", tags=["ratings"], response_model=CountedDocument, responses=problems(422))
    async def mark(given: MarkDocument) -> Response:
        """Mark a picture as more or less similar to a query; each pair of such marks is a comparison."""
        query, picture = bytes.fromhex(given.query), bytes.fromhex(given.picture)
        count = await engine.ratings.mark(query, picture, given.more, given.rater)
        return answer(CountedDocument(schema=SCHEMA, index=index, ratings=count))
