"""The metadata of a model file (Contract 2): JSON from an untrusted file, checked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, cast

from ..errors import ModelFileError
from ..pictures.rule import FILTERS, MAX_RESIZE, MODES, RULE_VERSIONS, PictureRule
from ..text import printable
from .records import MAX_METADATA, METADATA_KEY
from .unrelated_distance import unrelated_distance_of

__all__ = ["MAX_LICENSE", "METADATA_KEY", "SCHEMA", "ModelInfo"]

SCHEMA = 1
PRECISIONS = ("fp32", "fp16", "int8")

# Side of a picture in pixels: a batch of one is 12 MB as bytes, and 48 MB as floats.
_MAX_SIDE = 2048
_MAX_DIM = 65536
# Characters of a license: an SPDX identifier, or a few of them.
MAX_LICENSE = 200
_MAX_NESTED = 32


@dataclass(frozen=True)
class ModelInfo:
    """A model file's metadata; the JSON under ``METADATA_KEY``.

    ``training`` summarises the training data and options, ``metrics`` are those of the PyTorch
    reference, ``versions`` the software that made the file. ``license`` is an SPDX identifier or a
    short text; empty if the file states none. Pictures farther apart than ``unrelated_distance``
    (squared Euclidean, above 0, at most 4) are not similar any more; None if that was not measured.
    Files of earlier versions have neither.
    """

    name: str
    embedding_dim: int
    picture: PictureRule
    backbone: str
    classes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "fp32"
    versions: Mapping[str, str] = field(default_factory=dict)
    license: str = ""
    unrelated_distance: float | None = None
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Return the JSON text for the file."""
        return json.dumps({**asdict(self), "picture": self.picture.values()}, ensure_ascii=False, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Read untrusted JSON, checking every type and range.

        Raises:
            ModelFileError: names the field, its value and the expectation.

        """
        values = _json_object(text)
        schema = _field(values, "schema", int)
        if schema > SCHEMA:
            raise ModelFileError(
                f"metadata of schema {_shown(schema)}, newer than this version reads (up to {SCHEMA}); "
                "upgrade deep-ranking"
            )
        if schema < 1:
            raise ModelFileError(f"metadata of schema {_shown(schema)}; expected 1 to {SCHEMA}")
        return cls(
            name=_field(values, "name", str),
            embedding_dim=_bounded(values, "embedding_dim", _MAX_DIM),
            picture=_picture_rule(_field(values, "picture", dict)),
            backbone=_field(values, "backbone", str),
            classes=_strings("class names", _field(values, "classes", list)),
            training=_shallow(values, "training"),
            metrics=_shallow(values, "metrics"),
            precision=_one_of(values, "precision", PRECISIONS),
            versions=_versions(_field(values, "versions", dict)),
            license=_license(values),
            unrelated_distance=unrelated_distance_of(values),
            schema=schema,
        )


def _json_object(text: str) -> dict[str, Any]:
    if len(text) > MAX_METADATA:
        raise ModelFileError(f"metadata of {len(text):,} characters; expected at most {MAX_METADATA:,}")
    try:
        values = json.loads(text)
        # an escaped lone surrogate cannot be encoded
        json.dumps(values, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"metadata that is not JSON ({printable(str(error)[:200])})") from None
    if not isinstance(values, dict):
        raise ModelFileError(f"metadata of type {type(values).__name__}; expected a JSON object")
    return values


def _field(values: Mapping[str, Any], key: str, kind: type) -> Any:
    value = values.get(key)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ModelFileError(f"metadata with {key!r} = {_shown(value)}; expected {kind.__name__}")
    return value


def _shown(value: object) -> str:
    if isinstance(value, dict | list):  # at any depth
        return f"a {type(value).__name__}"
    return printable(repr(value)[:60])


def _shallow(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = cast(dict[str, Any], _field(values, key, dict))
    if _is_deeper(value, _MAX_NESTED):
        raise ModelFileError(f"metadata with {key!r} nested more than {_MAX_NESTED} deep")
    return value


def _is_deeper(value: object, levels: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return levels == 0 or any(_is_deeper(one, levels - 1) for one in inner)


def _bounded(values: Mapping[str, Any], key: str, largest: int) -> int:
    value = cast(int, _field(values, key, int))
    if not 1 <= value <= largest:
        raise ModelFileError(f"metadata with {key!r} = {_shown(value)}; expected 1 to {largest}")
    return value


def _one_of(values: Mapping[str, Any], key: str, allowed: tuple[str, ...]) -> Any:
    value = _field(values, key, str)
    if value not in allowed:
        raise ModelFileError(f"metadata with {key!r} = {_shown(value)}; expected one of {', '.join(allowed)}")
    return value


def _strings(what: str, values: Iterable[Any]) -> tuple[str, ...]:
    strings = tuple(values)
    if not all(isinstance(value, str) for value in strings):
        raise ModelFileError(f"metadata with {what} that are not all text")
    return strings


def _versions(values: dict[str, Any]) -> dict[str, str]:
    return dict(zip(values, _strings("versions", values.values()), strict=True))


def _license(values: Mapping[str, Any]) -> str:
    text = cast(str, _field({"license": "", **values}, "license", str))
    if len(text) > MAX_LICENSE:
        raise ModelFileError(f"metadata with a 'license' of {len(text):,} characters; expected at most {MAX_LICENSE}")
    return text


def _picture_rule(values: dict[str, Any]) -> PictureRule:
    version = _field(values, "version", int)
    if version not in RULE_VERSIONS:
        raise ModelFileError(
            f"picture rule {_shown(version)}; this version knows {' and '.join(map(str, RULE_VERSIONS))}. "
            "Use the deep-ranking it needs"
        )
    size = _bounded(values, "size", _MAX_SIDE)
    return PictureRule(
        size=size,
        mode=_one_of(values, "mode", MODES[version]),
        filter=_one_of(values, "filter", FILTERS[version]),
        version=version,
        resize=_resize(values, size) if version > 1 else 0,
        fill=_fill(values) if version > 1 else (0, 0, 0),
    )


def _resize(values: Mapping[str, Any], size: int) -> int:
    value = cast(int, _field(values, "resize", int))
    largest = min(MAX_RESIZE * size, _MAX_SIDE)
    if value != 0 and not size <= value <= largest:
        raise ModelFileError(f"metadata with 'resize' = {_shown(value)}; expected 0, or {size} to {largest}")
    return value


def _fill(values: Mapping[str, Any]) -> tuple[int, int, int]:
    levels = cast(list[Any], _field(values, "fill", list))
    if len(levels) != 3 or not all(type(level) is int and 0 <= level <= 255 for level in levels):
        raise ModelFileError("metadata with a 'fill' that is not three whole numbers of 0 to 255")
    return levels[0], levels[1], levels[2]
