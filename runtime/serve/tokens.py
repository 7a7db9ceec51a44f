"""The token of a server: its file, its comparison, and the session cookie derived from it."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import secrets
import time
from pathlib import Path

from ..errors import ServerError
from ..text import display_path

__all__ = ["COOKIE_SECONDS", "MIN_CHARACTERS", "Tokens", "is_private", "read_token"]

COOKIE_SECONDS = 30 * 24 * 3600
# 16 random characters out of 64 cannot be guessed; fewer might be.
MIN_CHARACTERS = 16
_MAX_BYTES = 4096
# One in 10,000 tokens of 16 random decimal digits has fewer distinct digits, or distinct steps.
_MIN_DIFFERENT = 5


def read_token(path: Path) -> str:
    """Return the token in a file, which is its only line.

    Raises:
        ServerError: the file is unreadable, or has no acceptable token.

    """
    advice = (
        f"make one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))' > {display_path(path)}; "
        f"chmod 600 {display_path(path)}"
    )
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise ServerError(f"The token file {display_path(path)} cannot be read ({error.strerror}); {advice}.") from None
    text = content.strip()
    if len(content) > _MAX_BYTES or not text.isascii() or any(not 33 <= byte <= 126 for byte in text):
        raise ServerError(
            f"The token file {display_path(path)} holds something other than one line of visible ASCII characters; "
            f"{advice}."
        )
    if len(text) < MIN_CHARACTERS:
        raise ServerError(
            f"The token in {display_path(path)} has {len(text)} characters; expected at least {MIN_CHARACTERS} random "
            f"ones: {advice}."
        )
    if pattern := _pattern_of(text):
        raise ServerError(
            f"The token in {display_path(path)} is easy to guess: {pattern}; expected at least {MIN_CHARACTERS} random "
            f"characters: {advice}."
        )
    return text.decode("ascii")


def _pattern_of(token: bytes) -> str:
    """Return the pattern that makes a token easy to guess; "" for a token that looks random."""
    different = len(set(token))
    if different < _MIN_DIFFERENT:
        return f"it has only {different} different character{'' if different == 1 else 's'}"
    # The last repetition may be incomplete.
    longest = min(MIN_CHARACTERS - 1, len(token) // 2)
    period = next((n for n in range(1, longest + 1) if token[n:] == token[:-n]), None)
    if period is not None:
        return f"it repeats its first {period} characters"
    steps = {after - before for before, after in itertools.pairwise(token)}
    return "its characters follow a simple pattern" if len(steps) < _MIN_DIFFERENT else ""


def is_private(path: Path) -> bool:
    """Tell whether only the owner can read a file."""
    try:
        return not path.stat().st_mode & 0o077
    except OSError:
        return True


class Tokens:
    """Checks the tokens and cookies of requests; a server without a token is open and read-only.

    A page gets a cookie instead of the token: its expiry time, signed with a key derived from the
    token. So the server stores nothing, sessions survive a restart, and a new token ends them all.
    """

    def __init__(self, token: str | None) -> None:
        self.required = token is not None
        secret = secrets.token_bytes(32) if token is None else token.encode("ascii")
        self._digest = hashlib.sha256(secret).digest()
        self._key = hmac.digest(secret, b"deeprank session key", "sha256")

    def is_token(self, offered: bytes) -> bool:
        """Tell whether this is the token, in constant time."""
        same = hmac.compare_digest(hashlib.sha256(offered).digest(), self._digest)
        return self.required and same

    def matches(self, authorization: bytes) -> bool:
        """Tell whether an Authorization header holds the token."""
        scheme, _, offered = authorization.partition(b" ")
        return scheme.lower() == b"bearer" and self.is_token(offered.strip())

    def cookie(self, expiry: int) -> str:
        """Return the value of a cookie that is good until a time, in seconds since 1970."""
        return f"{expiry}.{self._signature(str(expiry))}"

    def is_cookie(self, value: str) -> bool:
        """Tell whether a cookie is signed with this token and has not expired."""
        return self.expiry_of(value) is not None

    def expiry_of(self, value: str) -> int | None:
        """Return when a cookie expires; None for one that has expired, or is not signed with this token."""
        expiry, _, signature = value.partition(".")
        sound = hmac.compare_digest(self._signature(expiry).encode(), signature.encode("utf-8", "replace"))
        return int(expiry) if sound and expiry.isdecimal() and int(expiry) > time.time() else None

    def _signature(self, expiry: str) -> str:
        return hmac.digest(self._key, expiry.encode("utf-8", "replace"), "sha256").hex()
