"""The squared distance beyond which a model's pictures are not similar any more, as its metadata states it.

Reading it opens no network and imports next to nothing: a query by a picture of the index needs no more.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import ModelFileError
from ..files import open_regular
from ..text import printable
from .records import MAX_METADATA, read_metadata

__all__ = ["read_unrelated_distance", "unrelated_distance_of"]

_FIELD = "unrelated_distance"
# The squared distance of opposite unit vectors.
_MAX_DISTANCE = 4.0


def unrelated_distance_of(values: Mapping[str, Any]) -> float | None:
    """Return the distance in untrusted metadata, checked; None if it states none.

    Raises:
        ModelFileError: it is no number above 0 and at most 4.

    """
    value = values.get(_FIELD)
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= _MAX_DISTANCE:
        # Only the type of a list or a table, which may be deep.
        shown = f"a {type(value).__name__}" if isinstance(value, dict | list) else printable(repr(value)[:60])
        raise ModelFileError(
            f"metadata with {_FIELD!r} = {shown}; expected a squared distance above 0, at most {_MAX_DISTANCE:g}"
        )
    return float(value)


def read_unrelated_distance(model: Path) -> float | None:
    """Read the distance of an untrusted model file in a fraction of a millisecond.

    Returns:
        None, too, if the file or its metadata cannot be read.

    """
    try:
        with open_regular(model, follow_links=True) as file:
            text = read_metadata(file)
        if text is None or len(text) > MAX_METADATA:
            return None
        values = json.loads(text)
        return unrelated_distance_of(values) if isinstance(values, dict) else None
    except (OSError, ValueError, RecursionError, ModelFileError):
        return None
