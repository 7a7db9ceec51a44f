"""Whether the server lives, whether it is of use, and what it has counted."""

from __future__ import annotations

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response

from ..errors import DeepRankError
from .answers import answer, problem
from .engine import Engine
from .metrics import Metrics
from .schemas import problems

__all__ = ["Readiness", "health"]


class Readiness:
    """Whether new requests are welcome; not any more once the server has been told to end."""

    ending = False


def health(engine: Engine, metrics: Metrics, readiness: Readiness) -> APIRouter:
    """Return the routes."""
    router = APIRouter(tags=["server"], responses=problems(400, 403))

    async def is_ready() -> bool:
        try:
            metrics.items.set(await engine.check())
        except DeepRankError:
            return False
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
        what = "The server is about to end" if readiness.ending else "The index cannot be read at the moment"
        return problem(503, f"{what}; the server's log says why.", {"Retry-After": "5"})

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
