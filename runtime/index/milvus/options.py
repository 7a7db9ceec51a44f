"""The options of a store that a search takes, beside its address."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["StoreOptions"]


@dataclass(frozen=True)
class StoreOptions:
    """How a collection of a Milvus server is opened; an index folder takes none of these.

    Attributes:
        model: the model of the collection's vectors; None: ``./model.onnx`` or the bundled model,
            if it is that one.
        pictures: a folder, or a URI such as ``s3://bucket/photos``, to read the pictures' files
            from; None: the place that they were loaded from.
        token_file: a file with the password of the address's user, or a token; None: the file named
            by ``$DEEPRANK_STORE_TOKEN_FILE``, if it is set.

    """

    model: str | Path | None = None
    pictures: str | Path | None = None
    token_file: str | Path | None = None
