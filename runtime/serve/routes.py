"""The routes: version 1 of the JSON API, health checks and metrics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from ..errors import DeepRankError
from ..images import Box
from ..index.search.request import SearchRequest
from ..text import printable
from .access.access import Access
from .access.routes import add_session
from .engine import Engine
from .errors import RefusedError, answer, private, problem
from .metrics import Metrics
from .near_duplicates.routes import add_near_duplicates
from .pictures.originals import MEDIA_TYPES
from .pictures.renditions import SIZES
from .ratings.routes import add_rating_writes, add_ratings
from .schemas import (
    SCHEMA,
    AddedDocument,
    EmbeddingDocument,
    EmbedParameters,
    InfoDocument,
    ItemDocument,
    ItemsDocument,
    ListParameters,
    RemovedDocument,
    SearchDocument,
    SearchParameters,
    form,
    problems,
)
from .session import SearchResult
from .settings import LOG, ServeSettings
from .tokens import Tokens
from .upload_form import MAX_IDS, Form, Sent, box_of, number, read_form, vector_of

__all__ = ["Readiness", "api", "health"]

_MIN_MODEL_CHARACTERS = 12
_REPEATABLE = frozenset({"id", "label"})
ItemNumber = Annotated[int, Path(alias="id", ge=1, le=2**63 - 1, description="Id of a picture in the index.")]

_UPLOAD = problems(422)


def api(
    engine: Engine,
    settings: ServeSettings,
    tokens: Tokens,
    access: Access,
    version: str,
) -> APIRouter:
    """Return the routes."""
    router = APIRouter(
        prefix="/v1", responses=problems(400, 401, 403, 408, 413, 503), dependencies=[Depends(_refuse_repeated)]
    )
    index = settings.name
    _add_search(router, engine, index)
    _add_items(router, engine, index, settings.originals)
    _add_info(router, engine, index, settings, version)
    add_session(router, settings, tokens, access)
    add_near_duplicates(router, engine, index)
    add_ratings(router, engine, index)
    if settings.allow_writes or settings.in_store:  # a store's are answered with the reason why it takes none
        _add_writes(router, engine)
        add_rating_writes(router, engine, index)
    return router


async def _refuse_repeated(request: Request) -> None:
    """Refuse a parameter that is given twice: the framework would take the last one and say nothing."""
    counts = Counter(name for name, _ in request.query_params.multi_items() if name not in _REPEATABLE)
    repeated = next((name for name, count in counts.items() if count > 1), None)
    if repeated is not None:
        raise RefusedError(422, f"The parameter {printable(repeated[:80])} is given several times; expected it once.")


def _add_search(router: APIRouter, engine: Engine, index: str) -> None:
    @router.post(
        "/search",
        tags=["search"],
        response_model=SearchDocument,
        responses={**_UPLOAD, **problems(404, 409, 410)},
        openapi_extra=form("id", "vector", "model", "box", required=False, several=True),
    )
    async def search(request: Request, parameters: Annotated[SearchParameters, Query()]) -> Response:
        """Find the pictures most similar to one that is sent, to one or several of the index, or to a vector."""
        sent = await read_form(request, ("id", "vector", "model", "box"))
        options = parameters.request()
        query, search_for = _query(engine, sent, parameters)
        result = await search_for(options)
        sizes = await engine.sizes(result.hits) if parameters.sizes else None
        return answer(SearchDocument.of(index, options, query, result, sizes, hashes=parameters.hashes))

    @router.post(
        "/embed",
        tags=["search"],
        response_model=EmbeddingDocument,
        responses={**_UPLOAD, **problems(404, 410)},
        openapi_extra=form("id", "box", required=False),
    )
    async def embed(request: Request, parameters: Annotated[EmbedParameters, Query()]) -> Response:
        """Return the vector of a picture that is sent, or of one of the index."""
        sent = await read_form(request, ("id", "box"))
        ids = _ids(sent, [] if parameters.id is None else [parameters.id])
        _check_one(sent, ids)
        box = _box(sent, parameters.box, ids)
        return answer(EmbeddingDocument.of(await engine.embed(sent.image or ids[0], box)))


def _query(
    engine: Engine, sent: Form, parameters: SearchParameters
) -> tuple[str, Callable[[SearchRequest], Awaitable[SearchResult]]]:
    """Return the name of the query, and the coroutine of its search."""
    ids = _ids(sent, parameters.id or [])
    _check_one(sent, ids, "a 'vector'")
    box = _box(sent, parameters.box, ids)
    if sent.image is not None:
        upload = sent.image
        return upload.name, lambda options: engine.search(upload, options, box)
    if ids:
        return "", lambda options: engine.search_items(ids, options, box)
    return "vector", lambda options: _search_vector(engine, sent, options)


def _ids(sent: Form, given: Sequence[int]) -> tuple[int, ...]:
    """Return the ids of the form and of the address, each once."""
    if sent.ids and given:
        raise RefusedError(422, "The request holds an id in its address and in its form; expected it in one of them.")
    ids = tuple(dict.fromkeys([*given, *map(number, sent.ids)]))
    if len(ids) > MAX_IDS:
        raise RefusedError(422, f"The request holds {len(ids)} ids; expected at most {MAX_IDS}.")
    return ids


def _check_one(sent: Form, ids: tuple[int, ...], *others: str) -> None:
    """Refuse a request with no query, or with more than one."""
    given = ["id"] * bool(ids) + ["vector"] * ("vector" in sent.texts) + ["image"] * (sent.image is not None)
    if len(given) != 1 or (len(ids) > 1 and not others):
        expected = ["a file 'image' in a multipart/form-data form", "an 'id' of the index", *others]
        held = f"{len(ids)} ids" if len(ids) > 1 and len(given) == 1 else " and ".join(given) or "no picture"
        raise RefusedError(422, f"The request holds {held}; expected one of: {', '.join(expected)}.")


def _box(sent: Form, given: str | None, ids: tuple[int, ...]) -> Box | None:
    """Return the box of the form or of the address; None: the whole picture."""
    texts = [text for text in (given, sent.texts.get("box")) if text]
    if not texts:
        return None
    if len(texts) > 1 or len(ids) > 1 or "vector" in sent.texts:
        raise RefusedError(422, "A box goes with an 'image' or with one 'id', and only once; expected no other box.")
    return box_of(texts[0])


async def _search_vector(engine: Engine, sent: Form, options: SearchRequest) -> SearchResult:
    model = sent.texts.get("model")
    if model is not None and (len(model) < _MIN_MODEL_CHARACTERS or set(model) - set("0123456789abcdef")):
        raise RefusedError(422, f"The model must be at least {_MIN_MODEL_CHARACTERS} hex digits of its sha256.")
    return await engine.search_vector(lambda dim: vector_of(sent.texts["vector"], dim), model, options)


def _image(sent: Form) -> Sent:
    if sent.image is None:
        raise RefusedError(422, "The request holds no picture; expected a file 'image' in a multipart/form-data form.")
    return sent.image


def _add_items(router: APIRouter, engine: Engine, index: str, originals: bool) -> None:
    @router.get("/items", tags=["items"], response_model=ItemsDocument, responses=problems(409, 422))
    async def items(parameters: Annotated[ListParameters, Query()]) -> Response:
        """List the pictures of the index, page by page."""
        page = await engine.page(parameters.request(engine.supported.orders), parameters.cursor or None)
        return answer(ItemsDocument.of(index, page, await engine.sizes(page.items)))

    @router.get("/items/{id}", tags=["items"], response_model=ItemDocument, responses=problems(404, 422))
    async def item(number: ItemNumber) -> Response:
        """Return a picture of the index."""
        image = await engine.item(number)
        return answer(ItemDocument.of(index, image, (await engine.sizes([image])).get(image.sha256)))

    @router.get(
        "/items/{id}/thumbnail",
        tags=["items"],
        response_class=Response,
        responses={
            200: {"content": {"image/jpeg": {"schema": {"type": "string", "format": "binary"}}}},
            304: {"description": "Not modified: If-None-Match names the current thumbnail."},
            **problems(404, 410, 422),
        },
    )
    async def thumbnail(
        request: Request,
        number: ItemNumber,
        size: Annotated[
            int, Query(description="Most pixels of the longer side.", json_schema_extra={"enum": list(SIZES)})
        ] = 256,
    ) -> Response:
        """Return a copy of a picture of the index, re-encoded as JPEG without metadata; none is enlarged."""
        if size not in SIZES:
            raise RefusedError(422, f"The size is {size}; expected one of {', '.join(map(str, SIZES))}.")
        made = await engine.rendition(number, size, _known_tags(request))
        if made.content is None:
            return Response(status_code=304, headers=private(made.tag))
        return Response(made.content, headers=private(made.tag), media_type="image/jpeg")

    @router.get(
        "/items/{id}/original",
        tags=["items"],
        response_class=Response,
        responses={
            200: {"content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in MEDIA_TYPES}},
            304: {"description": "Not modified: If-None-Match names the file."},
            **problems(404, 410, 422),
        },
        include_in_schema=originals,
    )
    async def original(request: Request, number: ItemNumber) -> Response:
        """Return the file of a picture of the index, as it was indexed."""
        if not originals:
            raise RefusedError(404, "This server gives out no originals; expected one that runs with --originals.")
        return await engine.original(number, _known_tags(request))


def _known_tags(request: Request) -> list[str]:
    """Return the tags of what the client already has."""
    given = request.headers.get("if-none-match", "").split(",")
    return [tag.strip().removeprefix("W/").strip('"') for tag in given]


def _add_info(router: APIRouter, engine: Engine, index: str, settings: ServeSettings, version: str) -> None:
    @router.get("/info", tags=["server"], response_model=InfoDocument)
    async def info() -> Response:
        """Return what the index holds, its model, and what is accepted."""
        return answer(InfoDocument.of(index, await engine.overview(), settings, version))


def _add_writes(router: APIRouter, engine: Engine) -> None:
    @router.post(
        "/items",
        tags=["items"],
        status_code=201,
        response_model=AddedDocument,
        responses={200: {"model": AddedDocument, "description": "The index had the same upload already."}, **_UPLOAD},
        openapi_extra=form(),
    )
    async def add(
        request: Request,
        label: Annotated[
            str | None, Query(min_length=1, max_length=255, description="Label of the picture, for filters.")
        ] = None,
    ) -> Response:
        """Add a picture; its file is kept in the index folder, under its sha256."""
        added = await engine.add(_image(await read_form(request)), label)
        status = 201 if added.created else 200
        return answer(AddedDocument.of(added), status)

    @router.delete("/items/{id}", tags=["items"], response_model=RemovedDocument, responses=problems(404, 422))
    async def remove(number: ItemNumber) -> Response:
        """Remove a picture."""
        removed = await engine.remove(number)
        return answer(RemovedDocument(schema=SCHEMA, id=number, file_deleted=removed.file_deleted))


class Readiness:
    """Whether the server accepts new requests; False once it shuts down."""

    ending = False
    _why: str | None = None

    def note(self, why: str | None) -> None:
        """Log why the index does not answer, once for each reason; None: it answers."""
        if why is not None and why != self._why:
            LOG.warning("%s", why)
        self._why = why


def health(engine: Engine, metrics: Metrics, readiness: Readiness) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["server"], responses=problems(400, 403))

    looking: asyncio.Task[int] | None = None

    async def is_ready() -> bool:
        nonlocal looking
        if looking is None or looking.done():  # concurrent requests share one check
            looking = asyncio.create_task(engine.check())
        try:
            metrics.items.set(await asyncio.shield(looking))
        except DeepRankError as error:
            readiness.note(str(error))
            return False
        readiness.note(None)
        return not readiness.ending

    @router.get("/healthz", include_in_schema=True)
    async def healthz() -> Response:
        """Tell that the server lives."""
        return answer({"status": "ok"})

    @router.get("/readyz", responses=problems(503))
    async def readyz() -> Response:
        """Tell whether the index answers."""
        if await is_ready():
            return answer({"status": "ok"})
        if readiness.ending:
            return problem(503, "The server is shutting down.", {"Retry-After": "5"})
        return problem(503, "The index cannot be read at the moment; the server's log says why.", {"Retry-After": "5"})

    @router.get(
        "/metrics",
        response_class=Response,
        responses={200: {"content": {CONTENT_TYPE_LATEST: {"schema": {"type": "string"}}}}, **problems(401)},
    )
    async def prometheus() -> Response:
        """Return the counters, in the text format of Prometheus."""
        metrics.ready.set(await is_ready())
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    for path, endpoint in (("/healthz", healthz), ("/readyz", readyz)):  # some load balancers use HEAD
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    return router
