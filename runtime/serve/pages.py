"""The page, and the documentation of the API: files of the package, held in memory."""

from __future__ import annotations

import hashlib
import mimetypes
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .answers import problem

__all__ = ["pages"]

_TYPES = {".js": "text/javascript", ".css": "text/css", ".html": "text/html", ".svg": "image/svg+xml"}
# Swagger UI sets styles of elements as it goes.
_DOCS_CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_SWAGGER = ("swagger-ui-bundle.js", "swagger-ui.css")


@dataclass(frozen=True)
class _File:
    content: bytes
    media_type: str
    tag: str

    @classmethod
    def read(cls, file: Traversable) -> _File:
        content = file.read_bytes()
        suffix = f".{file.name.rpartition('.')[2]}"
        media_type = _TYPES.get(suffix) or mimetypes.guess_type(file.name)[0] or "application/octet-stream"
        return cls(content, media_type, f'"{hashlib.sha256(content).hexdigest()[:32]}"')

    def answer(self, request: Request, headers: Mapping[str, str]) -> Response:
        all_headers = {"ETag": self.tag, "Cache-Control": "no-cache", **headers}
        if self.tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=all_headers)
        return Response(self.content, headers=all_headers, media_type=self.media_type)


def pages() -> list[Route]:
    """Return the routes of the page, its files and the documentation."""
    files = {file.name: _File.read(file) for file in _files("page")}
    manual = {file.name: _File.read(file) for file in _files("manual")}
    swagger = resources.files("fastapi_offline") / "static"
    manual |= {name: _File.read(swagger / name) for name in _SWAGGER}
    return [
        _route("/", {"": files.pop("index.html")}),
        _route("/favicon.ico", {"": files["icon.svg"]}),
        _route("/static/{name}", files),
        _route("/docs", {"": manual.pop("index.html")}, {"Content-Security-Policy": _DOCS_CSP}),
        _route("/docs/{name}", manual),
    ]


def _files(folder: str) -> Iterator[Traversable]:
    return (file for file in (resources.files(__package__) / folder).iterdir() if file.is_file())


def _route(path: str, files: Mapping[str, _File], headers: Mapping[str, str] | None = None) -> Route:
    async def serve(request: Request) -> Response:
        file = files.get(request.path_params.get("name", ""))
        return problem(404, "There is no such file.") if file is None else file.answer(request, headers or {})

    return Route(path, serve, methods=["GET"], include_in_schema=False)
