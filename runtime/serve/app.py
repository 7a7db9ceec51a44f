"""The ASGI application: routes, error responses and static files, and the middleware around them."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import mimetypes
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import webpage
from ..errors import DeepRankError
from ..text import printable
from .access.access import Access
from .engine import Engine
from .errors import RefusedError, problem, problem_of
from .limits import Intake
from .metrics import Metrics
from .routes import Readiness, api, health
from .security import OPEN, Guard, Secured
from .settings import LOG, ServeSettings
from .tokens import Tokens

__all__ = ["make_app", "pages"]


_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
# Swagger UI sets inline styles.
_DOCS_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")

_DESCRIPTION = """\
Searches an index of pictures by picture. Distances are squared Euclidean between unit vectors: 0 is the same, 4 the
opposite.
Errors are `{"error": "a sentence"}` with the status; 503 comes with `Retry-After`.
"""


def make_app(
    settings: ServeSettings, engine: Engine, metrics: Metrics, readiness: Readiness, access: Access, version: str
) -> ASGIApp:
    """Return the application."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        engine.close()

    tokens = Tokens(settings.token)
    routes = FastAPI(
        title="deeprank",
        version=version,
        description=_DESCRIPTION,
        # Relative to the address of the document, which a proxy may serve below a prefix.
        servers=[{"url": "./"}],
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        redirect_slashes=False,
    )
    routes.include_router(api(engine, settings, tokens, access, version))
    routes.include_router(health(engine, metrics, readiness))
    routes.router.routes.extend(pages())
    _answer_errors(routes)
    if tokens.required:
        _describe_token(routes)
    return Secured(Counted(Guard(Intake(routes, settings, metrics), settings, tokens), metrics))


def _answer_errors(routes: FastAPI) -> None:
    @routes.exception_handler(DeepRankError)
    async def known(request: Request, error: DeepRankError) -> Response:
        answer = problem_of(error)
        # The client gets no details of these errors, so the log has them.
        if answer.status_code >= 500 and not isinstance(error, RefusedError):
            LOG.warning("%s", error)
        return answer

    @routes.exception_handler(Exception)
    async def unforeseen(request: Request, error: Exception) -> Response:
        return problem(500, "The request failed; the server's log says why.")  # it is logged where it ends, below

    @routes.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return problem(422, _sentence(error))

    @routes.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        known = {
            400: "The request's body cannot be read; /docs describes the expected body.",
            404: "There is no such page; /docs lists all of them.",
            405: "This method is not allowed here; /docs lists the allowed ones.",
        }
        headers = dict(error.headers or {})
        if "Allow" in headers:
            # Its Allow header names the methods of one route, though several may have the path.
            described = routes.openapi()["paths"].get(getattr(request.scope.get("route"), "path", ""), {})
            headers["Allow"] = ", ".join(method.upper() for method in described) or headers["Allow"]
        return problem(error.status_code, known.get(error.status_code, str(error.detail)), headers)


def _sentence(error: RequestValidationError) -> str:
    """Return the first fault of the parameters as a sentence."""
    first: dict[str, Any] = dict(error.errors()[0])
    where = ".".join(str(part) for part in first.get("loc", ())[1:]) or "the request"
    value = printable(repr(first.get("input"))[:80])
    what = printable(str(first.get("msg", ""))).replace("Input should be ", "expected ")
    if first.get("type") == "extra_forbidden":
        what = "this parameter is unknown"
    return f"{printable(where[:80])} is {value}; {what}. /docs describes the expected parameters."


def _describe_token(routes: FastAPI) -> None:
    """Declare in the OpenAPI document that all routes except the open ones need the token."""
    make = routes.openapi

    def described() -> dict[str, Any]:
        document = make()
        schemes = document.setdefault("components", {}).setdefault("securitySchemes", {})
        schemes["token"] = {"type": "http", "scheme": "bearer"}
        document["security"] = [{"token": []}]
        for path in OPEN & document["paths"].keys():
            for operation in document["paths"][path].values():
                operation["security"] = []
        return document

    routes.openapi = described  # type: ignore[method-assign]


class Counted:
    """Counts requests by route and status, and answers unexpected errors without details."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 0

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        except asyncio.CancelledError:  # it outlasted the drain time of the shutdown
            if status == 0:
                ended = "The server shut down before it answered the request; send it again in a moment."
                await problem(503, ended, {"Retry-After": "5"})(scope, receive, note_status)
        except Exception:
            LOG.exception("a request failed")
            if status == 0:
                await problem(500, "The request failed; the server's log says why.")(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", "none")
            self._metrics.requests.labels(_method(scope), route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(time.perf_counter() - started)


def _method(scope: Scope) -> str:
    known = ("GET", "POST", "DELETE", "HEAD", "OPTIONS", "PUT", "PATCH")
    return scope["method"] if scope["method"] in known else "other"


def pages() -> list[Route]:
    """Return the routes of the page, its files and the documentation."""
    files = {name: _File.read(file) for name, file in _files("page")}
    files["look.css"] = _File.read(resources.files(webpage) / "look.css")
    manual = {name: _File.read(file) for name, file in _files("manual")}
    swagger = resources.files("fastapi_offline") / "static"
    manual |= {name: _File.read(swagger / name) for name in _SWAGGER}
    return [
        _route("/", {"": files.pop("index.html")}),
        _route("/near-duplicates", {"": files.pop("near-duplicates.html")}),
        _route("/rate", {"": files.pop("rate.html")}),
        _route("/favicon.ico", {"": files["icon.svg"]}),
        _route("/static/{name:path}", files),
        _route("/docs", {"": manual.pop("index.html")}, {"Content-Security-Policy": _DOCS_CSP}),
        _route("/docs/{name}", manual),
    ]


def _files(folder: str) -> Iterator[tuple[str, Traversable]]:
    """Yield the files of a folder and of its folders, by their path in it."""
    for entry in (resources.files(__package__) / folder).iterdir():
        if entry.is_file():
            yield entry.name, entry
        elif entry.is_dir():
            yield from ((f"{entry.name}/{file.name}", file) for file in entry.iterdir() if file.is_file())


def _route(path: str, files: Mapping[str, _File], headers: Mapping[str, str] | None = None) -> Route:
    async def serve(request: Request) -> Response:
        file = files.get(request.path_params.get("name", ""))
        return problem(404, "There is no such file.") if file is None else file.answer(request, headers or {})

    return Route(path, serve, methods=["GET"], include_in_schema=False)


@dataclass(frozen=True)
class _File:
    content: bytes
    compressed: bytes
    media_type: str
    tag: str

    @classmethod
    def read(cls, file: Traversable) -> _File:
        content = file.read_bytes()
        suffix = f".{file.name.rpartition('.')[2]}"
        media_type = _TYPES.get(suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        compressed = gzip.compress(content, mtime=0)
        return cls(content, compressed, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    def answer(self, request: Request, headers: Mapping[str, str]) -> Response:
        all_headers = {"ETag": f"W/{self.tag}", "Cache-Control": "no-cache", "Vary": "Accept-Encoding", **headers}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=all_headers)
        accepted = request.headers.get("accept-encoding", "")
        if "gzip" in accepted and len(self.compressed) < len(self.content):
            all_headers["Content-Encoding"] = "gzip"
            return Response(self.compressed, headers=all_headers, media_type=self.media_type)
        return Response(self.content, headers=all_headers, media_type=self.media_type)
