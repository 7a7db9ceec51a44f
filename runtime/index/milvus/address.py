"""The address of a collection in Milvus: ``milvus://[user@]host[:port]/NAME``, or ``milvus+tls://…``."""

from __future__ import annotations

import os
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import urlsplit

from ...errors import StoreError
from ...files import open_regular
from ...text import display_path, printable

__all__ = ["CA_VARIABLE", "DEFAULT_PORT", "TOKEN_VARIABLE", "StoreAddress", "ca_file", "parse_address"]

DEFAULT_PORT = 19530
# Names a file whose only line is the password of the user in the address, or a token.
TOKEN_VARIABLE = "DEEPRANK_STORE_TOKEN_FILE"
# Names a file of certificates (PEM) that replace those of the system.
CA_VARIABLE = "DEEPRANK_STORE_CA"

_SCHEMES = ("milvus", "milvus+tls")
_EXPECTED = "expected milvus://HOST:PORT/NAME, or milvus+tls://HOST:PORT/NAME"
# Milvus allows 255; the names of collections append to ours the model and a number.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,199}", re.ASCII)
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9.])?", re.ASCII)
_USER = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}", re.ASCII)
_MAX_TOKEN_BYTES = 4096


@dataclass(frozen=True)
class StoreAddress:
    """Where a collection is: ``name`` is an alias in Milvus, never the collection itself.

    It holds no password, so it may be shown and logged.
    """

    host: str
    port: int
    name: str
    tls: bool = False
    user: str = ""

    def __str__(self) -> str:
        """Return the address as it is typed."""
        user = f"{self.user}@" if self.user else ""
        return f"milvus{'+tls' if self.tls else ''}://{user}{self.host}:{self.port}/{self.name}"

    @property
    def server(self) -> str:
        """Host and port, for messages."""
        return f"{self.host}:{self.port}"

    @property
    def uri(self) -> str:
        """The server as pymilvus expects it."""
        return f"http{'s' if self.tls else ''}://{self.server}"

    def token(self, file: Path | None = None) -> str:
        """Return what proves the right to read or write: ``user:password``, a token, or "" for neither.

        Args:
            file: holds the password of the user, or the token if the address names no user; default:
                the file named by ``$DEEPRANK_STORE_TOKEN_FILE``, if that is set.

        Raises:
            StoreError: the file cannot be used, or a user has no password.

        """
        if file is None and (named := os.environ.get(TOKEN_VARIABLE)):
            file = Path(named)
        if file is not None:
            secret = _read_secret(file)
            return f"{self.user}:{secret}" if self.user else secret
        if self.user:
            raise StoreError(
                f"{self} names a user, but no password is given; expected a file that holds it alone, named by "
                f"--store-token-file or ${TOKEN_VARIABLE}."
            )
        return ""


def parse_address(text: str) -> StoreAddress:
    """Return an address, checked.

    Raises:
        StoreError: it is no address; the message never repeats a password.

    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        _refuse(text, "has no valid host and port")
    if parts.password is not None:
        raise StoreError(
            "The address of the store holds a password, which the list of processes and the shell's history would "
            f"show; expected milvus://USER@HOST:PORT/NAME, and the password in a file named by ${TOKEN_VARIABLE}."
        )
    if parts.scheme not in _SCHEMES:
        _refuse(text, "has another scheme")
    host, user, name = parts.hostname or "", parts.username or "", parts.path.removeprefix("/")
    if ":" in host:
        _refuse(text, "has an IPv6 address, which the client of Milvus cannot use: give a name of the host")
    if not _HOST.fullmatch(host) or port == 0:
        _refuse(text, "has no valid host and port")
    if parts.query or parts.fragment:
        _refuse(text, "has something after its name")
    if not _NAME.fullmatch(name):
        _refuse(text, "needs a NAME of letters, digits and _, at most 200, that does not start with a digit")
    if parts.username is not None and not _USER.fullmatch(user):
        _refuse(text, "has a user whose name Milvus does not allow")
    return StoreAddress(host, port or DEFAULT_PORT, name, tls=parts.scheme.endswith("+tls"), user=user)


def _refuse(text: str, what: str) -> NoReturn:
    # Whatever stands before the last @ may hold a password.
    shown = re.sub(r"//.*@", "//…@", printable(text))
    raise StoreError(f"{shown!r} {what}; {_EXPECTED}.")


def ca_file() -> str:
    """Return the file of certificates that a server's must be signed by; "" leaves the choice to gRPC.

    Raises:
        StoreError: ``$DEEPRANK_STORE_CA`` names no readable file.

    """
    named = os.environ.get(CA_VARIABLE)
    if not named:
        return ssl.get_default_verify_paths().cafile or ""
    try:
        open_regular(Path(named), follow_links=True).close()
    except OSError as error:
        raise StoreError(
            f"The certificates {display_path(named)}, named by ${CA_VARIABLE}, cannot be read ({error.strerror}); "
            "expected a PEM file."
        ) from None
    return named


def _read_secret(path: Path) -> str:
    try:
        with open_regular(path, follow_links=True) as file:
            content = file.read(_MAX_TOKEN_BYTES + 1)
    except OSError as error:
        raise StoreError(
            f"The token file {display_path(path)} cannot be read ({error.strerror}); expected a file with one line."
        ) from None
    text = content.strip()
    if not text or len(content) > _MAX_TOKEN_BYTES or any(not 33 <= byte <= 126 for byte in text):
        raise StoreError(
            f"The token file {display_path(path)} holds something other than one line of visible ASCII characters; "
            "expected the password or token alone."
        )
    return text.decode("ascii")
