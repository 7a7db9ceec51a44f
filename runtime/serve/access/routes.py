"""The routes of a session: a page gives the token or a sign-in link once, and gets a cookie."""

from __future__ import annotations

import time
from urllib.parse import urlsplit

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from ..errors import RefusedError, answer
from ..schemas import SCHEMA, problems
from ..security import cookie_name
from ..settings import ServeSettings
from ..tokens import COOKIE_SECONDS, Tokens
from .access import Access
from .qr_code import qr_svg
from .sign_in_links import SECONDS

__all__ = ["add_session"]

_WRONG_TOKEN = "The token is wrong; expected the token in the server's --token-file."
_WRONG_LINK = (
    "This sign-in link was used already, or is older than five minutes; expected a new one, or the server's token."
)


class SessionDocument(BaseModel):
    """Whether a token is needed, whether this browser has given it, and whether it may make sign-in links."""

    token_required: bool
    authenticated: bool
    links: bool = Field(description="Whether POST /v1/session/links makes sign-in links.")


class ProofDocument(BaseModel):
    """What a page was given: the token, or the secret of a sign-in link."""

    model_config = ConfigDict(extra="forbid")

    token: str | None = Field(None, min_length=1, max_length=4096)
    link: str | None = Field(None, min_length=1, max_length=4096, description="What follows #sign-in= in the link.")


class PageDocument(BaseModel):
    """The page that a sign-in link leads to."""

    model_config = ConfigDict(extra="forbid")

    page: str = Field(min_length=1, max_length=2048, description="Address of the page, up to its last slash.")


class LinkDocument(BaseModel):
    """A sign-in link, and its QR code."""

    schema_: int = Field(alias="schema")
    url: str = Field(description="It signs in one browser, once.")
    seconds: int = Field(description="How long it works.")
    local: bool = Field(description="Whether only the server's own machine can open it.")
    svg: str = Field(description="The QR code of the address.")


def add_session(router: APIRouter, settings: ServeSettings, tokens: Tokens, access: Access) -> None:
    """Add the routes."""
    name = cookie_name(settings)

    @router.get("/session", tags=["server"], response_model=SessionDocument)
    async def session(request: Request) -> Response:
        """Tell whether a token is needed, and whether the request bears one or its cookie."""
        has_token = tokens.matches(request.headers.get("authorization", "").encode("latin-1"))
        known = has_token or tokens.is_cookie(request.cookies.get(name, ""))
        return answer(
            SessionDocument(
                token_required=tokens.required,
                authenticated=known or not tokens.required,
                links=access.links is not None,
            )
        )

    @router.post(
        "/session",
        tags=["server"],
        status_code=204,
        response_class=Response,
        responses={204: {"description": "The cookie was set."}, **problems(408, 413, 422)},
    )
    async def log_in(request: Request, given: ProofDocument) -> Response:
        """Take the token, or the secret of a sign-in link, once and set a cookie, for the page."""
        ends = _end_of_session(given, tokens, access)
        response = Response(status_code=204)
        response.set_cookie(
            name,
            tokens.cookie(ends),
            max_age=ends - int(time.time()),
            httponly=True,
            samesite="strict",
            secure=request.url.scheme == "https",
        )
        return response

    @router.delete("/session", tags=["server"], status_code=204, response_class=Response)
    async def log_out() -> Response:
        """Forget the cookie."""
        response = Response(status_code=204)
        response.delete_cookie(name, httponly=True, samesite="strict")
        return response

    if access.links is not None:
        _add_links(router, name, tokens, access)


def _end_of_session(given: ProofDocument, tokens: Tokens, access: Access) -> int:
    """Return when the session ends, in seconds since 1970.

    Raises:
        RefusedError: the token or the link is wrong.

    """
    if (given.token is None) == (given.link is None):
        raise RefusedError(422, "The request holds neither a token nor a link, or both; expected one of them.")
    good, ends = True, None
    if given.link is not None:
        good, ends = (False, None) if access.links is None else access.links.use(given.link)
    elif tokens.required:
        good = tokens.is_token((given.token or "").strip().encode("utf-8", "replace"))
    if not good:
        wrong = _WRONG_TOKEN if given.link is None else _WRONG_LINK
        raise RefusedError(401, wrong, {"WWW-Authenticate": "Bearer"})
    return int(time.time()) + COOKIE_SECONDS if ends is None else ends


def _add_links(router: APIRouter, name: str, tokens: Tokens, access: Access) -> None:
    @router.post(
        "/session/links", tags=["server"], status_code=201, response_model=LinkDocument, responses=problems(422)
    )
    async def make_link(request: Request, given: PageDocument) -> Response:
        """Make a link that signs in one more browser, once, within five minutes."""
        page = _checked(given.page, request.headers.get("host", ""))
        # A cookie does not prolong itself: what it makes ends with it.
        made = await access.new_link(page, tokens.expiry_of(request.cookies.get(name, "")))
        document = LinkDocument(schema=SCHEMA, url=made.url, seconds=SECONDS, local=made.local, svg=qr_svg(made.url))
        return answer(document, 201)


def _checked(page: str, host: str) -> str:
    """Return the address of a page of this server, without its query and fragment.

    Raises:
        RefusedError: it is not one.

    """
    try:
        parts = urlsplit(page)
    except ValueError:
        parts = urlsplit("")
    own = parts.scheme in ("http", "https") and parts.netloc.lower() == host.lower()
    if not own or not page.isascii() or not page.isprintable() or not parts.path.endswith("/"):
        raise RefusedError(422, "The page is not one of this server; expected its address, which ends with a slash.")
    return f"{parts.scheme}://{parts.netloc}{parts.path}"
