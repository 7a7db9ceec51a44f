"""Links that sign a device in, instead of the token: for five minutes, and once."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["MAX_LINKS", "MAX_WRONG", "SECONDS", "SignInLinks", "link_address"]

# How long a link works.
SECONDS = 300
# 128 random bits, so that the QR code stays coarse.
_SECRET_BYTES = 16
# Open links; a further one replaces the oldest.
MAX_LINKS = 8
# Wrong secrets while a link is open; then it works no longer.
MAX_WRONG = 100


@dataclass
class _Link:
    digest: bytes
    closes: float
    session_ends: int | None
    wrong: int = 0


class SignInLinks:
    """The open links of a server; only their digests are kept.

    A link that a signed-in page makes gives a session that ends with the page's own. So nobody
    prolongs a session by links.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._open: list[_Link] = []

    def make(self, session_ends: int | None = None) -> str:
        """Return the secret of a new link.

        Args:
            session_ends: when the session that it gives ends, in seconds since 1970; None: the
                usual time after it is used.

        """
        secret = secrets.token_urlsafe(_SECRET_BYTES)
        self._open = [*self._still_open(), _Link(_digest(secret), self._clock() + SECONDS, session_ends)][-MAX_LINKS:]
        return secret

    def use(self, secret: str) -> tuple[bool, int | None]:
        """Close the link of a secret.

        Returns:
            whether there was one, and when its session ends.

        """
        offered = _digest(secret)
        used: _Link | None = None
        kept = []
        for link in self._still_open():
            if hmac.compare_digest(link.digest, offered):
                used = link
            else:
                kept.append(link)
        if used is None:
            for link in kept:
                link.wrong += 1
        self._open = [link for link in kept if link.wrong < MAX_WRONG]
        return (False, None) if used is None else (True, used.session_ends)

    def _still_open(self) -> list[_Link]:
        now = self._clock()
        return [link for link in self._open if now < link.closes]


def link_address(page: str, secret: str) -> str:
    """Return the link to a page; browsers never send what follows the ``#``."""
    return f"{page}#sign-in={secret}"


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "replace")).digest()
