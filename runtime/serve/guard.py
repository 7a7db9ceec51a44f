"""Who may ask, and with which words every answer goes out: names, origins, the token, security headers."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .answers import problem
from .settings import ServeSettings
from .tokens import Tokens

__all__ = ["OPEN", "Guard", "Secured", "cookie_name", "is_open"]

# What needs no token: what holds no picture, and what gives a browser its cookie.
OPEN = frozenset({"/", "/healthz", "/readyz", "/v1/session", "/docs", "/openapi.json", "/favicon.ico"})
_OPEN_FOLDERS = ("/static/", "/docs/")
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
# Asking is not writing, though it sends a picture.
_ASKING = frozenset({"/v1/search", "/v1/embed", "/v1/session"})

_CSP = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    b"manifest-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = (
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
    """Lets through what comes to a name of this server, from its own pages or from a program, with the token.

    A page of another site that somebody has open in their browser could otherwise ask, too: the browser is on a
    machine that may reach this one, and would do so under a name of its own choosing (DNS rebinding).
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
        refusal = self._stranger(scope, headers) or self._intruder(scope, headers)
        await (refusal or self._app)(scope, receive, send)

    def _stranger(self, scope: Scope, headers: dict[bytes, bytes]) -> ASGIApp | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if _name(host) not in self._hosts:
            given = sum(name == b"host" for name, _ in scope["headers"])
            return problem(
                403,
                f"The request {_fault_of(host, given)}; expected 127.0.0.1, localhost, [::1], or one that it was "
                "started with (--allowed-host).",
            )
        origin = headers.get(b"origin")
        foreign = origin is not None and not _is_own(origin.decode("latin-1").lower(), host)
        crosses = headers.get(b"sec-fetch-site", b"") == b"cross-site" and not _is_link(scope, headers)
        if foreign or crosses:
            return problem(403, "The request comes from a page of another site; expected one of this server's own.")
        return None

    def _intruder(self, scope: Scope, headers: dict[bytes, bytes]) -> ASGIApp | None:
        path = scope["path"]
        if not self._tokens.required or is_open(path):
            return None
        if self._tokens.bears(headers.get(b"authorization", b"")):
            return None
        # A cookie is sent by the browser, whoever made it ask; so it does not write.
        reads = scope["method"] in _READING or path in _ASKING
        if reads and self._tokens.is_cookie(_cookie(headers.get(b"cookie", b""), self._cookie)):
            return None
        return problem(
            401,
            "The request bears no token, or a wrong one; expected 'Authorization: Bearer TOKEN' with that of the file "
            "that the server was started with.",
            {"WWW-Authenticate": "Bearer"},
        )


class Secured:
    """Lets no answer out without the headers that tell a browser what it may not do with it."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [*message["headers"], *(h for h in _HEADERS if h[0] not in present)]
            await send(message)

        await self._app(scope, receive, send_safely)


def is_open(path: str) -> bool:
    """Tell whether everybody may ask for this, without a token."""
    return path in OPEN or path.startswith(_OPEN_FOLDERS)


def cookie_name(settings: ServeSettings) -> str:
    """Return the name of the cookie: browsers do not tell the ports of a machine apart."""
    return f"deeprank_session_{settings.port}"


def _headers(scope: Scope) -> dict[bytes, bytes]:
    """Return the headers; one that is there twice counts as both, which is what nobody expects."""
    found: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        found[name] = found[name] + b", " + value if name in found else value
    return found


def _fault_of(host: str, headers: int) -> str:
    """Return what is wrong with what a request says of its host, in so many Host headers."""
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


def _is_port(text: str) -> bool:
    return text.startswith(":") and text[1:].isdecimal() and text.isascii()


def _is_own(origin: str, host: str) -> bool:
    """Tell whether an Origin is the one that the request was sent to, whatever stands between with TLS."""
    scheme, _, place = origin.partition("://")
    default = {"http": ":80", "https": ":443"}.get(scheme)
    return default is not None and place.removesuffix(default) == host.removesuffix(default)


def _is_link(scope: Scope, headers: dict[bytes, bytes]) -> bool:
    """Tell whether somebody followed a link to the page, which holds nothing itself: so links can be shared."""
    return (
        scope["method"] == "GET"
        and scope["path"] == "/"
        and headers.get(b"sec-fetch-mode") == b"navigate"
        and headers.get(b"sec-fetch-dest") == b"document"
    )


def _cookie(header: bytes, name: str) -> str:
    try:
        found = SimpleCookie(header.decode("latin-1")).get(name)
    except CookieError:
        return ""
    return "" if found is None else found.value
