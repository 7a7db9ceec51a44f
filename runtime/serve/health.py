"""Whether the server lives, whether it is of use, and what it has counted."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from ..errors import DeepRankError
from .answers import answer, problem
from .engine import Engine
from .log import LOG
from .metrics import Metrics
from .schemas import problems

__all__ = ["Readiness", "health"]


class Readiness:
    """Whether new requests are welcome; not any more once the server has been told to end."""

    ending = False
    _why: str | None = None

    def note(self, why: str | None) -> None:
        """Log why the index does not answer, once for each reason; None: it does."""
        if why is not None and why != self._why:
            LOG.warning("%s", why)
        self._why = why


def health(engine: Engine, metrics: Metrics, readiness: Readiness) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["server"], responses=problems(400, 403))

    looking: asyncio.Task[int] | None = None

    async def is_ready() -> bool:
        nonlocal looking
        if looking is None or looking.done():  # one look for all who ask meanwhile
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
            return problem(503, "The server is about to end.", {"Retry-After": "5"})
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

    for path, endpoint in (("/healthz", healthz), ("/readyz", readyz)):  # as some load balancers ask
        router.add_api_route(path, endpoint, methods=["HEAD"], include_in_schema=False)
    return router
