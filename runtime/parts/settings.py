"""What a folder of parts was made with: ``embedded.json``, written once and checked by every worker."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Self

from ..errors import EmbeddedFolderError
from ..formats import DECODING_VERSION
from .storage import Storage

__all__ = ["MAX_ROWS_PER_PART", "SETTINGS", "EmbeddedSettings", "is_sha256"]

SETTINGS = "embedded.json"
SCHEMA = 1
# The id of a row is the number of its part, times this, plus its place.
MAX_ROWS_PER_PART = 1 << 20
_MAX_BYTES = 1 << 20
_MAX_DIM = 1 << 16


@dataclass(frozen=True)
class EmbeddedSettings:
    """What all parts of a folder have in common.

    Attributes:
        model_sha256: hex sha256 of the model file.
        dim: length of a vector.
        rule: the picture rule of the model, in its JSON form.
        source: the folder of the pictures, as absolute path or as URI.
        listing: the Parquet file that lists the pictures, as absolute path or as URI; None: the folder is walked.
        labels: rule of the labels (top, leaf, path or none), absolute path of their table, or ``listing``.
        splits: whether top folders are splits, below which labels begin.
        include: patterns of the pictures to take.
        exclude: patterns of the pictures to leave out.
        rows_per_part: pictures in a part, unless it is the last one.
        decoding: version of the rules by which pictures were decoded.

    """

    model_sha256: str
    dim: int
    rule: Mapping[str, Any]
    source: str
    rows_per_part: int
    listing: str | None = None
    labels: str = "top"
    splits: bool = False
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    decoding: int = DECODING_VERSION

    def to_json(self) -> bytes:
        """Return the content of ``embedded.json``."""
        return (json.dumps({"schema": SCHEMA, **asdict(self)}, indent=2) + "\n").encode("ascii")

    @classmethod
    def read(cls, storage: Storage) -> Self:
        """Read the settings of a folder.

        Raises:
            EmbeddedFolderError: there are none, or they are damaged or of a newer schema.
            StorageError: they cannot be read.

        """
        if not storage.has(SETTINGS):
            raise EmbeddedFolderError(
                f"{storage.shown()} holds no {SETTINGS}; expected a folder that deeprank-embed has written."
            )
        name = storage.shown(SETTINGS)
        try:
            values = json.loads(storage.read(SETTINGS, _MAX_BYTES))
        except (ValueError, RecursionError):
            raise _damaged(name) from None
        if not isinstance(values, dict) or type(values.get("schema")) is not int:
            raise _damaged(name)
        if values["schema"] != SCHEMA:
            raise EmbeddedFolderError(
                f"{name} has schema {values['schema']}; expected {SCHEMA}, which this version of deeprank reads: "
                "install a newer one."
            )
        settings = cls._of(values)
        if settings is None:
            raise _damaged(name)
        return settings

    @classmethod
    def _of(cls, values: Mapping[str, Any]) -> Self | None:
        """Return the settings in a JSON object; None if they are not valid."""
        try:
            known = {field.name: values[field.name] for field in fields(cls)}
        except KeyError:
            return None
        patterns = [*_listed(known["include"]), *_listed(known["exclude"])]
        texts = [known["source"], known["labels"], *patterns, *([known["listing"]] if known["listing"] else [])]
        numbers = [(known["dim"], _MAX_DIM), (known["rows_per_part"], MAX_ROWS_PER_PART), (known["decoding"], _MAX_DIM)]
        is_valid = (
            all(isinstance(text, str) and text for text in texts)
            and all(type(number) is int and 1 <= number <= most for number, most in numbers)
            and isinstance(known["rule"], dict)
            and type(known["splits"]) is bool
            and known["listing"] != ""
            and is_sha256(known["model_sha256"])
        )
        patterns_of = {name: tuple(known[name]) for name in ("include", "exclude")} if is_valid else {}
        return cls(**{**known, **patterns_of}) if is_valid else None


def _listed(value: object) -> list[object]:
    return list(value) if isinstance(value, list) else [None]


def is_sha256(value: object) -> bool:
    """Tell whether a value, from a file, is a sha256 in hex."""
    return isinstance(value, str) and len(value) == 64 and not set(value) - set("0123456789abcdef")


def _damaged(name: str) -> EmbeddedFolderError:
    return EmbeddedFolderError(
        f"{name} is damaged; put it back from a copy, or delete the whole folder and embed the pictures again."
    )
