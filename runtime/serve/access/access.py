"""How a server is reached and signed in to, besides its token."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from .addresses import is_local, url_of
from .sign_in_links import SignInLinks, link_address

__all__ = ["Access", "NewLink"]


@dataclass(frozen=True)
class NewLink:
    """The address of a sign-in link; ``local``: only this machine can open it."""

    url: str
    local: bool


@dataclass(frozen=True)
class Access:
    """The sign-in links, and the addresses that other machines can use.

    Attributes:
        links: None for a server without ``--sign-in-link``.
        port: of the server.
        addresses: returns the addresses for other machines, the likeliest first.

    """

    links: SignInLinks | None
    port: int
    addresses: Callable[[], tuple[str, ...]]

    async def urls(self) -> list[str]:
        """Return the addresses of the page on other machines."""
        return [url_of(address, self.port) for address in await asyncio.to_thread(self.addresses)]

    async def new_link(self, page: str, session_ends: int | None = None) -> NewLink:
        """Open a link to a page; a page that is open on this machine has another address elsewhere."""
        assert self.links is not None
        if is_local(urlsplit(page).hostname or ""):
            page = next((f"{url}/" for url in await self.urls()), page)
        url = link_address(page, self.links.make(session_ends))
        return NewLink(url, is_local(urlsplit(page).hostname or ""))
