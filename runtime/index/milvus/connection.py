"""A connection to Milvus: every call has a deadline, and every fault becomes one of our errors."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from ...errors import MissingExtraError, StoreError, StoreUnavailableError
from ...text import printable
from .address import TOKEN_VARIABLE, StoreAddress, ca_file

__all__ = ["DEADLINE", "GRPC_OPTIONS", "Connection", "MissingInStoreError"]

# Seconds until a call fails. A query takes milliseconds, one with Strong consistency a fifth of a second.
DEADLINE = 15.0
_TO_CONNECT = 10.0
# The server's answers are untrusted: 16,384 rows, its most for one search, of vectors with 4,096 numbers.
_MAX_ANSWER = 256 * 2**20
GRPC_OPTIONS = {
    "grpc.max_receive_message_length": _MAX_ANSWER,
    # pymilvus pings an idle server every ten seconds, and servers with gRPC's own limits hang up on that.
    "grpc.keepalive_permit_without_calls": False,
    "grpc.keepalive_time_ms": 60_000,
    "grpc.use_local_subchannel_pool": True,
}
# Characters of the server's own words that a message repeats.
_MAX_SHOWN = 200

# Error codes of Milvus (pkg/util/merr/errors.go), which its versions from 2.3 on and Milvus Lite share.
_NO_COLLECTION, _NO_ALIAS = 100, 1600
_NOT_LOADED = frozenset({101, 103})
_NO_ACCESS = frozenset({1400, 1401, 1402})
# Invalid parameters, also as Milvus Lite numbers them; collections or aliases whose names are taken.
_REFUSED = frozenset({6, 35, 1100, 1101, 1601, 1602})


class _NotLoadedError(StoreUnavailableError):
    """The collection is in no memory: a restart left it released, or it is being loaded."""


class MissingInStoreError(StoreError):
    """There is no such collection or alias."""


class Connection:
    """A connection to the server of an address; several threads may use it.

    It survives a restart of the server: calls fail with StoreUnavailableError until the server is back.
    """

    def __init__(self, address: StoreAddress, token_file: Path | None = None) -> None:
        """Connect.

        Args:
            address: of the collection; its name is not looked up.
            token_file: see :meth:`StoreAddress.token`.

        Raises:
            StoreUnavailableError: the server does not answer.
            StoreError: it refuses the token, or a file of secrets cannot be used.
            MissingExtraError: pymilvus is not installed.

        """
        self.address = address
        token, certificates = address.token(token_file), ca_file() if address.tls else ""
        pymilvus = _library()
        with _faults(self.address):
            self._client = pymilvus.MilvusClient(
                uri=address.uri,
                token=token,
                timeout=_TO_CONNECT,
                # Shared ones are found by host and token alone: one without TLS could take its place.
                dedicated=True,
                server_pem_path=certificates,
                grpc_options=GRPC_OPTIONS,
            )

    def close(self) -> None:
        """Close it."""
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def call(self, method: str, *arguments: Any, timeout: float = DEADLINE, **options: Any) -> Any:
        """Call a method of ``pymilvus.MilvusClient``.

        Args:
            method: its name.
            *arguments: its positional arguments.
            timeout: seconds until it fails.
            **options: its other arguments.

        Raises:
            StoreUnavailableError: the store is down, too slow, or has not loaded the collection.
            MissingInStoreError: there is no such collection or alias.
            StoreError: the store refuses the request.

        """
        with _faults(self.address):
            return getattr(self._client, method)(*arguments, timeout=timeout, **options)

    def read(self, method: str, collection: str, *arguments: Any, timeout: float = DEADLINE, **options: Any) -> Any:
        """Call a method that reads a collection; a collection that a restart left released is loaded first.

        Raises:
            StoreUnavailableError, StoreError: as :meth:`call`; also if loading takes longer than ``timeout``.
                It goes on in the store.

        """
        try:
            return self.call(method, collection, *arguments, timeout=timeout, **options)
        except _NotLoadedError:
            self.load(collection, timeout=timeout)
            return self.call(method, collection, *arguments, timeout=timeout, **options)

    def load(self, collection: str, *, timeout: float = DEADLINE) -> None:
        """Have a collection loaded into the memory of the store, and wait for it.

        Raises:
            StoreUnavailableError, StoreError: as :meth:`call`.

        """
        try:
            self.call("load_collection", collection, timeout=timeout)
        except StoreUnavailableError as error:
            raise StoreUnavailableError(
                f"The store at {self.address.server} is loading {collection}; try again in a while."
            ) from error


@contextlib.contextmanager
def _faults(address: StoreAddress) -> Iterator[None]:
    """Turn exceptions of pymilvus and gRPC into errors that name the server."""
    import grpc
    from pymilvus.exceptions import MilvusException, ParamError

    try:
        yield
    except ParamError:  # a mistake of this program, not of the store
        raise
    except (MilvusException, grpc.RpcError, grpc.FutureTimeoutError) as error:
        cause = error if isinstance(error, grpc.RpcError) else error.__cause__
        status = cause.code() if isinstance(cause, grpc.RpcError) else None
        code = error.code if isinstance(error, MilvusException) else None
        raise _fault(address.server, code, status and status.name, _words(error, cause)) from None


def _fault(server: str, code: object, status: str | None, said: str) -> StoreError:
    """Return the error for a code of Milvus and a status of gRPC, if there is one; ``said`` goes into its message."""
    if status in ("UNAUTHENTICATED", "PERMISSION_DENIED") or code in _NO_ACCESS:
        return StoreError(
            f"The store at {server} refuses the access ({said}); expected the right user in the address, and the "
            f"password or token in a file named by --store-token-file or ${TOKEN_VARIABLE}."
        )
    if status == "UNIMPLEMENTED":
        return StoreError(f"{server} is no Milvus server, or its version lacks something that deeprank needs ({said}).")
    if code in (_NO_COLLECTION, _NO_ALIAS):
        return MissingInStoreError(f"The store at {server} has no such collection ({said}).")
    if code in _NOT_LOADED:
        return _NotLoadedError(f"The store at {server} has not loaded the collection; try again.")
    if code in _REFUSED or status in ("INVALID_ARGUMENT", "RESOURCE_EXHAUSTED"):
        return StoreError(f"The store at {server} refuses the request ({said}).")
    return StoreUnavailableError(f"The store at {server} does not answer ({said}); check that it runs, and try again.")


def _words(error: BaseException, cause: BaseException | None) -> str:
    """Return what the server or gRPC said, as one safe line."""
    details = getattr(cause, "details", None)
    text = (details() if callable(details) else "") or getattr(error, "message", "") or str(error)
    line = " ".join(printable(part) for part in str(text).split())
    return line if len(line) <= _MAX_SHOWN else f"{line[:_MAX_SHOWN]}…"


@functools.cache
def _library() -> Any:
    """Import pymilvus, and silence it: it logs whole tracebacks of what it raises, and gRPC its handshakes."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        import pymilvus
        from pymilvus.decorators import PyMilvusDeprecationWarning
    except ImportError as error:
        raise MissingExtraError("Search in Milvus", "store") from error
    warnings.simplefilter("ignore", PyMilvusDeprecationWarning)
    for name in ("pymilvus", "pymilvus.milvus_client", "pymilvus.bulk_writer"):  # each has a level of its own
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    return pymilvus
