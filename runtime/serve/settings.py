"""The settings of a server, the refusal of unsafe ones, and its log."""

from __future__ import annotations

import logging
import os
import re
from dataclasses import dataclass, field

from ..decoding.workers import default_decoders
from ..devices import Device
from ..errors import ServerError
from ..images import DEFAULT_MAX_PIXELS
from ..index.location import Location, StoreOptions, is_address, location_name, misplaced_option
from ..text import display_path, printable
from .access.addresses import LOCAL_NAMES, address_of, is_local

__all__ = [
    "DEFAULT_MAX_UPLOAD",
    "DEFAULT_PORT",
    "DEFAULT_RENDITION_CACHE",
    "DEFAULT_WAITING",
    "LOG",
    "MAX_HITS",
    "ServeSettings",
]

LOG = logging.getLogger("deeprank.serve")

DEFAULT_PORT = 8000
DEFAULT_MAX_UPLOAD = 20_000_000
# Requests accepted at once; others get 503. Each is a coroutine and its upload.
DEFAULT_WAITING = 1024
DEFAULT_RENDITION_CACHE = 128_000_000
# Bytes for decoding one upload at the default limit of pixels; in proportion for a higher limit.
_DECODING_BYTES = 512_000_000
# The most hits of one request.
MAX_HITS = 3000
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*")


@dataclass(frozen=True)
class ServeSettings:
    """The settings of a server.

    Attributes:
        index: the index folder, or the address of a collection.
        store: how a collection is opened.
        host: the address to listen on.
        port: the port; 0 chooses a free one.
        token: the bearer token of requests; None: no request needs one.
        insecure: serve other machines without a token.
        sign_in_link: sign browsers in by links that work once.
        allow_writes: allow clients to add and remove pictures.
        originals: let clients download the files themselves.
        allowed_hosts: allowed host names, besides this machine's local names.
        batch_wait_s: how long a picture waits at most to be embedded together with others that are
            being decoded, in seconds.
        batch_size: pictures embedded at a time; 1 embeds pictures one by one.
        most_waiting: requests accepted at once.
        max_upload: limit of a request's body, in bytes.
        max_body_s: limit of the time in which a body arrives, in seconds.
        max_pixels: limit of an uploaded picture, in pixels.
        rendition_cache: bytes of renditions that are kept in memory.
        max_decoding: bytes that decoding an uploaded picture may take, including the upload; None:
            512 million, or proportionally more with a ``max_pixels`` above the default.
        decoders: decoding processes; None: the usable cores, at least 2.
        slow_decoders: additional processes for slow pictures.
        device: the device of the network.
        threads: CPU threads of the network.
        drain_s: how long requests in flight may take at shutdown, in seconds.

    """

    index: Location
    store: StoreOptions = field(default_factory=StoreOptions)
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    token: str | None = field(default=None, repr=False)
    insecure: bool = False
    sign_in_link: bool = False
    allow_writes: bool = False
    originals: bool = False
    allowed_hosts: tuple[str, ...] = ()
    batch_wait_s: float = 0.003
    batch_size: int = 16
    most_waiting: int = DEFAULT_WAITING
    max_upload: int = DEFAULT_MAX_UPLOAD
    max_body_s: float = 60.0
    max_pixels: int = DEFAULT_MAX_PIXELS
    rendition_cache: int = DEFAULT_RENDITION_CACHE
    max_decoding: int | None = None
    decoders: int | None = None
    slow_decoders: int = 2
    device: Device = "auto"
    threads: int | None = None
    drain_s: int = 30

    def check(self) -> None:
        """Refuse settings that give strangers access, and those that this index does not take.

        Raises:
            ServerError: a non-local address or writes without a token, an invalid host name, writes
                to a store, or an option of a store with an index folder.

        """
        misplaced = misplaced_option(self.index, self.store)
        if misplaced is not None:
            raise ServerError(misplaced)
        if self.allow_writes and self.in_store:
            raise ServerError(
                "--allow-writes was given, but pictures of a store are added by deeprank-index load; expected an "
                "index folder, or no --allow-writes."
            )
        for name in self.allowed_hosts:
            if not (address_of(name) or _HOST_NAME.fullmatch(name)):
                raise ServerError(
                    f"--allowed-host {printable(name)!r} is not a host name; expected one like photos.example or "
                    "192.0.2.7, without a port."
                )
        if self.token is not None and self.insecure:
            raise ServerError("Both a token and --insecure were given; expected one of them.")
        if self.sign_in_link and self.token is None:
            raise ServerError(
                "--sign-in-link was given, but without a token nobody signs in; expected --token-file FILE as well."
            )
        if self.allow_writes and self.token is None:
            raise ServerError(
                "--allow-writes was given without a token; expected --token-file FILE as well. Without it, everyone "
                "who can reach the port could add and remove pictures."
            )
        if self.allow_writes and not os.access(self.index, os.W_OK):
            raise ServerError(
                f"--allow-writes was given, but {display_path(self.index)} is not writable; expected an index "
                "folder that this user owns."
            )
        if self.token is None and not self.insecure and not is_local(self.host):
            raise ServerError(
                f"{self.host} can be reached from other machines, but no token was given; expected --token-file FILE, "
                "or --insecure if everyone who can reach it may see the pictures."
            )

    @property
    def in_store(self) -> bool:
        """Whether the index is a collection of a store."""
        return is_address(self.index)

    @property
    def name(self) -> str:
        """The name of the index, which clients see."""
        return location_name(self.index)

    @property
    def decoding_bytes(self) -> int:
        """The memory limit of decoding an uploaded picture, in bytes."""
        if self.max_decoding is not None:
            return self.max_decoding
        return _DECODING_BYTES * max(self.max_pixels, DEFAULT_MAX_PIXELS) // DEFAULT_MAX_PIXELS

    def decoding_sentence(self) -> str:
        """Return a sentence about the largest memory of decoding, for the server's operator."""
        decoders = self.decoders or default_decoders()
        return (
            f"Pictures are decoded in {decoders} processes, and {self.slow_decoders} more for slow ones; "
            f"decoding an upload takes at most {self.decoding_bytes / 1e6:,.0f} MB."
        )

    @property
    def hosts(self) -> frozenset[str]:
        """The allowed host names, in lower case."""
        return frozenset((*LOCAL_NAMES, *map(_canonical, self.allowed_hosts)))


def _canonical(name: str) -> str:
    """Return a name or address as browsers write it."""
    return address_of(name) or name.lower()
