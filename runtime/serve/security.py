"""Access control and headers of every response: host names, origins, the token."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .access.addresses import address_of
from .errors import problem
from .settings import ServeSettings
from .tokens import Tokens

__all__ = ["HEADERS", "OPEN", "Guard", "Secured", "cookie_name", "has_token", "is_open"]

# Pages; links of other sites may lead to them, since they hold no data.
PAGES = frozenset({"/", "/near-duplicates", "/rate"})
# Paths that need no token: they hold no pictures, or give a browser its cookie.
OPEN = PAGES | frozenset({"/healthz", "/readyz", "/v1/session", "/docs", "/openapi.json", "/favicon.ico"})
_OPEN_FOLDERS = ("/static/", "/docs/")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
# POST requests that do not write: searches send a picture.
_ASKING = frozenset({"/v1/search", "/v1/embed", "/v1/session", "/v1/session/links", "/v1/near-duplicates"})

# Writes of a page, which has the cookie alone. A browser names the page's own origin in them.
_RATING = "/v1/ratings"

_CSP = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    b"manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# The cookie of any deeprank server on this machine: a time and its signature.
_COOKIE = re.compile(rb"[a-z0-9_]+=[0-9]{1,20}\.[0-9a-f]{64}")
# Key in the scope of a request that has the token, or needs none.
_HAS_TOKEN = "deeprank.has_token"
HEADERS = (
    (b"content-security-policy", _CSP),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"geolocation=(), microphone=(), payment=(), usb=(), browsing-topics=()"),
    (b"cache-control", b"no-store"),
)


class Guard:
    """Checks the Host, the Origin and the token of each request.

    Otherwise a page of another site in a user's browser could send requests: the browser's machine
    may reach this server, also under a name that the other site controls (DNS rebinding).
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings, tokens: Tokens) -> None:
        self._app = app
        self._hosts = settings.hosts
        self._tokens = tokens
        self._cookie = cookie_name(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        headers = _headers(scope)
        cookie = _cookie(headers.get(b"cookie", b""), self._cookie)
        scope["headers"] = _with_cookie(scope["headers"], cookie)
        refusal = self._stranger(scope, headers) or self._intruder(scope, headers, cookie)
        await (refusal or self._app)(scope, receive, send)

    def _stranger(self, scope: Scope, headers: dict[bytes, bytes]) -> ASGIApp | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        name = _name(host)
        if name not in self._hosts and not _is_of_connection(scope, name):
            given = sum(name == b"host" for name, _ in scope["headers"])
            return problem(
                403,
                f"The request {_fault_of(host, given)}; expected 127.0.0.1, localhost, [::1], the address that it came "
                "to, or a name given with --allowed-host.",
            )
        origin = headers.get(b"origin")
        foreign = origin is not None and not _is_own(origin.decode("latin-1").lower(), host)
        crosses = headers.get(b"sec-fetch-site", b"") == b"cross-site" and not _is_link(scope, headers)
        if foreign or crosses:
            return problem(403, "The request comes from a page of another site; expected a page of this server.")
        return None

    def _intruder(self, scope: Scope, headers: dict[bytes, bytes], cookie: bytes) -> ASGIApp | None:
        path = scope["path"]
        if is_open(path):
            return None
        if not self._tokens.required:
            scope[_HAS_TOKEN] = True
            return None
        # Browsers send the cookie with requests of any site: so the cookie alone allows no writes.
        # Those of ratings say that a page of this server sends them: _stranger has compared the origin.
        rates = path == _RATING or path.startswith(f"{_RATING}/")
        suffices = scope["method"] in _READING or path in _ASKING or (rates and b"origin" in headers)
        if self._tokens.matches(headers.get(b"authorization", b"")) or (
            suffices and self._tokens.is_cookie(cookie.rpartition(b"=")[2].decode("ascii"))
        ):
            scope[_HAS_TOKEN] = True
            return None
        return problem(
            401,
            "The request has no bearer token, or a wrong one; expected 'Authorization: Bearer TOKEN' with the token "
            "in the server's --token-file.",
            {"WWW-Authenticate": "Bearer"},
        )


class Secured:
    """Adds the security headers for browsers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in HEADERS if h[0] not in present)]
            await send(message)

        await self._app(scope, receive, send_safely)


def is_open(path: str) -> bool:
    """Tell whether a path needs no token."""
    return path in OPEN or path.startswith(_OPEN_FOLDERS)


def has_token(scope: Mapping[str, Any]) -> bool:
    """Tell whether a request was let through with the token, or because no token is needed."""
    return _HAS_TOKEN in scope


def cookie_name(settings: ServeSettings) -> str:
    """Return the name of the cookie, with the port: browsers share cookies between ports."""
    return f"deeprank_session_{settings.port}"


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers; repeated ones are joined, so that no check accepts them."""
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        headers[name] = headers[name] + b", " + value if name in headers else value
    return headers


def _fault_of(host: str, headers: int) -> str:
    """Return the fault of a refused host, given the number of Host headers."""
    if headers > 1:
        return f"has {headers} Host headers; send one, with a name of this server"
    if not host:
        lacks = "has an empty Host header" if headers else "has no Host header"
        return f"{lacks}; send one with a name of this server"
    return "is for a name that this server does not have"


def _name(host: str) -> str:
    """Return the name in a Host header, without its port."""
    if host.startswith("["):
        name, end, rest = host[1:].partition("]")
        return name if end and (not rest or _is_port(rest)) else ""
    name, colon, port = host.partition(":")
    return name if not colon or _is_port(colon + port) else ""


def _is_of_connection(scope: Scope, name: str) -> bool:
    """Tell whether a name is the address of this machine that the connection came to.

    That is safe: a page of another site has the name of that site, whatever it resolves to.
    """
    server = scope.get("server")
    return bool(name) and server is not None and name == address_of(server[0])


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isdecimal() and text.isascii()


def _is_own(origin: str, host: str) -> bool:
    """Tell whether an Origin is the request's own host, also behind a proxy that ends TLS."""
    scheme, _, place = origin.partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    return default is not None and place.removesuffix(default) == host.removesuffix(default)


def _is_link(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Tell whether a link to a page was followed; the pages have no data, so that is safe."""
    return (
        scope["method"] == "GET"
        and scope["path"] in PAGES
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )


def _cookie(header: bytes, name: str) -> bytes:
    """Return the last cookie of that name as ``name=value``; empty if missing or malformed."""
    cookies = [pair for pair in map(bytes.strip, header.split(b";")) if pair.startswith(name.encode() + b"=")]
    return cookies[-1] if cookies and _COOKIE.fullmatch(cookies[-1]) else b""


def _with_cookie(headers: list[tuple[bytes, bytes]], cookie: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers with only this cookie: the framework parses all cookies of each request.

    In Python before 3.11.10, ``http.cookies`` takes 10 seconds for 60 KB of backslashes in quotes
    (CVE-2024-7592).
    """
    kept = [header for header in headers if header[0] != b"cookie"]
    return [*kept, (b"cookie", cookie)] if cookie else kept
